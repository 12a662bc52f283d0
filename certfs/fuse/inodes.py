"""The inodes that the kernel remembers, and how to reach them in the store.

Owns node numbers, lookup counts and descriptors. A node has the number of its inode in the store, so that a program
sees the same numbers (promise I11); where two filesystems of one store share a number, the second gets one of ours.

A descriptor (O_PATH) stands for an inode whatever happens to its name, and keeps its number from being used again
while the kernel remembers it. It is opened when it is first needed and, beyond a limit, closed again for the least
recently used inode that can be reached by its name (promise I18).
"""

import errno
import os
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import pyfuse3

from certfs.fuse.numbers import Numbers
from certfs.store.backing import O_PATH_NOFOLLOW, FileId, file_id
from certfs.store.cached import is_local

ROOT = 1

SPARED = 64
"""So many descriptors are closed when there is none left."""


Permissions = tuple[int, int, int]
"""What the kernel decides by: mode, owner, group."""


def permissions_of(status: os.stat_result) -> Permissions:
    """Return what a status says of who may do what."""
    return status.st_mode, status.st_uid, status.st_gid


@dataclass(slots=True, eq=False)
class Inode:
    """One inode of the store that the kernel remembers.

    ``parent`` and ``name`` are a way to reach it, None when it has no name any more. ``writers`` counts the handles
    that have written since the file was last complete, ``dirty_since`` is when the first of them began, 0 for a
    complete file (promise I3). ``open_for_writing`` counts the handles that may write. ``told`` is what the kernel was
    last told of who may do what with it: requests have been checked against that (promise I19). ``local`` says that the
    kernel looks at it without asking anybody else: it is on the store's own mount, and that is a local one.
    """

    number: int
    id: FileId
    parent: "Inode | None"
    name: bytes
    fd: int = -1
    lookups: int = 0
    uses: int = 0
    writers: int = 0
    open_for_writing: int = 0
    dirty_since: float = 0.0
    local: bool = False
    told: Permissions | None = None

    @property
    def dirty(self) -> bool:
        """Whether it was changed since it was last complete."""
        return self.dirty_since > 0.0


class Use:
    """What ``InodeTable.using`` gives: every request has one, and a generator would cost it three times as much."""

    __slots__ = ("_inode", "_table")

    def __init__(self, table: "InodeTable", inode: Inode) -> None:
        self._table = table
        self._inode = inode

    def __enter__(self) -> int:
        fd = self._table.fd(self._inode)
        self._inode.uses += 1
        return fd

    def __exit__(self, *_: object) -> None:
        self._table.release(self._inode)


class LetGo(Protocol):
    """Closes a descriptor; ``local`` says whether it is of a local file system."""

    def __call__(self, fd: int, /, *, local: bool) -> None:
        """Close ``fd``, now or later."""


OpenName = Callable[[int, bytes], int]
"""Opens a name in a directory with O_PATH and without following a link."""


class InodeTable:
    """All inodes that the kernel remembers.

    ``limit`` bounds the descriptors kept for those with a name; ``let_go`` closes one that is not needed any more.
    """

    def __init__(
        self, *, limit: int, let_go: LetGo | None = None, numbers: Numbers | None = None
    ) -> None:
        self._limit = limit
        self._let_go = let_go or _close
        self._by_number: dict[int, Inode] = {}
        self._by_id: dict[FileId, Inode] = {}
        self._recent: OrderedDict[int, Inode] = OrderedDict()
        self._numbers = numbers or Numbers()

    def __len__(self) -> int:
        return len(self._by_number)

    def __getitem__(self, number: int) -> Inode:
        """Return the inode of this number; ESTALE where the kernel should not remember it."""
        try:
            return self._by_number[number]
        except KeyError:
            raise _stale() from None

    def find(self, identity: FileId) -> Inode | None:
        """Return the inode of this identity if the kernel remembers it."""
        return self._by_id.get(identity)

    def add_root(self, fd: int, number: int | None = None) -> Inode:
        """Add a directory that was there before the mount; it owns ``fd`` and is never forgotten."""
        identity = file_id(os.stat(fd))
        inode = Inode(number or self._number(identity), identity, None, b"", fd, lookups=1)
        inode.local = is_local(fd)
        self._by_number[inode.number] = self._by_id[identity] = inode
        return inode

    def remember(
        self, parent: Inode, name: bytes, status: os.stat_result, *, local: bool = False
    ) -> Inode:
        """Return the inode that ``name`` in ``parent`` has, and count one lookup of it by the kernel."""
        identity = file_id(status)
        inode = self._by_id.get(identity)
        if inode is None:
            inode = Inode(self._number(identity), identity, parent, name)
            self._by_number[inode.number] = self._by_id[identity] = inode
        elif (inode.parent is not parent or inode.name != name) and inode.name:
            # A root, which has no name, stays what it is: its descriptor is the way to everything else.
            self.moved(inode, parent, name)
        inode.local = local
        inode.lookups += 1
        return inode

    def _number(self, identity: FileId) -> int:
        number = identity.inode
        if number > ROOT and number not in self._by_number and self._numbers.claim(number):
            return number
        return self._numbers.own()

    def forget(self, number: int, lookups: int) -> None:
        """Take back ``lookups``; with the last one the inode is no longer remembered."""
        inode = self._by_number.get(number)
        if inode is None:
            return
        inode.lookups -= lookups
        if inode.lookups <= 0 and inode.uses == 0:
            self._drop(inode)

    def _drop(self, inode: Inode) -> None:
        del self._by_number[inode.number]
        self._numbers.release(inode.number)
        if self._by_id.get(inode.id) is inode:
            del self._by_id[inode.id]
        self._recent.pop(inode.number, None)
        if inode.fd >= 0:
            self._let_go(inode.fd, local=inode.local)
            inode.fd = -1

    def fd(self, inode: Inode, open_name: OpenName | None = None) -> int:
        """Return an O_PATH descriptor of the inode; ESTALE where it cannot be reached any more.

        ``open_name`` opens a name in a directory. Without it the call may wait for the store.
        """
        if inode.fd >= 0:
            if inode.number in self._recent:
                self._recent.move_to_end(inode.number)
            return inode.fd
        if inode.parent is None:
            raise _stale()
        opens = open_name or _open_name
        directory = self.fd(inode.parent, open_name)
        try:
            try:
                fd = opens(directory, inode.name)
            except OSError as e:
                if e.errno != errno.EMFILE or not self.shrink(SPARED):
                    raise
                fd = opens(directory, inode.name)
        except (FileNotFoundError, NotADirectoryError):
            raise _stale() from None
        return self.adopt(inode, fd, os.stat(fd))

    def adopt(self, inode: Inode, fd: int, status: os.stat_result) -> int:
        """Take ``fd``, which was opened by the inode's name, for its descriptor; ESTALE if it is of another file."""
        if inode.number not in self._by_number or file_id(status) != inode.id:
            self._let_go(fd, local=inode.local)
            raise _stale()
        if inode.told is not None and permissions_of(status) != inode.told:
            # Without a descriptor nothing has kept the number from being given to another file.
            self._let_go(fd, local=inode.local)
            with suppress(OSError):
                pyfuse3.invalidate_inode(inode.number, attr_only=True)
            raise _stale()
        # Before it is entered itself: it is not the one to be closed.
        if len(self._recent) >= self._limit:
            self.shrink(1)
        inode.fd = fd
        self._recent[inode.number] = inode
        return fd

    def shrink(self, count: int) -> int:
        """Close the descriptors of up to ``count`` inodes that were not used lately; return how many were closed."""
        closed = 0
        for number in list(islice(self._recent, count + 16)):
            inode = self._recent[number]
            if closed == count:
                break
            if inode.uses or inode.writers:
                # Out of the way of those that can be closed.
                self._recent.move_to_end(number)
            else:
                del self._recent[number]
                self._let_go(inode.fd, local=inode.local)
                inode.fd = -1
                closed += 1
        return closed

    def using(self, inode: Inode) -> Use:
        """Keep the inode's descriptor open for the time of a call that runs elsewhere."""
        return Use(self, inode)

    def hold(self, inode: Inode) -> None:
        """Keep the inode for an open handle, which outlives the kernel's memory of it in no case but a crash."""
        inode.uses += 1

    def release(self, inode: Inode) -> None:
        """Undo ``hold``."""
        inode.uses -= 1
        if inode.lookups <= 0 and inode.uses == 0 and inode.number in self._by_number:
            self._drop(inode)

    def before_removal(self, parent: Inode, name: bytes, status: os.stat_result) -> Inode | None:
        """Return the inode of a name that is about to go; by another name it may not be reached (`fd`)."""
        inode = self._by_id.get(file_id(status))
        if inode is not None and inode.fd < 0:
            inode.parent, inode.name = parent, name
        return inode

    def lost_name(self, inode: Inode, parent: Inode, name: bytes) -> None:
        """Take note that the inode lost this name; if no other is known, its descriptor is the only way to it."""
        if inode.parent is parent and inode.name == name:
            inode.parent = None
            self._recent.pop(inode.number, None)

    def moved(self, inode: Inode, parent: Inode, name: bytes) -> None:
        """Take note that the inode has this name now."""
        inode.parent, inode.name = parent, name
        if inode.fd >= 0:
            self._recent[inode.number] = inode

    def close(self) -> None:
        """Let go of every descriptor."""
        for inode in list(self._by_number.values()):
            self._drop(inode)


def _stale() -> OSError:
    return OSError(errno.ESTALE, os.strerror(errno.ESTALE))


def _open_name(directory: int, name: bytes) -> int:
    return os.open(name, O_PATH_NOFOLLOW, dir_fd=directory)


def _close(fd: int, *, local: bool) -> None:  # noqa: ARG001 - one that may wait does not ask
    os.close(fd)
