"""The mount system calls that Python does not have.

Owns their numbers and flags; each function raises OSError with the errno and the path. Paths are decoded as by
`os.fsdecode`. What is attached or detached is reached without following a link that another user can exchange: a
mountpoint may be in a user's directory. Nothing here waits for a file system to answer, except where a docstring says
so.
"""

import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from certfs.procfs import mount_of
from certfs.safe_open import closing, open_mountpoint

MNT_DETACH: Final = 2
MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_SYNCHRONOUS: Final = 16
MS_DIRSYNC: Final = 128
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
_MOVE_MOUNT_EMPTY_PATHS: Final = 4 | 0x40
"""Both ends are descriptors."""
_MOVE_MOUNT_BENEATH: Final = 0x200
_AT_FDCWD: Final = -100

_libc = ctypes.CDLL(None, use_errno=True)


def umount(path: str, device: str) -> None:
    """Detach the topmost mount at ``path`` lazily: what is open stays usable, the name is free at once (umount2(2)).

    OSError: EINVAL if that is none of ``device`` (``major:minor``): whoever owns a directory on the way can rename it,
    and have the path lead to the mount of somebody else.
    """
    with closing(open_mountpoint(path)) as fd:
        top = mount_of(fd)
        if top is None or top.device != device:
            raise OSError(errno.EINVAL, "another mount is there", path)
        _check(_libc.umount2(f"/proc/self/fd/{fd}".encode(), MNT_DETACH), path)


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    """Mount ``source`` at ``target`` (mount(2))."""
    encoded = kind.encode() if kind else None
    number = ctypes.c_ulong(flags)
    result = _libc.mount(
        os.fsencode(source), os.fsencode(target), encoded, number, options.encode() or None
    )
    _check(result, target)


def bind(source: str, target: str) -> None:
    """Bind ``source`` over ``target``, and nothing that is mounted below it."""
    _bind(source, target, MS_BIND)


def bind_tree(source: str, target: str) -> None:
    """Bind ``source``, and what is mounted below it, over ``target``.

    Unmounting that unmounts nothing at ``source``. Resolves both, so it waits for their file systems.
    """
    _bind(source, target, MS_BIND | _MS_REC)
    with _reached(target) as point:
        mount("none", point, None, _MS_REC | _MS_SLAVE)


def _bind(source: str, target: str, flags: int) -> None:
    with _reached(target) as point:
        mount(source, point, None, flags)


@contextmanager
def _reached(path: str) -> Iterator[str]:
    """Give a path that leads to the very mountpoint, or to what is mounted there, whatever is renamed meanwhile."""
    with closing(open_mountpoint(path)) as fd:
        yield f"/proc/self/fd/{fd}"


def make_private(path: str) -> None:
    """Let mounts below ``path`` propagate to nowhere, and none come in (mount_namespaces(7))."""
    mount("none", path, None, MS_PRIVATE)


def leave_namespace() -> None:
    """Move this process to a mount namespace of its own: a copy, from which nothing propagates, in either direction."""
    _check(_libc.unshare(_CLONE_NEWNS), "the mount namespace")
    try:
        mount("none", "/", None, _MS_REC | MS_PRIVATE)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # After chroot(2): our root is a directory of a mount, and no path that we have leads to the mount itself.
        with _root_of_the_namespace():
            mount("none", "/", None, _MS_REC | MS_PRIVATE)


@contextmanager
def _root_of_the_namespace() -> Iterator[None]:
    """Have the root directory of the mount namespace for our own; the working directory is our own root afterwards."""
    with closing(os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as own:
        with closing(os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)) as namespace:
            # Entering the namespace that we are in: that changes nothing but the two directories (setns(2)).
            _check(_libc.setns(namespace, _CLONE_NEWNS), "the mount namespace")
        try:
            yield
        finally:
            os.fchdir(own)
            os.chroot(".")


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
    flags = _MOVE_MOUNT_EMPTY_PATHS | (_MOVE_MOUNT_BENEATH if beneath else 0)
    with closing(open_mountpoint(target)) as point:
        _check(_libc.syscall(_MOVE_MOUNT, fd, b"", point, b"", ctypes.c_uint(flags)), target)


def _check(result: int, path: str) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)
