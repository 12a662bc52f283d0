"""A further plain copy of a bundle, at a place of the admin's choice (``copy`` of a ``[[bundle]]``).

Owns writing it: atomically, only if it differs, and only where no other user could turn the path elsewhere. It is the
file to watch, and to hand to containers, on a host whose store is covered by the mount.
"""

import os
import stat
from collections.abc import Collection
from contextlib import suppress
from typing import Final

from certfs import procfs
from certfs.notifier.targets import RefusedError
from certfs.safe_open import closing

_MODE: Final = 0o644
_WRITABLE_BY_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def keep(path: str, data: bytes | None, *, store: Collection[int] = ()) -> bool:
    """Make the file at ``path`` hold ``data``, or not exist where there is none; whether anything had to be changed.

    ``store`` are open directories, in which it must not lie: in one of sources it would keep its certificates for ever.
    Raises `RefusedError` for a place that is not to be written to, OSError for one that cannot be.
    """
    directory = _open(os.path.dirname(path), store)
    name = os.path.basename(path)
    with closing(directory):
        if data is None:
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=directory)
                return True
            return False
        if _holds(directory, name, data):
            return False
        _replace(directory, name, data)
    return True


def _open(path: str, store: Collection[int]) -> int:
    """Open a directory component by component; each must be out of the reach of others."""
    fd = os.open("/", _DIRECTORY)
    walked = ""
    try:
        _check(fd, "/")
        for component in filter(None, path.split("/")):
            walked += f"/{component}"
            try:
                child = os.open(component, _DIRECTORY, dir_fd=fd)
            except NotADirectoryError:
                raise RefusedError(
                    f"{walked} is a link, or no directory: name the directory itself"
                ) from None
            os.close(fd)
            fd = child
            _check(fd, walked)
            _check_outside(fd, walked, store)
        _check_place(fd, path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check_outside(fd: int, shown: str, store: Collection[int]) -> None:
    if any(os.path.samestat(os.fstat(fd), os.fstat(tree)) for tree in store):
        raise RefusedError(f"{shown} is the store of this mount: name a place outside")


def _check_place(fd: int, shown: str) -> None:
    if os.fstat(fd).st_mode & _WRITABLE_BY_OTHERS:
        # The sticky bit keeps others from exchanging the copy, but not from making one where there is none.
        raise RefusedError(f"others may make files in {shown}: chmod go-w {shown}")
    mount = procfs.mount_of(fd)
    if mount is not None and mount.is_certfs:
        raise RefusedError(f"{shown} is inside of a certfs mount: name a place outside")


def _check(fd: int, shown: str) -> None:
    status = os.fstat(fd)
    if status.st_uid not in {0, os.geteuid()}:
        raise RefusedError(f"{shown} belongs to another user: name a directory of your own")
    if status.st_mode & _WRITABLE_BY_OTHERS and not status.st_mode & stat.S_ISVTX:
        raise RefusedError(f"others may write to {shown}: chmod go-w {shown}")


def _holds(directory: int, name: str, data: bytes) -> bool:
    try:
        fd = os.open(
            name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory
        )
    except OSError:
        return False
    with open(fd, "rb") as file:
        return stat.S_ISREG(os.fstat(fd).st_mode) and file.read(len(data) + 1) == data


def _replace(directory: int, name: str, data: bytes) -> None:
    draft = f".{name}.certfs-new"
    with suppress(FileNotFoundError):
        os.unlink(draft, dir_fd=directory)  # of a notifier that was killed
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(draft, flags, 0o600, dir_fd=directory)
    try:
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(fd, _MODE)
            os.fsync(fd)
        os.rename(draft, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        with suppress(OSError):
            os.unlink(draft, dir_fd=directory)
        raise
    os.fsync(directory)
