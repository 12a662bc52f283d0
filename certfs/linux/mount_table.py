"""The ways to take our mounts out of the mount table.

A mount of ours is recognised by its device number, never by looking at a path: a path under a mount whose server is
dead or hangs must not be touched.
"""

import errno
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

from certfs.linux import mount_syscalls
from certfs.linux.processes import start, wait
from certfs.procfs import Entry, is_ours, mount_of, mounts, top_at
from certfs.safe_open import open_mountpoint

CONNECTIONS: Final = "/sys/fs/fuse/connections"
_ROUNDS: Final = 64
"""Bound on repeated detaching: each round takes one layer off every place."""
_FUSERMOUNT_SECONDS: Final = 5.0

Unmount = Callable[[str, str], None]


@dataclass(frozen=True, slots=True)
class Detachment:
    """What came of detaching mounts."""

    errors: tuple[OSError, ...]
    left: frozenset[str]
    """Devices that still have a mount: refused, or beneath a mount of somebody else's."""


def detach(devices: Collection[str], unmount: Unmount) -> Detachment:
    """Detach every mount of ``devices`` that is in view.

    Outermost first: no path is resolved through one of the mounts, and a lazy detachment takes along what is nested.
    What lies beneath another file system's mount stays, be that at the same place or over a directory above it. Only
    what is there at the beginning is touched: as soon as a file system is gone, the kernel may give its number to the
    mount of somebody else.
    """
    ours = {entry.key for entry in mounts() if entry.device in devices}
    errors: dict[str, OSError] = {}
    beneath: set[str] = set()
    for _ in range(_ROUNDS):
        entries = mounts()
        tops = [entry for entry in outermost(entries, devices) if entry.key in ours]
        # The youngest first: binds, which people see, before the hidden mount that they are made of.
        places = {entry.point: entry.device for entry in reversed(tops)}
        places = {
            point: device
            for point, device in places.items()
            if point not in errors.keys() | beneath
        }
        if not places:
            break
        for point, device in places.items():
            try:
                unmount(point, device)
            except OSError as error:
                if error.errno in {errno.ENOENT, errno.ENOTDIR}:
                    beneath.add(point)
                elif error.errno != errno.EINVAL:
                    errors[point] = OSError(error.errno, error.strerror, point)
    left = frozenset(entry.device for entry in entries if entry.key in ours)
    return Detachment(tuple(errors.values()), left)


def outermost(entries: Sequence[Entry], devices: Collection[str]) -> Iterator[Entry]:
    """Yield the mounts of ours with these ``devices`` that are on top, and not inside of another one, the oldest first.

    So no path is resolved through one of them, and a lazy detachment takes along what is nested.
    """
    by_id = {entry.mount_id: entry for entry in entries}
    for entry in entries:
        if entry.device not in devices or not is_ours(entry):
            continue
        top = top_at(entries, entry.point)
        parent = by_id.get(entry.parent_id)
        inside = parent is not None and parent.device in devices and parent.point != entry.point
        if top == entry and not inside:
            yield entry


def fusermount(point: str, device: str) -> None:
    """Detach the FUSE mount of ``device`` at ``point`` lazily; OSError if fusermount3, for an ordinary user, does not.

    What fusermount3 has to say goes to standard error. A mount that somebody else has detached meanwhile is detached.
    """
    pid = start(("fusermount3", "-u", "-z", "--", point), keep=())
    status = wait(pid, _FUSERMOUNT_SECONDS)
    if status is None:
        raise OSError(errno.ETIMEDOUT, "fusermount3 does not return", point)
    if status != 0 and any(entry.point == point and entry.device == device for entry in mounts()):
        raise OSError(errno.EPERM, "fusermount3 did not unmount it", point)


def unmounter() -> Unmount:
    """Return the way to unmount that this process has."""
    return mount_syscalls.umount if os.geteuid() == 0 else fusermount


@contextmanager
def held(entries: Iterable[Entry]) -> Iterator[frozenset[str]]:
    """Give the devices of those ``entries`` that are still there, and keep them from going while the context lasts.

    So the kernel does not give their numbers to others: mounts that are made all the time, by whomever. What is beneath
    the mount of somebody else cannot be reached, and is left out. Waits for the file system that a mountpoint is in.
    """
    fds: dict[str, int] = {}
    try:
        for entry in entries:
            if entry.device not in fds:
                with suppress(OSError):
                    fds[entry.device] = open_mountpoint(entry.point)
                    top = mount_of(fds[entry.device])
                    if top is None or top.key != entry.key:
                        os.close(fds.pop(entry.device))
        yield frozenset(fds)
    finally:
        for fd in fds.values():
            os.close(fd)


def abort_mounted(entries: Iterable[Entry]) -> None:
    """Do as `abort` for the devices of those ``entries`` that are still there."""
    with held(entries) as there:
        for device in there:
            abort(device)


def abort(device: str) -> None:
    """End the FUSE connection of ``device``, which is `held`: every request that waits fails at once.

    That is by the control file system (fuse.rst of the kernel); where that is not mounted, nothing is done.
    """
    minor = device.partition(":")[2]
    with suppress(OSError), open(f"{CONNECTIONS}/{minor}/abort", "wb", buffering=0) as stream:
        stream.write(b"1")


def mount_connections() -> None:
    """Mount the FUSE control file system if it is not there and this process may; silently leave it otherwise."""
    if os.geteuid() == 0 and top_at(mounts(), CONNECTIONS) is None:
        with suppress(OSError):
            mount_syscalls.mount("fusectl", CONNECTIONS, "fusectl", 0)


def mounted_anywhere(device: str) -> bool:
    """Whether a file system is mounted in the mount namespace of any process that this one may look at.

    Containers have namespaces of their own. A process sees what is below its root, so that tells namespaces apart too.
    """
    seen = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            view = os.readlink(f"/proc/{pid}/ns/mnt"), os.readlink(f"/proc/{pid}/root")
            if view in seen:
                continue
            if any(entry.device == device for entry in mounts(int(pid))):
                return True
            seen.add(view)
    return False


def escape(path: str) -> str:
    """Return ``path`` as the mount table has it."""
    return "".join(f"\\{ord(each):03o}" if each in " \t\n\\#" else each for each in path)
