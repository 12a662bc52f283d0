"""What the kernel is told about a file, and for how long it may believe it.

Owns the timeouts. They are the promise that a change made in the store itself shows within 100 ms (I13) and that one
of a bundle shows at once (I1); and nothing the kernel does by itself outlives them.
"""

import os
import stat

import pyfuse3

PASSED_THROUGH_SECONDS = 0.05
"""How long names and attributes of the store's files may be taken from the kernel's memory."""

SYNTHETIC_ATTRIBUTES_SECONDS = 3600.0
"""The attributes of a generation never change: a new one is a new inode."""

_BLOCK = 512


def from_status(
    status: os.stat_result, number: int, *, entry_timeout: float
) -> pyfuse3.EntryAttributes:
    """Return the attributes of a file of the store."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = number
    entry.entry_timeout = entry_timeout
    entry.attr_timeout = PASSED_THROUGH_SECONDS
    entry.st_mode = status.st_mode
    entry.st_nlink = status.st_nlink
    entry.st_uid = status.st_uid
    entry.st_gid = status.st_gid
    entry.st_rdev = status.st_rdev
    entry.st_size = status.st_size
    entry.st_blksize = status.st_blksize
    entry.st_blocks = status.st_blocks
    entry.st_atime_ns = status.st_atime_ns
    entry.st_mtime_ns = status.st_mtime_ns
    entry.st_ctime_ns = status.st_ctime_ns
    return entry


def of_content(
    number: int, size: int, time_ns: int, owner: tuple[int, int], *, mode: int = 0o644
) -> pyfuse3.EntryAttributes:
    """Return the attributes of a file of our own making; its name is asked for anew at every open (I1)."""
    entry = _synthetic(number, stat.S_IFREG | mode, time_ns, owner)
    entry.st_size = size
    entry.st_blocks = -(-size // _BLOCK)
    return entry


def of_directory(
    number: int, time_ns: int, owner: tuple[int, int], *, mode: int = 0o755
) -> pyfuse3.EntryAttributes:
    """Return the attributes of a directory of our own making."""
    entry = _synthetic(number, stat.S_IFDIR | mode, time_ns, owner)
    entry.st_nlink = 2
    return entry


def _synthetic(
    number: int, mode: int, time_ns: int, owner: tuple[int, int]
) -> pyfuse3.EntryAttributes:
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = number
    entry.entry_timeout = 0
    entry.attr_timeout = SYNTHETIC_ATTRIBUTES_SECONDS
    entry.st_mode = mode
    entry.st_uid, entry.st_gid = owner
    entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = time_ns
    return entry
