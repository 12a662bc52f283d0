"""What starts a supervisor: an order, from the ``mount`` command, a server that lost its own, or its former self.

A supervisor is started as ``python -P -m certfs.supervisor.supervisor FD``; FD is open on the `Order` as JSON.
"""

import json
import os
import signal
from dataclasses import asdict, dataclass
from typing import Any, Final, NoReturn, Self

from certfs.linux.descriptors import memory_file
from certfs.linux.processes import ProcessId, python
from certfs.protocol.link import Mount, mount_from_json

SERVER_MODULE: Final = "certfs.server.main"
ENDING: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""The signals that ask a supervisor to unmount."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adoption:
    """A server that already runs, for a supervisor that did not start it."""

    process: ProcessId
    link_fd: int
    """The supervisor's end of the link."""
    life_fd: int
    """The read end of the server's `Job.life`."""
    mountpoint: str
    passive: bool
    janitor: ProcessId | None
    """The janitor of the supervisor before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What one supervisor is to do."""

    mount: Mount
    report_fd: int | None = None
    """Where the first outcome goes, as one `Report`; None if nobody waits for it."""
    foreground: bool = False
    """The first failure goes to standard error, for a person or the journal."""
    lock_fd: int | None = None
    """Holds the lock of the instance; None to take it."""
    adopt: Adoption | None = None
    """None to start a server."""
    server_module: str = SERVER_MODULE

    def to_json(self) -> bytes:
        """Return the order in the form that `receive` takes."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def receive(cls, fd: int) -> Self:
        """Read an order from ``fd`` to its end and close it; its descriptors are not passed on to children."""
        with open(fd, "rb") as stream:
            raw: dict[str, Any] = json.load(stream)
        adopt = raw.pop("adopt")
        if adopt:
            process, janitor = ProcessId(**adopt.pop("process")), adopt.pop("janitor")
            janitor = ProcessId(**janitor) if janitor else None
            adopt = Adoption(process=process, janitor=janitor, **adopt)
        order = cls(mount=mount_from_json(raw.pop("mount")), adopt=adopt, **raw)
        for inherited in order.inherited():
            os.set_inheritable(inherited, False)
        return order

    def inherited(self) -> tuple[int, ...]:
        """Return every descriptor that the supervisor with this order holds."""
        fds = list(self.mount.inherited())
        fds += [fd for fd in (self.report_fd, self.lock_fd) if fd is not None]
        if self.adopt:
            fds += [self.adopt.link_fd, self.adopt.life_fd]
        return tuple(fds)


def inbox(content: bytes) -> int:
    """Return a descriptor, of a file in memory, from which ``content`` can be read."""
    return memory_file(content)


def command(box: int) -> tuple[str, ...]:
    """Return the command line of the supervisor whose order is in ``box``."""
    return python("certfs.supervisor.supervisor", str(box))


def execute(order: Order) -> NoReturn:
    """Let this process become a supervisor with ``order``; OSError if it cannot.

    A signal that is to end it waits until the new program has its handlers: the default would end it with the mount
    still there.
    """
    box = inbox(order.to_json())
    for fd in (*order.inherited(), box):
        os.set_inheritable(fd, True)
    program, *_ = arguments = command(box)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        os.execv(program, arguments)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
