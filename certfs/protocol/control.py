"""The control socket: how a command tells a running supervisor to unmount, to restart, to flush, to hand out the store.

One request, one reply, each a packet (SOCK_SEQPACKET).
"""

import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Final, Literal

from certfs.protocol import codec, timeouts
from certfs.protocol.messages import Failure
from certfs.safe_open import closing

Verb = Literal["unmount", "restart", "flush", "store"]
VERBS: Final[tuple[Verb, ...]] = ("unmount", "restart", "flush", "store")
_MESSAGE_BYTES: Final = 65536
_MOST_DESCRIPTORS: Final = 16
_STEP_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a request: ``failure``, or done."""

    failure: Failure | None = None
    lingering: int | None = None
    """After ``unmount``: the server that still serves files that are open; None if it has ended."""
    covered: tuple[str, ...] = ()
    """After ``unmount``: where something is mounted over certfs, which is detached when that is unmounted."""
    stale: tuple[str, ...] = ()
    """After ``unmount`` and ``flush``: which plain copies are not what was served, and why."""
    trees: tuple[str, ...] = ()
    """After ``store``: the names of the directories beneath the mount; one that is empty stands for the whole."""
    descriptors: tuple[int, ...] = ()
    """After ``store``: of these directories (O_PATH), for each process its own; who receives them closes them."""


def listen(directory: str) -> socket.socket:
    """Return the listening socket of an instance, in place of one that a dead supervisor left."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    with suppress(FileNotFoundError):
        os.unlink(f"{directory}/control")
    # From its first moment: others may be able to reach it, and who connects can have everything unmounted.
    umask = os.umask(0o177)
    try:
        with _nearby(directory) as near:
            listener.bind(f"{near}/control")
    finally:
        os.umask(umask)
    listener.listen(16)
    return listener


def connect(directory: str) -> socket.socket | None:
    """Return a connection to the supervisor of an instance, None if none listens, or too many wait for it."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(0)
    try:
        with _nearby(directory) as near:
            connection.connect(f"{near}/control")
    except (FileNotFoundError, ConnectionRefusedError, BlockingIOError):
        connection.close()
        return None
    connection.settimeout(None)
    return connection


def request(
    connection: socket.socket, verb: Verb, seconds: float, *, is_stopped: Callable[[], bool]
) -> Reply | None:
    """Send ``verb`` and return the reply, None if none comes in time, or the supervisor stays stopped.

    ConnectionError if the supervisor hangs up without one: it has ended, or is becoming another program.
    """
    connection.send(verb.encode())
    now = time.monotonic()
    deadline, looking = now + seconds, now + timeouts.STOPPED
    # In short steps: a command that stands still is taken to wait for a file system.
    while not select.select([connection], [], [], max(min(deadline - now, _STEP_SECONDS), 0))[0]:
        now = time.monotonic()
        if now >= deadline:
            return None
        if now >= looking:
            if is_stopped():
                return None
            looking = now + timeouts.STOPPED
    packet, descriptors, _, _ = socket.recv_fds(
        connection, _MESSAGE_BYTES, _MOST_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
    )
    if not packet:
        raise ConnectionResetError
    return replace(codec.from_json(Reply, packet), descriptors=tuple(descriptors))


@contextmanager
def _nearby(directory: str) -> Iterator[str]:
    """Give a short path to a directory: socket addresses hold 107 bytes (unix(7))."""
    with closing(os.open(directory, os.O_PATH | os.O_DIRECTORY)) as fd:
        yield f"/proc/self/fd/{fd}"
