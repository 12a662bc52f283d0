"""The mount table, read as values, and the ways to take our mounts out of it.

Owns what is known of /proc/self/mountinfo (proc(5)). A mount of ours is recognised by its device number, never by
looking at a path: a path under a mount whose server is dead or hangs must not be touched.
"""

import errno
import os
import select
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from certfs.linux import mount_syscalls
from certfs.linux.processes import start, wait

FILESYSTEM_TYPE: Final = "fuse.certfs"
"""The type of our mounts in /proc/self/mountinfo."""
MOUNTINFO: Final = "/proc/self/mountinfo"
CONNECTIONS: Final = "/sys/fs/fuse/connections"
_READS: Final = 5
_ROUNDS: Final = 64
"""Bound on repeated detaching: each round takes one layer off every place."""
_FUSERMOUNT_SECONDS: Final = 5.0

Unmount = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Entry:
    """One mount of this mount namespace."""

    mount_id: int
    parent_id: int
    device: str
    """``major:minor`` of the file system."""
    root: str
    """The directory (or file) of the file system that is mounted."""
    point: str
    """Where, from this process's root."""
    kind: str
    """The file system's type, such as ``fuse.certfs``."""


def table() -> tuple[Entry, ...]:
    """Return the mounts of this namespace.

    The table comes in pieces, and before Linux 5.8 a mount is missing from it if another one goes between two of them.
    So it is read again when it has changed meanwhile.
    """
    for _ in range(_READS):
        with open(MOUNTINFO, "rb", buffering=0) as stream:
            raw = stream.readall()
            poll = select.poll()
            poll.register(stream, select.POLLPRI)
            if not poll.poll(0):
                break
    return tuple(_parse(raw))


def top_at(entries: Collection[Entry], point: str) -> Entry | None:
    """Return the mount that is in view at ``point``, None if nothing is mounted there."""
    here = {entry.mount_id: entry for entry in entries if entry.point == point}
    covered = {entry.parent_id for entry in here.values()}
    return next((entry for entry in here.values() if entry.mount_id not in covered), None)


def mount_of(fd: int) -> Entry | None:
    """Return the mount that an open file was reached by; its file system is not asked."""
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as stream:
        fields = dict(line.split(":", 1) for line in stream if ":" in line)
    number = int(fields["mnt_id"])
    return next((entry for entry in table() if entry.mount_id == number), None)


@dataclass(frozen=True, slots=True)
class Detachment:
    """What came of detaching mounts."""

    errors: tuple[OSError, ...]
    left: frozenset[str]
    """Devices that still have a mount: refused, or beneath a mount of somebody else's."""


def detach(devices: Collection[str], unmount: Unmount, *, keep: str | None = None) -> Detachment:
    """Detach every mount of ``devices`` that is in view but the one at ``keep``.

    Outermost first: no path is resolved through one of the mounts, and a lazy detachment takes along what is nested.
    What lies beneath another file system's mount stays. Only what is there at the beginning is touched: as soon as a
    file system is gone, the kernel may give its number to the mount of somebody else.
    """
    ours = {_key(entry) for entry in table() if entry.device in devices and entry.point != keep}
    errors: dict[str, OSError] = {}
    for _ in range(_ROUNDS):
        entries = table()
        outermost = [entry for entry in _outermost(entries, devices) if _key(entry) in ours]
        # The youngest first: binds, which people see, before the hidden mount that they are made of.
        points = [entry.point for entry in reversed(outermost) if entry.point not in errors]
        if not points:
            break
        for point in dict.fromkeys(points):
            try:
                unmount(point)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    errors[point] = error
    left = frozenset(entry.device for entry in entries if _key(entry) in ours)
    return Detachment(tuple(errors.values()), left)


def _key(entry: Entry) -> tuple[int, str, str]:
    return entry.mount_id, entry.device, entry.point


def _outermost(entries: tuple[Entry, ...], devices: Collection[str]) -> Iterator[Entry]:
    by_id = {entry.mount_id: entry for entry in entries}
    for entry in entries:
        if entry.device not in devices or entry.kind != FILESYSTEM_TYPE:
            continue
        top = top_at(entries, entry.point)
        parent = by_id.get(entry.parent_id)
        inside = parent is not None and parent.device in devices and parent.point != entry.point
        if top is not None and top.device in devices and not inside:
            yield entry


def fusermount(point: str) -> None:
    """Detach the FUSE mount at ``point`` lazily as an ordinary user; OSError if fusermount3 does not do it.

    What fusermount3 has to say goes to standard error. A mount that somebody else has detached meanwhile is detached.
    """
    pid = start(("fusermount3", "-u", "-z", "--", point), keep=())
    status = wait(pid, _FUSERMOUNT_SECONDS)
    if status is None:
        raise OSError(errno.ETIMEDOUT, "fusermount3 does not return", point)
    if status != 0 and any(
        (entry.point, entry.kind) == (point, FILESYSTEM_TYPE) for entry in table()
    ):
        raise OSError(errno.EPERM, "fusermount3 did not unmount it", point)


def unmounter() -> Unmount:
    """Return the way to unmount that this process has."""
    return mount_syscalls.umount if os.geteuid() == 0 else fusermount


def abort(device: str) -> None:
    """End the FUSE connection of ``device``: every request that waits fails at once (fuse.rst of the kernel).

    OSError where the control file system is not mounted or the connection is gone.
    """
    minor = device.partition(":")[2]
    with open(f"{CONNECTIONS}/{minor}/abort", "wb", buffering=0) as stream:
        stream.write(b"1")


def try_abort(device: str | None) -> None:
    """Like `abort`, but do nothing where that is not possible."""
    if device:
        with suppress(OSError):
            abort(device)


def mount_connections() -> None:
    """Mount the FUSE control file system if it is not there and this process may; silently leave it otherwise."""
    if os.geteuid() == 0 and top_at(table(), CONNECTIONS) is None:
        with suppress(OSError):
            mount_syscalls.mount("fusectl", CONNECTIONS, "fusectl", 0)


def _parse(raw: bytes) -> Iterator[Entry]:
    for line in raw.splitlines():
        before, _, after = line.partition(b" - ")
        mount_id, parent_id, device, root, point, *_ = before.split(b" ")
        yield Entry(
            int(mount_id),
            int(parent_id),
            device.decode(),
            _unescape(root),
            _unescape(point),
            after.split(b" ", 1)[0].decode(),
        )


def _unescape(field: bytes) -> str:
    r"""Undo the octal escapes of blank, tab, newline, number sign and backslash (``\040``)."""
    first, *rest = field.split(b"\\")
    return os.fsdecode(first + b"".join(bytes((int(part[:3], 8),)) + part[3:] for part in rest))
