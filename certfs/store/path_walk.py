"""Walking a path without ever asking our own mount, and so without a deadlock.

Owns path resolution for the daemon (path_resolution(7)), one component at a time with O_PATH, which asks a filesystem
nothing for its root. Where the walk steps onto the mount that this very process serves, it goes on in the store
beneath instead: a source that is a symbolic link to ``/etc/stunnel/...`` is read from the real directory.
"""

import errno
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, NoReturn

from certfs import procfs
from certfs.procfs import mount_id
from certfs.safe_open import NOBODY, link_target, server_of
from certfs.store.backing import O_PATH_NOFOLLOW
from certfs.store.credentials import Identity

_MAX_LINKS = 40
_MAX_STEPS = 2048
"""As many as a path of PATH_MAX bytes can have, for the path and the links on it together."""

StoreRoot = Callable[[bytes], tuple[int, list[bytes]]]
"""What turns a path within our mount into a descriptor of the store (not to be closed) and the rest to walk."""


Owner = tuple[int, int]
OnStep = Callable[[int, bytes], None]


class Walked(NamedTuple):
    """Where a walk ended: an O_PATH ``descriptor``.

    Whether it came ``through_mount``, which is ours, and ``through_link``; the ``owner`` (uid and gid) of the last link
    that does not belong to root, None if there is none: what that leads to is for this user to see.
    """

    descriptor: int
    through_mount: bool
    through_link: bool
    owner: Owner | None


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

    def walk(
        self,
        start: int,
        path: bytes,
        on_step: OnStep = lambda _directory, _name: None,
        owner: Owner | None = None,
    ) -> Walked:
        """Walk ``path`` from the directory ``start``; OSError as open(2) has it.

        ``on_step`` is called with each directory on the way and the name that leads on from it, before that is looked
        up: who watches the directory then misses no change of the way. ``owner`` is that of a link which led to the
        start.
        """
        links = steps = 0
        through_mount = False
        # The next component is the last: a chain of links with very many must not cost the square of their number.
        pending = _reversed(path)
        current = self._enter(b"/") if path.startswith(b"/") else os.dup(start)
        following = -1
        try:
            while pending:
                name = pending.pop()
                steps += 1
                if links > _MAX_LINKS or steps > _MAX_STEPS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))  # noqa: TRY301
                on_step(current, name)
                with as_owner(owner):
                    following = os.open(name, O_PATH_NOFOLLOW, dir_fd=current)
                inner = self._inside_own_mount(current, following)
                if inner is not None:
                    through_mount = True
                    store, rest = self._store_root(inner)
                    pending.extend(reversed(rest))
                    os.dup2(store, following, inheritable=False)
                with as_owner(owner):
                    # Where a link of /proc leads is not for everybody to see.
                    target = link_target(following)
                if target is None:
                    current, following = following, current
                else:
                    owner = _owner_of(following) or owner
                    links += 1
                    pending.extend(_reversed(target))
                    if target.startswith(b"/"):
                        entered = self._enter(b"/")
                        os.close(current)
                        current = entered
                os.close(following)
                following = -1
            if links > _MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))  # noqa: TRY301
        except BaseException:
            os.close(current)
            if following >= 0:
                os.close(following)
            raise
        return Walked(current, through_mount, links > 0, owner)

    @staticmethod
    def _enter(path: bytes) -> int:
        return os.open(path, O_PATH_NOFOLLOW)

    def _inside_own_mount(self, before: int, after: int) -> bytes | None:
        """Return the path within our mount if the step from ``before`` to ``after`` led onto it, else None."""
        if self.device is None or mount_id(after) == mount_id(before):
            return None
        mount = procfs.mount_of(after)
        return os.fsencode(mount.root) if mount and mount.device == self.device else None


def as_owner(owner: Owner | None) -> AbstractContextManager[object]:
    """Be the owner of a link in the context: nobody gets to see by a link what its owner could not (promise I19).

    Without supplementary groups: to look them up can take as long as a directory service does.
    """
    return nullcontext() if owner is None else Identity(*owner, (), 0)


def _owner_of(link: int) -> Owner | None:
    if os.geteuid() != 0:
        return None
    server = server_of(link)
    if server is not None:
        return server, NOBODY  # its group is what its server says
    status = os.stat(link)
    return (status.st_uid, status.st_gid) if status.st_uid != 0 else None


def _reversed(path: bytes) -> list[bytes]:
    """Return the components of a path, the last first."""
    parts = path.split(b"/")
    # A slash or a dot at the end says that what is before it is a directory.
    ending = [b"."] if parts[-1] in {b"", b"."} else []
    return ending + [part for part in reversed(parts) if part not in {b"", b"."}]


def nowhere(path: bytes) -> NoReturn:
    """Stand for the store of a mount, in a process that serves none."""
    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
