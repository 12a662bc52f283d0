"""Operations on open files: create, open, read, write, fsync, release.

Owns the moment at which a written source enters its bundle: when its last writer is released (promise I3). FLUSH is not
used: it comes at the close of every duplicate, so nothing can be concluded from it, and answering it costs every
close(2) a round trip (see docs/adr).
"""

import errno
import os
import stat
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress

import pyfuse3

from certfs.fuse.base import FilesystemBase, T, Ts, error, made
from certfs.fuse.caller import as_caller_alone, as_creator, as_spender
from certfs.fuse.guard import guarded
from certfs.fuse.handles import ContentHandle, FileHandle
from certfs.fuse.inodes import Inode
from certfs.fuse.requests import is_for
from certfs.fuse.setid import drop_set_id
from certfs.fuse.synthetic import Content
from certfs.store.backing import fd_path, open_quietly, status_at
from certfs.store.cached import read_cached

# What is handed on to the store. O_DIRECT is not: our buffers are not aligned, and the page cache in question is the
# kernel's for this mount, which O_DIRECT has already passed by. O_APPEND is not: the kernel has found the end
# already, and pages of a shared mapping come through the same handle with offsets that count (pwrite(2), BUGS).
_OPEN_FLAGS = os.O_ACCMODE | os.O_TRUNC | os.O_SYNC | os.O_DSYNC | os.O_NOATIME

_PUSHED_SIZE = 1 << 20
"""How much of a new generation its first open puts into the kernel's page cache."""


class FileOperations(FilesystemBase):
    """CREATE, OPEN, READ, WRITE, FLUSH, FSYNC, RELEASE."""

    @guarded
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        """Open a file; a bundle for reading only."""
        own = self.own.find(inode)
        if own is not None:
            content = own.content()
            if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
                raise error(errno.EPERM)
            handle = self.handles.add(ContentHandle(ctx.uid, content))
            content.opens += 1
            self._push(content)
            return pyfuse3.FileInfo(fh=handle, keep_cache=True)
        node = self.inodes[inode]
        self.handles.require_room(ctx.uid)
        given = flags & _OPEN_FLAGS | self.reading_flags
        with await self.using(node) as fd:
            status = await self.calls.look(node.local, os.stat, fd)
            self.check_permissions(node, status, ctx)
            if flags & os.O_TRUNC:
                await self.committed(node)
            with self._truncating(node, status) if flags & os.O_TRUNC else nullcontext():
                if flags & _OPEN_FLAGS == os.O_RDONLY and node.local:
                    file = await self._opening(self._here, _open, fd, given, ctx)
                else:
                    file = await self._opening(self.calls.change, _open, fd, given, ctx)
                return self._opened(node, file, status, flags, ctx)

    @staticmethod
    async def _here(call: Callable[[*Ts], T], *args: *Ts) -> T:
        """Make a call on the loop: opening a file in memory for reading waits for nothing."""
        return call(*args)

    async def _opening(
        self,
        way: Callable[[Callable[[*Ts, int], T], *Ts, int], Awaitable[T]],
        call: Callable[[*Ts, int], T],
        *args: *Ts,
    ) -> T:
        """Open without waiting; with waiting where somebody has a lease on the file, which the kernel breaks.

        That may be another server of ours, or this one, for an instant (see docs/adr): nobody is to be told EAGAIN.
        """
        try:
            return await self.opening(way, call, *args, os.O_NONBLOCK)
        except BlockingIOError:
            return await self.opening(self.calls.away, call, *args, 0)

    @contextmanager
    def _truncating(self, node: Inode, status: os.stat_result) -> Iterator[None]:
        """Hold a file for one that is being written from before it is emptied: its last content counts (I3)."""
        was_dirty = node.dirty
        node.writers += 1
        self.mark_dirty(node, status)
        try:
            yield
        finally:
            node.writers -= 1
            if not node.writers and not was_dirty:
                # It could not be opened, so nothing was changed.
                self.mark_clean(node, status)

    @staticmethod
    def _push(content: Content) -> None:
        """Put the start of a new generation into the kernel's page cache, which saves its first reader a READ or more.

        Only when nobody else has it open: no READ of it is then under way, whose page the kernel would wait for.
        """
        if content.opens == 1 and not content.pushed:
            content.pushed = True
            with suppress(OSError):
                pyfuse3.notify_store(content.number, 0, content.readable.read(0, _PUSHED_SIZE))

    def _opened(  # noqa: PLR0913 - what the tables have to know
        self,
        node: Inode,
        file: int,
        status: os.stat_result,
        flags: int,
        ctx: pyfuse3.RequestContext,
        *,
        created: bool = False,
    ) -> pyfuse3.FileInfo:
        """Enter an open file into the tables."""
        truncates = bool(flags & os.O_TRUNC)
        writes = created or truncates or flags & os.O_ACCMODE != os.O_RDONLY
        handle = FileHandle(
            user=ctx.uid,
            fd=file,
            inode=node,
            actor=self.actor(ctx) if writes and self.matters(node) else None,
            writes=writes,
            synchronous=bool(flags & (os.O_SYNC | os.O_DSYNC)),
        )
        self.inodes.hold(node)
        if writes:
            node.open_for_writing += 1
        if truncates or created:
            # A new name is a change even if nothing is ever written.
            handle.has_written = True
            node.writers += 1
            self.mark_dirty(node, status)
        return pyfuse3.FileInfo(fh=self.handles.add(handle), keep_cache=False)

    @guarded
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        """Create a file and open it.

        The kernel has checked the directory, not the file, which did not exist. If it does by now, the kernel is told
        to look again (ESTALE) and checks the file; it does that once for each open, so the second time the file is
        opened with nothing but the caller's rights (promise I19).
        """
        parent = self.node(parent_inode)
        self.refuse_bundle(parent, name)
        self.handles.require_room(ctx.uid)
        request = (ctx.pid, parent_inode, name)
        with await self.using(parent) as directory:
            try:
                file, status = await self._opening(
                    self.calls.change, _create, directory, name, mode, flags, ctx
                )
            except FileExistsError:
                if flags & os.O_EXCL:
                    raise
                if self.handed_back.is_first(request):
                    raise error(errno.ESTALE) from None
                file, status = await self._opening(
                    self.calls.change, _open_existing, directory, name, mode, flags, ctx
                )
                node = self.inodes.remember(parent, name, status)
                if flags & os.O_TRUNC:
                    await self.committed(node)
                with self._truncating(node, status) if flags & os.O_TRUNC else nullcontext():
                    if flags & os.O_TRUNC:
                        await self.calls.change(os.ftruncate, file, 0)
                    return self._opened(node, file, status, flags, ctx), self.entry(node, status)
        node = self.inodes.remember(parent, name, status, local=parent.local)
        entry = self.entry(node, status)
        return self._opened(node, file, status, flags, ctx, created=True), entry

    @guarded
    async def read(self, fh: int, off: int, size: int) -> bytes:
        """Read from an open file."""
        self.pending_requests.background += 1
        try:
            handle = self.handles.find(fh)
            if isinstance(handle, ContentHandle):
                return handle.content.readable.read(off, size)
            file = self.handles.get(fh, FileHandle)
            is_for(file.user)
            if file.inode.local:
                with suppress(BlockingIOError):
                    return read_cached(file.fd, size, off)
            return await self.calls.change(os.pread, file.fd, size, off)
        finally:
            self.pending_requests.background -= 1

    @guarded
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        """Write to an open file; all or as much as the store takes."""
        handle = self.handles.get(fh, FileHandle)
        is_for(handle.user, len(buf))
        await self.writes_now(handle)
        run = self.calls.away if handle.synchronous else self.calls.change
        return await run(as_spender, handle.user, os.pwrite, handle.fd, buf, off)

    async def flush(self, fh: int) -> None:
        """Tell the kernel not to send FLUSH: after this once it never does."""
        raise pyfuse3.FUSEError(errno.ENOSYS)

    @guarded
    async def fsync(self, fh: int, datasync: bool) -> None:  # noqa: FBT001 - pyfuse3's signature
        """Write an open file to the disk."""
        handle = self.handles.find(fh)
        if isinstance(handle, FileHandle):
            is_for(handle.user)
            await self.calls.away(os.fdatasync if datasync else os.fsync, handle.fd)

    @guarded
    async def release(self, fh: int) -> None:
        """Let go of an open file; the last writer of a source makes it part of its bundle."""
        self.pending_requests.background += 1
        try:
            handle = self.handles.remove(fh)
            if isinstance(handle, ContentHandle):
                self.synthetic.closed(handle.content)
            elif isinstance(handle, FileHandle):
                is_for(handle.user)
                await self._release_file(handle)
        finally:
            self.pending_requests.background -= 1

    async def _release_file(self, handle: FileHandle) -> None:
        node = handle.inode
        try:
            if handle.writes:
                node.open_for_writing -= 1
            if handle.has_written:
                # A descriptor that has not written delays nothing, however long it stays open.
                node.writers -= 1
                if node.writers == 0 and node.dirty:
                    await self._commit_writes(handle, node)
        finally:
            # Closed after the source was read: as long as it is open its inode is there to be read.
            if handle.writes:
                # Waited for: an event of it that came later would look like another's change, and the lease that is
                # asked for tells of our own descriptor as of any other writer's.
                await self.calls.change(os.close, handle.fd)
            else:
                self.calls.let_go(handle.fd, local=node.local)
            self.inodes.release(node)

    async def _commit_writes(self, handle: FileHandle, node: Inode) -> None:
        """Make a file that was written part of the bundles that it is a source of."""
        node.dirty_since = 0.0
        try:
            status = await self.calls.look(node.local, os.fstat, handle.fd)
            with self.committing(node):
                await self.tell_of_content(node, handle.actor, status.st_nlink)
        finally:
            # Only now: an answer that came between would have been given without this source.
            if not node.dirty:
                self.unsettled.discard(node)


def _open(fd: int, flags: int, ctx: pyfuse3.RequestContext, patience: int) -> int:
    file = open_quietly(fd_path(fd), flags | os.O_CLOEXEC | patience)
    if flags & os.O_TRUNC:
        drop_set_id(file, ctx)
    return file


def _create(  # noqa: PLR0913, PLR0917 - what open(2) takes, and for whom
    directory: int,
    name: bytes,
    mode: int,
    flags: int,
    ctx: pyfuse3.RequestContext,
    patience: int,
) -> tuple[int, os.stat_result]:
    """Create and open a file that does not exist; return the descriptor and its status.

    Not the status of the name: that may have been exchanged, and the handle would be taken for one of another's file.
    """
    flags = flags & _OPEN_FLAGS | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | patience
    file = as_creator(ctx, mode, _open_in, directory, name, flags, mode & 0o7777)
    try:
        return file, made(directory, file, ctx.gid)
    except BaseException:
        os.close(file)
        raise


def _open_existing(  # noqa: PLR0913, PLR0917 - what open(2) takes, and for whom
    directory: int,
    name: bytes,
    mode: int,
    flags: int,
    ctx: pyfuse3.RequestContext,
    patience: int,
) -> tuple[int, os.stat_result]:
    """Open a file that exists as the caller would, O_TRUNC left to be done; ESTALE where it is no regular file.

    With O_CREAT, which says more than the file's mode does in a directory with the sticky bit (fs.protected_regular).
    """
    flags = flags & _OPEN_FLAGS & ~os.O_TRUNC
    flags |= os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | patience
    status = status_at(directory, name)
    if status is None or not stat.S_ISREG(status.st_mode):
        raise error(errno.ESTALE)
    file = as_caller_alone(ctx, _open_in, directory, name, flags, mode & 0o7777)
    status = os.fstat(file)
    if not stat.S_ISREG(status.st_mode):
        os.close(file)
        raise error(errno.ESTALE)
    return file, status


def _open_in(directory: int, name: bytes, flags: int, mode: int) -> int:
    return os.open(name, flags, mode, dir_fd=directory)
