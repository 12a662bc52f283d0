"""Another process that looks at files when it is told to.

Owns the claim "in another process": a test that changes something asks a Peer,
which is a process of its own with its own uid, to open and read. A question
and its answer take about 50 microseconds, so thousands of checks are cheap.
"""

from __future__ import annotations

import contextlib
import importlib
import mmap
import os
import pickle
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

_PROJECT = Path(__file__).resolve().parents[2]

_MAIN = "import sys; from tests.support import peer; peer.serve(int(sys.argv[1]))"
_DEADLINE = 60
"""Seconds after which a call without an answer is a failure."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Failed:
    """What a call in the peer ended with, when it was an OSError."""

    errno: int


@dataclass(frozen=True, slots=True)
class User:
    """Whom a peer acts as. Needs root unless it is the caller."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


class Peer:
    """A helper process; `call` runs a function of a module in it.

    The process ends when the Peer is closed, and also when its parent dies.
    """

    def __init__(self, *, user: User | None = None) -> None:
        """Start the process, as `user` when one is given."""
        ours, theirs = socket.socketpair()
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("COV")
        }
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _MAIN, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                cwd=_PROJECT,
                env=environment,
            )
        self._socket = ours
        self._deadline = 0
        self._connection = Connection(os.dup(ours.fileno()))
        if user is not None:
            self.call(become, user)

    @property
    def pid(self) -> int:
        """The process id of the helper."""
        return self._process.pid

    def send(self, function: Callable[..., T], *arguments: object) -> None:
        """Ask for a call without waiting; `receive` gives its result."""
        self._connection.send((function.__module__, function.__name__, arguments, False))

    def receive(self, *, seconds: int = _DEADLINE) -> Any:  # noqa: ANN401 - what the function gives
        """Wait for the result of the oldest call; OSError is raised as in the peer."""
        if seconds != self._deadline:
            timeout = struct.pack("ll", seconds, 0)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
            self._deadline = seconds
        try:
            result = self._connection.recv()
        except BlockingIOError:
            raise TimeoutError(f"helper {self.pid} did not answer in {seconds} s") from None
        if isinstance(result, Failed):
            raise OSError(result.errno, os.strerror(result.errno))
        return result

    def has_answered(self) -> bool:
        """Whether a result is there that `receive` would give at once."""
        return bool(select.select([self._socket], [], [], 0)[0])

    def call(self, function: Callable[..., T], *arguments: object) -> T:
        """Run a module's function in the helper and give its result."""
        self.send(function, *arguments)
        result: T = self.receive()
        return result

    def make(self, kind: Callable[..., object], *arguments: object) -> None:
        """Make an object of a module's class in the helper: the subject of `ask`."""
        self._connection.send((kind.__module__, kind.__name__, arguments, True))
        self.receive()

    def ask(self, method: str, *arguments: object) -> Any:  # noqa: ANN401 - what the method gives
        """Call a method of the subject and give its result."""
        self._connection.send(("", method, arguments, False))
        return self.receive()

    def close(self) -> None:
        """End the helper and wait for it."""
        self._connection.close()
        self._socket.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def become(user: User) -> None:
    """Change this process to another user (umask 0); only its imports are still root's, see `_importing`."""
    os.umask(0)
    if os.geteuid() == 0:
        os.setgroups(user.groups)
        os.setresgid(user.gid, user.gid, user.gid)
        os.setresuid(user.uid, user.uid, 0)


def read_file(path: str) -> bytes:
    """Open, read to the end, close."""
    with open(path, "rb", buffering=0) as file:
        return file.read()


def read_or_none(path: str) -> bytes | None:
    """Read a file, or give None where there is none."""
    try:
        return read_file(path)
    except FileNotFoundError:
        return None


def append_lines(path: str, mark: str, count: int) -> None:
    """Append lines, each with one write."""
    handle = os.open(path, os.O_WRONLY | os.O_APPEND)
    for number in range(count):
        os.write(handle, f"{mark} {number} {'x' * (number % 50)}\n".encode())
    os.close(handle)


@dataclass(frozen=True, slots=True)
class Look:
    """One look at an open file: what fstat said, what was read, what was mapped."""

    size: int
    content: bytes
    mapped: bytes


def look(path: str, *, chunk: int = 4096, pause: float = 0.0) -> Look | None:
    """Read a file in small pieces and through mmap on one descriptor; None if absent.

    `pause` is slept between two reads, in seconds, so that changes fall between them.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        size = os.fstat(handle).st_size
        pieces = []
        with (
            mmap.mmap(handle, 0, prot=mmap.PROT_READ) if size else contextlib.nullcontext() as area
        ):
            while piece := os.read(handle, chunk):
                pieces.append(piece)
                if pause:
                    time.sleep(pause)
            mapped = area[:] if area is not None else b""
        return Look(size, b"".join(pieces), mapped)
    finally:
        os.close(handle)


@contextlib.contextmanager
def peers(count: int) -> Iterator[list[Peer]]:
    """Start several helpers and end them."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Peer()) for _ in range(count)]


@contextlib.contextmanager
def _importing() -> Iterator[None]:
    """Be root again for the import of our own code, which may lie where no other user comes, such as in /root."""
    _, user, saved = os.getresuid()
    if user == saved:
        yield
        return
    os.seteuid(saved)
    try:
        yield
    finally:
        os.seteuid(user)


def serve(descriptor: int) -> None:
    """Answer calls on a socket until the other end is closed: the helper's main function."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = Connection(descriptor)
    subject: object = None
    while True:
        try:
            message = connection.recv_bytes()
        except (EOFError, ConnectionResetError):
            return
        with _importing():
            module, name, arguments, keep = pickle.loads(message)  # noqa: S301 - from our own parent
            function = getattr(importlib.import_module(module) if module else subject, name)
        try:
            result = function(*arguments)
        except OSError as error:
            result = Failed(error.errno or 0)
        if keep:
            subject, result = result, None
        try:
            connection.send(result)
        except (BrokenPipeError, ConnectionResetError):
            return
