"""Counting lines in the processes that tests start, at a cost that they can bear.

Owns what is different there from the process that runs the tests: modules that were never imported are its business,
and a process that was forked by a forked one counts once.
"""

from __future__ import annotations

import contextlib
import os
import posix
from typing import NoReturn

import coverage
from coverage.config import CoverageConfig


def settings_of_children(settings: str, package: str) -> str:
    """Return coverage's settings (COVERAGE_PROCESS_CONFIG) with which a process counts the lines of `package`.

    Given a package by name, each process would look for all its modules at its end, to name those without a line.
    """
    config = CoverageConfig.deserialize(settings)
    config.source_pkgs = []
    config.run_include = [f"{package}/*"]
    return config.serialize()


def count_forks_once() -> None:
    """Save what was counted, and let each process that is forked from now on have one counter, saved when it ends.

    With ``patch = ["fork", "_exit"]`` each forked process is patched once more: its children have two counters, theirs
    four, and each of these is saved.
    """
    counter = coverage.Coverage.current()
    if counter is None:
        return
    counter.save()  # this process may end when all has been reported already
    counter.config.patch = []  # the counters of forked processes have these settings
    os._exit = _save_and_end


def _save_and_end(status: int) -> NoReturn:
    with contextlib.suppress(Exception):
        counter = coverage.Coverage.current()
        if counter is not None:
            counter.save()
    posix._exit(status)  # os._exit is this function, and what ran before
