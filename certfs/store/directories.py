"""What the directories of a store mean to its bundles, at one moment.

Owns the tables; `certfs.store.bundles` fills them. Directories are known by identity, not by path.
"""

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from certfs.core.bundle import BundleSpec
from certfs.procfs import mount_id
from certfs.store.backing import FileId, identity, unpin
from certfs.store.bundle import LiveBundle
from certfs.store.path_walk import Owner, PathWalker
from certfs.store.swaps import BackupName


@dataclass(frozen=True, slots=True)
class Roots:
    """The directories of the store by their name in the root of the mount; the name is empty for the root itself."""

    directories: dict[bytes, int]

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
        start, rest = self.locate(tuple(part for part in path.split(b"/") if part))
        return start, list(rest)


class Found(NamedTuple):
    """A directory of the store: an O_PATH ``descriptor`` of it, and whether the way to it leads ``through_link``.

    ``owner`` is that of the last link on the way which is not root's.
    """

    descriptor: int
    id: FileId
    through_link: bool
    owner: Owner | None


class Roles:
    """What directories mean, as of one look at them: each path is resolved once, whatever asks for it.

    ``covers`` are the directories that are mounted over our own mount, and so in view instead of the store's.
    """

    def __init__(
        self, roots: Roots, walker: PathWalker, covers: Mapping[tuple[bytes, ...], int]
    ) -> None:
        self.sources: dict[FileId, list[LiveBundle]] = {}
        self.bundles: dict[FileId, dict[bytes, LiveBundle]] = {}
        self.places: dict[BundleSpec, Found] = {}
        self.components: dict[FileId, set[bytes]] = {}
        self.patterns: dict[FileId, list[BundleSpec]] = {}
        self.backups: dict[BackupName, list[LiveBundle]] = {}
        self.descriptors: dict[FileId, int] = {}
        self._roots = roots
        self._walker = walker
        self._covers = covers
        self._found: dict[tuple[bytes, ...], Found | None] = {}

    def find(self, path: tuple[bytes, ...]) -> Found | None:
        """Return a directory, None where there is none; its descriptor is open as long as these roles are."""
        if path not in self._found:
            self._found[path] = self._look(path)
        return self._found[path]

    def _look(self, path: tuple[bytes, ...]) -> Found | None:
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
                descriptor, _, through_link, owner = self._walker.walk(
                    parent.descriptor, path[-1], self._note_step, parent.owner
                )
                through_link = through_link or parent.through_link
            else:
                descriptor = os.dup(start)
        except OSError:
            return None
        directory, mode = identity(descriptor)
        if not stat.S_ISDIR(mode) or directory in self.descriptors:
            os.close(descriptor)
        else:
            self.descriptors[directory] = descriptor
        if not stat.S_ISDIR(mode):
            return None
        return Found(self.descriptors[directory], directory, through_link, owner)

    def _note_step(self, directory: int, name: bytes) -> None:
        """Take note of a directory on a way, wherever links lead it: what has this name there decides where it goes."""
        key, _ = identity(directory)
        if key not in self.descriptors:
            self.descriptors[key] = os.dup(directory)
        self.components.setdefault(key, set()).add(name)

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
