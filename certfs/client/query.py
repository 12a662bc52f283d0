"""Asking a mount how it is, from outside, without being stuck when it does not answer.

Owns the union of what the server says (``.certfs/status.json`` at the root of its mount) and what the supervisor wrote
down (state.json). Both are documented in ``docs/operations.md``.
"""

import errno
import json
import os
import stat
from dataclasses import dataclass
from typing import Any, Final, Literal

from certfs import procfs
from certfs.linux.processes import in_child, output_of_child
from certfs.protocol import state_file, timeouts
from certfs.protocol.checked import decoded
from certfs.protocol.notify_spec import Wishes
from certfs.protocol.notify_state import Entry, recalled
from certfs.protocol.owned_mounts import devices_of
from certfs.protocol.specs import notify_state_file, wishes_file
from certfs.protocol.state_file import Event, Phase, State
from certfs.protocol.summary import Summary, read_hosts

REPORT_BYTES: Final = 64 << 20
"""More than the status of any mount has."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a mount says of itself, and the user who made it."""

    owner: int
    content: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Mount:
    target: str
    store: str


@dataclass(frozen=True, slots=True)
class _Process:
    pid: int
    since: float = 0.0


@dataclass(frozen=True, slots=True)
class _LeftOut:
    source: str
    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class _Writer:
    pid: int
    uid: int
    command: str


@dataclass(frozen=True, slots=True)
class _BeingWritten:
    source: str
    since: float
    writers: tuple[_Writer, ...]
    certificates: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _PlainCopy:
    current: bool
    error: str | None


@dataclass(frozen=True, slots=True)
class _Bundle:
    bundle: str
    source: str
    exists: bool
    generation: int
    certificates: int
    sources: int
    size: int
    sha256: str | None
    changed: float
    swap: bool
    left_out: tuple[_LeftOut, ...]
    plain_copy: _PlainCopy
    suffixes: tuple[str, ...] = (".pem",)
    readers: tuple[str, ...] = ()
    not_answering: tuple[str, ...] = ()
    being_written: tuple[_BeingWritten, ...] = ()
    """A server of an older release does not say."""


@dataclass(frozen=True, slots=True)
class _Relied:
    """What is read of a report, by type: see ``docs/operations.md`` for what it means."""

    version: int
    mode: Literal["dom0", "standalone"]
    config_file: str | None
    mounts: tuple[_Mount, ...]
    server: _Process
    supervisor: _Process | None
    since: float
    bundles: tuple[_Bundle, ...]
    plain_copies_current: bool
    events: tuple[Event, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """How one mount is."""

    phase: Phase | Literal["dead"]
    """``dead``: no process is left, and mounts are."""
    report: dict[str, Any] | None
    """The server's status.json; None if it did not answer in time."""
    state: State | None
    """The supervisor's; None for a mount of somebody else, or where it could not be written."""
    owner: int | None = None
    """The user who made the mount, where there is no ``state``: what it says of itself is this user's word."""
    notified: tuple[Entry, ...] = ()
    """The readers that are told of changes, where there is a ``state``."""
    last: dict[str, Any] | None = None
    """What it said before it died, where there is no ``state``."""

    @property
    def is_trusted(self) -> bool:
        """Whether this user, or root, made the mount: then a file that it names may be opened."""
        return self.state is not None or self.owner in (0, os.geteuid())

    def to_json(self) -> dict[str, Any]:
        """Return the object that ``certfs status --json`` prints."""
        known = {"answering": self.report is not None, "phase": self.phase}
        return {**known, **(self.report or self._from_state()), **self._own()}

    def _own(self) -> dict[str, Any]:
        if self.state is None:
            return {}
        return {
            "log": self.state.log,
            "next_start": self.state.next_start if self.phase == "plain" else None,
            "notify": self._notify(),
        }

    def _notify(self) -> list[dict[str, Any]]:
        return [
            {
                "target": order.target,
                "bundle": order.bundle,
                "waiting": order.waiting,
                "runs": order.runs,
                "failures": order.failures,
                "last_success": order.last_success,
                "last_error": order.last_error,
            }
            for order in self.notified
        ]

    def _from_state(self) -> dict[str, Any]:
        state = self.state
        if state is None:
            return self.last or {}
        return {
            "version": state.version,
            "mode": state.mode,
            "config_file": state.config_file,
            "mounts": [
                {"target": target, "store": store}
                for target, store in zip(state.targets, state.stores, strict=True)
            ],
            "server": {"pid": state.server.pid, "since": state.server_since}
            if state.server
            else None,
            "supervisor": {"pid": state.supervisor.pid},
            "since": state.since,
            "bundles": None,
            "plain_copies_current": None,
            "events": [
                {
                    "at": event.at,
                    "kind": event.kind,
                    "detail": event.detail,
                    "plain_seconds": event.plain_seconds,
                    "live_seconds": event.live_seconds,
                }
                for event in state.events
            ],
        }


def ask_instance(directory: str) -> Answer | None:
    """Ask the instance with this runtime directory; None if nothing runs or is mounted there."""
    state = state_file.read_state(directory)
    if state is None:
        return _ask_hidden_mounts(directory)
    if not _runs(state):
        return Answer("dead", None, state) if devices_of(directory, state) else None
    report = _read(state.mountpoint, state.device) if state.mountpoint and state.device else None
    return Answer(
        state.phase, report.content if report else None, state, notified=readers_of(directory)
    )


def readers_of(directory: str) -> tuple[Entry, ...]:
    """Return how it stands with the readers that the instance with this runtime directory tells of changes."""
    wishes = Wishes.read(wishes_file(directory))
    if not wishes.notify:
        return ()
    entries = recalled(notify_state_file(directory)).entries.values()
    targets = {spec.target for spec in wishes.notify}
    return tuple(entry for entry in entries if entry.target in targets)


def ask_mount(mountpoint: str) -> Answer | None:
    """Ask the certfs at ``mountpoint``, whoever it belongs to; None if there is none or it does not answer."""
    report = _read(mountpoint)
    return None if report is None else Answer("serving", report.content, None, report.owner)


def _ask_hidden_mounts(directory: str) -> Answer | None:
    """Ask what is mounted in a runtime directory whose state could not be written, or was removed."""
    points = [
        entry.point
        for entry in procfs.mounts()
        if procfs.is_ours(entry) and entry.point.startswith(f"{directory}/mount-")
    ]
    answers = (ask_mount(point) for point in reversed(points))
    return next((answer for answer in answers if answer), None)


def _runs(state: State) -> bool:
    return state.supervisor.alive() or (state.server is not None and state.server.alive())


def _read(mountpoint: str, device: str | None = None) -> Report | None:
    """Read the status through the mount in a process of its own, which can be killed while it waits.

    None where nothing is mounted that calls itself certfs (with ``device``: that very mount), or it does not answer.
    """
    raw = output_of_child(
        lambda: _status_through(mountpoint, device), timeouts.STATUS, limit=REPORT_BYTES
    )
    try:
        owner, _, content = (raw or b"").partition(b"\n")
        return Report(int(owner), decoded_report(content))
    except ValueError:
        return None


def _status_through(mountpoint: str, device: str | None) -> bytes:
    """Return who made the mount and its status; OSError for anything but a file that the mount itself has.

    What is below a mountpoint of another user may be a FIFO, a device or a link to whatever this user can read.
    """
    flags = os.O_NOFOLLOW | os.O_CLOEXEC
    root = os.open(mountpoint, os.O_PATH | os.O_DIRECTORY | flags)
    mount = procfs.mount_of(root)
    if mount is None or not mount.is_certfs or device not in {None, mount.device}:
        raise OSError(errno.ENOENT, "no certfs is mounted there", mountpoint)
    directory = os.open(".certfs", os.O_PATH | os.O_DIRECTORY | flags, dir_fd=root)
    flags |= os.O_RDONLY | os.O_NONBLOCK
    try:
        file = os.open("status.json", flags, dir_fd=directory)
    except PermissionError:
        # For root and the owner of the store; what everybody may know is beside it.
        file = os.open("summary.json", flags, dir_fd=directory)
    if {procfs.mount_id(fd) for fd in (directory, file)} != {mount.mount_id}:
        raise OSError(errno.EXDEV, "something else is mounted there", mountpoint)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        raise OSError(errno.EINVAL, "not a regular file", mountpoint)
    with open(file, "rb") as stream:
        return b"%d\n" % (-1 if mount.owner is None else mount.owner) + stream.read(REPORT_BYTES)


def ask_host() -> Answer | None:
    """Return what everybody may know of the host's own mount; None if there is none."""
    summary = read_hosts()
    if summary is None:
        return None
    report = report_of(summary)
    if not summary.is_served():
        # Plain directories are in view, unless nobody was left to see to that.
        phase: Phase | Literal["dead"] = "dead" if summary.is_left_dead() else "plain"
        return Answer(phase, None, None, 0, last=report)
    answers = in_child(lambda: _ask_each(summary.targets), timeouts.STATUS) is None
    return Answer("serving", report if answers else None, None, 0, last=report)


def _ask_each(targets: tuple[str, ...]) -> None:
    for target in targets:
        os.statvfs(target)  # never answered from the kernel's memory


def report_of(summary: Summary) -> dict[str, Any]:
    """Return a summary in the form of a report: what is only for root and the owner of the store is null."""
    return {
        "version": summary.version,
        "mode": summary.mode,
        "config_file": summary.config_file,
        "mounts": [{"target": target, "store": None} for target in summary.targets],
        "server": {"pid": summary.server.pid, "since": summary.server_since},
        "supervisor": None,
        "since": summary.since,
        "bundles": [
            {
                "bundle": each.bundle,
                "source": each.source,
                "suffixes": list(each.suffixes),
                "readers": list(each.readers),
                "exists": each.exists,
                "generation": None,
                "certificates": each.certificates,
                "sources": each.sources,
                "size": None,
                "sha256": None,
                "changed": each.changed,
                "swap": None,
                "left_out": None,
                "left_out_count": each.left_out,
                "not_answering": None,
                "being_written": None,
                "plain_copy": {"current": each.plain_copy_current, "error": None},
            }
            for each in summary.bundles
        ],
        "plain_copies_current": summary.plain_copies_current,
        "events": None,
    }


def decoded_report(content: bytes) -> dict[str, Any]:
    """Return a status report with at least what every reader of it relies on; ValueError if it is none."""
    try:
        return report_of(Summary.from_json(content))
    except ValueError:
        decoded(_Relied, content)
    report: dict[str, Any] = json.loads(content)
    return report
