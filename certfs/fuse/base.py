"""The state that all operations share, and the steps that more than one family of them takes.

Owns the composition of inode table, handle table, bundles and calls, and the rule by which a bundle's answer waits for
what happened before it.

Concurrency: handlers run as trio tasks on one thread; between two awaits nothing else happens. The kernel serialises
changes of one directory; what it does not serialise is a lookup against a RELEASE, which is why ``settle`` exists.
"""

import errno
import os
import select
import stat
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar, TypeVarTuple

import pyfuse3
import trio

from certfs.core.bundle import SOURCE_SUFFIX
from certfs.fuse import attributes
from certfs.fuse.announcements import Announcements
from certfs.fuse.caller import as_creator
from certfs.fuse.calls import Calls
from certfs.fuse.handed_back import HandedBack
from certfs.fuse.handles import HandleTable
from certfs.fuse.inodes import ROOT, SPARED, Inode, InodeTable, permissions_of
from certfs.fuse.synthetic import STATUS_DIRECTORY_NUMBER, Content, SyntheticFiles
from certfs.procfs import command_of
from certfs.store.backing import FileId, file_id
from certfs.store.live import Actor, LiveBundle
from certfs.store.roles import Roots
from certfs.store.trust import Trust

_RELEASE_SECONDS = 0.25
"""How long an answer waits for the next RELEASE that may be on its way behind other requests."""

_TEMPORARY_SUFFIX = b".tmp"

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


def error(code: int) -> OSError:
    """Return the OSError of an errno."""
    return OSError(code, os.strerror(code))


@dataclass(slots=True)
class Traffic:
    """What the kernel sent and was not answered yet, of the kinds that it sends in the background.

    ``descriptor`` is the session's /dev/fuse, -1 before there is one.
    """

    descriptor: int = -1
    background: int = 0

    def is_quiet(self) -> bool:
        """Whether no request waits to be read and no background request is being handled."""
        if self.background:
            return False
        poll = select.poll()
        poll.register(self.descriptor, select.POLLIN)
        return not poll.poll(0)


class FilesystemBase(pyfuse3.Operations):
    """What every family of operations works on."""

    supports_dot_lookup = True
    enable_writeback_cache = False
    enable_acl = True

    def __init__(
        self,
        roots: Roots,
        trust: Trust,
        inodes: InodeTable,
        handles: HandleTable,
        synthetic: SyntheticFiles,
    ) -> None:
        super().__init__()
        self.roots = roots
        self.trust = trust
        self.inodes = inodes
        self.handles = handles
        self.synthetic = synthetic
        self.calls = Calls()
        self.handed_back = HandedBack()
        self.announcements = Announcements(synthetic)
        self.traffic = Traffic()
        self.owner = (os.geteuid(), os.getegid())
        self.started_ns = time.time_ns()
        self.unsettled: set[Inode] = set()
        self.on_init: Callable[[], None] = lambda: None
        self.flush_plain_copies: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
        whole = roots.directories.get(b"")
        self.trees: dict[bytes, Inode] = {}
        if whole is not None:
            inodes.add_root(os.dup(whole), ROOT)
        else:
            self.trees = {
                name: inodes.add_root(os.dup(fd)) for name, fd in roots.directories.items()
            }

    def init(self) -> None:
        """Take note that the kernel and the session have agreed: from now on requests are answered."""
        self.on_init()

    async def opening(
        self,
        way: Callable[[Callable[[*Ts], T], *Ts], Awaitable[T]],
        call: Callable[[*Ts], T],
        *args: *Ts,
    ) -> T:
        """Make ``call``, which opens something, in this ``way`` of `Calls`; EMFILE if no descriptor can be spared."""
        try:
            return await way(call, *args)
        except OSError as e:
            if e.errno != errno.EMFILE or not self.inodes.shrink(SPARED):
                raise
        return await way(call, *args)

    def actor(self, ctx: pyfuse3.RequestContext) -> Actor:
        """Return who made a request; the name of the command is read only for changes that matter."""
        command = command_of(ctx.pid).decode("utf-8", "backslashreplace") or "?"
        return Actor(ctx.uid, ctx.pid, command)

    def node(self, number: int) -> Inode:
        """Return the inode of the store behind a node number; for one of our own files there is none: EPERM."""
        if self.synthetic.find(number) is not None or self.is_virtual(number):
            raise error(errno.EPERM)
        return self.inodes[number]

    def is_virtual(self, number: int) -> bool:
        """Whether the number is that of a directory of our own making."""
        return number == STATUS_DIRECTORY_NUMBER or (number == ROOT and bool(self.trees))

    async def settle(self, bundle: LiveBundle) -> None:
        """Wait until the bundle shows every change that was complete before now (promises I1, I13).

        A RELEASE is a background request: close(2) does not wait for it, and with a dozen of them unanswered the kernel
        holds further ones back, behind a LOOKUP that was sent later. While a source is being written its RELEASE may be
        among those, so the answer waits until nothing is on its way, for a bounded time.
        """
        if self.unsettled:
            await self._await_releases()
        await self.trust.catch_up()
        await bundle.settle()

    async def _await_releases(self) -> None:
        """Wait for the RELEASE of every source that is being written, as long as one may be on its way.

        Given up when none came for a while though requests keep coming: then a writer is simply not done.
        """
        waiting = set(self.unsettled)
        deadline = trio.current_time() + _RELEASE_SECONDS
        while waiting and trio.current_time() < deadline and not self.traffic.is_quiet():
            await trio.lowlevel.checkpoint()
            if not waiting <= self.unsettled:
                waiting &= self.unsettled
                deadline = trio.current_time() + _RELEASE_SECONDS

    async def bundle_content(self, bundle: LiveBundle) -> Content:
        """Return the content of a bundle as it is now; ENOENT where it has no certificate (promise I7)."""
        await self.settle(bundle)
        if not bundle.exists:
            raise error(errno.ENOENT)
        return self.synthetic.of_bundle(bundle)

    async def status_content(self) -> Content:
        """Return a new inode with the status as it is now; what takes long of it is done in a thread."""
        await self.calls.away(self.synthetic.prepare_status)
        return self.synthetic.of_status()

    def content_entry(self, content: Content) -> pyfuse3.EntryAttributes:
        """Return the attributes of a file of our own."""
        return attributes.of_content(
            content.number, content.readable.size, content.time_ns, self.owner
        )

    def entry(self, inode: Inode, status: os.stat_result) -> pyfuse3.EntryAttributes:
        """Return the attributes of a file of the store."""
        timeout = attributes.PASSED_THROUGH_SECONDS
        parent = inode.parent
        if parent is not None and self.is_script_temporary(parent.id, inode.name):
            # A rename onto the bundle leaves the kernel with this name's timeout for the bundle's name.
            timeout = 0.0
        inode.told = permissions_of(status)
        return attributes.from_status(status, inode.number, entry_timeout=timeout)

    async def check_permissions(self, inode: Inode, fd: int, ctx: pyfuse3.RequestContext) -> None:
        """Hand a request back to the kernel (ESTALE) if it was checked against permissions that are no longer those.

        They may have been changed in the store itself since the kernel was last told (docs/adr/0004).
        """
        if ctx.uid != 0 and inode.told is not None:
            status = await self.calls.read(os.stat, fd)
            if permissions_of(status) != inode.told:
                self.forget_attributes(inode)
                raise error(errno.ESTALE)

    @staticmethod
    def forget_attributes(inode: Inode) -> None:
        """Let the kernel ask for an inode's attributes anew; that takes no lock, unlike the same for a name."""
        with suppress(OSError):
            pyfuse3.invalidate_inode(inode.number, attr_only=True)

    def is_script_temporary(self, directory: FileId, name: bytes) -> bool:
        """Whether this is what a regeneration script writes before it renames it onto a bundle beside it (I8)."""
        if not name.endswith(_TEMPORARY_SUFFIX):
            return False
        stem = name.removesuffix(_TEMPORARY_SUFFIX)
        return any(
            self.trust.bundle_at(directory, bundle) is not None
            for bundle in (stem, stem + SOURCE_SUFFIX)
        )

    def refuse_bundle(self, parent: Inode, name: bytes) -> None:
        """Refuse a change of a name that is a bundle's: it behaves like an immutable file (promise I8)."""
        if self.trust.bundle_at(parent.id, name) is not None or self.trust.is_hidden(
            parent.id, name
        ):
            raise error(errno.EPERM)

    def is_busy(self, identity: FileId) -> bool:
        """Whether the inode of this identity is being written through the mount (promise I3)."""
        inode = self.inodes.find(identity)
        return inode is not None and inode.dirty and inode.writers > 0

    def mark_dirty(self, inode: Inode, file: int) -> None:
        """Take note that an open file is changed; ``file`` is any descriptor of it."""
        if not inode.dirty:
            self.trust.write_begins(*self._place(inode), file)
            inode.dirty = True
            self.await_release(inode)

    def mark_clean(self, inode: Inode, file: int) -> None:
        """Take note that it was not changed after all."""
        inode.dirty = False
        self.unsettled.discard(inode)
        self.trust.write_failed(*self._place(inode), file)

    @staticmethod
    def _place(inode: Inode) -> tuple[FileId | None, bytes]:
        return inode.parent.id if inode.parent is not None else None, inode.name

    def await_release(self, inode: Inode) -> None:
        """Let bundles wait for the RELEASE of an inode if it is a source that is being written."""
        if inode.dirty and self.may_be_source(inode):
            self.unsettled.add(inode)

    def may_be_source(self, inode: Inode) -> bool:
        """Whether the inode has the name of a source, or names that are not known."""
        parent = inode.parent
        return parent is None or self.trust.is_source(parent.id, inode.name)

    async def tell_of_content(self, node: Inode, actor: Actor | None, links: int) -> None:
        """Tell the bundles that a file's content changed; with several ``links`` any of its names may be a source."""
        if node.parent is not None and self.may_be_source(node):
            await self.trust.changed(node.parent.id, node.name, actor)
        if links > (0 if node.parent is None else 1):
            await self.trust.inode_changed(node.id, actor)

    async def make(
        self,
        parent: Inode,
        name: bytes,
        mode: int,
        ctx: pyfuse3.RequestContext,
        create: Callable[[int], None],
    ) -> pyfuse3.EntryAttributes:
        """Let the caller ``create`` something of this ``mode``, with ``name``, in the directory that it is given."""
        with self.inodes.using(parent) as directory:
            status = await self.calls.change(
                as_creator, ctx, mode, make_in, directory, name, ctx.gid, create
            )
        return self.entry(self.inodes.remember(parent, name, status), status)

    async def status(self, inode: Inode) -> os.stat_result:
        """Return the status of an inode, by its name where it has no descriptor; ESTALE where it is gone."""
        if inode.fd >= 0 or inode.parent is None:
            with self.inodes.using(inode) as fd:
                return await self.calls.read(os.stat, fd)
        try:
            with self.inodes.using(inode.parent) as directory:
                status = await self.calls.read(status_of, directory, inode.name)
        except (FileNotFoundError, NotADirectoryError):
            raise error(errno.ESTALE) from None
        if file_id(status) != inode.id:
            raise error(errno.ESTALE)
        return status


def script_temporaries(bundle: bytes) -> tuple[bytes, bytes]:
    """Return the names that regeneration scripts write a bundle to: x.pem.tmp, in older releases x.tmp, for x.pem."""
    return bundle + _TEMPORARY_SUFFIX, bundle.removesuffix(SOURCE_SUFFIX) + _TEMPORARY_SUFFIX


def status_of(directory: int, name: bytes) -> os.stat_result:
    """Return the status of ``name`` itself; a link is not followed."""
    return os.stat(name, dir_fd=directory, follow_symlinks=False)


def make_in(directory: int, name: bytes, gid: int, create: Callable[[int], None]) -> os.stat_result:
    """Let ``create`` make ``name`` in a directory, and return its status."""
    create(directory)
    return made(directory, name, gid)


def made(directory: int, name: bytes, gid: int) -> os.stat_result:
    """Return the status of what the caller has just made.

    As root it has been made as the caller, who owns it. A server of an ordinary user cannot do that, and makes files
    of its own: only their group can be that of the caller, where that is the user's as well (sg(1)).
    """
    status = status_of(directory, name)
    if os.geteuid() == 0 or status.st_gid == gid or status.st_uid != os.geteuid():
        return status
    if os.stat(directory).st_mode & stat.S_ISGID:
        return status
    mode = stat.S_IMODE(status.st_mode)
    with suppress(PermissionError):
        os.chown(name, -1, gid, dir_fd=directory, follow_symlinks=False)
        if mode & (stat.S_ISUID | stat.S_ISGID) and not stat.S_ISLNK(status.st_mode):
            os.chmod(name, mode, dir_fd=directory)
    return status_of(directory, name)
