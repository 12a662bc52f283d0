"""One server process, as its supervisor knows it: the link, when it was last heard, whether it lives.

Owns the supervisor's side of the link (`certfs.protocol.link` describes it).
"""

import os
import select
import signal
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Final, Self

from certfs.linux.processes import ProcessId, manner, python, start
from certfs.protocol.launch_spec import Adoption, inbox
from certfs.protocol.link import (
    BEAT,
    FLUSH,
    FLUSHED,
    MESSAGE_BYTES,
    OVER,
    RELEASE,
    STALE_UNKNOWN,
    Failure,
    InCharge,
    Job,
    stale_from,
)
from certfs.protocol.state_file import EventKind

START_SECONDS: Final = 120.0
"""A server that is not ready by then is given up: the first scan of a very large store takes its time."""
TOO_SLOW: Final = Failure(9, f"the server was not ready after {START_SECONDS:.0f} s")
ENDED_EARLY: Final = Failure(9, "the new server did not start", "its log says why")
LINGER_SECONDS: Final = 3600
"""How long a server that was replaced or unmounted goes on serving what is open."""
_SILENT_SECONDS: Final = 4.0
"""More than one beat's worth."""
_EXIT_SECONDS: Final = 0.1
"""How long the status of one that died may take; it is missing while a thread of it waits for a disk."""


@dataclass(slots=True, eq=False)
class Server:
    """A server that was started or adopted. Closed by `close` once it has ended or is none of our business."""

    process: ProcessId
    link: socket.socket
    life_fd: int
    """The read end of its life pipe: readable when it has died."""
    mountpoint: str
    passive: bool
    device: str | None = None
    """``major:minor`` of its mount, once it is ready."""
    since: float = field(default_factory=time.time)
    heard: float = field(default_factory=time.monotonic)
    """When it last said something (time.monotonic)."""
    stale: tuple[str, ...] = ()
    """What it said last about plain copies that it could not write."""
    _over: bool = False
    _answer: bytes = b""
    """To every beat."""

    @classmethod
    def start(cls, module: str, job: Job) -> Self:
        """Start ``module`` as the server that does ``job``, with a link of its own."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        life = os.pipe()
        job = replace(job, link_fd=theirs.fileno(), life=life)
        box = inbox(job.to_json())
        try:
            pid = start(python(module, str(box)), keep=(*job.inherited(), box))
        except OSError:
            ours.close()
            os.close(life[0])
            raise
        finally:
            os.close(box)
            os.close(life[1])
            theirs.close()
        return cls(ProcessId.of(pid), ours, life[0], job.mountpoint, job.passive)

    @classmethod
    def adopt(cls, adoption: Adoption) -> Self:
        """Take over a server that runs; if it has died meanwhile, its life pipe says so."""
        link = socket.socket(fileno=adoption.link_fd)
        return cls(
            adoption.process, link, adoption.life_fd, adoption.mountpoint, passive=adoption.passive
        )

    def handed_over(self, janitor: ProcessId | None) -> Adoption:
        """Return what another supervisor needs to adopt it."""
        return Adoption(
            process=self.process,
            link_fd=self.link.fileno(),
            life_fd=self.life_fd,
            mountpoint=self.mountpoint,
            passive=False,
            janitor=janitor,
        )

    def say(self, message: bytes) -> None:
        """Send ``message``; a server that is gone or reads nothing is noticed elsewhere."""
        with suppress(OSError):
            self.link.send(message, socket.MSG_DONTWAIT)

    def introduce(self, janitor: ProcessId | None) -> None:
        """Let it know who looks after it, now and with the answer to every beat: this process and ``janitor``."""
        self._answer = InCharge(ProcessId.of(os.getpid()), janitor).to_message()
        self.say(self._answer)

    def let_go(self) -> bool:
        """Let it serve what is open and then end, its mount is detached or about to be; whether it does.

        One that has missed a beat answers nobody, and nobody looks after it any more: it is killed.
        """
        self._take_in()
        self.say(b"%b %d" % (RELEASE, LINGER_SECONDS))
        answers = time.monotonic() - self.heard <= _SILENT_SECONDS
        if not answers:
            self.kill()
        return answers

    def hear(self) -> bytes:
        """Return the next message, which must be there; empty when the server has closed the link."""
        try:
            message = self.link.recv(MESSAGE_BYTES)
        except ConnectionResetError:
            # It ended without reading everything. That is told once, and before what it said itself.
            message = self.link.recv(MESSAGE_BYTES)
        self.heard = time.monotonic()
        if message == BEAT:
            self.say(self._answer)
        self._over = self._over or message == OVER
        return message

    def was_unmounted(self) -> bool:
        """Whether it said before its end that its session was over."""
        self._take_in()
        return self._over

    def _take_in(self) -> None:
        poll = select.poll()
        poll.register(self.link, select.POLLIN)
        while poll.poll(0) and self.hear():
            pass

    def flush(self, seconds: float) -> None:
        """Have it bring the plain copies up to date and wait for that; `stale` says afterwards what came of it.

        Anything but a beat that arrives before the answer ends the wait: only a server that serves is asked.
        """
        self.stale = (STALE_UNKNOWN,)
        self.say(FLUSH)
        poll = select.poll()
        poll.register(self.link, select.POLLIN)
        deadline = time.monotonic() + seconds
        while poll.poll(max(deadline - time.monotonic(), 0) * 1000):
            message = self.hear()
            if message.startswith(FLUSHED):
                self.stale = stale_from(message)
            if message != BEAT:
                return

    def kill(self) -> None:
        """End it at once, also if it is stopped."""
        self.process.kill()

    def end(self, seconds: float) -> None:
        """Like `kill`, and wait for at most ``seconds``."""
        self.kill()
        self.gone(seconds)

    def gone(self, seconds: float) -> bool:
        """Wait for at most ``seconds`` until it has died; whether it has."""
        poll = select.poll()
        poll.register(self.life_fd, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def verdict(self, *, hung: bool) -> tuple[EventKind, str]:
        """Return how it died, for programs and for people; what is not known counts as a kill from outside."""
        if hung:
            return "hung", "did not answer for 10 s"
        exit_code = self.process.exit_code(_EXIT_SECONDS)
        kind: EventKind = "killed" if exit_code in {None, -signal.SIGKILL} else "crashed"
        return kind, manner(exit_code)

    def close(self) -> None:
        """Forget it."""
        self.link.close()
        os.close(self.life_fd)
