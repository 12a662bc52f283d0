"""Where people see what a server serves: how its mount comes into view and goes out of it.

Two ways. Root (`BoundViews`): the server mounts in a hidden directory, and the trees are bound over their targets, so
that a new server can take over a target in one step. An ordinary user (`DirectViews`): the server mounts on the
target itself through fusermount3, and a new one on top of the old.
"""

import errno
import os
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import ClassVar, Final, Protocol

from certfs import procfs
from certfs.linux import mount_syscalls, mount_table
from certfs.linux.mount_table import Detachment
from certfs.linux.processes import in_child
from certfs.protocol import state_file
from certfs.protocol.link import Mount

_SECONDS: Final = 5.0
"""Bound on one attachment, which resolves a path through the new server."""
_CANNOT: Final = frozenset((errno.ENOSYS, errno.EINVAL, errno.EPERM))
"""What kernels without a mount system call, or without one of its flags, answer (seccomp filters too)."""


@dataclass(frozen=True, slots=True)
class View:
    """A directory of the FUSE mount and the place where it is seen."""

    root: str
    """From the root of the FUSE mount, such as ``/stunnel``."""
    point: str


class Views(Protocol):
    """A way of bringing mounts into view."""

    hidden: ClassVar[bool]
    """A server can go on while nothing of it is in view."""

    def place(self) -> str:
        """Return where the next server is to mount."""
        ...

    def show(self, view: View, mountpoint: str, previous: str | None) -> OSError | None:
        """Bring ``view`` of the mount at ``mountpoint`` into view, in place of the device ``previous`` if it is there.

        No name is missing at any time, and afterwards nothing of ``previous`` is in view at ``view.point``.
        """
        ...

    def hide(self, devices: Collection[str], *, keep: str | None = None) -> Detachment:
        """Detach every mount of ``devices`` that is in view, except the one at ``keep``."""
        ...


def planned(mount: Mount) -> tuple[View, ...]:
    """Return the views that ``mount`` consists of."""
    return tuple(View(f"/{tree.name}", tree.target) for tree in mount.trees)


@dataclass(frozen=True, slots=True)
class BoundViews:
    """Root's way: hidden mounts, and bind mounts at the targets."""

    mount: Mount
    hidden: ClassVar[bool] = True
    beneath: bool = True
    """Use MOVE_MOUNT_BENEATH where the kernel has it (Linux 6.5); False is for testing the other ways."""

    def place(self) -> str:
        """Make a hidden mountpoint."""
        number = 1
        while True:
            path = f"{self.mount.runtime}/mount-{number}"
            try:
                state_file.remake_directory(self.mount.runtime)  # somebody may have removed it
                os.mkdir(path, 0o700)
            except FileExistsError:
                number += 1
            else:
                return path

    def show(self, view: View, mountpoint: str, previous: str | None) -> OSError | None:
        """Bind the directory over its target, in a child process because the new server has to answer."""
        return in_child(lambda: self._bind(view, mountpoint, previous), _SECONDS)

    def hide(self, devices: Collection[str], *, keep: str | None = None) -> Detachment:
        """Detach binds and hidden mounts, bind mounts that others made of them included."""
        return mount_table.detach(devices, mount_syscalls.umount, keep=keep)

    def _bind(self, view: View, mountpoint: str, previous: str | None) -> None:
        # The hidden mount came into a directory that may be shared; its binds shall be no peers of it, or a mount made
        # below one of them would appear in the hidden one too, and keep the server alive.
        mount_syscalls.make_private(mountpoint)
        source = mountpoint + view.root.rstrip("/")
        top = procfs.top_at(procfs.mounts(), view.point)
        if top is None or top.device != previous:
            self._attach(source, view.point)
        elif not (self.beneath and self._slide_under(source, view.point)):
            # What comes into view for an instant is plain: the store itself, or links to it.
            mount_syscalls.umount(view.point)
            self._attach(source, view.point)

    def _slide_under(self, source: str, point: str) -> bool:
        try:
            tree = mount_syscalls.clone_tree(source)
            try:
                mount_syscalls.attach_tree(tree, point, beneath=True)
            finally:
                os.close(tree)
        except OSError as error:
            if error.errno in _CANNOT:
                return False
            raise
        mount_syscalls.umount(point)
        return True

    def _attach(self, source: str, point: str) -> None:
        mount_syscalls.mount(source, point, None, mount_syscalls.MS_BIND)


@dataclass(frozen=True, slots=True)
class DirectViews:
    """An ordinary user's way: servers mount on the target, one after the other.

    Not one on top of the other: fusermount3 would have to look at the old mount, and FUSE shows an ordinary user's
    mount to nobody else, root included (mount.fuse3(8), allow_other).
    """

    mount: Mount
    hidden: ClassVar[bool] = False

    def place(self) -> str:
        """Return the one target."""
        (tree,) = self.mount.trees
        return tree.target

    def show(self, view: View, mountpoint: str, previous: str | None) -> OSError | None:
        """Do nothing: what is mounted is in view."""
        del view, mountpoint, previous
        return None

    def hide(self, devices: Collection[str], *, keep: str | None = None) -> Detachment:
        """Detach with fusermount3."""
        return mount_table.detach(devices, mount_table.fusermount, keep=keep)


def views_for(mount: Mount) -> Views:
    """Return the way that this process has."""
    return BoundViews(mount) if os.geteuid() == 0 else DirectViews(mount)


def discard_place(mount: Mount, mountpoint: str) -> None:
    """Remove a hidden mountpoint that nothing is mounted on any more."""
    if mountpoint.startswith(f"{mount.runtime}/mount-"):
        with suppress(OSError):
            os.rmdir(mountpoint)
