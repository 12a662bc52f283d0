"""Asking a mount how it is, from outside, without being stuck when it does not answer.

Owns the union of what the server says (``.certfs/status.json`` at the root of its mount) and what the supervisor wrote
down (state.json). Both are documented in ``docs/operations.md``.
"""

import errno
import os
import stat
from dataclasses import dataclass, fields, replace
from typing import Final, Literal

from certfs import procfs
from certfs.linux.processes import in_child, output_of_child
from certfs.moment import written
from certfs.protocol import codec, state_file, timeouts
from certfs.protocol.notify_spec import Wishes
from certfs.protocol.notify_state import Entry, recalled
from certfs.protocol.owned_mounts import devices_of
from certfs.protocol.report import (
    BundleReport,
    MountReport,
    PlainCopy,
    ServingProcess,
    SupervisingProcess,
    Target,
    reported,
)
from certfs.protocol.specs import notify_state_file, wishes_file
from certfs.protocol.state_file import Phase, State
from certfs.protocol.summary import Summary, read_hosts

REPORT_BYTES: Final = 64 << 20
"""More than the status of any mount has."""


@dataclass(frozen=True, slots=True)
class _Said:
    """What a mount says of itself, and the user who made it."""

    owner: int
    report: MountReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """A reader that is told of changes, and how that goes."""

    target: str
    bundle: str
    waiting: bool
    runs: int
    failures: int
    last_success: str | None
    last_error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Status(MountReport):
    """What ``certfs status --json`` prints.

    ``log``, ``next_start`` (of a server, after several crashes) and ``notify`` are for root and the mount's user.
    """

    answering: bool
    phase: Phase | Literal["dead"]
    log: str | None
    next_start: str | None
    notify: tuple[Reader, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """How one mount is."""

    phase: Phase | Literal["dead"]
    """``dead``: no process is left, and mounts are."""
    report: MountReport | None
    """What the server says; None if it did not answer in time."""
    state: State | None
    """The supervisor's; None for a mount of somebody else, or where it could not be written."""
    owner: int | None = None
    """The user who made the mount, where there is no ``state``: what it says of itself is this user's word."""
    notified: tuple[Entry, ...] = ()
    """The readers that are told of changes, where there is a ``state``."""
    last: MountReport | None = None
    """What it said before it died, where there is no ``state``."""

    @property
    def is_trusted(self) -> bool:
        """Whether this user, or root, made the mount: then a file that it names may be opened."""
        return self.state is not None or self.owner in (0, os.geteuid())

    def status(self) -> Status:
        """Return all that is known, in the form for programs."""
        state = self.state
        known = self.report or (_report_of_state(state) if state else self.last)
        if known is None:
            raise ValueError("an answer of nothing")
        if known.bundles is not None:
            seen = (replace(each, path=_path_of(known, each)) for each in known.bundles)
            known = replace(known, bundles=tuple(seen))
        return Status(
            **{each.name: getattr(known, each.name) for each in fields(MountReport)},
            answering=self.report is not None,
            phase=self.phase,
            log=state.log if state else None,
            next_start=_written(state.next_start) if state and self.phase == "plain" else None,
            notify=tuple(map(_reader, self.notified)) if state else (),
        )


def _path_of(report: MountReport, bundle: BundleReport) -> str | None:
    """Return where a bundle is seen."""
    targets = [mount.target for mount in report.mounts]
    if report.mode == "standalone":
        return f"{targets[0]}/{bundle.bundle}" if targets else None
    tree, _, rest = bundle.bundle.partition("/")
    return next((f"{each}/{rest}" for each in targets if os.path.basename(each) == tree), None)


def _reader(order: Entry) -> Reader:
    known = {each.name: getattr(order, each.name) for each in fields(Reader)}
    return Reader(**{**known, "last_success": _written(order.last_success)})


def _written(seconds: float | None) -> str | None:
    return None if seconds is None else written(seconds)


def _report_of_state(state: State) -> MountReport:
    """Return what a supervisor has written down, in the form of a report."""
    server = state.server
    return MountReport(
        version=state.version,
        mode=state.mode,
        config_file=state.config_file,
        mounts=tuple(
            Target(target=target, store=store)
            for target, store in zip(state.targets, state.stores, strict=True)
        ),
        server=ServingProcess(pid=server.pid, since=written(state.server_since or state.since))
        if server
        else None,
        supervisor=SupervisingProcess(pid=state.supervisor.pid),
        since=written(state.since),
        bundles=None,
        plain_copies_current=None,
        events=reported(state.events),
    )


def ask_instance(directory: str) -> Answer | None:
    """Ask the instance with this runtime directory; None if nothing runs or is mounted there."""
    state = state_file.read_state(directory)
    if state is None:
        return _ask_hidden_mounts(directory)
    if not any(process.alive() for process in state.processes):
        return Answer("dead", None, state) if devices_of(directory, state) else None
    said = _read(state.mountpoint, state.device) if state.mountpoint and state.device else None
    return Answer(state.phase, said.report if said else None, state, notified=readers_of(directory))


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
    said = _read(mountpoint)
    return None if said is None else Answer("serving", said.report, None, said.owner)


def _ask_hidden_mounts(directory: str) -> Answer | None:
    """Ask what is mounted in a runtime directory whose state could not be written, or was removed."""
    points = [
        entry.point
        for entry in procfs.mounts()
        if procfs.is_ours(entry) and entry.point.startswith(f"{directory}/mount-")
    ]
    answers = (ask_mount(point) for point in reversed(points))
    return next((answer for answer in answers if answer), None)


def _read(mountpoint: str, device: str | None = None) -> _Said | None:
    """Read the status through the mount in a process of its own, which can be killed while it waits.

    None where nothing is mounted that calls itself certfs (with ``device``: that very mount), or it does not answer.
    """
    raw = output_of_child(
        lambda: _status_through(mountpoint, device), timeouts.STATUS, limit=REPORT_BYTES
    )
    try:
        owner, _, content = (raw or b"").partition(b"\n")
        return _Said(int(owner), decoded_report(content))
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
    # statvfs(3) is never answered from the kernel's memory.
    answers = in_child(lambda: list(map(os.statvfs, summary.targets)), timeouts.STATUS) is None
    return Answer("serving", report if answers else None, None, 0, last=report)


def report_of(summary: Summary) -> MountReport:
    """Return a summary in the form of a report: what is only for root and the owner of the store is null."""
    return MountReport(
        version=summary.version,
        mode=summary.mode,
        config_file=summary.config_file,
        mounts=tuple(Target(target=target) for target in summary.targets),
        server=ServingProcess(
            pid=summary.server.pid, since=summary.server_since, version=summary.server_version
        ),
        supervisor=None,
        since=summary.since,
        bundles=tuple(
            BundleReport(
                bundle=each.bundle,
                source=each.source,
                suffixes=each.suffixes,
                readers=each.readers,
                exists=each.exists,
                certificates=each.certificates,
                sources=each.sources,
                changed=each.changed,
                left_out_count=each.left_out,
                plain_copy=PlainCopy(current=each.plain_copy_current),
            )
            for each in summary.bundles
        ),
        plain_copies_current=summary.plain_copies_current,
        events=None,
    )


def decoded_report(content: bytes) -> MountReport:
    """Return what a status or a summary says; ValueError if it is neither."""
    try:
        return report_of(codec.from_json(Summary, content))
    except ValueError:
        return codec.from_json(MountReport, content)
