"""Operations on names: lookup, and everything that makes, links, renames or removes one.

Owns what a change of a name means to the bundles: after each, ``Trust`` is told before the caller is answered, so that
whoever opens a bundle later sees it (promise I1). Bundle names themselves behave like immutable files (I8).
"""

import errno
import os
from collections.abc import Sequence

import pyfuse3

from certfs.fuse.base import FilesystemBase, error, script_temporaries
from certfs.fuse.caller import as_caller
from certfs.fuse.guard import guarded
from certfs.fuse.inodes import ROOT, Inode
from certfs.fuse.requests import waiting_for_store
from certfs.store import backing
from certfs.store.backing import RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT, fd_path
from certfs.store.bundle import LiveBundle

PERMISSION_BITS = 0o7777


class NameOperations(FilesystemBase):
    """LOOKUP, FORGET, MKNOD, MKDIR, SYMLINK, LINK, UNLINK, RMDIR, RENAME."""

    @guarded
    async def lookup(
        self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Return the entry of a name and count one lookup of it."""
        if self.announcements.is_announcer(ctx.pid):
            found = self.announcements.lookup(parent_inode, name, self._bundle(parent_inode, name))
            if found is not None:
                return await self.told(found)
        own = self.own.find(parent_inode)
        if own is not None:
            return await self.told(await own.look_up(name))
        parent = self.inodes[parent_inode]
        if name in {b".", b".."}:
            return await self._lookup_dots(parent, name)
        find = self.find_beside(parent, name)
        if find is not None:
            return await self.told(await find())
        if self.trust.is_hidden(parent.id, name):
            raise error(errno.ENOENT)
        status, local = await self.look(parent, name)
        inode = self.inodes.remember(parent, name, status, local=local)
        return self.entry_to_keep(inode, status)

    def _bundle(self, directory: int, name: bytes) -> LiveBundle | None:
        """Return the bundle that this is the name of, whether it exists or not."""
        if self.own.find(directory) is not None:
            return None
        return self.trust.bundle_at(self.inodes[directory].id, name)

    async def _lookup_dots(self, inode: Inode, name: bytes) -> pyfuse3.EntryAttributes:
        """Answer for a file handle that the kernel was given back (open_by_handle_at(2), NFS)."""
        if name == b"..":
            if inode.parent is None:
                raise error(errno.ESTALE)
            inode = inode.parent
        inode.lookups += 1
        return self.entry(inode, await self.status(inode))

    @guarded
    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """Take back lookups that the kernel no longer remembers."""
        for number, lookups in inode_list:
            if number != ROOT and not self.own.forget(number, lookups):
                self.inodes.forget(number, lookups)

    def _directory(self, number: int, name: bytes) -> Inode:
        """Return the directory that a name is to be made or removed in; EPERM where it is not to be changed."""
        parent = self.node(number)
        self.refuse_bundle(parent, name)
        return parent

    async def _tell(self, parent: Inode, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        """Tell the bundles of a name that changed."""
        if name in self.host_files:
            await self.tell_of_host_file(parent, name, self.actor(ctx))
        if self.trust.has_role(parent.id, name):
            with waiting_for_store():
                await self.trust.changed(parent.id, name, self.actor(ctx))

    @guarded
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Make a special or an empty regular file."""
        parent = self._directory(parent_inode, name)
        entry = await self.make(
            parent, name, mode, ctx, lambda directory: _mknod(directory, name, mode, rdev)
        )
        await self._tell(parent, name, ctx)
        return entry

    @guarded
    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Make a directory; a ``D.bk`` beside a source directory D begins a swap (promise I10)."""
        parent = self._directory(parent_inode, name)
        with self.trust.swaps.making(parent.id, name):
            entry = await self.make(
                parent, name, 0, ctx, lambda directory: _mkdir(directory, name, mode)
            )
        await self._tell(parent, name, ctx)
        return entry

    @guarded
    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Make a symbolic link."""
        parent = self._directory(parent_inode, name)
        entry = await self.make(
            parent, name, 0, ctx, lambda directory: _symlink(directory, name, target)
        )
        await self._tell(parent, name, ctx)
        return entry

    @guarded
    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Give an inode one more name."""
        source = self.node(inode)
        parent = self._directory(new_parent_inode, new_name)
        with await self.using(source) as fd, await self.using(parent) as directory:
            await self.calls.change(as_caller, ctx, _link, fd, directory, new_name)
            status = await self.calls.look(source.local, os.stat, fd)
        source.lookups += 1
        self.inodes.moved(source, parent, new_name)
        self.await_release(source)
        await self._tell(parent, new_name, ctx)
        return self.entry(source, status)

    @guarded
    async def unlink(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        """Remove the name of a file."""
        if self.announcements.is_announcer(ctx.pid):
            self.announcements.unlink(parent_inode, name, self._bundle(parent_inode, name))
            return
        parent = self._directory(parent_inode, name)
        removed = await self.before_removal(parent, name)
        with await self.using(parent) as directory:
            await self.calls.change(as_caller, ctx, _unlink, directory, name)
        self._lost(removed, parent, name)
        await self._tell(parent, name, ctx)

    @guarded
    async def rmdir(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        """Remove an empty directory; the end of a ``D.bk`` ends the swap of D (promise I10)."""
        parent = self._directory(parent_inode, name)
        removed = await self.before_removal(parent, name)
        with await self.using(parent) as directory:
            try:
                await self.calls.change(as_caller, ctx, _rmdir, directory, name)
            except OSError as e:
                bundles = self.trust.bundles_in(removed.id) if removed is not None else {}
                if e.errno != errno.ENOTEMPTY or not bundles:
                    raise
                # A bundle that is gone may still have its plain copy beneath, which nobody can see or remove.
                with waiting_for_store():
                    await self.flush_plain_copies()
                await self.calls.change(as_caller, ctx, _rmdir, directory, name)
        self._lost(removed, parent, name)
        await self._tell(parent, name, ctx)
        with waiting_for_store():
            await self.trust.swap_ends(parent.id, name, self.actor(ctx))

    def _lost(self, inode: Inode | None, parent: Inode, name: bytes) -> None:
        if inode is not None:
            self.inodes.lost_name(inode, parent, name)

    @guarded
    async def rename(  # noqa: PLR0913, PLR0917 - what renameat2(2) takes
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        """Rename, with the flags of renameat2(2)."""
        if self.announcements.is_announcer(ctx.pid):
            bundle = self._bundle(parent_inode_new, name_new)
            self.announcements.rename(parent_inode_old, name_old, bundle)
            return
        old_parent = self._directory(parent_inode_old, name_old)
        new_parent = self.node(parent_inode_new)
        if self.trust.bundle_at(new_parent.id, name_new) is not None:
            await self._commit(old_parent, name_old, new_parent, name_new, flags, ctx)
            return
        self._directory(parent_inode_new, name_new)
        moved = await self.before_removal(old_parent, name_old)
        replaced = await self.before_removal(new_parent, name_new)
        with (
            await self.using(old_parent) as old_directory,
            await self.using(new_parent) as new_directory,
        ):
            try:
                await self.calls.change(
                    as_caller,
                    ctx,
                    backing.rename,
                    old_directory,
                    name_old,
                    new_directory,
                    name_new,
                    flags,
                )
            except OSError:
                if flags & RENAME_WHITEOUT:
                    # ext4 has made and unmade the whiteout by then, which is a change of the directory.
                    self.forget_attributes(old_parent)
                raise
        if moved is not replaced:
            self._rename_inodes(old_parent, name_old, moved, new_parent, name_new, replaced, flags)
        await self._tell_of_rename(old_parent, name_old, new_parent, name_new, ctx)

    def _rename_inodes(  # noqa: PLR0913, PLR0917 - both ends of a rename
        self,
        old_parent: Inode,
        name_old: bytes,
        moved: Inode | None,
        new_parent: Inode,
        name_new: bytes,
        replaced: Inode | None,
        flags: int,
    ) -> None:
        """Note which inodes have which names now."""
        if old_parent is new_parent:
            moves = {}
            if moved is not None and moved.dirty:
                moves[name_old] = name_new
            if flags & RENAME_EXCHANGE and replaced is not None and replaced.dirty:
                moves[name_new] = name_old
            self.trust.keep_sources(old_parent.id, moves)
        if moved is not None:
            self.inodes.moved(moved, new_parent, name_new)
            self.await_release(moved)
        if flags & RENAME_EXCHANGE and replaced is not None:
            self.inodes.moved(replaced, old_parent, name_old)
            self.await_release(replaced)
        else:
            self._lost(replaced, new_parent, name_new)

    async def _tell_of_rename(
        self,
        old_parent: Inode,
        name_old: bytes,
        new_parent: Inode,
        name_new: bytes,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        trust = self.trust
        names_old = trust.has_role(old_parent.id, name_old)
        names_new = trust.has_role(new_parent.id, name_new)
        if old_parent is new_parent and (names_old or names_new):
            # At once: between the two steps the certificate would be missing.
            with waiting_for_store():
                await trust.replaced(old_parent.id, (name_old, name_new), self.actor(ctx))
            for name in {name_old, name_new}.intersection(self.host_files):
                await self.tell_of_host_file(old_parent, name, self.actor(ctx))
        else:
            await self._tell(new_parent, name_new, ctx)
            await self._tell(old_parent, name_old, ctx)
        with waiting_for_store():
            await trust.swap_ends(old_parent.id, name_old, self.actor(ctx))

    async def _commit(  # noqa: PLR0913, PLR0917 - what renameat2(2) takes
        self,
        old_parent: Inode,
        name_old: bytes,
        new_parent: Inode,
        name_new: bytes,
        flags: int,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        """Take the rename of a script's temporary onto its bundle for the end of a regeneration (promise I8).

        The temporary is consumed, the bundle is what it is, a swap is over. Any other rename onto a bundle is refused.
        """
        bundle = self.trust.bundle_at(new_parent.id, name_new)
        is_script = old_parent is new_parent and name_old in script_temporaries(name_new)
        if bundle is None or not is_script or flags & ~RENAME_NOREPLACE:
            raise error(errno.EPERM)
        if flags & RENAME_NOREPLACE and bundle.exists:
            raise error(errno.EEXIST)
        removed = await self.before_removal(old_parent, name_old)
        with await self.using(old_parent) as directory:
            await self.calls.change(as_caller, ctx, _unlink, directory, name_old)
        self._lost(removed, old_parent, name_old)
        actor = self.actor(ctx)
        self.on_absorbed(bundle, actor)
        self.trust.swaps.end(bundle, actor)

    @guarded
    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        """Return where a symbolic link points."""
        with await self.using(self.node(inode)) as fd:
            return await self.calls.change(_readlink, fd)


def _mknod(directory: int, name: bytes, mode: int, rdev: int) -> None:
    os.mknod(name, mode, rdev, dir_fd=directory)


def _mkdir(directory: int, name: bytes, mode: int) -> None:
    os.mkdir(name, mode & PERMISSION_BITS, dir_fd=directory)


def _symlink(directory: int, name: bytes, target: bytes) -> None:
    os.symlink(target, name, dir_fd=directory)


def _link(fd: int, directory: int, name: bytes) -> None:
    # By way of /proc: linkat(2) with AT_EMPTY_PATH takes CAP_DAC_READ_SEARCH, which a normal user does not have.
    os.link(fd_path(fd), name, dst_dir_fd=directory, follow_symlinks=True)


def _unlink(directory: int, name: bytes) -> None:
    os.unlink(name, dir_fd=directory)


def _rmdir(directory: int, name: bytes) -> None:
    os.rmdir(name, dir_fd=directory)


def _readlink(fd: int) -> bytes:
    return os.readlink(b"", dir_fd=fd)
