"""What the directories of a store mean to its bundles, at one moment.

Owns the tables; `certfs.store.bundles` fills them. Directories are known by identity, not by path.
"""

import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from certfs.core.bundle import BundleSpec
from certfs.procfs import mount_id
from certfs.store.backing import FileId, identity, status_at, unpin
from certfs.store.bundle import LiveBundle
from certfs.store.cached import is_local
from certfs.store.path_walk import Owner, PathWalker
from certfs.store.swaps import SWAP_SUFFIX, BackupName

Path = tuple[bytes, ...]
"""A path from the root of the mount."""


@dataclass(frozen=True, slots=True)
class Roots:
    """The directories of the store by their name in the root of the mount; the name is empty for the root itself.

    In root's hidden mount a store that is shown as a whole is ``inner`` of a root that nobody else may enter; it is
    bound from there, and paths begin in it all the same.
    """

    directories: dict[bytes, int]
    inner: bytes = b""

    def locate(self, path: tuple[bytes, ...]) -> tuple[int, tuple[bytes, ...]]:
        """Return the descriptor that a path from the root of the mount starts at, and the rest of the path."""
        whole = self.directories.get(b"")
        if whole is not None:
            return whole, path
        if not path or path[0] not in self.directories:
            raise FileNotFoundError(2, os.strerror(2))
        return self.directories[path[0]], path[1:]

    def is_root(self, path: tuple[bytes, ...]) -> bool:
        """Whether a path from the root of the mount is a tree of its own, and not something in one."""
        return path == () or (b"" not in self.directories and len(path) == 1)

    def inside(self, path: bytes) -> tuple[int, list[bytes]]:
        """Do as ``locate`` for a path as mountinfo shows it."""
        start, rest = self.locate(self.components(path))
        return start, list(rest)

    def components(self, path: bytes) -> tuple[bytes, ...]:
        """Return the path from the root of the mount that mountinfo shows as ``path``."""
        parts = tuple(part for part in path.split(b"/") if part)
        return parts[1:] if self.inner and parts[:1] == (self.inner,) else parts


class Found(NamedTuple):
    """A directory of the store: an O_PATH ``descriptor`` of it, and whether the way to it leads ``through_link``.

    ``owner`` is that of the last link on the way which is not root's. ``is_local`` if its file system asks nobody else.
    """

    descriptor: int
    id: FileId
    through_link: bool
    owner: Owner | None
    is_local: bool


@dataclass(frozen=True, slots=True)
class RoleSources:
    """What roles are found with: ``watch_way`` is told of each directory on a way, before it is looked into."""

    roots: Roots
    walker: PathWalker
    watch_way: Callable[[int], FileId]

    def roles(self, covers: Mapping[Path, int], silent: Mapping[Path, "Found | None"]) -> "Roles":
        """Return roles of which nothing has been found, but for the ``silent`` ways, which lead where they led."""
        return Roles(self, covers, silent)


class Roles:
    """What directories mean, as of one look at them: each path is resolved once, whatever asks for it.

    ``covers`` are the directories that are mounted over our own mount, and so in view instead of the store's.
    ``current`` is the path that is being looked at. To find something blocks, and may do so for ever.
    """

    def __init__(
        self,
        sources: RoleSources,
        covers: Mapping[Path, int] | None = None,
        silent: Mapping[Path, Found | None] | None = None,
    ) -> None:
        self.sources: dict[FileId, list[LiveBundle]] = {}
        self.bundles: dict[FileId, dict[bytes, LiveBundle]] = {}
        self.places: dict[BundleSpec, Found] = {}
        self.components: dict[FileId, set[bytes]] = {}
        self.patterns: dict[FileId, list[BundleSpec]] = {}
        self.backups: dict[BackupName, list[LiveBundle]] = {}
        self.descriptors: dict[FileId, int] = {}
        self.there: set[BackupName] = set()
        """Each D.bk that there is."""
        self.current: Path = ()
        self._roots = sources.roots
        self._walker = sources.walker
        self._watch_way = sources.watch_way
        # Copies: who is left alone with them keeps them.
        self._covers = {path: os.dup(fd) for path, fd in (covers or {}).items()}
        self._found: dict[Path, Found | None] = {}
        self._silent = frozenset(silent or ())
        for path, found in (silent or {}).items():
            self._found[path] = None if found is None else self._kept(found)

    def known(self, path: Path) -> Found | None:
        """Return what was found at a path; None where it was not looked for, too."""
        return self._found.get(path)

    def is_silent(self, path: Path) -> bool:
        """Whether a path was not looked at, because its file system does not answer."""
        return path in self._silent

    def _kept(self, found: Found) -> Found:
        if found.id not in self.descriptors:
            self.descriptors[found.id] = os.dup(found.descriptor)
        return found._replace(descriptor=self.descriptors[found.id], is_local=False)

    def find(self, path: Path) -> Found | None:
        """Return a directory, None where there is none; its descriptor is open as long as these roles are."""
        if path not in self._found:
            self._found[path] = self._look(path)
        return self._found[path]

    def _look(self, path: Path) -> Found | None:
        through_link = False
        owner: Owner | None = None
        try:
            start, rest = self._roots.locate(path)
            if path in self._covers:
                descriptor, through_link = os.dup(self._covers[path]), True
            elif rest:
                parent = self.find(path[:-1])
                if parent is None:
                    return None
                self.current = path
                descriptor, _, through_link, owner = self._walker.walk(
                    parent.descriptor, path[-1], self._note_step, parent.owner
                )
                through_link = through_link or parent.through_link
            else:
                descriptor = os.dup(start)
        except OSError:
            return None
        try:
            directory, mode = identity(descriptor)
        except OSError:  # a user's own file system shows itself to nobody else
            os.close(descriptor)
            return None
        if not stat.S_ISDIR(mode) or directory in self.descriptors:
            os.close(descriptor)
        else:
            self.descriptors[directory] = descriptor
        if not stat.S_ISDIR(mode):
            return None
        self.current = path
        descriptor = self.descriptors[directory]
        return Found(descriptor, directory, through_link, owner, is_local(descriptor))

    def _note_step(self, directory: int, name: bytes) -> None:
        """Take note of a directory on a way, wherever links lead it: what has this name there decides where it goes."""
        key = self._watch_way(directory)
        if key not in self.descriptors:
            self.descriptors[key] = os.dup(directory)
        self.components.setdefault(key, set()).add(name)

    def note_backup(self, spec: BundleSpec) -> None:
        """Look whether there is a D.bk beside the source directory D of a bundle."""
        parent = self.find(spec.source[:-1])
        if parent is None or self.is_silent(spec.source[:-1]):
            return
        self.current = spec.source[:-1]
        name = spec.source[-1] + SWAP_SUFFIX
        status = status_at(parent.descriptor, name)
        if status is not None and stat.S_ISDIR(status.st_mode):
            self.there.add((parent.id, name))

    def find_place(self, spec: BundleSpec) -> Found | None:
        """Return the directory that a bundle appears in; None also where the way to it leads through a link.

        Its plain copy is written there, with all rights of this process: whoever may exchange a directory on the way
        for a link would choose where.
        """
        found = self.find(spec.bundle[:-1])
        if found is None or found.through_link:
            return None
        self.places[spec] = found
        return found

    def watch(self) -> None:
        """Have every directory watched."""
        for descriptor in self.descriptors.values():
            self._watch_way(descriptor)

    def unpin(self) -> None:
        """Let no descriptor keep what is mounted over a directory from being unmounted; for when all is found."""
        own = {mount_id(root) for root in self._roots.directories.values()}
        for descriptor in self.descriptors.values():
            if mount_id(descriptor) not in own:
                unpin(descriptor)

    def close(self) -> None:
        """Let go of every descriptor."""
        for descriptor in self.descriptors.values():
            os.close(descriptor)
        self.descriptors.clear()
        for descriptor in self._covers.values():
            os.close(descriptor)
        self._covers.clear()
