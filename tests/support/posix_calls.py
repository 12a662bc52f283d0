"""POSIX operations as values, and how each is carried out on one directory.

Owns what the differential test can do and what it looks at afterwards. Must
not know where operations come from (posix_plan) or with what they are compared
(differential).
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, field

Value = int | bytes
Observed = tuple[object, ...]

_DAY = 86_400
_TICK = 0.011
"""Seconds after which a change has another time stamp, whatever the kernel's clock tick."""


@dataclass(frozen=True, slots=True)
class Op:
    """One operation by one user; the same value is carried out on both directories."""

    user: int
    call: str
    paths: tuple[bytes, ...] = ()
    """Relative to the directory. Nothing here or in a link ever leads out of it."""
    slots: tuple[int, ...] = ()
    """Numbers of the user's open files."""
    values: tuple[Value, ...] = ()
    watch: bool = False
    """Whether it is also observed which time stamps the call changes (costs 11 ms)."""


@dataclass(slots=True)
class Side:
    """One of the two directories as one user sees it: its path and the user's open files."""

    root: bytes
    handles: dict[int, int] = field(default_factory=dict)

    def path(self, relative: bytes) -> bytes:
        """Give the path that system calls take."""
        return self.root + b"/" + relative

    def handle(self, slot: int) -> int:
        """Give an open file, or one that is certainly closed."""
        return self.handles.get(slot, 9_999)

    def put(self, slot: int, handle: int) -> None:
        """Keep an open file, in place of the one that was there."""
        self.close(slot)
        self.handles[slot] = handle

    def close(self, slot: int) -> None:
        """Close an open file, if there is one."""
        if slot in self.handles:
            os.close(self.handles.pop(slot))

    def close_all(self) -> None:
        """Close every open file."""
        for slot in list(self.handles):
            self.close(slot)


Call = Callable[[Side, Op], object]
CALLS: dict[str, Call] = {}


def call(function: Call) -> Call:
    """Add a function to the table of operations, under its own name."""
    CALLS[function.__name__.rstrip("_")] = function
    return function


def integer(value: Value) -> int:
    """Take a value of an operation as a number."""
    assert isinstance(value, int)
    return value


def data(value: Value) -> bytes:
    """Take a value of an operation as bytes."""
    assert isinstance(value, bytes)
    return value


# -- what is looked at -----------------------------------------------------------


def time_class(nanoseconds: int) -> str | int:
    """Give a time that was set as it is, and one that means "just now" as that."""
    return "now" if abs(nanoseconds / 1e9 - time.time()) < _DAY else nanoseconds


def describe(status: os.stat_result) -> Observed:
    """Give what must be equal of two files; times by class, no inode numbers.

    The times of a FIFO change with writes that a filesystem in user space never sees.
    """
    directory = stat.S_ISDIR(status.st_mode)
    return (
        oct(status.st_mode),
        status.st_nlink,
        status.st_uid,
        status.st_gid,
        "directory" if directory else status.st_size,
        "fifo" if stat.S_ISFIFO(status.st_mode) else time_class(status.st_mtime_ns),
        status.st_rdev,
    )


def observe(side: Side, op: Op) -> Observed:
    """Look at the names and open files of an operation."""
    seen: list[object] = []
    for relative in op.paths:
        for path in (side.path(relative), os.path.dirname(side.path(relative.rstrip(b"/")))):
            try:
                seen.append(describe(os.lstat(path)))
            except OSError as error:
                seen.append(errno.errorcode.get(error.errno or 0))
    seen.extend(describe(os.fstat(side.handles[slot])) for slot in op.slots if slot in side.handles)
    return tuple(seen)


def _stamps(side: Side, op: Op) -> list[tuple[int, int] | None]:
    stamps: list[tuple[int, int] | None] = []
    for relative in op.paths:
        for path in (side.path(relative), os.path.dirname(side.path(relative.rstrip(b"/")))):
            try:
                status = os.lstat(path)
            except OSError:
                stamps.append(None)
            else:
                stamps.append((status.st_mtime_ns, status.st_ctime_ns))
    return stamps


def carry_out(side: Side, op: Op) -> Observed:
    """Do an operation; give its result or errno and what is to be seen afterwards."""
    before = _stamps(side, op) if op.watch else []
    if op.watch:
        time.sleep(_TICK)
    try:
        result = CALLS[op.call](side, op)
    except OSError as error:
        result = errno.errorcode.get(error.errno or 0, error.errno)
    except ValueError as error:  # an embedded NUL, an empty mapping: the same on both sides
        result = type(error).__name__
    observed = observe(side, op)
    if op.watch:
        changed = [
            None if was is None or now is None else (was[0] != now[0], was[1] != now[1])
            for was, now in zip(before, _stamps(side, op), strict=True)
        ]
        observed = (*observed, tuple(changed))
    return (result, observed)
