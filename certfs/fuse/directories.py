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
from certfs.fuse.inodes import Inode
from certfs.fuse.nodes import Node, OwnNode
from certfs.fuse.requests import is_for
from certfs.store.backing import fd_path, list_names
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
        own = self.own.find(inode)
        if own is not None:
            own.names()
            return self.handles.add(DirectoryHandle(ctx.uid, own))
        self.handles.require_room(ctx.uid)
        node = self.inodes[inode]
        with await self.using(node) as fd:
            self.check_permissions(node, await self.calls.look(node.local, os.stat, fd), ctx)
            self.inodes.hold(node)
        return self.handles.add(DirectoryHandle(ctx.uid, node))

    @guarded
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """List a directory from ``start_id``, which is how many of its names were told already."""
        handle = self.handles.get(fh, DirectoryHandle)
        is_for(handle.user)
        listing = handle.names
        if listing is None or start_id == 0:
            listing = await self._names(handle.node)
            self.handles.list(handle, listing)
        told = start_id
        while told < len(listing):
            names = listing[told : told + _BATCH]
            if isinstance(handle.node, Inode):
                count = await self._tell_store(handle.node, names, told, token)
            else:
                count = await self._tell_own(handle.node, names, told, token)
            told += count
            if count < len(names):
                return

    async def _tell_own(
        self, directory: OwnNode, names: list[bytes], told: int, token: pyfuse3.ReaddirToken
    ) -> int:
        """Report names of a directory of our own; return for how many there was room."""
        for count, name in enumerate(names):
            if name in _DOTS:
                if not pyfuse3.readdir_reply(token, name, directory.attributes(), told + count + 1):
                    return count
                continue
            try:
                node = await directory.look_up(name)
            except FileNotFoundError:
                continue
            if not await self._tell_node(node, name, told + count + 1, token):
                return count
        return len(names)

    async def _tell_node(
        self, node: Node, name: bytes, next_id: int, token: pyfuse3.ReaddirToken
    ) -> bool:
        if pyfuse3.readdir_reply(token, name, await self.told(node), next_id):
            return True
        self.not_told(node)
        return False

    async def _tell_store(
        self, parent: Inode, names: list[bytes], told: int, token: pyfuse3.ReaddirToken
    ) -> int:
        """Report names of a directory of the store; return for how many there was room."""
        with await self.using(parent) as directory:
            statuses = await self.calls.change(_look_at, directory, names)
        for count, (name, status) in enumerate(zip(names, statuses, strict=True)):
            if not await self._tell_entry(parent, name, status, told + count + 1, token):
                return count
        return len(names)

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

    async def _names(self, directory: Inode | OwnNode) -> list[bytes]:
        if not isinstance(directory, Inode):
            return [*_DOTS, *directory.names()]
        with await self.using(directory) as fd:
            names = await self.opening(self.calls.change, list_names, fd, self.listing_flags)
        bundles = self.trust.bundles_in(directory.id)
        if bundles:
            for bundle in bundles.values():
                await self.wait_until_current(bundle)
            names = [
                name
                for name in names
                if name not in bundles and not self.trust.is_hidden(directory.id, name)
            ]
            names.extend(name for name, bundle in bundles.items() if bundle.exists)
        beside = {name for number, name in self.beside_store if number == directory.number}
        if beside:
            names = [name for name in names if name not in beside]
        return self._shared(directory.number, [*_DOTS, *names])

    async def _tell_entry(
        self,
        parent: Inode,
        name: bytes,
        found: Found | None,
        next_id: int,
        token: pyfuse3.ReaddirToken,
    ) -> bool:
        """Report one name; False if there is no room for it any more."""
        if name in _DOTS:
            return pyfuse3.readdir_reply(token, name, self._dot_entry(parent, name), next_id)
        bundle = self.trust.bundle_at(parent.id, name)
        if bundle is not None:
            return not bundle.exists or await self._tell_node(
                self.synthetic.of_bundle(bundle), name, next_id, token
            )
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

    @staticmethod
    def _dot_entry(directory: Inode, name: bytes) -> pyfuse3.EntryAttributes:
        """Return what is told for ``.`` and ``..``: the kernel takes the type and the number, and remembers neither.

        The store is not asked for ``..``: over the host's own directories its way up leads onto our own mount.
        """
        if name == b".." and directory.parent is not None:
            directory = directory.parent
        return attributes.of_directory(directory.id.inode, 0)

    @guarded
    async def fsyncdir(self, fh: int, datasync: bool) -> None:  # noqa: FBT001 - pyfuse3's signature
        """Write a directory to the disk."""
        handle = self.handles.get(fh, DirectoryHandle)
        is_for(handle.user)
        if isinstance(handle.node, Inode):
            with await self.using(handle.node) as fd:
                await self.opening(self.calls.away, _fsync_directory, fd, datasync)

    @guarded
    async def releasedir(self, fh: int) -> None:
        """Let go of an open directory."""
        handle = self.handles.remove(fh)
        if isinstance(handle, DirectoryHandle) and isinstance(handle.node, Inode):
            self.inodes.release(handle.node)


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
