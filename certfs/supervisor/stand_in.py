"""What a mountpoint that is not its store shows when certfs is not there: the store (I14, I17).

In Dom0, and where a store is mounted over itself, plain files come into view when a server dies. Elsewhere it would be
an empty directory. So root binds the store over the mountpoint before a server mounts there: plain is then the same
tree, under the same names. An ordinary user may not bind; the directory that is covered gets a symlink for each name at
the top of the store. A clean end removes either.

Everything here looks at the store, which may be slow to answer, in a child process.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from certfs import procfs
from certfs.linux import mount_syscalls
from certfs.linux.processes import in_child
from certfs.protocol import timeouts
from certfs.protocol.specs import MountSpec, Tree
from certfs.safe_open import open_mountpoint

_MOST_NAMES: Final = 1000
_OWN: Final = ".certfs"


def put(mount: MountSpec) -> OSError | None:
    """Have the store in view at every mountpoint beneath which something else is; the error if it cannot be bound."""
    for tree in _apart(mount):
        error = in_child(lambda: _put(tree), timeouts.STORE)  # noqa: B023  called at once
        if error and tree.beneath_fd is None:
            return error
    return None


def refresh(mount: MountSpec) -> None:
    """Bring links up to date with the names in the store; nothing where it is bound."""
    for tree in _apart(mount):
        if tree.beneath_fd is not None:
            in_child(lambda: _link(tree.store, tree.fd, tree.beneath_fd), timeouts.STORE)  # noqa: B023


def remove(stores: Sequence[str], targets: Sequence[str]) -> None:
    """Undo `put` at ``targets``, whoever did it, after certfs's own mount has gone."""
    for store, target in zip(stores, targets, strict=True):
        if store != target:
            in_child(lambda: _remove(store, target), timeouts.STORE)  # noqa: B023  called at once


def link(store: str, target: str) -> None:
    """Make links at ``target``, which is not mounted."""
    fds = [os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) for path in (store, target)]
    in_child(lambda: _link(store, *fds), timeouts.STORE)
    for fd in fds:
        os.close(fd)


def is_bound(store: str, target: str) -> bool:
    """Whether what is mounted at ``target`` is the store. Asks the file systems of both."""
    top = procfs.top_at(procfs.mounts(), target)
    return top is not None and not top.is_certfs and os.path.samefile(store, target)


def _apart(mount: MountSpec) -> tuple[Tree, ...]:
    return tuple(tree for tree in mount.trees if tree.target != tree.store)


def _put(tree: Tree) -> None:
    if tree.beneath_fd is not None:
        _link(tree.store, tree.fd, tree.beneath_fd)
    elif not is_bound(tree.store, tree.target):
        mount_syscalls.bind_tree(_path(tree.fd), tree.target)


def _remove(store: str, target: str) -> None:
    top = procfs.top_at(procfs.mounts(), target)
    if top is not None and is_bound(store, target):
        mount_syscalls.umount(target, top.device)
    if procfs.top_at(procfs.mounts(), target) is None:
        _unlink(store, open_mountpoint(target))


def _link(store: str, store_fd: int, beneath_fd: int | None) -> None:
    names = {name for name in os.listdir(_path(store_fd)) if name != _OWN}
    for name in sorted(names)[:_MOST_NAMES]:
        with suppress(OSError):  # a name that is there already is its owner's
            os.symlink(f"{store}/{name}", name, dir_fd=beneath_fd)
    _unlink(store, beneath_fd, except_for=names)


def _unlink(store: str, beneath_fd: int | None, *, except_for: set[str] | None = None) -> None:
    for name in os.listdir(_path(beneath_fd)):
        with suppress(OSError):
            ours = os.readlink(name, dir_fd=beneath_fd) == f"{store}/{name}"
            if ours and name not in (except_for or ()):
                os.unlink(name, dir_fd=beneath_fd)


def _path(fd: int | None) -> str:
    return f"/proc/self/fd/{fd}"
