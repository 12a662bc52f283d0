"""The state that all operations share, and the steps that more than one family of them takes.

Owns the composition of inode table, handle table, bundles and calls, and the rule by which a bundle's answer waits for
what happened before it.

Concurrency: handlers run as trio tasks on one thread; between two awaits nothing else happens. The kernel serialises
changes of one directory; what it does not serialise is a lookup against a RELEASE, which is why ``wait_until_current``
exists.
"""

import errno
import functools
import os
import select
import stat
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Hashable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar, TypeVarTuple, cast

import pyfuse3
import trio

from certfs.core.bundle import SOURCE_SUFFIX
from certfs.fuse import attributes
from certfs.fuse.announcements import Announcements
from certfs.fuse.caller import as_creator
from certfs.fuse.calls import Calls
from certfs.fuse.handed_back import HandedBack
from certfs.fuse.handles import FileHandle, HandleTable
from certfs.fuse.inodes import ROOT, SPARED, Inode, InodeTable, Use, permissions_of
from certfs.fuse.nodes import Find, Node, OwnDirectory, OwnNodes
from certfs.fuse.patience import MOST_SECONDS, Patience
from certfs.fuse.requests import Requests, current_user, waiting_for_store
from certfs.fuse.synthetic import (
    HIDDEN_STATUS_DIRECTORY_NUMBER,
    STATUS_DIRECTORY,
    STATUS_DIRECTORY_NUMBER,
    STATUS_FILE,
    SUMMARY_FILE,
    Content,
    SyntheticFiles,
)
from certfs.procfs import command_of, login_of
from certfs.store.backing import O_PATH_NOFOLLOW, FileId, fd_path, file_id
from certfs.store.bundle import Actor, LiveBundle
from certfs.store.bundles import Trust
from certfs.store.cached import open_cached, status_cached, status_on_mount
from certfs.store.directories import Roots
from certfs.store.patience import Waited

_RELEASE_SECONDS = 0.25
"""How long an answer waits for the next RELEASE that may be on its way behind other requests."""

_STATUS_SECONDS = 2.0
"""How long a status waits for what is to be looked at before it is told."""

_ATTEMPTS = 4
"""How often an inode is reached for whose name others are changing."""

_TEMPORARY_SUFFIX = b".tmp"

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


def error(code: int) -> OSError:
    """Return the OSError of an errno."""
    return OSError(code, os.strerror(code))


@dataclass(slots=True)
class PendingRequests:
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


@dataclass(frozen=True, slots=True)
class Tables:
    """What the kernel remembers: files of the store, open files, and files of our own."""

    inodes: InodeTable
    handles: HandleTable
    synthetic: SyntheticFiles


@dataclass(frozen=True, slots=True)
class BeingWritten:
    """A source ``name`` that counts as it was ``since`` then (time.time), because ``writers`` have not closed it."""

    directory: FileId
    name: bytes
    since: float
    writers: tuple[Actor, ...]


class FilesystemBase(pyfuse3.Operations):
    """What every family of operations works on."""

    supports_dot_lookup = True
    enable_writeback_cache = False
    enable_acl = True

    def __init__(
        self,
        roots: Roots,
        trust: Trust,
        tables: Tables,
        calls: Calls,
    ) -> None:
        super().__init__()
        self.roots = roots
        self.trust = trust
        self.inodes = inodes = tables.inodes
        self.handles = tables.handles
        self.synthetic = tables.synthetic
        self.calls = calls
        self.requests = Requests()
        self.patience = Patience()
        self.status_patience = Patience(_STATUS_SECONDS)
        self._known: dict[Hashable, object] = {}
        """The last that the store said of the few directories on the way to bundles."""
        self.listings: OrderedDict[int, list[bytes]] = OrderedDict()
        self.handed_back = HandedBack()
        self.announcements = Announcements(tables.synthetic)
        self.pending_requests = PendingRequests()
        self.started_ns = time.time_ns()
        self.unsettled: set[Inode] = set()
        self._committing: dict[Inode, trio.Event] = {}
        """Files whose last writer has closed them and that are being read for it."""
        self.keeps_attributes = attributes.forgets_for_good(os.uname().release)
        self._kept: set[Inode] = set()
        """Directories whose attributes the kernel may keep until they change."""
        self.on_init: Callable[[], None] = lambda: None
        self.reading_flags = 0
        """O_NOATIME on a mount that is not to change times of access by reading (mount(8): noatime, ro)."""
        self.listing_flags = 0
        """The same for reading directories (nodiratime too)."""
        self.on_absorbed: Callable[[LiveBundle, Actor], None] = lambda _bundle, _actor: None
        """Called when a rename onto a bundle was taken for the end of a regeneration."""
        self.host_files: Collection[bytes] = ()
        """Names of files that mean something to others than bundles, in whatever directory."""
        self.on_host_file: Callable[[FileId, bytes, Actor | None], Awaitable[None]] | None = None
        """Called when one of them was made, written, replaced or removed."""
        self.flush_plain_copies: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
        self.own = OwnNodes(tables.synthetic)
        self.beside_store: dict[tuple[int, bytes], Find] = {}
        """Nodes of our own that have a name in a directory of the store, by that, and are not listed."""
        self.store_roots = [
            inodes.add_root(os.dup(fd), None if name or roots.inner else ROOT)
            for name, fd in roots.directories.items()
        ]
        self.details_owner = (os.geteuid(), os.getegid())
        """Who reads the status: it names sources."""
        self._add_own_nodes(tuple(roots.directories))

    def _add_own_nodes(self, trees: tuple[bytes, ...]) -> None:
        """Register what is not the store's: the only place that says what there is."""
        own = self._status_directory(STATUS_DIRECTORY_NUMBER)
        if b"" in trees:
            (store,) = self.store_roots
            self.beside_store[store.number, STATUS_DIRECTORY] = _always(own)
            status = os.stat(store.fd)
            self.details_owner = (status.st_uid, status.st_gid)
            if not self.roots.inner:
                return
            trees = (self.roots.inner,)
            # The kernel has a directory in one place only.
            own = self._status_directory(HIDDEN_STATUS_DIRECTORY_NUMBER)
        # It is mounted out of sight and shown in parts: there is no other way into them through it than through the
        # directories above each part (promise I19).
        root = OwnDirectory(ROOT, self.started_ns, mode=0o700)
        for name, tree in zip(trees, self.store_roots, strict=True):
            root.add(name, _always(tree))
        root.add(STATUS_DIRECTORY, _always(own), listed=False)
        self.own.add(root)

    def _status_directory(self, number: int) -> OwnDirectory:
        directory = OwnDirectory(number, self.started_ns)
        directory.add(STATUS_FILE, self.status_content)
        directory.add(SUMMARY_FILE, self._summary)
        self.own.add(directory)
        return directory

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
        return Actor(ctx.uid, ctx.pid, command, login_of(ctx.pid))

    def node(self, number: int) -> Inode:
        """Return the inode of the store behind a node number; for one of our own files there is none: EPERM."""
        if self.own.find(number) is not None:
            raise error(errno.EPERM)
        return self.inodes[number]

    async def told(self, node: Node) -> pyfuse3.EntryAttributes:
        """Return the entry of a node that was found by its name, and count one lookup of it."""
        if isinstance(node, Inode):
            entry = self.entry(node, await self.status(node))
            node.lookups += 1
            return entry
        node.lookups += 1
        return node.attributes()

    def not_told(self, node: Node) -> None:
        """Take the lookup back: there was no room for it."""
        if not self.own.forget(node.number, 1):
            self.inodes.forget(node.number, 1)

    def find_beside(self, parent: Inode, name: bytes) -> Find | None:
        """Return what finds our own node of this name in a directory of the store, None where it is the store's."""
        find = self.beside_store.get((parent.number, name))
        if find is not None:
            return find
        bundle = self.trust.bundle_at(parent.id, name)
        return None if bundle is None else functools.partial(self.bundle_content, bundle)

    async def wait_until_current(self, bundle: LiveBundle) -> None:
        """Wait until the bundle shows every change that was complete before now (promises I1, I13).

        A RELEASE is a background request: close(2) does not wait for it, and with a dozen of them unanswered the kernel
        holds further ones back, behind a LOOKUP that was sent later. While a source is being written its RELEASE may be
        among those, so the answer waits until nothing is on its way, for a bounded time.
        """
        if self.unsettled:
            await self._await_releases(bundle)
        if self.trust.is_current(bundle):
            return
        # Where a source has to be looked at again the store may not answer: then the last known content counts.
        name = b"/".join(bundle.spec.bundle).decode("utf-8", "backslashreplace")
        is_step = not all(root.local for root in self.store_roots)
        await self.patience.wait_for(
            bundle,
            name,
            self._bring_up_to_date,
            bundle,
            step=is_step,
            progress=lambda: self.trust.progress,
        )

    async def _bring_up_to_date(self, bundle: LiveBundle) -> None:
        await self.trust.poll_events()
        await bundle.wait_until_current()

    async def _await_releases(self, bundle: LiveBundle) -> None:
        """Wait for the RELEASE of every source of the bundle that is being written, as long as one may be on its way.

        Given up when none came for a while though requests keep coming: then a writer is simply not done.
        """
        waiting = {inode for inode in self.unsettled if self._concerns(inode, bundle)}
        waited, total = Waited(), Waited()
        while (
            waiting
            and waited.step() < _RELEASE_SECONDS
            and total.step() < MOST_SECONDS
            and not self.pending_requests.is_quiet()
        ):
            await trio.lowlevel.checkpoint()
            if not waiting <= self.unsettled:
                waiting &= self.unsettled
                waited.restart()

    @staticmethod
    def _concerns(inode: Inode, bundle: LiveBundle) -> bool:
        """Whether the inode may be a source of this bundle, also by another name than is known."""
        if inode.parent is not None and inode.parent.id == bundle.directory_id:
            return True
        return bundle.is_incomplete(inode.id)

    async def bundle_content(self, bundle: LiveBundle) -> Content:
        """Return the content of a bundle as it is now; ENOENT where it has no certificate (promise I7)."""
        await self.wait_until_current(bundle)
        if not bundle.exists:
            raise error(errno.ENOENT)
        return self.synthetic.of_bundle(bundle)

    async def status_content(self) -> Content:
        """Return a new inode with the status as it is now; what takes long of it is done in a thread."""
        user = current_user()
        recent = self.synthetic.recent_status(user)
        if recent is not None:
            return recent
        # That takes a second where some place does not answer, and for ever where the store itself does not.
        await self.status_patience.wait_for("status", "the status", self.trust.compare)
        await self.calls.away(self.synthetic.prepare_status)
        content = self.synthetic.of_status(user)
        content.owner = self.details_owner
        return content

    async def _summary(self) -> Content:
        return self.synthetic.of_summary()

    def entry(self, inode: Inode, status: os.stat_result) -> pyfuse3.EntryAttributes:
        """Return the attributes of a file of the store."""
        timeout = attributes.PASSED_THROUGH_SECONDS
        parent = inode.parent
        if parent is not None and self.is_script_temporary(parent.id, inode.name):
            # A rename onto the bundle leaves the kernel with this name's timeout for the bundle's name.
            timeout = 0.0
        inode.told = permissions_of(status)
        return attributes.from_status(status, inode.number, entry_timeout=timeout)

    def entry_to_keep(self, inode: Inode, status: os.stat_result) -> pyfuse3.EntryAttributes:
        """Return the attributes of a file of the store, for GETATTR and LOOKUP.

        The kernel checks the permissions of a bundle's directory before it looks the bundle up. It may keep them while
        every change of them is heard of: that saves each open and stat of a bundle a request. Not what a SETATTR is
        answered: before 6.16 the kernel believes that also when it was told to forget it meanwhile.
        """
        entry = self.entry(inode, status)
        if (
            inode.local
            and self.keeps_attributes
            and self.trust.bundles_in(inode.id)
            and self.trust.is_watched(inode.id)
        ):
            entry.attr_timeout = attributes.WATCHED_SECONDS
            self._kept.add(inode)
        return entry

    def attributes_changed(self, directories: Collection[FileId]) -> None:
        """Let the kernel ask anew for the attributes of those of these directories which it may keep."""
        for inode in [inode for inode in self._kept if inode.id in directories]:
            self._kept.discard(inode)
            self.forget_attributes(inode)

    def forget_kept_attributes(self) -> None:
        """Do so for all: other directories may hold bundles, or be watched, from now on."""
        self.attributes_changed({inode.id for inode in self._kept})

    def check_permissions(
        self, inode: Inode, status: os.stat_result, ctx: pyfuse3.RequestContext
    ) -> None:
        """Hand a request back to the kernel (ESTALE) if it was checked against permissions that are no longer those.

        They may have been changed in the store itself since the kernel was last told (docs/adr/0004).
        """
        if ctx.uid != 0 and inode.told not in {None, permissions_of(status)}:
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
        if (
            self.trust.bundle_at(parent.id, name) is not None
            or self.trust.is_hidden(parent.id, name)
            or (parent.number, name) in self.beside_store
        ):
            raise error(errno.EPERM)

    def is_busy(self, identity: FileId) -> bool:
        """Whether the inode of this identity is being written through the mount (promise I3)."""
        inode = self.inodes.find(identity)
        return inode is not None and inode.dirty and inode.writers > 0

    def mark_dirty(self, inode: Inode, status: os.stat_result) -> None:
        """Take note that an open file is changed; ``status`` is what it was right before."""
        if not inode.dirty:
            self.trust.write_begins(*self._place(inode), status)
            inode.dirty_since = time.time()
            if status.st_nlink:
                self.await_release(inode)

    @contextmanager
    def committing(self, inode: Inode) -> Iterator[None]:
        """Have who would change the file next wait while what was written is read."""
        event = self._committing[inode] = trio.Event()
        try:
            yield
        finally:
            if self._committing.get(inode) is event:
                del self._committing[inode]
            event.set()

    async def committed(self, inode: Inode) -> None:
        """Wait while what was written before is read: it is what counts until the next writer closes (I3)."""
        while (event := self._committing.get(inode)) is not None:
            with waiting_for_store():
                await event.wait()

    async def writes_now(self, handle: FileHandle) -> None:
        """Take note that an open file is about to be changed through this handle, a writer until it is closed."""
        inode = handle.inode
        if not handle.has_written:
            # Before the await: another writer's release must not take this one for idle.
            handle.has_written = True
            inode.writers += 1
        await self.committed(inode)
        if not inode.dirty:
            self.mark_dirty(inode, await self.calls.look(inode.local, os.fstat, handle.fd))

    def mark_clean(self, inode: Inode, status: os.stat_result) -> None:
        """Take note that it was not changed after all."""
        inode.dirty_since = 0.0
        self.unsettled.discard(inode)
        self.trust.write_failed(*self._place(inode), status)

    @staticmethod
    def _place(inode: Inode) -> tuple[FileId | None, bytes]:
        return inode.parent.id if inode.parent is not None else None, inode.name

    def being_written(self) -> list[BeingWritten]:
        """Return the sources that are being written through the mount."""
        actors: dict[Inode, list[Actor]] = {}
        for handle in self.handles.writers():
            if handle.inode in self.unsettled and handle.actor is not None:
                actors.setdefault(handle.inode, []).append(handle.actor)
        return [
            BeingWritten(
                inode.parent.id, inode.name, inode.dirty_since, tuple(actors.get(inode, ()))
            )
            for inode in self.unsettled
            if inode.parent is not None
        ]

    def await_release(self, inode: Inode) -> None:
        """Let bundles wait for the RELEASE of an inode if it is a source that is being written."""
        if inode.dirty and self.may_be_source(inode):
            self.unsettled.add(inode)

    def may_be_source(self, inode: Inode) -> bool:
        """Whether the inode has the name of a source, or names that are not known."""
        parent = inode.parent
        return parent is None or self.trust.is_source(parent.id, inode.name)

    def matters(self, inode: Inode) -> bool:
        """Whether who changes the inode is to be known: it may be a source, or is a host's own file."""
        return inode.name in self.host_files or self.may_be_source(inode)

    async def tell_of_host_file(self, directory: Inode, name: bytes, actor: Actor | None) -> None:
        """Tell of a change of a name that is one of ``host_files``."""
        if name in self.host_files and self.on_host_file is not None:
            with waiting_for_store():
                await self.on_host_file(directory.id, name, actor)

    async def tell_of_content(self, node: Inode, actor: Actor | None, links: int) -> None:
        """Tell the bundles that a file's content changed; with several ``links`` any of its names may be a source."""
        if node.parent is not None:
            await self.tell_of_host_file(node.parent, node.name, actor)
        with waiting_for_store():
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
        with await self.using(parent) as directory:
            status = await self.calls.change(
                as_creator, ctx, mode, make_in, directory, name, ctx.gid, create
            )
        return self.entry(self.inodes.remember(parent, name, status, local=parent.local), status)

    async def using(self, inode: Inode) -> Use:
        """Keep a descriptor of the inode open for the time of a call; ESTALE where it cannot be reached any more."""
        if inode.fd < 0:
            await self._reach(inode)
        return self.inodes.using(inode)

    async def _reach(self, inode: Inode) -> None:
        if inode.local:
            with suppress(BlockingIOError):
                self.inodes.fd(inode, open_cached)
                return
        for _ in range(_ATTEMPTS):
            parent, name = inode.parent, inode.name
            if parent is None:
                break
            with await self.using(parent) as directory:
                try:
                    fd, status = await self.opening(
                        self.calls.change, _open_with_status, directory, name
                    )
                except (FileNotFoundError, NotADirectoryError):
                    fd = -1
            # Meanwhile another request may have opened or renamed it.
            if inode.fd >= 0:
                if fd >= 0:
                    self.calls.let_go(fd, local=inode.local)
                return
            if fd >= 0 and (inode.parent is parent and inode.name == name):
                self.inodes.adopt(inode, fd, status)
                return
            if fd >= 0:
                self.calls.let_go(fd, local=inode.local)
        raise error(errno.ESTALE)

    async def look(self, parent: Inode, name: bytes) -> tuple[os.stat_result, bool]:
        """Return the status of ``name`` itself, and whether what it names is looked at without asking anybody else."""
        if parent.local or not self.trust.goes_on(parent.id, name):
            return await self._look(parent, name)
        return await self._last_known((parent.id, name), name, self._look, parent, name)

    async def _look(self, parent: Inode, name: bytes) -> tuple[os.stat_result, bool]:
        with await self.using(parent) as directory:
            if parent.local:
                with suppress(BlockingIOError):
                    return status_cached(directory, name), True
            status, on_mount = await self.calls.change(status_on_mount, directory, name)
        return status, parent.local and on_mount

    async def before_removal(self, parent: Inode, name: bytes) -> Inode | None:
        """Make sure that the inode of a name that is about to go can be reached without it; return the inode."""
        try:
            status, _local = await self.look(parent, name)
        except FileNotFoundError:
            return None
        inode = self.inodes.before_removal(parent, name, status)
        if inode is not None and inode.fd < 0:
            await self._reach(inode)
        return inode

    async def status(self, inode: Inode) -> os.stat_result:
        """Return the status of an inode, by its name where it has no descriptor; ESTALE where it is gone."""
        if inode.local or not self.trust.is_on_the_way(inode.id):
            return await self._status(inode)
        return await self._last_known(inode.id, inode.name, self._status, inode)

    async def _last_known(
        self, key: Hashable, name: bytes, ask: Callable[[*Ts], Awaitable[T]], *args: *Ts
    ) -> T:
        """Return what ``ask`` does, or did last, where the store does not answer: bundles are to be reached (I1)."""
        answers: list[T] = []
        refusals: list[OSError] = []

        async def work() -> None:
            try:
                answers.append(await ask(*args))
            except OSError as e:
                refusals.append(e)

        shown = name.decode("utf-8", "backslashreplace") or "the store"
        if await self.patience.wait_for(key, shown, work, step=True):
            if refusals:
                raise refusals[0]
            self._known[key] = answers[0]
        elif key not in self._known:
            raise error(errno.EAGAIN)
        return cast("T", self._known[key])

    async def _status(self, inode: Inode) -> os.stat_result:
        if inode.fd >= 0 or inode.parent is None:
            with await self.using(inode) as fd:
                return await self.calls.look(inode.local, os.stat, fd)
        try:
            status, _local = await self.look(inode.parent, inode.name)
        except (FileNotFoundError, NotADirectoryError):
            raise error(errno.ESTALE) from None
        if file_id(status) != inode.id:
            raise error(errno.ESTALE)
        return status


def _always(node: Node) -> Find:
    async def find() -> Node:
        return node

    return find


def script_temporaries(bundle: bytes) -> tuple[bytes, bytes]:
    """Return the names that regeneration scripts write a bundle to: x.pem.tmp, in older releases x.tmp, for x.pem."""
    return bundle + _TEMPORARY_SUFFIX, bundle.removesuffix(SOURCE_SUFFIX) + _TEMPORARY_SUFFIX


def _open_with_status(directory: int, name: bytes) -> tuple[int, os.stat_result]:
    fd = os.open(name, O_PATH_NOFOLLOW, dir_fd=directory)
    try:
        return fd, os.stat(fd)
    except BaseException:
        os.close(fd)
        raise


def status_of(directory: int, name: bytes) -> os.stat_result:
    """Return the status of ``name`` itself; a link is not followed."""
    return os.stat(name, dir_fd=directory, follow_symlinks=False)


def make_in(directory: int, name: bytes, gid: int, create: Callable[[int], None]) -> os.stat_result:
    """Let ``create`` make ``name`` in a directory, and return its status."""
    create(directory)
    if os.geteuid() == 0:
        return status_of(directory, name)
    fd = os.open(name, O_PATH_NOFOLLOW, dir_fd=directory)
    try:
        return made(directory, fd, gid)
    finally:
        os.close(fd)


def made(directory: int, fd: int, gid: int) -> os.stat_result:
    """Return the status of what the caller has just made, by its descriptor: its name may mean another file by now.

    As root it has been made as the caller, who owns it. A server of an ordinary user cannot do that, and makes files
    of its own: only their group can be that of the caller, where that is the user's as well (sg(1)).
    """
    status = os.stat(fd)
    if os.geteuid() == 0 or status.st_gid == gid or status.st_uid != os.geteuid():
        return status
    if os.stat(directory).st_mode & stat.S_ISGID:
        return status
    mode = stat.S_IMODE(status.st_mode)
    with suppress(PermissionError):
        os.chown(fd_path(fd), -1, gid)
        if mode & (stat.S_ISUID | stat.S_ISGID) and not stat.S_ISLNK(status.st_mode):
            os.chmod(fd_path(fd), mode)
    return os.stat(fd)
