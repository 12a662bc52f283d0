"""Counting lines in the processes that tests start, at a cost that they can bear.

Owns what is different there from the process that runs the tests: modules that were never imported are its business,
and a process that was forked by a forked one counts once. As a plugin of coverage it is imported where coverage begins.

Coverage is imported only where lines are counted: it needs sqlite3, which the interpreter of an installed tree lacks.
"""

from __future__ import annotations

import contextlib
import functools
import os
import posix
import sys
from typing import NoReturn


def settings_of_children(settings: str, package: str) -> str:
    """Return coverage's settings (COVERAGE_PROCESS_CONFIG) with which a process counts the lines of `package`.

    Given a package by name, each process would look for all its modules at its end, to name those without a line. With
    ``patch = ["fork", "_exit"]`` each forked process is patched once more: its children have two counters, theirs four,
    and each of these is saved.
    """
    from coverage.config import CoverageConfig  # noqa: PLC0415 - see above

    config = CoverageConfig.deserialize(settings)
    config.source_pkgs = []
    config.run_include = [f"{package}/*"]
    config.patch = []
    config.plugins = [__name__]
    return config.serialize()


def coverage_init(_registry: object, _options: object) -> None:
    """Be told by coverage that it begins to count, in this process or after a fork."""
    _count_forks_once()


@functools.cache
def _count_forks_once() -> None:
    """Let each process that is forked from now on have one counter, saved when it ends."""
    from coverage.control import _after_fork_in_child  # noqa: PLC0415 - see above

    os.register_at_fork(after_in_child=_after_fork_in_child)
    os._exit = _save_and_end


def save() -> None:
    """Save what was counted so far, if this process counts."""
    if "coverage" not in sys.modules:
        return
    from coverage import Coverage  # noqa: PLC0415 - see above

    counter = Coverage.current()
    if counter is not None:
        counter.save()


def _save_and_end(status: int) -> NoReturn:
    with contextlib.suppress(Exception):
        save()
    posix._exit(status)  # which os._exit was before
