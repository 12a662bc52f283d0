"""How a mount is, in detail: what ``.certfs/status.json`` holds, and what ``certfs status --json`` prints of it.

Owns the schema, for the server that writes it, for commands that read it, and for the JSON Schema that is made of it;
``docs/operations.md`` says what the keys mean. A key keeps its meaning for good; new ones may come. Times are as
`certfs.moment` writes them. Null are details that are only for root and the owner of the store, or that only a server
knows.
"""

from dataclasses import asdict, dataclass

from certfs.moment import written
from certfs.protocol.specs import Mode
from certfs.protocol.state_file import Event, EventKind

VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a directory of the store is seen."""

    target: str
    store: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingProcess:
    """The process that answers the kernel; ``version`` is that of its certfs, where it says so."""

    pid: int
    since: str
    version: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisingProcess:
    """The process that looks after it."""

    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Remark:
    """A source that contributes nothing, or less than its writer meant; ``line`` 0 for the whole of it."""

    source: str
    line: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Writer:
    """A process that has a source open for writing."""

    pid: int
    uid: int
    command: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BeingWritten:
    """A source that counts as it was before somebody began to write it; ``certificates`` are SHA-256 fingerprints."""

    source: str
    since: str
    writers: tuple[Writer, ...]
    certificates: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainCopy:
    """The bundle as a plain file in the store."""

    current: bool
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleReport:
    """One bundle; ``bundle`` and ``source`` are paths from the root of the mount, what is not printable escaped.

    ``path`` is where it is seen, absolute; the command adds it.
    """

    path: str | None = None
    bundle: str
    source: str
    suffixes: tuple[str, ...] = (".pem",)
    readers: tuple[str, ...] = ()
    exists: bool
    generation: int | None = None
    certificates: int
    sources: int
    size: int | None = None
    sha256: str | None = None
    changed: str
    swap: bool | None = None
    left_out: tuple[Remark, ...] | None = None
    left_out_count: int
    not_answering: tuple[str, ...] | None = None
    being_written: tuple[BeingWritten, ...] | None = None
    plain_copy: PlainCopy


@dataclass(frozen=True, slots=True, kw_only=True)
class EventReport:
    """Something that happened to the server, as `certfs.protocol.state_file.Event` has it."""

    at: str
    kind: EventKind
    detail: str
    plain_seconds: float | None
    live_seconds: float | None


def reported(events: tuple[Event, ...]) -> tuple[EventReport, ...]:
    """Return what a supervisor has noted, in the form of a report."""
    return tuple(EventReport(**{**asdict(event), "at": written(event.at)}) for event in events)


@dataclass(frozen=True, slots=True, kw_only=True)
class MountReport:
    """How a mount is; without ``bundles`` as far as it is known while no server answers."""

    version: int = VERSION
    mode: Mode
    config_file: str | None
    mounts: tuple[Target, ...]
    server: ServingProcess | None
    supervisor: SupervisingProcess | None
    since: str
    bundles: tuple[BundleReport, ...] | None
    plain_copies_current: bool | None
    events: tuple[EventReport, ...] | None
