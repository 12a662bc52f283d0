"""Open files and directories.

Owns the numbers that the kernel names them by, and what each kind of handle has to know until it is released.
"""

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

from certfs.fuse.inodes import Inode
from certfs.fuse.nodes import Node
from certfs.fuse.requests import ROOT_USER
from certfs.fuse.synthetic import Content
from certfs.store.bundle import Actor


@dataclass(slots=True, eq=False)
class FileHandle:
    """A file of the store, opened.

    ``user`` is whose share it counts in, ``fd`` its own descriptor, ``actor`` who opened it (known for sources that
    are written), ``writes`` if it is open for writing, ``synchronous`` if every write waits for the disk. It is a
    writer (promise I3) if it ``has_written`` since the file was last complete; pages of a shared mapping come with any
    handle that is open for writing.
    """

    user: int
    fd: int
    inode: Inode
    actor: Actor | None
    writes: bool
    synchronous: bool
    has_written: bool = False


@dataclass(slots=True, eq=False)
class DirectoryHandle:
    """An open directory: ``names`` is its listing as it was when it was first read."""

    user: int
    node: Node
    names: list[bytes] | None = None


@dataclass(slots=True, eq=False)
class ContentHandle:
    """An open file of our own making: it holds what was opened, whatever the tables have let go (promise I2)."""

    user: int
    content: Content


Handle = FileHandle | DirectoryHandle | ContentHandle
H = TypeVar("H", bound=Handle)


@dataclass(slots=True)
class _Share:
    """What one user has open."""

    files: int = 0
    contents: int = 0
    names: int = 0


USER_CONTENTS = 1 << 16
USER_NAMES = 1 << 20
USERS = 4
"""So many full shares all users but root have together: one who may map user ids is thousands of them (subuid(5))."""


_NOTHING = _Share()


class HandleTable:
    """All open handles by number, and how many of them each user has (promise I18).

    ``limit`` is how many files and directories of the store may be open at once: each keeps up to two descriptors. A
    user other than root may have half of them, all those users together seven eighths. Content of our own keeps no
    descriptor, so bundles can always be opened: each user's 65,536 times. The names in a user's open listings are
    2^20, unless there is but one listing. Of both, all users but root have four shares together.
    """

    def __init__(self, limit: int = 1 << 30) -> None:
        self._limit = limit
        self._handles: dict[int, Handle] = {}
        self._shares: dict[int, _Share] = {}
        self._files = 0
        self._others = _Share()
        """What all users but root have."""
        self._next = 0

    def __len__(self) -> int:
        return len(self._handles)

    def add(self, handle: Handle) -> int:
        """Return a new number for ``handle``; ENFILE if the user's share of contents is used up."""
        if isinstance(handle, ContentHandle):
            self._require_content(handle.user)
        self._count(handle, 1)
        self._next += 1
        self._handles[self._next] = handle
        return self._next

    def require_room(self, user: int) -> None:
        """Raise ENFILE if this user may open no further file or directory of the store."""
        if self._files >= self._limit:
            raise _used_up()
        if user == ROOT_USER:
            return
        share = self._shares.get(user)
        if share is not None and share.files >= self._limit // 2:
            raise _used_up()
        if self._others.files >= self._limit - self._limit // 8:
            raise _used_up()

    def _require_content(self, user: int) -> None:
        share = self._shares.get(user, _NOTHING)
        full = share.contents >= USER_CONTENTS or self._others.contents >= USERS * USER_CONTENTS
        if user != ROOT_USER and full:
            raise _used_up()

    def _count(self, handle: Handle, change: int) -> None:
        shares = [self._shares.setdefault(handle.user, _Share())]
        if handle.user != ROOT_USER:
            shares.append(self._others)
        for share in shares:
            if isinstance(handle, ContentHandle):
                share.contents += change
            else:
                share.files += change
            if isinstance(handle, DirectoryHandle):
                share.names += change * _weight(handle.names)
        if not isinstance(handle, ContentHandle):
            self._files += change

    def list(self, handle: DirectoryHandle, names: list[bytes]) -> None:
        """Let an open directory have these names; ENFILE if the user's open listings have too many."""
        share = self._shares[handle.user]
        change = _weight(names) - _weight(handle.names)
        if handle.user != ROOT_USER:
            all_names = self._others.names + change
            if share.names + change > USER_NAMES or all_names > USERS * USER_NAMES:
                raise _used_up()
            self._others.names = all_names
        share.names += change
        handle.names = names

    def get(self, number: int, kind: type[H]) -> H:
        """Return the handle of this number if it is of this kind; EBADF otherwise."""
        handle = self._handles.get(number)
        if not isinstance(handle, kind):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return handle

    def find(self, number: int) -> Handle | None:
        """Return the handle of this number, None where there is none."""
        return self._handles.get(number)

    def writers(self) -> Iterator[FileHandle]:
        """Yield the handles that have written to files that are not complete yet."""
        for handle in self._handles.values():
            if isinstance(handle, FileHandle) and handle.has_written:
                yield handle

    def remove(self, number: int) -> Handle | None:
        """Take the handle out of the table and return it."""
        handle = self._handles.pop(number, None)
        if handle is None:
            return None
        self._count(handle, -1)
        share = self._shares[handle.user]
        if not (share.files or share.contents):
            del self._shares[handle.user]
        return handle

    def close(self) -> None:
        """Close the descriptors of all handles."""
        for handle in self._handles.values():
            if isinstance(handle, FileHandle):
                os.close(handle.fd)
        self._handles.clear()
        self._shares.clear()
        self._files = 0
        self._others = _Share()


def _weight(names: list[bytes] | None) -> int:
    """Return how much of a share a listing takes: no more than all of it, or nobody could list a larger directory."""
    return min(len(names or ()), USER_NAMES)


def _used_up() -> OSError:
    return OSError(errno.ENFILE, os.strerror(errno.ENFILE))
