"""What the processes of certfs tell each other: the contract between the supervisor (S) and the server (W).

S starts W as ``python -P -m certfs.server.main FD``; FD is open on the `Job` as JSON. W answers on the
*link*, a socket pair of type SOCK_SEQPACKET, one message per packet:

W to S
    ``loaded``          only with `Job.waits`: everything is read, and the mount is waited for
    ``ready``           the file system is mounted at `Job.mountpoint` and answers
    ``error JSON``      it cannot be served (see `failure_message`); W then ends, and nothing is left mounted
    ``beat``            every `BEAT_SECONDS`, from the event loop that answers the kernel
    ``flushed JSON``    the answer to ``flush``: which plain copies could not be written, and why (`stale_from`)
    ``over``            the session has ended, because somebody unmounted it: W ends, and that is no crash
S to W
    ``in-charge JSON``  the first message, and the answer to every beat: who S is, and its janitor (`InCharge`)
    ``mount``           the answer to ``loaded``: the place is free
    ``activate``        write the plain copies from now on (what a `Job.passive` W waits for)
    ``passive``         the opposite: another W writes them now
    ``flush``           bring the plain copies up to date, then answer ``flushed``
    ``release SECONDS`` S is done with this W: the end of the link no longer means anything, beats may cease. The
                        mount is detached or about to be; serve what is still open, and end with the session, but
                        after that many seconds whatever is open
    ``stop``            flush and end with status 0, whatever is open (SIGTERM and SIGINT mean the same)

The end of the link without ``release`` is the death of S: W calls `certfs.server.adoption.start_successor`. An S that
leaves beats unanswered for `SUPERVISOR_SECONDS` is stopped or hangs, and W ends it. W mounts at `Job.mountpoint` with
the options ``fsname=certfs,subtype=certfs`` (that is how a stale mount is known) and never unmounts: S does. When the
session ends by an unmount, W flushes and ends with status 0.

Owns the form of these messages; knows nothing of how either side acts on them.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, Final, Literal, Self

from certfs.linux.processes import ProcessId

BEAT_SECONDS: Final = 2.5
HANG_SECONDS: Final = 12.5
"""Silence after which W is taken to hang: 10 s after the last answer at the earliest (I15), one beat's worth later."""
SUPERVISOR_SECONDS: Final = 17.5
"""The same for S, which may wait for a store that does not answer, five seconds for each of several things."""

LOADED: Final = b"loaded"
MOUNT: Final = b"mount"
READY: Final = b"ready"
BEAT: Final = b"beat"
FLUSHED: Final = b"flushed"
OVER: Final = b"over"
IN_CHARGE: Final = b"in-charge"
ERROR: Final = b"error"
ACTIVATE: Final = b"activate"
PASSIVE: Final = b"passive"
FLUSH: Final = b"flush"
RELEASE: Final = b"release"
STOP: Final = b"stop"
MESSAGE_BYTES: Final = 65536
"""No message is longer."""
_LINE: Final = 1000
_MOST_LINES: Final = 8

Mode = Literal["standalone", "dom0"]


def wishes_file(runtime: str) -> str:
    """Return the path of what the configuration of the instance in ``runtime`` says of readers."""
    return f"{runtime}/wishes.json"


def notify_state_file(runtime: str) -> str:
    """Return the path of what readers were told; beside the instance, because it outlives an unmount."""
    directory, name = os.path.split(runtime)
    return f"{directory}/notify-{name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """One directory of the store and the place where it is presented.

    Paths are decoded with the file system's error handler (`os.fsdecode`): they may hold any bytes.
    """

    name: str
    """Its name in the root of the FUSE mount, such as ``stunnel``; empty when it is the root itself (standalone)."""
    store: str
    """Its path, for people: never resolved by S or W."""
    target: str
    """Where it is seen: the mountpoint, or in Dom0 the same path as ``store``."""
    fd: int
    """The store's directory, opened O_PATH | O_DIRECTORY before anything covered it."""
    beneath_fd: int | None
    """The directory that the mount covers, opened likewise, where the store cannot be bound over it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """What one instance of certfs serves; it stays the same over every restart."""

    mode: Mode
    trees: tuple[Tree, ...]
    """Standalone: one, with an empty name."""
    runtime: str
    """The instance's directory: state, lock, control socket, log, hidden mountpoints (`certfs.protocol.state_file`)."""
    config_file: str | None
    config_optional: bool = False
    """The file counts if it is there, at the start of a server; otherwise it must be."""
    allow_other: bool
    journal: bool
    """Standard error is the systemd journal: log lines carry a ``<N>`` priority (sd-daemon(3)) and no time."""

    log: str | None = None
    """The path of the file that standard error is; None if it is the journal or a terminal."""

    def inherited(self) -> tuple[int, ...]:
        """Return the descriptors of all directories."""
        return tuple(
            fd for tree in self.trees for fd in (tree.fd, tree.beneath_fd) if fd is not None
        )

    @property
    def state_file(self) -> str:
        """The JSON of `certfs.protocol.state_file.State`, replaced atomically."""
        return f"{self.runtime}/state.json"

    @property
    def config_in_use(self) -> str | None:
        """The configuration file that a server reads that starts now."""
        if self.config_file and self.config_optional and not os.path.lexists(self.config_file):
            return None
        return self.config_file

    @property
    def settings_file(self) -> str:
        """The configuration that the last server serves with (`certfs.server.settings`)."""
        return f"{self.runtime}/settings.json"

    @property
    def wishes_file(self) -> str:
        """What the configuration says of readers that are to be told (`certfs.protocol.notify_spec.Wishes`)."""
        return wishes_file(self.runtime)

    @property
    def notify_state_file(self) -> str:
        """What they were told (`certfs.protocol.notify_state`)."""
        return notify_state_file(self.runtime)

    @property
    def undo_log(self) -> str:
        """The directory of what a server leaves to the next one (`certfs.store.undo_log`)."""
        return f"{self.runtime}/undo-log"

    @property
    def title(self) -> str:
        """Where the mount is, for people."""
        return ", ".join(tree.target for tree in self.trees)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What one W is to do."""

    mount: Mount
    mountpoint: str
    """Where the FUSE mount goes: the user's mountpoint, or a hidden directory from which S binds the trees."""
    passive: bool
    """Another W still writes the plain copies: read everything, serve, but write none until ``activate``."""
    waits: bool
    """Another W is mounted at the very place: read everything, say ``loaded``, and mount when told ``mount``."""
    asked: bool = False
    """Somebody asked for this W: read the configuration anew. Otherwise it follows a death."""
    link_fd: int = -1
    """This W's end of the link."""
    life: tuple[int, int] = (-1, -1)
    """A pipe (read end, write end) whose end tells S that W has died; see `certfs.server.adoption.show_life`."""

    def to_json(self) -> bytes:
        """Return the job in the form that `receive` takes."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def receive(cls, fd: int) -> Self:
        """Read a job from ``fd`` to its end and close it; its descriptors are not passed on to W's own children."""
        with open(fd, "rb") as stream:
            raw = json.load(stream)
        read_end, write_end = raw.pop("life")
        mount = mount_from_json(raw.pop("mount"))
        job = cls(mount=mount, life=(read_end, write_end), **raw)
        for inherited in job.inherited():
            os.set_inheritable(inherited, False)
        return job

    def inherited(self) -> tuple[int, ...]:
        """Return every descriptor that the process doing this job holds."""
        return (*self.mount.inherited(), self.link_fd, *self.life)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a process of certfs could not do its part, to be shown by another."""

    exit_code: int
    message: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class InCharge:
    """Who looks after W."""

    supervisor: ProcessId
    janitor: ProcessId | None

    def to_message(self) -> bytes:
        """Return the ``in-charge`` message."""
        return IN_CHARGE + b" " + json.dumps(asdict(self)).encode()

    @classmethod
    def from_message(cls, message: bytes) -> Self:
        """Return what `to_message` was given."""
        raw = json.loads(message.removeprefix(IN_CHARGE))
        janitor = ProcessId(**raw["janitor"]) if raw["janitor"] else None
        return cls(ProcessId(**raw["supervisor"]), janitor)


def flushed_message(stale: Iterable[str]) -> bytes:
    """Return the ``flushed`` message; ``stale`` says of each copy that is not current which it is, and why."""
    return (
        FLUSHED + b" " + json.dumps([line[:_LINE] for line in islice(stale, _MOST_LINES)]).encode()
    )


STALE_UNKNOWN: Final = "any may lack the last changes: the server did not answer in time"
"""In place of what `flushed_message` is given, where no such message came."""


def stale_from(message: bytes) -> tuple[str, ...]:
    """Return what `flushed_message` was given, cut to what a message may hold."""
    return tuple(json.loads(message.removeprefix(FLUSHED)))


def failure_message(failure: Failure) -> bytes:
    """Return the ``error`` message that carries ``failure``, cut to what a message may hold."""
    room = MESSAGE_BYTES // 16
    cut = Failure(failure.exit_code, failure.message[:room], failure.advice[:room])
    return ERROR + b" " + json.dumps(asdict(cut)).encode()


def failure_from(message: bytes) -> Failure:
    """Return what `failure_message` was given."""
    return Failure(**json.loads(message.removeprefix(ERROR)))


def mount_from_json(raw: dict[str, Any]) -> Mount:
    """Return the mount that ``dataclasses.asdict`` turned into ``raw``."""
    return Mount(trees=tuple(Tree(**tree) for tree in raw.pop("trees")), **raw)
