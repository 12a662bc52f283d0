"""Operations on attributes: stat, chmod, chown, truncate, times, extended attributes, statfs.

Owns what an immutable bundle answers to each of them (promise I8).
"""

import errno
import os
import stat
from collections.abc import Sequence

import pyfuse3

from certfs.fuse import attributes, xattrs
from certfs.fuse.base import FilesystemBase, error
from certfs.fuse.caller import as_spender
from certfs.fuse.guard import guarded
from certfs.fuse.handles import FileHandle
from certfs.fuse.inodes import Inode
from certfs.fuse.setid import (
    change_owner,
    drop_set_id,
    keep_owner,
    set_mode,
)
from certfs.store.backing import fd_path, set_times


class MetadataOperations(FilesystemBase):
    """GETATTR, SETATTR, GETXATTR, SETXATTR, LISTXATTR, REMOVEXATTR, STATFS."""

    @guarded
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """Return the attributes of a file."""
        own = self.own.find(inode)
        if own is not None:
            return own.attributes()
        node = self.inodes[inode]
        return self._shown(node, self.entry_to_keep(node, await self.status(node)))

    def _shown(self, node: Inode, entry: pyfuse3.EntryAttributes) -> pyfuse3.EntryAttributes:
        if node in self.store_roots:
            # A root's number may be FUSE's or ours, but what is shown is the store's.
            entry.st_ino = node.id.inode
        return entry

    @guarded
    async def setattr(
        self,
        inode: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        """Change the attributes that ``fields`` names."""
        own = self.own.find(inode)
        if own is not None:
            return attributes.unchanged(own.attributes(), attr, fields)
        node = self.inodes[inode]
        with await self.using(node) as fd:
            if fields.update_size:
                await self._truncate(node, fd, attr.st_size, fh, ctx)
            if fields.update_mode:
                await self.calls.change(
                    as_spender, ctx.uid, set_mode, fd, stat.S_IMODE(attr.st_mode), ctx
                )
            sets_times = fields.update_atime or fields.update_mtime
            sets_owner = fields.update_uid or fields.update_gid
            if sets_owner:
                uid = attr.st_uid if fields.update_uid else -1
                gid = attr.st_gid if fields.update_gid else -1
                await self.calls.change(as_spender, ctx.uid, change_owner, fd, uid, gid, ctx)
            elif not (sets_times or fields.update_size or fields.update_mode):
                await self.calls.change(keep_owner, fd, ctx, bool(node.open_for_writing))
            if sets_times:
                atime = attr.st_atime_ns if fields.update_atime else None
                mtime = attr.st_mtime_ns if fields.update_mtime else None
                await self.calls.change(set_times, fd, atime, mtime)
            return self._shown(node, self.entry(node, await self.status(node)))

    async def _truncate(
        self, node: Inode, fd: int, size: int, fh: int | None, ctx: pyfuse3.RequestContext
    ) -> None:
        handle = self.handles.find(fh) if fh is not None else None
        # Before it is cut short: its last complete content counts until the last writer closes (promise I3).
        file = None
        if isinstance(handle, FileHandle) and handle.writes:
            file = handle.fd
            await self.writes_now(handle)
        elif node.writers and not node.dirty:
            await self.committed(node)
            self.mark_dirty(node, await self.calls.look(node.local, os.stat, fd))
        links = await self.calls.change(as_spender, ctx.uid, _truncate, fd, file, size, ctx)
        # Who did it is read from /proc: not for files that mean nothing to a bundle.
        if not node.writers and (links > 1 or self.matters(node)):
            await self.tell_of_content(node, self.actor(ctx), links)

    @guarded
    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        """Return an extended attribute."""
        xattrs.check_read(name, ctx)
        if self.own.find(inode) is not None:
            raise error(errno.ENODATA)
        node = self.node(inode)
        with await self.using(node) as fd:
            return await self.calls.look(node.local, os.getxattr, fd_path(fd), name)

    @guarded
    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> Sequence[bytes]:
        """Return the names of the extended attributes that the caller may see."""
        if self.own.find(inode) is not None:
            return []
        with await self.using(self.node(inode)) as fd:
            names = await self.calls.change(os.listxattr, fd_path(fd))
        return [name for name in map(os.fsencode, names) if xattrs.is_listed(name, ctx)]

    @guarded
    async def setxattr(
        self, inode: int, name: bytes, value: bytes, ctx: pyfuse3.RequestContext
    ) -> None:
        """Set an extended attribute."""
        xattrs.check_change(name, ctx)
        with await self.using(self.node(inode)) as fd:
            await self.calls.change(as_spender, ctx.uid, xattrs.set_value, fd, name, value, ctx)

    @guarded
    async def removexattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        """Remove an extended attribute."""
        xattrs.check_change(name, ctx)
        with await self.using(self.node(inode)) as fd:
            await self.calls.change(xattrs.remove, fd, name, ctx)

    @guarded
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        """Return the figures of the store's filesystem."""
        root = self.store_roots[0]
        status = await self.calls.look(root.local, os.statvfs, root.fd)
        figures = pyfuse3.StatvfsData()
        figures.f_bsize = status.f_bsize
        figures.f_frsize = status.f_frsize
        figures.f_blocks = status.f_blocks
        figures.f_bfree = status.f_bfree
        figures.f_bavail = status.f_bavail
        figures.f_files = status.f_files
        figures.f_ffree = status.f_ffree
        figures.f_favail = status.f_favail
        figures.f_namemax = status.f_namemax
        return figures


def _truncate(fd: int, file: int | None, size: int, ctx: pyfuse3.RequestContext) -> int:
    """Set the size by way of an open ``file`` if there is one; return how many names the file has."""
    if file is not None:
        os.ftruncate(file, size)
    else:
        os.truncate(fd_path(fd), size)
    drop_set_id(fd, ctx)
    return os.stat(fd).st_nlink
