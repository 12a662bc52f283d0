"""A server's side of the link: show that it lives, wait for a descriptor, obey, and replace a supervisor that died.

`certfs.protocol.messages` describes what is said; what is done about it is the server's (`Served`).
"""

import ctypes
import fcntl
import logging
import os
import socket
import sys
import termios
import threading
from contextlib import suppress
from dataclasses import replace
from typing import Final, Protocol

import trio

from certfs.linux.descriptors import close_all_but
from certfs.linux.mount_table import mounted_anywhere
from certfs.linux.processes import ProcessId, start
from certfs.protocol import messages, specs, timeouts
from certfs.protocol.messages import MESSAGE_BYTES, Failure, InCharge, Message, Serve
from certfs.protocol.specs import Adoption, ServerSpec, SupervisorSpec
from certfs.protocol.state_file import read_state
from certfs.safe_open import closing

log = logging.getLogger("certfs")

_CLONE_FILES: Final = 0x400
_ORPHAN: Final = ("/bin/sh", "-c", '"$@" &', "sh")
"""The shell ends at once, and what it started is init's child: the server has no zombie to collect later."""


class Served(Protocol):
    """What a supervisor can tell a server to do."""

    def activate(self, *, active: bool) -> None:
        """Write the plain copies from now on, or no more."""
        ...

    async def flush(self) -> tuple[str, ...]:
        """Bring the plain copies up to date; return which are not, and why."""
        ...

    def oldest_request_seconds(self) -> float:
        """Return for how long the oldest request has waited for something that is not the store (I15)."""
        ...


def show_life(spec: ServerSpec) -> ServerSpec:
    """Let the supervisor see at once when this process dies; return ``spec`` without the write end of its life pipe.

    A process that is killed ends only when the last of its threads has, and one that waits for a disk (in fsync(2) for
    some caller) does so for seconds, in which nobody is answered. So a thread that does nothing holds the write end,
    alone: it has a table of descriptors of its own (unshare(2), CLONE_FILES), which is closed when it dies, in an
    instant. To be called before anything is opened that must be closed with the process.
    """
    read_end, write_end = spec.life
    started = threading.Event()
    thread = threading.Thread(target=_live, args=(write_end, started), name="life", daemon=True)
    thread.start()
    started.wait()
    os.close(write_end)
    return replace(spec, life=(read_end, -1))


def _live(write_end: int, started: threading.Event) -> None:
    if ctypes.CDLL(None).unshare(_CLONE_FILES) == 0:
        close_all_but((write_end,))
    else:
        # Forbidden here: the write end, under another number, is closed with the process.
        os.dup(write_end)
    started.set()
    threading.Event().wait()


def fail(spec: ServerSpec, failure: Failure) -> None:
    """Tell the supervisor that nothing comes of this server."""
    with suppress(OSError), socket.socket(fileno=os.dup(spec.link_fd)) as link:
        link.send(messages.encode(messages.failed(failure)))


class Supervision:
    """One server's link, to the supervisor of this moment."""

    def __init__(self, spec: ServerSpec) -> None:
        self.spec = spec
        self.mounted: Serve | None = None
        self._in_charge: InCharge | None = None
        self._unread = 0
        """Beats since the supervisor last read everything, or said something."""

    def await_descriptor(self) -> tuple[int, Serve]:
        """Say that everything is read, and wait for the descriptor to serve and what is said of its mount.

        To be called before there is a loop.

        A supervisor that dies meanwhile is replaced, unless it was the first one: then nothing has been mounted yet,
        and the command that waits has been told. SystemExit if this server is not wanted any more.
        """
        while True:
            with socket.socket(fileno=os.dup(self.spec.link_fd)) as link:
                fd = self._descriptor_from(link)
            if fd is not None and self.mounted:
                return fd, self.mounted
            if self.spec.first:
                raise SystemExit(1)
            self._succeed()

    def _descriptor_from(self, link: socket.socket) -> int | None:
        with suppress(OSError):
            link.send(messages.encode(messages.Loaded()))
            while True:
                packet, fds, _, _ = socket.recv_fds(link, MESSAGE_BYTES, 1)
                message = messages.decode(packet) if packet else None
                if isinstance(message, Serve):
                    os.set_inheritable(fds[0], False)
                    self.mounted = message
                    return fds[0]
                if isinstance(message, InCharge):
                    self._in_charge = message
                elif isinstance(message, messages.Release | messages.Stop):
                    raise SystemExit(1)
                elif not packet:
                    break
        return None

    async def run(self, served: Served, scope: trio.CancelScope) -> None:
        """Talk to the supervisor; when it dies, get another one (the mount goes on). ``scope`` ends the server."""
        link = trio.socket.from_stdlib_socket(socket.socket(fileno=self.spec.link_fd))
        while True:
            introduced = self._in_charge
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._beat, link, served)
                lingers = await self._obey(link, served, scope, nursery)
                nursery.cancel_scope.cancel()
            if lingers is not None:
                # No beats any more, but the link stays open: its end tells the supervisor that this process has ended.
                while True:
                    await trio.sleep(lingers)
                    if not await trio.to_thread.run_sync(self._is_bound):
                        break
                scope.cancel()
                return
            if self._in_charge is introduced:
                # It ended without a word, and the next may as well.
                await trio.sleep(timeouts.SUCCESSOR_RETRY)
            log.warning("the supervisor is gone: starting another one")
            # The successor closes the descriptor of the old link by its number.
            link.detach()
            await trio.to_thread.run_sync(self._succeed)
            link = trio.socket.from_stdlib_socket(socket.socket(fileno=self.spec.link_fd))

    def over(self) -> None:
        """Say that the session has ended."""
        with suppress(OSError), socket.socket(fileno=os.dup(self.spec.link_fd)) as link:
            link.send(messages.encode(messages.Over()))

    def _is_bound(self) -> bool:
        """Whether others have bound something that this server alone shows, and its instance has not ended."""
        state = read_state(self.spec.mount.runtime)
        if state is None or ProcessId.of(os.getpid()) not in state.lingering or not self.mounted:
            return False
        return mounted_anywhere(self.mounted.device)

    async def _beat(self, link: trio.socket.SocketType, served: Served) -> None:
        """Show the supervisor that this server lives; end one that reads nothing (its successor is started then).

        Beats are counted, not seconds: a server that was itself stopped must not take the supervisor for silent. No
        answer is asked for: it would wake this process once more for each beat.
        """
        self._unread = 0
        with suppress(OSError):
            while True:
                left = _left_unread(link)
                if left == 0:
                    self._unread = 0
                silent = (self._unread + 1) * timeouts.BEAT
                if silent >= timeouts.SUPERVISOR_SILENCE and self._in_charge:
                    log.warning("the supervisor answers no more: ending it")
                    self._in_charge.supervisor.kill()
                    return
                oldest = served.oldest_request_seconds()
                await _say(link, messages.Beat(oldest, asks=left is None))
                self._unread += 1
                await trio.sleep(timeouts.BEAT)

    async def _obey(
        self,
        link: trio.socket.SocketType,
        served: Served,
        scope: trio.CancelScope,
        nursery: trio.Nursery,
    ) -> float | None:
        """Do what the supervisor says until it lets go of this server (for so many seconds), or dies (None)."""
        while True:
            try:
                packet = await link.recv(MESSAGE_BYTES)
            except ConnectionResetError:
                continue  # it ended without reading everything: told once, and before what it said itself
            except OSError:
                return None
            if not packet:
                return None
            self._unread = 0
            match messages.decode(packet):
                case InCharge() as introduction:
                    self._in_charge = introduction
                case messages.Stop():
                    scope.cancel()
                case messages.Activate() | messages.StandBy() as told:
                    active = isinstance(told, messages.Activate)
                    self.spec = replace(self.spec, standby=not active)
                    served.activate(active=active)
                case messages.Flush():
                    # A disk may take its time; beats and their answers go on meanwhile.
                    nursery.start_soon(_flush, link, served)
                case messages.Release(seconds):
                    return seconds

    def _succeed(self) -> None:
        """Start a supervisor for this very process, whose link takes the place of the old one; try until it can be."""
        janitor = self._in_charge.janitor if self._in_charge else None
        while True:
            try:
                self.spec = _start_successor(self.spec, self.mounted, janitor)
            except OSError as e:
                log.error("no supervisor can be started: %s", e)  # noqa: TRY400 - the reason is all there is to say
                threading.Event().wait(timeouts.SUCCESSOR_RETRY)
            else:
                return


def _left_unread(link: trio.socket.SocketType) -> int | None:
    """Return how much of what was sent the other side has not read, None where the system does not say."""
    try:
        found = fcntl.ioctl(link.fileno(), termios.TIOCOUTQ, bytes(4))  # unix(7), ioctls: SIOCOUTQ
    except OSError:
        return None
    return int.from_bytes(found, sys.byteorder)


async def _flush(link: trio.socket.SocketType, served: Served) -> None:
    stale = await served.flush()
    with suppress(OSError):
        await _say(link, messages.flushed(stale))


async def _say(link: trio.socket.SocketType, message: Message) -> None:
    await link.send(messages.encode(message))


def _start_successor(
    spec: ServerSpec, mounted: Serve | None, janitor: ProcessId | None
) -> ServerSpec:
    """Start a supervisor for this process, and return ``spec`` with the link to it.

    ``janitor`` is the one of the supervisor before, which the new one ends. Blocks for a few milliseconds. The old link
    is closed. OSError when no process can be started; everything is then as it was.
    """
    theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        adoption = Adoption(
            process=ProcessId.of(os.getpid()),
            link_fd=theirs.fileno(),
            life_fd=spec.life[0],
            mountpoint=mounted.mountpoint if mounted else None,
            device=mounted.device if mounted else None,
            standby=spec.standby,
            janitor=janitor,
        )
        _start(SupervisorSpec(mount=spec.mount, adopt=adoption))
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    os.close(spec.link_fd)
    return replace(spec, link_fd=ours.detach())


def _start(spec: SupervisorSpec) -> None:
    with closing(specs.pass_on(spec)) as spec_fd:
        # dup2 onto the same number clears close-on-exec in the child alone (posix_spawn(3)).
        same = [(os.POSIX_SPAWN_DUP2, fd, fd) for fd in (*spec.inherited(), spec_fd)]
        silent = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
        arguments = (*_ORPHAN, *specs.command(specs.SUPERVISOR_MODULE, spec_fd))
        try:
            pid = os.posix_spawn(
                arguments[0], arguments, os.environ, file_actions=[silent, *same], setsid=True
            )
        except NotImplementedError:  # a Python that was built with glibc before 2.26
            pid = start(arguments, keep=(*spec.inherited(), spec_fd))
    os.waitpid(pid, 0)
