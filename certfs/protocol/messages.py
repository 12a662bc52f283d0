"""What a server (W) and its supervisor (S) say to each other: the contract between the two.

S starts W as ``python -I -m certfs.server.main FD``; FD is open on a `specs.ServerSpec`. The two talk over the *link*,
a socket pair of type SOCK_SEQPACKET, a message per packet:

W to S
    `Loaded`      everything is read: W can serve as soon as it gets a descriptor
    `Failed`      it cannot be served; W then ends
    `Beat`        every `timeouts.BEAT`, from the event loop that answers the kernel; the first one says that it serves
    `Flushed`     the answer to `Flush`
    `Over`        the session has ended, because it was unmounted: W ends, and that is no crash
S to W
    `InCharge`    the first message, and again when something of it has changed; the answer to a beat that asks for one
    `Serve`       the answer to `Loaded`, with a descriptor of /dev/fuse that is mounted already
    `Activate`    write the plain copies from now on (what a `specs.ServerSpec.standby` W waits for)
    `StandBy`     the opposite: another W writes them now
    `Flush`       bring the plain copies up to date, then answer `Flushed`
    `Release`     S is done with this W: the end of the link no longer means anything, beats may cease. The mount is
                  detached or about to be; serve what is still open, and end with the session, but after that many
                  seconds whatever is open; while others have something of it bound, not before the instance ends
    `Stop`        flush and end with status 0, whatever is open (SIGTERM and SIGINT mean the same)

The end of the link without `Release` is the death of S: W starts another one (`specs.SupervisorSpec`). An S that leaves
beats unread for `timeouts.SUPERVISOR_SILENCE` is stopped or hangs, and W ends it. W neither mounts nor unmounts: S
does both.

Owns the form of these messages; knows nothing of how either side acts on them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Final

from certfs.linux.processes import ProcessId
from certfs.protocol import codec

MESSAGE_BYTES: Final = 65536
"""No message is longer."""
_LINE: Final = 1000
_MOST_LINES: Final = 8


@dataclass(frozen=True, slots=True)
class Bare:
    """A message of which its kind says all."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a process of certfs could not do its part, to be shown by another."""

    exit_code: int
    message: str
    advice: str = ""


class Loaded(Bare):
    """Everything is read."""


@dataclass(frozen=True, slots=True)
class Failed:
    """It cannot be served."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class Beat:
    """A sign of life."""

    oldest: float = 0.0
    """For how many seconds the oldest request has waited for something that is not the store (I15)."""
    asks: bool = True
    """An answer is waited for, as a W does that cannot see whether its beats are read, or of a version before that."""


@dataclass(frozen=True, slots=True)
class Flushed:
    """The plain copies are as current as they can be."""

    stale: tuple[str, ...] = ()
    """Which are not what is served, and why."""


class Over(Bare):
    """The session has ended."""


@dataclass(frozen=True, slots=True)
class InCharge:
    """Who looks after W."""

    supervisor: ProcessId
    janitor: ProcessId | None = None


@dataclass(frozen=True, slots=True)
class Serve:
    """Serve the descriptor that comes with this."""

    mountpoint: str
    device: str
    """``major:minor`` of the mount."""


class Activate(Bare):
    """Write the plain copies."""


class StandBy(Bare):
    """Write no plain copies."""


class Flush(Bare):
    """Bring the plain copies up to date."""


@dataclass(frozen=True, slots=True)
class Release:
    """Serve what is open, and then end."""

    seconds: float


class Stop(Bare):
    """End."""


Message = (
    Loaded | Failed | Beat | Flushed | Over | InCharge | Serve | Activate | StandBy | Flush | Release | Stop
)  # fmt: skip
_KINDS: Final = {kind.__name__.encode(): kind for kind in Message.__args__}

STALE_UNKNOWN: Final = "any may lack the last changes: the server did not answer in time"
"""In place of `Flushed.stale`, where no such message came."""


def encode(message: Message) -> bytes:
    """Return the packet of a message."""
    return type(message).__name__.encode() + b" " + codec.to_json(message)


def decode(packet: bytes) -> Message | None:
    """Return the message of a packet; None for one that this version does not know. ValueError if it is broken."""
    name, _, content = packet.partition(b" ")
    kind = _KINDS.get(name)
    return codec.from_json(kind, content) if kind else None


def flushed(stale: Iterable[str]) -> Flushed:
    """Return the message with ``stale``, cut to what a message may hold."""
    return Flushed(tuple(line[:_LINE] for line in islice(stale, _MOST_LINES)))


def failed(failure: Failure) -> Failed:
    """Return the message with ``failure``, cut to what a message may hold."""
    room = MESSAGE_BYTES // 16
    return Failed(Failure(failure.exit_code, failure.message[:room], failure.advice[:room]))
