"""Walking a path without ever asking our own mount, and so without a deadlock.

Owns path resolution for the daemon (path_resolution(7)), one component at a time with O_PATH, which asks a filesystem
nothing for its root. Where the walk steps onto the mount that this very process serves, it goes on in the store
beneath instead: a source that is a symbolic link to ``/etc/stunnel/...`` is read from the real directory.
"""

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from certfs import procfs
from certfs.procfs import mount_id
from certfs.store.backing import O_PATH_NOFOLLOW

_MAX_LINKS = 40

StoreRoot = Callable[[bytes], tuple[int, list[bytes]]]
"""What turns a path within our mount into a descriptor of the store (not to be closed) and the rest to walk."""


class Walked(NamedTuple):
    """Where a walk ended: an O_PATH ``descriptor``.

    Whether it came ``through_mount``, which is ours, and ``through_link``, which is anybody's.
    """

    descriptor: int
    through_mount: bool
    through_link: bool


class PathWalker:
    """What resolves paths as the kernel would, for the serving process.

    ``device`` is "major:minor" of our mount as mountinfo shows it, None while there is none.
    """

    def __init__(self, store_root: StoreRoot) -> None:
        self._store_root = store_root
        self.device: str | None = None

    def open(self, start: int, path: bytes) -> int:
        """Do as ``walk`` and return the descriptor alone."""
        return self.walk(start, path).descriptor

    def walk(self, start: int, path: bytes) -> Walked:
        """Walk ``path`` from the directory ``start``; OSError as open(2) has it."""
        links = 0
        through_mount = False
        pending = _components(path)
        current = self._enter(b"/") if path.startswith(b"/") else os.dup(start)
        try:
            while pending:
                name = pending.pop(0)
                following = os.open(name, O_PATH_NOFOLLOW, dir_fd=current)
                inner = self._inside_own_mount(current, following)
                if inner is not None:
                    through_mount = True
                    os.close(following)
                    store, rest = self._store_root(inner)
                    pending[:0] = rest
                    following = os.dup(store)
                target = _link_target(following)
                if target is None:
                    os.close(current)
                    current = following
                    continue
                os.close(following)
                links += 1
                if links > _MAX_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))  # noqa: TRY301
                pending[:0] = _components(target)
                if target.startswith(b"/"):
                    os.close(current)
                    current = self._enter(b"/")
        except BaseException:
            with suppress(OSError):
                os.close(current)
            raise
        return Walked(current, through_mount, links > 0)

    @staticmethod
    def _enter(path: bytes) -> int:
        return os.open(path, O_PATH_NOFOLLOW)

    def _inside_own_mount(self, before: int, after: int) -> bytes | None:
        """Return the path within our mount if the step from ``before`` to ``after`` led onto it, else None."""
        if self.device is None or mount_id(after) == mount_id(before):
            return None
        mount = procfs.mount_of(after)
        return os.fsencode(mount.root) if mount and mount.device == self.device else None


def _components(path: bytes) -> list[bytes]:
    parts = path.split(b"/")
    # A slash or a dot at the end says that what is before it is a directory.
    ending = [b"."] if parts[-1] in {b"", b"."} else []
    return [part for part in parts if part not in {b"", b"."}] + ending


def _link_target(fd: int) -> bytes | None:
    """Return where a symbolic link points, None if the descriptor is of something else."""
    try:
        return os.readlink(b"", dir_fd=fd)
    except OSError as e:
        # readlinkat(2) with an empty path: ENOENT and EINVAL both say "not a symbolic link".
        if e.errno in {errno.ENOENT, errno.EINVAL}:
            return None
        raise
