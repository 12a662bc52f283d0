"""System calls that Python's os module does not have, with the errno they fail with.

Owns the few ctypes declarations of the tests.
"""

from __future__ import annotations

import ctypes
import os
from enum import IntFlag

_LIBC = ctypes.CDLL(None, use_errno=True)
AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
UTIME_NOW = (1 << 30) - 1
UTIME_OMIT = (1 << 30) - 2


class Rename(IntFlag):
    """Flags of renameat2(2)."""

    NONE = 0
    NOREPLACE = 1
    EXCHANGE = 2
    WHITEOUT = 4


class Fallocate(IntFlag):
    """Flags of fallocate(2)."""

    NONE = 0
    KEEP_SIZE = 1
    PUNCH_HOLE = 2


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def _checked(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def renameat2(source: bytes, target: bytes, flags: int) -> None:
    """Rename with flags, which os.rename does not take."""
    _checked(_LIBC.renameat2(AT_FDCWD, source, AT_FDCWD, target, ctypes.c_uint(flags)))


def fallocate(handle: int, mode: int, offset: int, length: int) -> None:
    """Allocate or punch; unlike posix_fallocate, never emulated by the C library."""
    _checked(_LIBC.fallocate(handle, mode, ctypes.c_long(offset), ctypes.c_long(length)))


class _Dirent(ctypes.Structure):
    _fields_ = (
        ("d_ino", ctypes.c_uint64),
        ("d_off", ctypes.c_int64),
        ("d_reclen", ctypes.c_uint16),
        ("d_type", ctypes.c_uint8),
        ("d_name", ctypes.c_char * 256),
    )


_LIBC.opendir.argtypes = (ctypes.c_char_p,)
_LIBC.opendir.restype = ctypes.c_void_p
_LIBC.closedir.argtypes = _LIBC.readdir.argtypes = (ctypes.c_void_p,)
_LIBC.readdir.restype = ctypes.POINTER(_Dirent)


def inodes_of_entries(directory: bytes) -> dict[bytes, int]:
    """Give what readdir(3) says of each name, the dots included, which os.scandir leaves out."""
    stream = _LIBC.opendir(directory)
    found = {}
    while entry := _LIBC.readdir(stream):
        found[entry.contents.d_name] = int(entry.contents.d_ino)
    _LIBC.closedir(stream)
    return found


def utimensat(
    path: bytes, access: tuple[int, int], modification: tuple[int, int], flags: int = 0
) -> None:
    """Set times as (seconds, nanoseconds), where nanoseconds may be UTIME_NOW or UTIME_OMIT."""
    times = (_Timespec * 2)(_Timespec(*access), _Timespec(*modification))
    _checked(_LIBC.utimensat(AT_FDCWD, path, times, flags))


def futimens(handle: int, access: tuple[int, int], modification: tuple[int, int]) -> None:
    """Set times of an open file, as `utimensat`."""
    times = (_Timespec * 2)(_Timespec(*access), _Timespec(*modification))
    _checked(_LIBC.futimens(handle, times))
