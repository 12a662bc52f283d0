"""The mount system calls that Python does not have.

Owns their numbers and flags; each function raises OSError with the errno and the path. Paths are decoded as by
`os.fsdecode`. Nothing here waits for a file system to answer, except where a docstring says so.
"""

import ctypes
import os
from typing import Final

MNT_DETACH: Final = 2
UMOUNT_NOFOLLOW: Final = 8
MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_NOATIME: Final = 1024
MS_NODIRATIME: Final = 2048
MS_BIND: Final = 4096
MS_PRIVATE: Final = 1 << 18
_MS_REC: Final = 1 << 14
_MS_SLAVE: Final = 1 << 19
_CLONE_NEWNS: Final = 0x20000

_OPEN_TREE: Final = 428
_MOVE_MOUNT: Final = 429
"""System call numbers newer than the common table's start (Linux 5.1): the same on every architecture."""
_OPEN_TREE_CLONE: Final = 1
_MOVE_MOUNT_F_EMPTY_PATH: Final = 4
_MOVE_MOUNT_BENEATH: Final = 0x200
_AT_FDCWD: Final = -100

_libc = ctypes.CDLL(None, use_errno=True)


def umount(path: str) -> None:
    """Detach the topmost mount at ``path`` lazily: what is open stays usable, the name is free at once (umount2(2))."""
    _check(_libc.umount2(os.fsencode(path), MNT_DETACH | UMOUNT_NOFOLLOW), path)


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    """Mount ``source`` at ``target`` (mount(2))."""
    encoded = kind.encode() if kind else None
    number = ctypes.c_ulong(flags)
    result = _libc.mount(
        os.fsencode(source), os.fsencode(target), encoded, number, options.encode() or None
    )
    _check(result, target)


def bind_tree(source: str, target: str) -> None:
    """Bind ``source``, and what is mounted below it, over ``target``.

    Unmounting that unmounts nothing at ``source``. Resolves both, so it waits for their file systems.
    """
    mount(source, target, None, MS_BIND | _MS_REC)
    mount("none", target, None, _MS_REC | _MS_SLAVE)


def make_private(path: str) -> None:
    """Let mounts below ``path`` propagate to nowhere, and none come in (mount_namespaces(7))."""
    mount("none", path, None, MS_PRIVATE)


def leave_namespace() -> None:
    """Move this process to a mount namespace of its own: a copy, from which nothing propagates, in either direction."""
    _check(_libc.unshare(_CLONE_NEWNS), "the mount namespace")
    mount("none", "/", None, _MS_REC | MS_PRIVATE)


def clone_tree(path: str) -> int:
    """Return a descriptor of a new, unattached bind mount of ``path`` (open_tree(2), Linux 5.2).

    Resolves ``path``, so it waits for the file systems on the way.
    """
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC
    fd = _libc.syscall(_OPEN_TREE, _AT_FDCWD, os.fsencode(path), ctypes.c_uint(flags))
    _check(fd, path)
    return int(fd)


def attach_tree(fd: int, target: str, *, beneath: bool) -> None:
    """Mount what `clone_tree` returned at ``target`` (move_mount(2)).

    ``beneath`` puts it under the mount that is there, which stays in view until it is detached (Linux 6.5); EINVAL
    where the kernel cannot.
    """
    flags = _MOVE_MOUNT_F_EMPTY_PATH | (_MOVE_MOUNT_BENEATH if beneath else 0)
    number = ctypes.c_uint(flags)
    _check(_libc.syscall(_MOVE_MOUNT, fd, b"", _AT_FDCWD, os.fsencode(target), number), target)


def _check(result: int, path: str) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)
