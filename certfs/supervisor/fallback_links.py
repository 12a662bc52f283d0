"""What a standalone mount leaves to be seen when it is not there: links to the store, beneath the mountpoint.

In Dom0, and where a store is mounted over itself, plain files come into view when a server dies. Elsewhere it would be
an empty directory. So the directory that a standalone mount covers gets a symlink for each name at the top of the
store, and the paths go on working through them (I14, I17); a clean end removes them.
"""

import os
from contextlib import suppress
from typing import Final

from certfs.linux.processes import in_child
from certfs.protocol.link import Mount

_SECONDS: Final = 5.0
_MOST_NAMES: Final = 1000
_OWN: Final = ".certfs"


def cast(mount: Mount) -> None:
    """Make the links that are missing, and remove those that lead nowhere any more.

    In a child process, because the store may be slow to answer. Whatever cannot be done is left: a name that is there
    already is its owner's, and a directory that cannot be written to stays as it is.
    """
    for tree in mount.trees:
        if tree.beneath_fd is not None:
            in_child(lambda: _cast(tree.store, tree.fd, tree.beneath_fd), _SECONDS)  # noqa: B023  called at once


def lift(mount: Mount) -> None:
    """Remove the links of `cast`, after the mount has gone."""
    for tree in mount.trees:
        if tree.beneath_fd is not None:
            in_child(lambda: remove_links(tree.store, tree.beneath_fd), _SECONDS)  # noqa: B023  called at once


def _cast(store: str, store_fd: int, beneath_fd: int | None) -> None:
    names = {name for name in os.listdir(_path(store_fd)) if name != _OWN}
    for name in sorted(names)[:_MOST_NAMES]:
        with suppress(OSError):
            os.symlink(f"{store}/{name}", name, dir_fd=beneath_fd)
    remove_links(store, beneath_fd, except_for=names)


def remove_links(store: str, beneath_fd: int | None, *, except_for: set[str] | None = None) -> None:
    """Remove links to ``store`` from the directory ``beneath_fd``, but for those names."""
    for name in os.listdir(_path(beneath_fd)):
        with suppress(OSError):
            ours = os.readlink(name, dir_fd=beneath_fd) == f"{store}/{name}"
            if ours and name not in (except_for or ()):
                os.unlink(name, dir_fd=beneath_fd)


def _path(fd: int | None) -> str:
    return f"/proc/self/fd/{fd}"
