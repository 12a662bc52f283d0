"""W, the process that serves one mount: ``python -m certfs.server.main FD`` does the job that it reads from FD.

Owns the composition of store, bundles and filesystem, and the life of one FUSE session. The supervisor's side and the
messages between the two are in `certfs.protocol.link`.

Concurrency: one trio loop answers the kernel, the supervisor, inotify and the clock. Whatever may block is handed to a
thread by those who call it. The beat comes from this loop, so that its silence means that nobody is being answered.
"""

import gc
import logging
import os
import resource
import signal
import socket
import stat
import sys
from contextlib import suppress

import pyfuse3
import trio

from certfs import procfs
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
from certfs.linux.trust_log import TrustLog
from certfs.protocol import link as messages
from certfs.protocol import summary
from certfs.protocol.link import Failure, InCharge, Job, failure_message
from certfs.safe_open import LinkRefusedError
from certfs.server import audit
from certfs.server.adoption import await_turn, show_life, start_successor
from certfs.server.announcing import Announcing
from certfs.server.plain_copies import PlainCopies
from certfs.server.settings import Settings
from certfs.server.status import StatusReport
from certfs.store.backing import FileId
from certfs.store.bundle import Published
from certfs.store.bundles import Trust
from certfs.store.directories import Roots
from certfs.store.layout import make_directories
from certfs.store.source_reader import ignore_lease_breaks
from certfs.store.undo_log import UndoLog

log = logging.getLogger("certfs")

_RETRY_SECONDS = 1.0
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

    def __init__(self, job: Job, settings: Settings) -> None:
        self._job = job
        self._settings = settings
        self._trust_log = TrustLog(job.mount.log or f"{job.mount.runtime}/log")
        self._loaded = False
        self._watch_problem = ""
        self._in_charge: InCharge | None = None
        self._unanswered = 0
        """Beats since the supervisor last said something."""
        self._lingers: float | None = None
        """Seconds for which what is open is served, once the supervisor has let go of this server."""
        self._served = trio.Event()
        config = settings.config
        roots = Roots({os.fsencode(tree.name): tree.fd for tree in job.mount.trees})
        self.trust = Trust(
            roots,
            config.bundles,
            is_busy=self._is_busy,
            observer=self._observe,
            size_limit=config.source_size_limit,
            swap_timeout=config.swap_timeout,
            undo_log=UndoLog(job.mount.undo_log),
        )
        self.plain = PlainCopies(self.trust, active=not job.passive)
        self.status = StatusReport(job, settings, self.trust, self.plain, self._being_written)
        descriptors = _descriptor_limit()
        calls, numbers = Calls(), Numbers()
        self.operations = Operations(
            roots,
            self.trust,
            Tables(
                InodeTable(limit=descriptors // 2, let_go=calls.let_go, numbers=numbers),
                HandleTable(limit=(descriptors - _RESERVED_DESCRIPTORS) // 2),
                SyntheticFiles(
                    self.status.render,
                    self.status.prepare,
                    numbers,
                    self.status.render_summary,
                ),
            ),
            calls,
        )
        self.operations.on_init = self._served.set
        self.operations.flush_plain_copies = self.plain.flush
        self.announcing = Announcing(job.mountpoint, self.operations.synthetic)
        self.operations.announcements.is_announcer = self.announcing.is_announcer

    def _being_written(self) -> list[BeingWritten]:
        return self.operations.being_written()

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

    def load(self) -> None:
        """Read the store."""
        audit.report_version(self._settings.file)
        self.trust.load()
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

    def mount(self) -> None:
        """Mount; FuseError where the kernel or fusermount3 refuses."""
        before = _fuse_descriptors()
        try:
            pyfuse3.init(self.operations, self._job.mountpoint, self._options())
        except RuntimeError as e:
            raise FuseError(
                f"{self._job.mountpoint}: the FUSE mount was refused ({e})",
                advice="check /dev/fuse and fusermount3; the log has their own words",
            ) from None
        self.operations.pending_requests.descriptor = next(iter(_fuse_descriptors() - before))
        top = procfs.top_at(procfs.mounts(), self._job.mountpoint)
        self.trust.walker.device = top.device if top else None

    def _options(self) -> set[str]:
        options = {
            "fsname=certfs",
            "subtype=certfs",
            "default_permissions",
        }
        if self._job.mount.allow_other:
            options.add("allow_other")
        if os.geteuid() == 0:
            # As the store has it: what is forbidden beneath stays forbidden above (I19), and nothing else is (I11).
            flags = [os.statvfs(tree.fd).f_flag for tree in self._job.mount.trees]
            for option, flag in (
                ("suid", os.ST_NOSUID),
                ("dev", os.ST_NODEV),
                ("exec", os.ST_NOEXEC),
            ):
                options.add(f"no{option}" if any(each & flag for each in flags) else option)
        return options

    async def run(self) -> None:
        """Serve until the session ends or somebody says so."""
        await self.trust.recover()
        if self.plain.active:
            self._take_charge()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._serve, nursery.cancel_scope)
            nursery.start_soon(self._watch_store)
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
        with suppress(OSError), socket.socket(fileno=os.dup(self._job.link_fd)) as link:
            link.send(messages.OVER)
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
                    summary.write(self._job.mount.runtime, self.status.summary())
                    fails = False
                except OSError as e:
                    if not fails:
                        log.warning("%s: the summary of the status: %s", e.filename, e.strerror)
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
        """Talk to the supervisor; when it dies, get another one (the mount goes on)."""
        await self._served.wait()
        # Not before: the kernel's first request and its answer settle on what it was at the mount.
        _read_ahead(self.trust.walker.device)
        link = trio.socket.from_stdlib_socket(socket.socket(fileno=self._job.link_fd))
        self._settings.leave_wishes(self._job.mount.wishes_file, self.trust.bundles)
        with suppress(OSError):
            # A supervisor that died while this server was starting is replaced below, like one that dies later.
            await link.send(messages.READY)
        while True:
            introduced = self._in_charge
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._beat, link)
                await self._receive(link, scope, nursery)
                nursery.cancel_scope.cancel()
            if self._lingers is not None:
                # No beats any more, but the link stays open: its end tells the supervisor that this process has ended.
                await trio.sleep(self._lingers)
                scope.cancel()
                return
            if self._in_charge is introduced:
                # It ended without a word, and the next may as well.
                await trio.sleep(_RETRY_SECONDS)
            log.warning("the supervisor is gone: starting another one")
            # The successor closes the descriptor of the old link by its number.
            self._job = await self._succeed(link.detach())
            link = trio.socket.from_stdlib_socket(socket.socket(fileno=self._job.link_fd))
            self.status.job = self._job

    async def _succeed(self, _old_link: int) -> Job:
        while True:
            try:
                janitor = self._in_charge.janitor if self._in_charge else None
                return await trio.to_thread.run_sync(start_successor, self._job, janitor)
            except OSError as e:
                log.error("no supervisor can be started: %s", e)  # noqa: TRY400 - the reason is all there is to say
            await trio.sleep(_RETRY_SECONDS)

    async def _beat(self, link: trio.socket.SocketType) -> None:
        """Show the supervisor that this server lives; end one that does not answer (its successor is started then).

        A server whose loop runs but whose requests wait for each other is silent: the age of the oldest request that
        does not wait for the store is what its callers see of it (promise I15).
        Beats are counted, not seconds: a server that was itself stopped must not take the supervisor for silent.
        """
        self._unanswered = 0
        with suppress(OSError):
            while True:
                silent = (self._unanswered + 1) * messages.BEAT_SECONDS
                if silent >= messages.SUPERVISOR_SECONDS and self._in_charge:
                    log.warning("the supervisor answers no more: ending it")
                    self._in_charge.supervisor.kill()
                    return
                if self.operations.requests.oldest() < messages.BEAT_SECONDS:
                    await link.send(messages.BEAT)
                    self._unanswered += 1
                await trio.sleep(messages.BEAT_SECONDS)

    def _take_charge(self) -> None:
        """Be the one that the next server goes on from."""
        self.trust.record()
        self._settings.remember(self._job.mount.settings_file)

    def _activate(self, *, active: bool) -> None:
        if active:
            self._take_charge()
        else:
            self.trust.undo_log.close()
        self.plain.active = active
        self.plain.wake()

    async def _flush(self, link: trio.socket.SocketType) -> None:
        await self.plain.flush()
        with suppress(OSError):
            await link.send(messages.flushed_message(self.plain.stale()))

    async def _receive(
        self, link: trio.socket.SocketType, scope: trio.CancelScope, nursery: trio.Nursery
    ) -> None:
        """Do what the supervisor says until it lets go of this server or dies."""
        while True:
            try:
                message = await link.recv(messages.MESSAGE_BYTES)
            except ConnectionResetError:
                continue  # it ended without reading everything: told once, and before what it said itself
            except OSError:
                return
            word, _, argument = message.partition(b" ")
            if not word:
                return
            self._unanswered = 0
            if word == messages.IN_CHARGE:
                self._in_charge = InCharge.from_message(message)
            elif word == messages.STOP:
                scope.cancel()
            elif word in {messages.ACTIVATE, messages.PASSIVE}:
                self._activate(active=word == messages.ACTIVATE)
            elif word == messages.FLUSH:
                # A disk may take its time; beats and their answers go on meanwhile.
                nursery.start_soon(self._flush, link)
            elif word == messages.RELEASE:
                self._lingers = float(argument)
                return


def _descriptor_limit() -> int:
    """Raise the limit of open descriptors as far as it goes, and return it (promise I18)."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return 1 << 20 if hard == resource.RLIM_INFINITY else hard


def _read_ahead(device: str | None) -> None:
    """Let the kernel ask for more at once (sysfs-class-bdi); only root may, and nothing depends on it."""
    with suppress(OSError), open(f"/sys/class/bdi/{device}/read_ahead_kb", "wb") as setting:
        setting.write(b"%d" % _READ_AHEAD_KB)


def _fuse_descriptors() -> set[int]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}") == "/dev/fuse":
                found.add(int(name))
    return found


def _prepare(job: Job, config: Config) -> None:
    """Make what a standalone store lacks; StoreError where that is impossible."""
    if job.mount.mode != "standalone":
        return
    (tree,) = job.mount.trees
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


def _check_readable(job: Job) -> None:
    for tree in job.mount.trees:
        try:
            os.listdir(f"/proc/self/fd/{tree.fd}")
        except OSError as e:
            raise StoreError(
                f"store {tree.store} cannot be read: {e.strerror}", advice="check its permissions"
            ) from None
        if not stat.S_ISDIR(os.stat(tree.fd).st_mode):
            raise StoreError(f"store {tree.store} is not a directory", advice="name a directory")


def _serve(job: Job) -> None:
    settings = Settings.choose(job)
    _check_readable(job)
    _prepare(job, settings.config)
    server = Server(job, settings)
    # What is loaded stays: no need to look through it while it grows, nor at any collection afterwards.
    gc.disable()
    server.load()
    await_turn(job)
    server.mount()
    gc.collect()
    gc.freeze()
    gc.enable()
    try:
        trio.run(server.run)
    finally:
        pyfuse3.close(unmount=False)
        server.operations.close()
        server.trust.close()


def main() -> None:
    """Do the job that the descriptor named on the command line holds."""
    # Modes are the callers', already without what their umask takes away.
    os.umask(0)
    ignore_lease_breaks()
    job = show_life(Job.receive(int(sys.argv[1])))
    audit.start_log(job.mount.log, journal=job.mount.journal)
    try:
        _serve(job)
    except CertfsError as e:
        _fail(job, Failure(e.exit_code, e.message, e.advice))
    except Exception as e:
        log.exception("the server ends unexpectedly")
        _fail(
            job,
            Failure(
                1, f"the server ended unexpectedly: {type(e).__name__}", "the log has the traceback"
            ),
        )


def _fail(job: Job, failure: Failure) -> None:
    with suppress(OSError), socket.socket(fileno=job.link_fd) as link:
        link.send(failure_message(failure))
    sys.exit(failure.exit_code)


if __name__ == "__main__":
    main()
