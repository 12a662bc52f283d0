"""W, the process that serves one mount: ``python -m certfs.server.main FD`` does what the spec says that FD is open on.

Owns the composition of store, bundles and filesystem, and the life of one FUSE session; what the supervisor tells it
comes through `certfs.server.supervision`.

Concurrency: one trio loop answers the kernel, the supervisor, inotify and the clock. Whatever may block is handed to a
thread by those who call it. The beat comes from this loop, so that its silence means that nobody is being answered.
"""

import gc
import logging
import os
import resource
import signal
import stat
import sys
from contextlib import suppress
from functools import partial
from typing import NoReturn

import pyfuse3
import trio

from certfs.config import Config
from certfs.errors import CertfsError, FuseError, StoreError
from certfs.fuse import session
from certfs.fuse.base import BeingWritten, Tables
from certfs.fuse.calls import Calls
from certfs.fuse.handles import HandleTable
from certfs.fuse.inodes import InodeTable
from certfs.fuse.numbers import Numbers
from certfs.fuse.operations import Operations
from certfs.fuse.synthetic import SyntheticFiles
from certfs.identity.ensure import ensure_identity, host_uuid
from certfs.linux.processes import leave
from certfs.linux.trust_log import TrustLog
from certfs.protocol import summary
from certfs.protocol.messages import Failure, Serve
from certfs.protocol.specs import MountSpec, ServerSpec, receive, wishes_file
from certfs.protocol.state_file import read_flags
from certfs.safe_open import LinkRefusedError
from certfs.server import audit, host_certificates
from certfs.server.announcing import Announcing
from certfs.server.host_certificates import HostCertificates
from certfs.server.plain_copies import PlainCopies
from certfs.server.settings import Settings
from certfs.server.status import StatusReport
from certfs.server.supervision import Supervision, fail, show_life
from certfs.store.backing import FileId
from certfs.store.bundle import Actor, LiveBundle, Published
from certfs.store.bundles import Trust
from certfs.store.cached import names_in
from certfs.store.directories import Roots
from certfs.store.layout import make_directories
from certfs.store.source_reader import ignore_lease_breaks
from certfs.store.undo_log import UndoLog

log = logging.getLogger("certfs")

_MAX_TASKS = 2560
"""A request that waits keeps one: those that wait for the store are fewer (`certfs.fuse.slots`), and others go on."""
_ECHO_SECONDS = 0.03
_SUMMARY_SECONDS = 0.1
"""Between a change and the summary of the status that shows it, so that a burst of changes is one."""
_SUMMARY_RETRY_SECONDS = 5.0
_RESERVED_DESCRIPTORS = 128
"""For our own work and everybody's, however many files somebody has open (promise I18)."""
_READ_AHEAD_KB = 1024
"""How much of a file that is read in order the kernel asks for at once; 128 without, eight times as many requests."""


class Server:
    """One FUSE session over one store, from the mount to its end."""

    def __init__(self, supervision: Supervision, settings: Settings) -> None:
        self._supervision = supervision
        self._mount = supervision.spec.mount
        self._settings = settings
        self._trust_log = TrustLog(self._mount.log or f"{self._mount.runtime}/log")
        self._loaded = False
        self._watch_problem = ""
        self._served = trio.Event()
        config = settings.config
        roots = Roots(
            {os.fsencode(tree.name): tree.fd for tree in self._mount.trees},
            inner=os.fsencode(self._mount.inner),
        )
        self.trust = Trust(
            roots,
            config.bundles,
            is_busy=self._is_busy,
            observer=self._observe,
            size_limit=config.source_size_limit,
            swap_timeout=config.swap_timeout,
            undo_log=UndoLog(self._mount.undo_log),
        )
        self.plain = PlainCopies(self.trust, active=not supervision.spec.standby)
        self.trust.is_alone = self.plain.active
        self.status = StatusReport(self._mount, settings, self.trust, self.plain, self)
        descriptors = _descriptor_limit()
        calls, numbers = Calls(), Numbers()
        self.operations = Operations(
            roots,
            self.trust,
            Tables(
                InodeTable(limit=descriptors // 2, let_go=calls.let_go, numbers=numbers),
                HandleTable(limit=(descriptors - _RESERVED_DESCRIPTORS) // 2),
                SyntheticFiles(
                    self.status.render, self.status.prepare, numbers, self.status.render_summary
                ),
            ),
            calls,
        )
        flags = read_flags(self._mount.runtime).all
        if flags & (os.ST_NOATIME | os.ST_RDONLY):
            self.operations.reading_flags = os.O_NOATIME
        if flags & (os.ST_NOATIME | os.ST_NODIRATIME | os.ST_RDONLY):
            self.operations.listing_flags = os.O_NOATIME
        self.operations.on_init = self._served.set
        self.operations.on_absorbed = self._absorbed
        report = partial(audit.report_host_certificate, trust_log=self._trust_log)
        self.host_certificates = HostCertificates(
            roots, report, is_active=lambda: self.plain.active
        )
        self.operations.host_files = host_certificates.NAMES
        self.operations.on_host_file = self.host_certificates.changed
        self.operations.flush_plain_copies = self.plain.flush
        self.announcing = Announcing(self.operations.synthetic)
        self.operations.announcements.is_announcer = self.announcing.is_announcer
        self.trust.on_directories_changed = self.operations.attributes_changed
        self.trust.on_resolved = self.operations.forget_kept_attributes

    def being_written(self) -> list[BeingWritten]:
        """Return the sources that count as they were, because writers have not closed them."""
        return self.operations.being_written()

    def is_overdue(self, bundle: LiveBundle) -> bool:
        """Whether a bundle is served as last known, because its sources cannot be read in time."""
        return bundle in self.operations.patience.overdue()

    def _is_busy(self, identity: FileId) -> bool:
        return self.operations.is_busy(identity)

    def _observe(self, published: Published) -> None:
        if self._loaded:
            audit.report(published, self._trust_log)
            self.plain.wake()
            if published.change.added or published.change.removed:
                self.announcing.changed(published.bundle)
        elif published.remarks:
            audit.report(
                Published(published.bundle, type(published.change)(), None, published.remarks)
            )

    def _absorbed(self, bundle: LiveBundle, actor: Actor) -> None:
        audit.report_absorbed(bundle.spec, actor, self._trust_log)

    def load(self) -> None:
        """Read the store."""
        audit.report_version(self._settings.file)
        self.trust.load()
        self.host_certificates.load()
        if self.plain.active:
            self.trust.sweep()
        audit.report_start(
            (
                b"/".join(bundle.spec.bundle),
                bundle.generation.certificates,
                len(bundle.catalog.names()),
            )
            for bundle in self.trust.bundles
        )
        self._report_watching()
        self._loaded = True

    def _report_watching(self) -> None:
        problem = self.trust.watcher.problem
        if problem and problem != self._watch_problem:
            log.warning("not every change in the store itself will be noticed: %s", problem)
        self._watch_problem = problem

    def attach(self, fd: int, mounted: Serve) -> None:
        """Serve the descriptor ``fd`` of a mount; FuseError where libfuse refuses."""
        try:
            pyfuse3.init(self.operations, f"/dev/fd/{fd}", set())
        except RuntimeError as e:
            raise FuseError(
                f"libfuse does not serve the mount that it is given ({e})",
                advice="the log has its own words",
            ) from None
        self.operations.pending_requests.descriptor = fd
        self.trust.walker.device = mounted.device
        self.announcing.mountpoint = os.path.join(mounted.mountpoint, self._mount.inner)
        self.announcing.device = mounted.device

    async def run(self) -> None:
        """Serve until the session ends or somebody says so."""
        await self.trust.recover()
        if self.plain.active:
            self._take_charge()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._serve, nursery.cancel_scope)
            nursery.start_soon(self._watch_store)
            nursery.start_soon(self.host_certificates.watch)
            nursery.start_soon(self.trust.swaps.expire)
            nursery.start_soon(self.plain.keep)
            nursery.start_soon(self._keep_summary)
            nursery.start_soon(self.announcing.run)
            nursery.start_soon(self._obey_signals, nursery.cancel_scope)
            nursery.start_soon(self._obey, nursery.cancel_scope)
        with trio.CancelScope(shield=True):
            await self.plain.flush()

    async def _serve(self, scope: trio.CancelScope) -> None:
        session.install()
        await pyfuse3.main(max_tasks=_MAX_TASKS)
        self._supervision.over()
        scope.cancel()

    async def _watch_store(self) -> None:
        while True:
            await self.trust.pending_events.wait()
            # Nearly all news are of what came through the mount: whoever waits for an answer goes first (I13: 100 ms).
            await trio.sleep(_ECHO_SECONDS)
            await self.trust.poll_events()
            await self.trust.end_swaps()
            self._report_watching()
            self.plain.wake()

    async def _keep_summary(self) -> None:
        """Write the summary soon after whatever is in it has changed, while this server is the one in charge."""
        fails = False
        while True:
            if self.plain.active:
                try:
                    summary.write(self._mount.runtime, self.status.summary())
                    fails = False
                except OSError as e:
                    if not fails:
                        log.warning(
                            "%s: the summary of the status cannot be written: %s",
                            self._mount.runtime,
                            e.strerror,
                        )
                    fails = True
            with trio.move_on_after(_SUMMARY_RETRY_SECONDS if fails else float("inf")):
                await self.plain.changed.wait()
            await trio.sleep(_SUMMARY_SECONDS)
            self.plain.changed = trio.Event()

    async def _obey_signals(self, scope: trio.CancelScope) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
            async for _ in received:
                scope.cancel()

    async def _obey(self, scope: trio.CancelScope) -> None:
        await self._served.wait()
        # Not before: the kernel's first request and its answer settle on what it was at the mount.
        _read_ahead(self.trust.walker.device)
        shown = self.host_certificates.shown_at_start
        self._settings.leave_wishes(wishes_file(self._mount.runtime), self.trust.bundles, shown)
        await self._supervision.run(self, scope)

    def _take_charge(self) -> None:
        """Be the one that the next server goes on from."""
        self.trust.record()
        self._settings.remember(self._mount.settings_file)

    def activate(self, *, active: bool) -> None:
        """Write the plain copies from now on, or no more."""
        if active:
            self._take_charge()
        else:
            self.trust.undo_log.close()
        self.trust.is_alone = self.plain.active = active
        self.plain.wake()

    async def flush(self) -> tuple[str, ...]:
        """Bring the plain copies up to date; return which are not, and why."""
        await self.plain.flush()
        return tuple(self.plain.stale())

    def oldest_request_seconds(self) -> float:
        """Return for how long the oldest request has waited for something that is not the store (I15)."""
        return self.operations.requests.oldest()


def _descriptor_limit() -> int:
    """Raise the limit of open descriptors as far as it goes, and return it (promise I18)."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return 1 << 20 if hard == resource.RLIM_INFINITY else hard


def _read_ahead(device: str | None) -> None:
    """Let the kernel ask for more at once (sysfs-class-bdi); only root may, and nothing depends on it."""
    with suppress(OSError), open(f"/sys/class/bdi/{device}/read_ahead_kb", "wb") as setting:
        setting.write(b"%d" % _READ_AHEAD_KB)


def _prepare(mount: MountSpec, config: Config) -> None:
    """Make what a standalone store lacks; StoreError where that is impossible."""
    if mount.mode != "standalone":
        return
    (tree,) = mount.trees
    try:
        make_directories(tree.fd, config.bundles, platform=config.makes_identity)
        if config.makes_identity:
            report = ensure_identity(tree.fd, host_uuid=config.host_uuid or host_uuid(tree.fd))
            for path in report.created:
                log.info("made %s", path)
            for problem in report.problems:
                log.warning("%s", problem)
    except LinkRefusedError as e:
        # Whoever owns the store may do that at any time, and shall not be able to end the mount with it.
        log.warning("store %s: %s: %s; nothing is made there", tree.store, e.filename, e.strerror)
    except OSError as e:
        raise StoreError(
            f"store {tree.store}: {e.strerror or e}",
            advice="make it writable, or prepare it as somebody who may",
        ) from None


def _check_readable(mount: MountSpec) -> None:
    for tree in mount.trees:
        try:
            names_in(tree.fd)
        except OSError as e:
            raise StoreError(
                f"store {tree.store} cannot be read: {e.strerror}", advice="check its permissions"
            ) from None
        if not stat.S_ISDIR(os.stat(tree.fd).st_mode):
            raise StoreError(f"store {tree.store} is not a directory", advice="name a directory")


def _serve(spec: ServerSpec) -> None:
    settings = Settings.choose(spec)
    _check_readable(spec.mount)
    _prepare(spec.mount, settings.config)
    supervision = Supervision(spec)
    server = Server(supervision, settings)
    # What is loaded stays: no need to look through it while it grows, nor at any collection afterwards.
    gc.disable()
    server.load()
    # What reading has left. What was imported the collector has seen: once more would take 23 ms for 319 objects.
    gc.collect(0)
    gc.freeze()
    gc.enable()
    server.attach(*supervision.await_descriptor())
    try:
        trio.run(server.run)
    finally:
        pyfuse3.close(unmount=False)
        server.operations.close()
        server.trust.close()


def main() -> NoReturn:
    """Do what the spec says whose descriptor the command line names."""
    # Modes are the callers', already without what their umask takes away.
    os.umask(0)
    ignore_lease_breaks()
    spec = show_life(receive(ServerSpec, int(sys.argv[1])))
    audit.start_log(spec.mount.log, journal=spec.mount.journal)
    try:
        _serve(spec)
    except CertfsError as e:
        fail(spec, Failure(e.exit_code, e.message, e.advice))
        leave(e.exit_code)
    except Exception as e:
        log.exception("the server ends unexpectedly")
        said = f"the server ended unexpectedly: {type(e).__name__}"
        fail(spec, Failure(1, said, "the log has the traceback"))
        leave(1)
    leave(0)


if __name__ == "__main__":
    main()
