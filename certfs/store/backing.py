"""System calls on the store that Python does not have, or has only by path.

Owns dirfd-relative access to the directories beneath the mount. A descriptor opened with O_PATH stands for an inode;
``/proc/self/fd/N`` turns it into a path for the calls that take no descriptor (proc(5)), without following a link in
the last place, because the kernel jumps straight to the inode.
"""

import ctypes
import errno
import os
import struct
from typing import NamedTuple

from certfs.safe_open import LinkRefusedError
from certfs.store.cached import names_by

O_PATH_NOFOLLOW = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4
UTIME_OMIT = (1 << 30) - 2
_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_AT_STATX_DONT_SYNC = 0x4000
_STATX_BASIC = 0x7FF
_OPEN_TREE = 428
_OPEN_TREE_CLONE = 1
"""The numbers of openat2(2)'s generation are the same for every architecture but alpha."""
_STATX = struct.Struct("=28xH2xQ96xII112x")
"""Of struct statx: stx_mode, stx_ino, stx_dev_major and stx_dev_minor."""
_STAMP = struct.Struct("=QQqqq")
_TIME = struct.Struct("=q")

_libc = ctypes.CDLL(None, use_errno=True)
_RENAMEAT2_NUMBERS = {"x86_64": 316, "aarch64": 276}
_ENOSYS_NUMBER = -1
"""A number that no system call has: the kernel answers ENOSYS."""


class RenameAt2:
    """renameat2(2), which the C library has since glibc 2.28; with an older one, or another, by syscall(2)."""

    def __init__(self, libc: ctypes.CDLL, machine: str) -> None:
        arguments = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
        self._first: tuple[int, ...] = ()
        try:
            self._function = libc.renameat2
        except AttributeError:
            self._first = (_RENAMEAT2_NUMBERS.get(machine, _ENOSYS_NUMBER),)
            self._function = libc[
                "syscall"
            ]  # by item: an object of its own, with argtypes of its own
            self._function.argtypes = (ctypes.c_long, *arguments)
        else:
            self._function.argtypes = arguments

    def __call__(
        self, old_directory: int, old: bytes, new_directory: int, new: bytes, flags: int
    ) -> int:
        """Call it; 0, or -1 with the errno of the C library set."""
        arguments = (old_directory, old, new_directory, new, flags)
        return int(self._function(*self._first, *arguments))


_renameat2 = RenameAt2(_libc, os.uname().machine)


_libc.syscall.restype = ctypes.c_long
_statx = getattr(_libc, "statx", None)
"""None with a C library from before 2018 (glibc 2.28)."""


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


_libc.utimensat.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(_Timespec), ctypes.c_int)


class FileId(NamedTuple):
    """What identifies an inode while it exists: device and inode number (stat(2)).

    A tuple because every request makes and hashes one: a frozen dataclass takes five times as long for both.
    """

    device: int
    inode: int


def file_id(status: os.stat_result) -> FileId:
    """Return the identity of the inode that ``status`` is of."""
    return FileId(status.st_dev, status.st_ino)


def identity(fd: int) -> tuple[FileId, int]:
    """Return the identity and the mode of a descriptor's inode as the kernel knows them, without asking a server.

    A file system over a network or of another process may not answer; neither of the two ever changes (statx(2)).
    """
    buffer = ctypes.create_string_buffer(_STATX.size)
    if _statx is None or _statx(
        fd, b"", _AT_EMPTY_PATH | _AT_STATX_DONT_SYNC, _STATX_BASIC, buffer
    ):
        status = os.stat(fd)
        return file_id(status), status.st_mode
    mode, inode, major, minor = _STATX.unpack(buffer.raw)
    return FileId(os.makedev(major, minor), inode), mode


def unpin(directory: int) -> None:
    """Let a descriptor, which stays the same directory's, not keep its mount from being unmounted.

    An open file makes umount(8) fail with EBUSY. One of a copy of the mount does not (open_tree(2)); that takes Linux
    5.2 and the right to mount, and without them nothing changes.
    """
    copy = _libc.syscall(
        _OPEN_TREE, directory, b"", _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_EMPTY_PATH
    )
    if copy >= 0:
        os.dup2(copy, directory, inheritable=False)
        os.close(copy)


def stamp(status: os.stat_result) -> bytes:
    """Return what changes whenever the file's content may have: identity, size, mtime and ctime, packed."""
    return _STAMP.pack(
        status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    )


def stamp_of_data(stamp: bytes) -> bytes:
    """Return the part of a stamp that chmod(2) and chown(2) leave alone: all but the ctime."""
    return stamp[: -_TIME.size]


def stamp_head(inode: FileId) -> bytes:
    """Return what every stamp of this inode begins with."""
    return _STAMP.pack(inode.device, inode.inode, 0, 0, 0)[:16]


def fd_path(fd: int) -> str:
    """Return a path to the very inode that ``fd`` stands for."""
    return f"/proc/self/fd/{fd}"


def open_quietly(path: str, flags: int) -> int:
    """Open ``path``; O_NOATIME, which the owner alone may have, is a wish (open(2))."""
    try:
        return os.open(path, flags)
    except PermissionError:
        if not flags & os.O_NOATIME:
            raise
        return os.open(path, flags & ~os.O_NOATIME)


def list_names(fd: int, flags: int) -> list[bytes]:
    """Return the names in the directory of an O_PATH descriptor, opened with these flags as well."""
    directory = open_quietly(fd_path(fd), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | flags)
    try:
        return names_by(directory)
    finally:
        os.close(directory)


def rename(old_directory: int, old: bytes, new_directory: int, new: bytes, flags: int = 0) -> None:
    """renameat2(2); OSError with its errno."""
    if flags == 0:
        os.rename(old, new, src_dir_fd=old_directory, dst_dir_fd=new_directory)
    elif _renameat2(old_directory, old, new_directory, new, flags) != 0:
        raise _error()


def set_times(fd: int, atime_ns: int | None, mtime_ns: int | None) -> None:
    """Set the times of the inode of an O_PATH descriptor, in nanoseconds; None leaves one as it is (utimensat(2))."""
    times = (_Timespec * 2)(*(_timespec(time) for time in (atime_ns, mtime_ns)))
    if _libc.utimensat(_AT_FDCWD, fd_path(fd).encode(), times, 0) != 0:
        raise _error()


def _timespec(time_ns: int | None) -> _Timespec:
    if time_ns is None:
        return _Timespec(0, UTIME_OMIT)
    return _Timespec(*divmod(time_ns, 10**9))


def _error() -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code))


def status_at(directory: int, name: bytes) -> os.stat_result | None:
    """Return the status of ``name`` itself (a link is not followed), None where there is nothing of this name."""
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None


def describe(error: OSError) -> str:
    """Return an error for people, without the path that the kernel was given."""
    if error.errno == errno.ELOOP and not isinstance(error, LinkRefusedError):
        return "too many symbolic links"
    return error.strerror or str(error)
