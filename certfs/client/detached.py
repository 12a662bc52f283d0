"""Running a command while the plain directories of an instance are in view.

Owns for how long they are: as long as the command runs, whatever becomes of whoever started it.
"""

import contextlib
import select
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from typing import Final

from certfs.client.instances import ANSWER_SECONDS, CONNECT_SECONDS, ask, expect, find
from certfs.errors import CertfsError
from certfs.protocol import state_file

_LOOK_SECONDS: Final = 0.1
"""How soon the death of the supervisor is noticed."""
_RELAYED: Final = frozenset((signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT))
"""What would end this process, and is for the command: this one waits for what the command makes of it."""


class Hold:
    """What keeps the plain directories of an instance in view: a connection to its supervisor."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self.stale: tuple[str, ...] = ()
        """Which plain copies are not what was served, and why."""
        self.lost = False
        """Every process died meanwhile: nobody attaches again."""
        self.interrupted = False
        """The supervisor died meanwhile: the mount was in view until the next one was asked."""
        self._connection: socket.socket | None = self._take()

    def _take(self) -> socket.socket:
        kept: list[socket.socket] = []
        self.stale = expect(ask(self._directory, "detach", ANSWER_SECONDS, keep=kept)).stale
        return kept.pop()

    def run(self, command: Sequence[str]) -> int:
        """Run ``command`` and return its exit code (negative: the signal). OSError if it cannot be run.

        The command has the connection as well: when this process is killed, the supervisor hears nothing before the
        command has ended.
        """
        keep = (self._connection.fileno(),) if self._connection else ()
        with subprocess.Popen(command, pass_fds=keep) as process, _waited_for() as signals:
            while process.poll() is None:
                received = signal.sigtimedwait(signals, _LOOK_SECONDS)
                # What comes from the terminal, the command has got as well.
                if received and received.si_signo in _RELAYED and received.si_code <= 0:
                    process.send_signal(received.si_signo)
                self._renew()
            return process.returncode

    def _renew(self) -> None:
        if self._connection and select.select([self._connection], [], [], 0)[0]:
            self.close()
            try:
                self._connection = self._take()
                self.interrupted = True
            except CertfsError:
                # Nobody serves any more, and what is in view is plain. An end on request leaves no state.
                self.lost = state_file.read_state(self._directory) is not None

    def close(self) -> None:
        """Let the mount come back, whoever else has the connection: what the command left running must not keep it."""
        if self._connection:
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)
            self._connection.close()
        self._connection = None


@contextlib.contextmanager
def _waited_for() -> Iterator[frozenset[signal.Signals]]:
    """Let signals wait until they are asked for, and give their numbers."""
    signals = _RELAYED | {signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield signals
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def detached(mountpoint: str | None) -> Iterator[Hold]:
    """Keep the plain directories in view for the time of the context; then wait until the mount is back."""
    directory = find(mountpoint)
    with contextlib.closing(Hold(directory)) as hold:
        yield hold
    _await_attached(directory)


def _await_attached(directory: str) -> None:
    deadline = time.monotonic() + CONNECT_SECONDS
    while time.monotonic() < deadline:
        state = state_file.read_state(directory)
        if state is None or state.phase == "serving" or not state.supervisor.alive():
            return
        time.sleep(0.01)
