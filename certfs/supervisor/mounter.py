"""The hands of the view: where servers are mounted, and how that comes into view and goes out of it.

Two ways. Root (`RootMounter`): each server is mounted in a hidden directory, and its trees are bound over their
targets, so that a new server can take over a target in one step. An ordinary user (`UserMounter`): the server is
mounted on the target itself through fusermount3, one after the other. Not one on top of the other: fusermount3 would
have to look at the old mount, and FUSE shows an ordinary user's mount to nobody else, root included (mount.fuse3(8),
allow_other).
"""

import errno
import os
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import ClassVar, Final

from certfs import procfs
from certfs.linux import fuse_device, mount_syscalls, mount_table
from certfs.linux.processes import in_child
from certfs.protocol import state_file, timeouts
from certfs.protocol.specs import MountSpec, Tree
from certfs.safe_open import closing
from certfs.supervisor.view import HIDDEN, Attach, Detach, View

_CANNOT: Final = frozenset((errno.ENOSYS, errno.EINVAL, errno.EPERM))
"""What kernels without a mount system call, or without one of its flags, answer (seccomp filters too)."""


def targets_of(mount: MountSpec) -> tuple[View, ...]:
    """Return the views that a mount consists of."""
    return tuple(View(f"/{tree.name or mount.inner}", tree.target) for tree in mount.trees)


def with_arrived(mount: MountSpec) -> MountSpec:
    """Return a mount with those of its ``later`` trees that have come; what is no directory of its own is none."""
    trees, later = list(mount.trees), []
    for path in mount.later:
        try:
            fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            later.append(path)
            continue
        above = procfs.mount_of(fd)
        if above is not None and above.is_certfs:  # another instance presents it
            os.close(fd)
            later.append(path)
        else:
            trees.append(Tree(name=os.path.basename(path), store=path, target=path, fd=fd))
    return replace(mount, trees=tuple(trees), later=tuple(later))


@dataclass(frozen=True, slots=True)
class RootMounter:
    """Root's way: hidden mounts, and bind mounts at the targets."""

    spec: MountSpec
    one_place: ClassVar[bool] = False
    """Servers are mounted one after the other, on their target."""
    beneath: bool = True
    """Use MOVE_MOUNT_BENEATH where the kernel has it (Linux 6.5); False is for testing the other ways."""

    def mount(self) -> tuple[int, str]:
        """Mount in a hidden directory of its own; return the descriptor that is to be served, and where that is."""
        place = self.place()
        flags = state_file.read_flags(self.spec.runtime).all
        others = self.spec.allow_other
        try:
            fd = fuse_device.mount_as_root(self.spec.source, place, flags=flags, allow_other=others)
        except OSError:
            discard(self.spec, place)
            raise
        return fd, place

    def place(self) -> str:
        """Make a hidden mountpoint."""
        number = 1
        while True:
            path = f"{self.spec.runtime}{HIDDEN}{number}"
            try:
                state_file.remake_directory(
                    self.spec.runtime, passable=self.spec.is_closed
                )  # it may have been removed
                os.mkdir(path, 0o700)
            except FileExistsError:
                number += 1
            else:
                return path

    def attach(self, step: Attach, mountpoint: str) -> OSError | None:
        """Bind a view of the server at ``mountpoint`` over its target; the error if it cannot be.

        No name is missing at any time, and afterwards nothing of ``step.over`` is in view. In a child process, because
        the new server has to answer.
        """
        return in_child(lambda: self._bind(step, mountpoint), timeouts.ATTACH)

    def detach(self, step: Detach) -> None:
        """Detach lazily what is on top of a place; OSError: EINVAL if that is another mount by now.

        A hidden directory that is free then goes as well.
        """
        mount_syscalls.umount(step.point, step.device)
        discard(self.spec, step.point)

    def _bind(self, step: Attach, mountpoint: str) -> None:
        # The hidden mount came into a directory that may be shared; its binds shall be no peers of it, or a mount made
        # below one of them would appear in the hidden one too, and keep the server alive.
        mount_syscalls.make_private(mountpoint)
        source, point = mountpoint + step.view.root.rstrip("/"), step.view.point
        if step.over is None:
            mount_syscalls.bind(source, point)
        elif not (self.beneath and self._slide_under(source, point, step.over)):
            # What comes into view for an instant is plain: the store itself.
            mount_syscalls.umount(point, step.over)
            mount_syscalls.bind(source, point)

    def _slide_under(self, source: str, point: str, over: str) -> bool:
        try:
            with closing(mount_syscalls.clone_tree(source)) as tree:
                mount_syscalls.attach_tree(tree, point, beneath=True)
        except OSError as error:
            if error.errno in _CANNOT:
                return False
            raise
        mount_syscalls.umount(point, over)
        return True


@dataclass(frozen=True, slots=True)
class UserMounter:
    """An ordinary user's way: one place."""

    spec: MountSpec
    one_place: ClassVar[bool] = True

    def mount(self) -> tuple[int, str]:
        """Mount on the target; return the descriptor that is to be served, and where that is."""
        (tree,) = self.spec.trees
        fd = fuse_device.mount_as_user(
            self.spec.source,
            tree.target,
            flags=state_file.read_flags(self.spec.runtime).all,
            allow_other=self.spec.allow_other,
            seconds=timeouts.UNMOUNT,
        )
        return fd, tree.target

    def attach(self, step: Attach, mountpoint: str) -> OSError | None:
        """Do nothing: what is mounted is in view."""
        del step, mountpoint
        return None

    def detach(self, step: Detach) -> None:
        """Detach with fusermount3."""
        mount_table.fusermount(step.point, step.device)


Mounter = RootMounter | UserMounter


def mounter_for(spec: MountSpec) -> Mounter:
    """Return the way that this process has."""
    return RootMounter(spec) if os.geteuid() == 0 else UserMounter(spec)


def discard(spec: MountSpec, mountpoint: str | None) -> None:
    """Remove a hidden mountpoint that nothing is mounted on any more."""
    if mountpoint and mountpoint.startswith(spec.runtime + HIDDEN):
        with suppress(OSError):
            os.rmdir(mountpoint)
