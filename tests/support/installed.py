"""Which certfs the tests test: the checkout's, or an installed tree (`scripts/package --test`).

Owns where the package's files are, and the check that a run which is to test a tree tests that tree and no other.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import certfs

PACKAGE: Final = Path(certfs.__file__).parent
"""The files of the package under test. The directory of the tests may have none beside it."""
VARIABLE: Final = "CERTFS_TEST_PREFIX"
"""Environment variable with the directory of the tree that is to be tested; without it, the checkout is."""


def prefix() -> Path | None:
    """Give the directory of the installed tree that is tested; None for a checkout."""
    return Path(os.environ[VARIABLE]) if VARIABLE in os.environ else None


def wrong() -> Iterator[str]:
    """Say what of this process is not of the tree that is to be tested; nothing where the checkout is tested."""
    tree = prefix()
    if tree is None:
        return
    program = Path(sys.executable).with_name("certfs")
    for what, path in (
        ("certfs is imported from", PACKAGE),
        ("the interpreter is", Path(sys.executable).resolve()),
        ("the prefix is", Path(sys.prefix)),
        ("the command is", program.resolve()),
    ):
        if not path.is_relative_to(tree):
            yield f"{what} {path}, not of {tree}"
    if not os.access(program, os.X_OK):
        yield f"there is no command {program}"
    beside = Path(__file__).parents[2] / "certfs"
    if beside.exists():
        yield f"{beside} could be imported in its place"
