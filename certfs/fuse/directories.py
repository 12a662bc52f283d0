"""Operations on directories: opening, listing, fsync.

Owns the listing: names as they were when it began, so that it stays stable while entries come and go, with the bundles
that exist now put in and the store's plain copies of them left out.
"""

import os

import pyfuse3

from certfs.fuse import attributes
from certfs.fuse.base import FilesystemBase, status_of
from certfs.fuse.guard import guarded
from certfs.fuse.handles import DirectoryHandle
from certfs.fuse.inodes import ROOT, Inode
from certfs.fuse.synthetic import STATUS_DIRECTORY, STATUS_DIRECTORY_NUMBER, STATUS_FILE
from certfs.store.backing import fd_path

_DOTS = (b".", b"..")


class DirectoryOperations(FilesystemBase):
    """OPENDIR, READDIRPLUS, FSYNCDIR, RELEASEDIR."""

    @guarded
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        """Open a directory; the names are read when the listing begins."""
        if not self.is_virtual(inode):
            self.handles.require_room()
            node = self.inodes[inode]
            with self.inodes.using(node) as fd:
                await self.check_permissions(node, fd, ctx)
            self.inodes.hold(node)
        return self.handles.add(DirectoryHandle(inode))

    @guarded
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """List a directory from ``start_id``, which is how many of its names were told already."""
        handle = self.handles.get(fh, DirectoryHandle)
        if handle.names is None or start_id == 0:
            handle.names = await self._names(handle.number)
        for position in range(start_id, len(handle.names)):
            if not await self._tell_entry(
                handle.number, handle.names[position], position + 1, token
            ):
                break

    async def _names(self, number: int) -> list[bytes]:
        if number == STATUS_DIRECTORY_NUMBER:
            return [*_DOTS, STATUS_FILE]
        if self.is_virtual(number):
            return [*_DOTS, *self.trees]
        directory = self.inodes[number]
        with self.inodes.using(directory) as fd:
            names = await self.opening(self.calls.read, os.listdir, fd_path(fd).encode())
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
        self, number: int, name: bytes, next_id: int, token: pyfuse3.ReaddirToken
    ) -> bool:
        """Report one name; False if there is no room for it any more."""
        if name in _DOTS:
            return pyfuse3.readdir_reply(token, name, self._dot_entry(number, name), next_id)
        if number == STATUS_DIRECTORY_NUMBER:
            content = await self.status_content()
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
        return await self._tell_store_entry(self.inodes[number], name, next_id, token)

    async def _tell_store_entry(
        self, parent: Inode, name: bytes, next_id: int, token: pyfuse3.ReaddirToken
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
        try:
            with self.inodes.using(parent) as directory:
                status = await self.calls.read(status_of, directory, name)
        except FileNotFoundError:
            # Gone since the listing began.
            return True
        inode = self.inodes.remember(parent, name, status)
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
        if not self.is_virtual(handle.number):
            with self.inodes.using(self.inodes[handle.number]) as fd:
                await self.opening(self.calls.away, _fsync_directory, fd, datasync)

    @guarded
    async def releasedir(self, fh: int) -> None:
        """Let go of an open directory."""
        handle = self.handles.remove(fh)
        if isinstance(handle, DirectoryHandle) and not self.is_virtual(handle.number):
            self.inodes.release(self.inodes[handle.number])


def _fsync_directory(fd: int, datasync: bool) -> None:  # noqa: FBT001
    directory = os.open(fd_path(fd), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        (os.fdatasync if datasync else os.fsync)(directory)
    finally:
        os.close(directory)
