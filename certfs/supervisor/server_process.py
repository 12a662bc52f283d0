"""One server process, as its supervisor knows it: the link, when it was last heard, whether it lives.

Owns the supervisor's side of the link (`certfs.protocol.messages` describes it).
"""

import os
import select
import signal
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Self

from certfs.linux.processes import ProcessId, manner
from certfs.protocol import messages, timeouts
from certfs.protocol.messages import (
    MESSAGE_BYTES,
    STALE_UNKNOWN,
    Beat,
    Flush,
    Flushed,
    InCharge,
    Message,
    Over,
    Release,
    Serve,
)
from certfs.protocol.specs import Adoption, ServerSpec, start_with
from certfs.protocol.state_file import EventKind


@dataclass(slots=True, eq=False)
class ServerProcess:
    """A server that was started or adopted. Closed by `close` once it has ended or is none of our business."""

    number: int
    process: ProcessId
    link: socket.socket
    life_fd: int
    """The read end of its life pipe: readable when it has died."""
    standby: bool
    mountpoint: str | None = None
    device: str | None = None
    """``major:minor`` of its mount; None until it has been given one."""
    since: float = field(default_factory=time.time)
    heard: float = field(default_factory=time.monotonic)
    """When it last said something (time.monotonic)."""
    stale: tuple[str, ...] = ()
    """What it said last about plain copies that it could not write."""
    _over: bool = False
    _introduction: Message | None = None
    _introduced: bool = True
    """It was sent what it was to be told last."""

    @classmethod
    def start(cls, number: int, module: str, spec: ServerSpec) -> Self:
        """Start ``module`` as a server, with a link of its own. OSError if there is no process to be had."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        life = os.pipe()
        try:
            pid = start_with(replace(spec, link_fd=theirs.fileno(), life=life), module)
        except OSError:
            ours.close()
            os.close(life[0])
            raise
        finally:
            os.close(life[1])
            theirs.close()
        return cls(number, ProcessId.of(pid), ours, life[0], spec.standby)

    @classmethod
    def adopt(cls, number: int, adoption: Adoption) -> Self:
        """Take over a server that runs; if it has died meanwhile, its life pipe says so."""
        return cls(
            number,
            adoption.process,
            socket.socket(fileno=adoption.link_fd),
            adoption.life_fd,
            adoption.standby,
            adoption.mountpoint,
            adoption.device,
        )

    def handed_over(self, janitor: ProcessId | None) -> Adoption:
        """Return what another supervisor needs to adopt it."""
        return Adoption(
            process=self.process,
            link_fd=self.link.fileno(),
            life_fd=self.life_fd,
            mountpoint=self.mountpoint,
            device=self.device,
            standby=False,
            janitor=janitor,
        )

    def say(self, message: Message) -> bool:
        """Send ``message``; whether it could be. A server that is gone or reads nothing is noticed elsewhere."""
        try:
            self.link.send(messages.encode(message), socket.MSG_DONTWAIT)
        except OSError:
            return False
        return True

    def hand(self, fd: int) -> None:
        """Give it the descriptor of its mount, and close ours: the mount shall end with the server (I14)."""
        message = messages.encode(Serve(self.mountpoint or "", self.device or ""))
        with suppress(OSError):
            socket.send_fds(self.link, [message], [fd], socket.MSG_DONTWAIT)
        os.close(fd)

    def introduce(self, janitor: ProcessId | None) -> None:
        """Let it know who looks after it, now and where a beat asks for it: this process and ``janitor``."""
        self._introduction = InCharge(ProcessId.of(os.getpid()), janitor)
        self._introduced = self.say(self._introduction)

    def let_go(self) -> bool:
        """Let it serve what is open and then end, its mount is detached or about to be; whether it does.

        One that has missed a beat answers nobody, and nobody looks after it any more: it is killed.
        """
        self._drain()
        self.say(Release(timeouts.LINGER))
        answers = time.monotonic() - self.heard <= timeouts.BEAT * 1.5
        if not answers:
            self.kill()
        return answers

    def hear(self) -> Message | None:
        """Return the next message, which must be there; None for one that makes no sense.

        EOFError when the server has closed the link.
        """
        try:
            packet = self.link.recv(MESSAGE_BYTES)
        except ConnectionResetError:
            # It ended without reading everything. That is told once, and before what it said itself.
            packet = self.link.recv(MESSAGE_BYTES)
        if not packet:
            raise EOFError
        self.heard = time.monotonic()
        try:
            message = messages.decode(packet)
        except ValueError:
            return None
        wants_word = isinstance(message, Beat) and (message.asks or not self._introduced)
        if wants_word and self._introduction:
            self._introduced = self.say(self._introduction)
        self._over = self._over or isinstance(message, Over)
        return message

    def was_unmounted(self) -> bool:
        """Whether it said before its end that its session was over."""
        self._drain()
        return self._over

    def _drain(self) -> None:
        poll = select.poll()
        poll.register(self.link, select.POLLIN)
        with suppress(EOFError):
            while poll.poll(0):
                self.hear()

    def flush(self) -> None:
        """Have it bring the plain copies up to date and wait for that; `stale` says afterwards what came of it.

        Anything but a beat that arrives before the answer ends the wait: only a server that serves is asked.
        """
        self.stale = (STALE_UNKNOWN,)
        self.say(Flush())
        poll = select.poll()
        poll.register(self.link, select.POLLIN)
        deadline = time.monotonic() + timeouts.FLUSH
        with suppress(EOFError):
            while poll.poll(max(deadline - time.monotonic(), 0) * 1000):
                message = self.hear()
                if isinstance(message, Flushed):
                    self.stale = message.stale
                if not isinstance(message, Beat):
                    return

    def kill(self) -> None:
        """End it at once, also if it is stopped."""
        self.process.kill()

    def gone(self, seconds: float = 0.0) -> bool:
        """Wait for at most ``seconds`` until it has died; whether it has."""
        poll = select.poll()
        poll.register(self.life_fd, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    @property
    def served_seconds(self) -> float:
        """For how long it has been there."""
        return time.time() - self.since

    def verdict(self, *, hung: bool) -> tuple[EventKind, str]:
        """Return how it died, for programs and for people; what is not known counts as a kill from outside."""
        if hung:
            return "hung", f"did not answer for {timeouts.HANG:.0f} s"
        exit_code = self.process.exit_code(timeouts.EXIT_STATUS)
        kind: EventKind = "killed" if exit_code in {None, -signal.SIGKILL} else "crashed"
        return kind, manner(exit_code)

    def close(self) -> None:
        """Forget it."""
        self.link.close()
        os.close(self.life_fd)
