"""One user of the differential test, in a process of its own.

Owns carrying out each operation on both sides and comparing the results there,
so that only a difference has to travel.
"""

from __future__ import annotations

import os
import re
import resource
import stat
from collections import Counter

from tests.support import posix_handles, posix_names
from tests.support.posix_calls import Observed, Op, Side, carry_out

TABLES = (posix_handles, posix_names)
"""The modules whose import fills the table of operations."""


_WRITES = frozenset({"write", "pwrite", "map_write", "copy_range"})
_FILE_MODE = re.compile(r"(0o10[0-7]{4})")


def _tolerable(expected: Observed, seen: Observed) -> bool:
    """Whether two results of a write differ by nothing but set-id bits that FUSE cannot keep.

    For root's server that is S_ISGID of a file that its group cannot execute. A server of
    somebody else cannot write back a mapping without losing both bits.
    """

    def cleared(mode: re.Match[str]) -> str:
        bits = int(mode[1], 8)
        if os.geteuid() != 0:
            bits &= ~(stat.S_ISUID | stat.S_ISGID)
        elif not bits & stat.S_IXGRP:
            bits &= ~stat.S_ISGID
        return oct(bits)

    return _FILE_MODE.sub(cleared, repr(expected)) == _FILE_MODE.sub(cleared, repr(seen))


_LARGEST = 16 << 20
"""The size beyond which every file system refuses to make a file larger, in bytes (setrlimit(2))."""


class Actor:
    """One user in a process of its own, at work on both sides."""

    def __init__(self) -> None:
        """Begin without any directory, and with a limit of sizes: a tmpfs would take any sparse file."""
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (_LARGEST, hard))
        self._sides: tuple[Side, Side] | None = None
        self._diverged = False
        self.results: Counter[str] = Counter()

    def enter(self, expected: bytes, seen: bytes) -> None:
        """Begin a sequence in two fresh directories."""
        self.leave()
        self._diverged = False
        os.umask(0o022)
        self._sides = (Side(expected), Side(seen))

    def leave(self) -> None:
        """Close everything that is open."""
        for side in self._sides or ():
            side.close_all()

    def perform(self, ops: list[Op]) -> tuple[int, Observed, Observed] | None:
        """Do operations until one ends differently: its number here, and both results.

        A write may take S_ISGID away from a file that its group cannot execute, which FUSE does
        not carry to a filesystem. From then on the two sides are not the same, so this user does
        nothing more in this round; `has_diverged` says so.
        """
        assert self._sides is not None
        for index, op in enumerate(ops):
            expected, seen = (carry_out(side, op) for side in self._sides)
            result = expected[0] if isinstance(expected[0], str) else "ok"
            self.results[f"{op.call} {result}"] += 1
            if expected != seen:
                if op.call in _WRITES and _tolerable(expected, seen):
                    self._diverged = True
                    return None
                return index, expected, seen
        return None

    def has_diverged(self) -> bool:
        """Whether a known limit made the two sides different in this round."""
        return self._diverged

    def count(self) -> Counter[str]:
        """Give how often each operation ended in which way."""
        return self.results
