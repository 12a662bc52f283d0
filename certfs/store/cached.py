"""Looking at the store without waiting for it.

Owns what the event loop may do itself: find a name that the kernel has in memory, never across a mount point, and know
whether a file system is a local one. Everything else may wait for a disk, a network or another FUSE server for ever,
and is for a thread.
"""

import ctypes
import errno
import os
from itertools import islice
from typing import Final

from certfs.safe_open import file_system_type

_RESOLVE_NO_XDEV = 0x01
_RESOLVE_CACHED = 0x20
_OPENAT2 = 437
"""The number of openat2(2), the same for every architecture but alpha."""
_OPEN_FLAGS = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC

MOST_NAMES: Final = 1 << 18
"""Of a directory that is not on a local file system."""
_LOCAL = frozenset(
    {
        0xEF53,  # ext2, ext3, ext4
        0x58465342,  # XFS
        0x9123683E,  # Btrfs
        0x01021994,  # tmpfs
        0x858458F6,  # ramfs
        0x794C7630,  # overlayfs
        0xF2F52010,  # F2FS
        0xCA451A4E,  # bcachefs
        0x2FC12FC1,  # ZFS
        0x3153464A,  # JFS
        0x52654973,  # ReiserFS
        0x73717368,  # SquashFS
        0xE0F5E1E2,  # EROFS
    }
)
"""The types (statfs(2)) whose inodes in memory are looked at without asking anybody."""


class _How(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


# PyDLL: it does not wait, and letting go of the interpreter's lock takes longer than the call.
_libc = ctypes.PyDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.fstatfs.argtypes = (ctypes.c_int, ctypes.c_void_p)
_RWF_NOWAIT: Final[int | None] = getattr(os, "RWF_NOWAIT", None)
"""None with a Python that was built with glibc before 2.26, whose preadv() takes no flags either."""
_IN_MEMORY = _How(_OPEN_FLAGS, 0, _RESOLVE_CACHED | _RESOLVE_NO_XDEV)
_ON_THIS_MOUNT = _How(_OPEN_FLAGS, 0, _RESOLVE_NO_XDEV)


def open_cached(directory: int, name: bytes) -> int:
    """Return an O_PATH descriptor of what ``name`` itself is, if the kernel can tell from memory.

    BlockingIOError if it cannot, if the name is a mount point, or if the kernel is older than openat2(2) with
    RESOLVE_CACHED (Linux 5.12); another OSError if there is nothing of that name.
    """
    fd = _libc.syscall(_OPENAT2, directory, name, ctypes.byref(_IN_MEMORY), ctypes.sizeof(_How))
    if fd >= 0:
        return int(fd)
    code = ctypes.get_errno()
    if code in {errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EPERM}:
        code = errno.EAGAIN
    raise OSError(code, os.strerror(code))


def status_cached(directory: int, name: bytes) -> os.stat_result:
    """Return the status of ``name`` itself if that needs no waiting, on a local file system; errors as above."""
    fd = open_cached(directory, name)
    try:
        return os.stat(fd)
    finally:
        os.close(fd)


def status_on_mount(directory: int, name: bytes) -> tuple[os.stat_result, bool]:
    """Return the status of ``name`` itself, and whether it is on the same mount as the directory; blocks."""
    fd = _libc_waiting.syscall(
        _OPENAT2, directory, name, ctypes.byref(_ON_THIS_MOUNT), ctypes.sizeof(_How)
    )
    if fd >= 0:
        try:
            return os.stat(fd), True
        finally:
            os.close(fd)
    status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    # Without openat2(2) a mount of the same file system is taken for a directory of it, which is as good to ask.
    is_old = ctypes.get_errno() != errno.EXDEV
    return status, is_old and status.st_dev == os.stat(directory).st_dev


def read_cached(fd: int, length: int, offset: int) -> bytes:
    """Return what pread(2) does if all of it is in memory; BlockingIOError otherwise."""
    length = min(length, os.fstat(fd).st_size - offset)
    if length <= 0:
        return b""
    if _RWF_NOWAIT is None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    buffer = bytearray(length)
    try:
        count = os.preadv(fd, [buffer], offset, _RWF_NOWAIT)
    except OSError as e:
        if e.errno not in {errno.EOPNOTSUPP, errno.ENOSYS}:
            raise
        count = 0
    if count < length:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return bytes(buffer)


def is_local(fd: int) -> bool:
    """Whether a descriptor is of a file system that asks nobody else; blocks if it is not.

    One that does not say what it is, such as another user's, does ask.
    """
    try:
        return file_system_type(fd) in _LOCAL
    except OSError:
        return False


def names_in(directory: int) -> list[bytes]:
    """Return the names in a directory; OSError, EFBIG for too many of a file system that can make up names for ever."""
    return _names(directory, f"/proc/self/fd/{directory}")


def names_by(opened: int) -> list[bytes]:
    """Return the names in a directory as `names_in`, read by this descriptor itself, which may have O_NOATIME."""
    return _names(opened, opened)


def _names(directory: int, place: int | str) -> list[bytes]:
    if is_local(directory):
        return [os.fsencode(name) for name in os.listdir(place)]
    with os.scandir(place) as entries:
        names = [os.fsencode(entry.name) for entry in islice(entries, MOST_NAMES + 1)]
    if len(names) > MOST_NAMES:
        raise OSError(errno.EFBIG, f"a directory of more than {MOST_NAMES} names", place)
    return names


_libc_waiting = ctypes.CDLL(None, use_errno=True)
_libc_waiting.syscall.restype = ctypes.c_long
