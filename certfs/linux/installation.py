"""Which installation of certfs the next process is started from.

A package keeps each version in a directory of its own, with the link ``current`` beside them, so that an upgrade takes
no file from a process that runs. Such a process stays with the version that it was started from, and what it starts
is of the version that is current then. Owns that rule; anything else (a virtualenv, a checkout) starts itself.
"""

import os
import sys
from typing import Final

CURRENT: Final = "current"
ISOLATED: Final = "-I"
"""Keeps the current directory and the environment from adding modules: a host may set PYTHONPATH for its own."""


def current(prefix: str) -> str:
    """Return the prefix that takes the place of ``prefix``: itself, unless another version is current."""
    versions = os.path.dirname(os.path.abspath(prefix))
    link = os.path.join(versions, CURRENT)
    if not os.path.islink(link):
        return prefix
    target = os.path.realpath(link)
    beside = os.path.dirname(target) == os.path.realpath(versions)
    complete = all(os.access(f"{target}/bin/{name}", os.X_OK) for name in ("python3", "certfs"))
    return target if beside and complete else prefix


def interpreter() -> str:
    """Return the interpreter for a new process of certfs."""
    prefix = current(sys.prefix)
    return sys.executable if prefix == sys.prefix else f"{prefix}/bin/python3"


def program() -> str | None:
    """Return the command ``certfs`` by a path that an upgrade leaves right; None if there is none."""
    prefix = current(sys.prefix)
    link = os.path.join(os.path.dirname(prefix), CURRENT)
    if os.path.islink(link) and os.path.realpath(link) == os.path.realpath(prefix):
        prefix = link
    for directory in (f"{prefix}/bin", os.path.dirname(sys.executable)):
        command = os.path.join(directory, "certfs")
        if os.access(command, os.X_OK):
            return command
    return None
