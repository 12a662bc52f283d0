"""Operations on directories: opening, listing, fsync.

Owns the listing: names as they were when it began, so that it stays stable while entries come and go, with the bundles
that exist now put in and the store's plain copies of them left out.
"""

import os
from contextlib import suppress

import pyfuse3

from certfs.fuse import attributes
from certfs.fuse.base import FilesystemBase
from certfs.fuse.guard import guarded
from certfs.fuse.handles import DirectoryHandle
from certfs.fuse.inodes import ROOT, Inode
from certfs.fuse.requests import is_for
from certfs.fuse.synthetic import OWN_FILES, STATUS_DIRECTORY, STATUS_DIRECTORY_NUMBER
from certfs.store.backing import fd_path
from certfs.store.cached import status_cached, status_on_mount

_DOTS = (b".", b"..")
_BATCH = 32
"""How many names are looked at in one call; about as many fit into one answer."""

_LISTINGS = 8
"""Of how many directories the last listing is kept to be shared."""

Found = tuple[os.stat_result, bool]
"""The status of a name, and whether that is on the same mount as its directory."""


class DirectoryOperations(FilesystemBase):
    """OPENDIR, READDIRPLUS, FSYNCDIR, RELEASEDIR."""

    @guarded
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        """Open a directory; the names are read when the listing begins."""
        if not self.is_virtual(inode):
            self.handles.require_room(ctx.uid)
            node = self.inodes[inode]
            with await self.using(node) as fd:
                self.check_permissions(node, await self.calls.look(node.local, os.stat, fd), ctx)
                self.inodes.hold(node)
        return self.handles.add(DirectoryHandle(ctx.uid, inode))

    @guarded
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """List a directory from ``start_id``, which is how many of its names were told already."""
        handle = self.handles.get(fh, DirectoryHandle)
        is_for(handle.user)
        listing = handle.names
        if listing is None or start_id == 0:
            listing = self._shared(handle.number, await self._names(handle.number))
            self.handles.list(handle, listing)
        told = start_id
        while told < len(listing):
            names = listing[told : told + _BATCH]
            statuses = await self._statuses(handle.number, names)
            for name, status in zip(names, statuses, strict=True):
                if not await self._tell_entry(handle.number, name, status, told + 1, token):
                    return
                told += 1

    async def _statuses(self, number: int, names: list[bytes]) -> list[Found | None]:
        """Look at several names of a directory at once; None for those that are gone or not the store's."""
        if self.is_virtual(number):
            return [None] * len(names)
        parent = self.inodes[number]
        with await self.using(parent) as directory:
            return await self.calls.change(_look_at, directory, names)

    def _shared(self, number: int, names: list[bytes]) -> list[bytes]:
        """Return the same listing that another handle has of this directory if it is equal: they may be large."""
        known = self.listings.get(number)
        if known == names:
            self.listings.move_to_end(number)
            return known
        self.listings[number] = names
        if len(self.listings) > _LISTINGS:
            self.listings.popitem(last=False)
        return names

    async def _names(self, number: int) -> list[bytes]:
        if number == STATUS_DIRECTORY_NUMBER:
            return [*_DOTS, *OWN_FILES]
        if self.is_virtual(number):
            return [*_DOTS, *self.trees]
        directory = self.inodes[number]
        with await self.using(directory) as fd:
            names = await self.opening(self.calls.change, os.listdir, fd_path(fd).encode())
        bundles = self.trust.bundles_in(directory.id)
        if bundles:
            for bundle in bundles.values():
                await self.settle(bundle)
            names = [
                name
                for name in names
                if name not in bundles and not self.trust.is_hidden(directory.id, name)
            ]
            names.extend(name for name, bundle in bundles.items() if bundle.exists)
        if number == ROOT:
            names = [name for name in names if name != STATUS_DIRECTORY]
        return [*_DOTS, *names]

    async def _tell_entry(
        self,
        number: int,
        name: bytes,
        status: Found | None,
        next_id: int,
        token: pyfuse3.ReaddirToken,
    ) -> bool:
        """Report one name; False if there is no room for it any more."""
        if name in _DOTS:
            return pyfuse3.readdir_reply(token, name, self._dot_entry(number, name), next_id)
        if number == STATUS_DIRECTORY_NUMBER:
            content = await self.own_content(name)
            content.lookups += 1
            if pyfuse3.readdir_reply(token, name, self.content_entry(content), next_id):
                return True
            self.synthetic.forget(content.number, 1)
            return False
        if self.is_virtual(number):
            inode = self.trees[name]
            inode.lookups += 1
            told = pyfuse3.readdir_reply(
                token, name, self.entry(inode, await self.status(inode)), next_id
            )
            inode.lookups -= 0 if told else 1
            return told
        return self._tell_store_entry(self.inodes[number], name, status, next_id, token)

    def _tell_store_entry(
        self,
        parent: Inode,
        name: bytes,
        found: Found | None,
        next_id: int,
        token: pyfuse3.ReaddirToken,
    ) -> bool:
        bundle = self.trust.bundle_at(parent.id, name)
        if bundle is not None:
            if not bundle.exists:
                return True
            content = self.synthetic.of_bundle(bundle)
            content.lookups += 1
            if pyfuse3.readdir_reply(token, name, self.content_entry(content), next_id):
                return True
            self.synthetic.forget(content.number, 1)
            return False
        if found is None:
            # Gone since the listing began.
            return True
        status, on_mount = found
        inode = self.inodes.remember(parent, name, status, local=parent.local and on_mount)
        told = inode.told
        if pyfuse3.readdir_reply(token, name, self.entry(inode, status), next_id):
            return True
        inode.told = told
        self.inodes.forget(inode.number, 1)
        return False

    def _dot_entry(self, number: int, name: bytes) -> pyfuse3.EntryAttributes:
        """Return what is told for ``.`` and ``..``: the kernel takes the type and the number, and remembers neither.

        The store is not asked for ``..``: over the host's own directories its way up leads onto our own mount.
        """
        entry = attributes.of_directory(number, 0, self.owner)
        if not self.is_virtual(number):
            directory = self.inodes[number]
            if name == b".." and directory.parent is not None:
                directory = directory.parent
            entry.st_ino = directory.id.inode
        return entry

    @guarded
    async def fsyncdir(self, fh: int, datasync: bool) -> None:  # noqa: FBT001 - pyfuse3's signature
        """Write a directory to the disk."""
        handle = self.handles.get(fh, DirectoryHandle)
        is_for(handle.user)
        if not self.is_virtual(handle.number):
            with await self.using(self.inodes[handle.number]) as fd:
                await self.opening(self.calls.away, _fsync_directory, fd, datasync)

    @guarded
    async def releasedir(self, fh: int) -> None:
        """Let go of an open directory."""
        handle = self.handles.remove(fh)
        if isinstance(handle, DirectoryHandle) and not self.is_virtual(handle.number):
            self.inodes.release(self.inodes[handle.number])


def _look_at(directory: int, names: list[bytes]) -> list[Found | None]:
    found: list[Found | None] = []
    for name in names:
        try:
            found.append(None if name in _DOTS else _look(directory, name))
        except FileNotFoundError:
            found.append(None)
    return found


def _look(directory: int, name: bytes) -> Found:
    with suppress(BlockingIOError):
        return status_cached(directory, name), True
    return status_on_mount(directory, name)


def _fsync_directory(fd: int, datasync: bool) -> None:  # noqa: FBT001
    directory = os.open(fd_path(fd), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        (os.fdatasync if datasync else os.fsync)(directory)
    finally:
        os.close(directory)
