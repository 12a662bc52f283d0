"""What the kernel is told about a file, and for how long it may believe it.

Owns the timeouts. They are the promise that a change made in the store itself shows within 100 ms (I13) and that one
of a bundle shows at once (I1); and nothing the kernel does by itself outlives them.
"""

import errno
import os
import stat

import pyfuse3

PASSED_THROUGH_SECONDS = 0.05
"""How long names and attributes of the store's files may be taken from the kernel's memory."""

WATCHED_SECONDS = 3600.0
"""The same for the attributes of a directory whose every change is heard of, and told to the kernel."""

_FIRST_KERNEL = (5, 10)
"""Since 5.8 an answer that was on its way when attributes were invalidated does not make them valid again."""

SYNTHETIC_ATTRIBUTES_SECONDS = 3600.0
"""The attributes of a generation never change: a new one is a new inode."""

_BLOCK = 512


def forgets_for_good(release: str) -> bool:
    """Whether a kernel of this release (uname(2)) does not believe what was said before it was told to forget."""
    parts = release.replace("-", ".").split(".")
    version = tuple(int(part) for part in parts[:2] if part.isdecimal())
    return len(version) == len(_FIRST_KERNEL) and version >= _FIRST_KERNEL


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
    number: int,
    size: int,
    time_ns: int,
    *,
    mode: int = 0o644,
    owner: tuple[int, int] | None = None,
) -> pyfuse3.EntryAttributes:
    """Return the attributes of a file of our own making; its name is asked for anew at every open (I1)."""
    entry = _synthetic(number, stat.S_IFREG | mode, time_ns)
    if owner is not None:
        entry.st_uid, entry.st_gid = owner
    entry.st_size = size
    entry.st_blocks = -(-size // _BLOCK)
    return entry


def of_directory(number: int, time_ns: int, *, mode: int = 0o755) -> pyfuse3.EntryAttributes:
    """Return the attributes of a directory of our own making."""
    entry = _synthetic(number, stat.S_IFDIR | mode, time_ns)
    entry.st_nlink = 2
    return entry


def _synthetic(number: int, mode: int, time_ns: int) -> pyfuse3.EntryAttributes:
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = number
    entry.entry_timeout = 0
    entry.attr_timeout = SYNTHETIC_ATTRIBUTES_SECONDS
    entry.st_mode = mode
    entry.st_uid, entry.st_gid = os.geteuid(), os.getegid()
    entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = time_ns
    return entry


def unchanged(
    entry: pyfuse3.EntryAttributes, attr: pyfuse3.EntryAttributes, fields: pyfuse3.SetattrFields
) -> pyfuse3.EntryAttributes:
    """Return the attributes of an immutable file if ``fields`` of ``attr`` change nothing of them; EPERM otherwise."""
    changes = (
        fields.update_size
        or fields.update_atime
        or fields.update_mtime
        or (fields.update_mode and stat.S_IMODE(attr.st_mode) != stat.S_IMODE(entry.st_mode))
        or (fields.update_uid and attr.st_uid != entry.st_uid)
        or (fields.update_gid and attr.st_gid != entry.st_gid)
    )
    if changes:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
    return entry
