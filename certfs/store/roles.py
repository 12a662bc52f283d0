"""What the directories of a store mean to its bundles, at one moment.

Owns the tables; `certfs.store.trust` fills them. Directories are known by identity, not by path.
"""

import os
from dataclasses import dataclass, field

from certfs.core.bundle import BundleSpec
from certfs.store.backing import FileId
from certfs.store.live import LiveBundle
from certfs.store.swaps import Backup


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

    def inside(self, path: bytes) -> tuple[int, list[bytes]]:
        """Do as ``locate`` for a path as mountinfo shows it."""
        start, rest = self.locate(tuple(part for part in path.split(b"/") if part))
        return start, list(rest)


@dataclass(slots=True)
class Roles:
    """What directories mean, as of the last ``resolve``."""

    sources: dict[FileId, list[LiveBundle]] = field(default_factory=dict)
    bundles: dict[FileId, dict[bytes, LiveBundle]] = field(default_factory=dict)
    components: dict[FileId, set[bytes]] = field(default_factory=dict)
    patterns: dict[FileId, list[BundleSpec]] = field(default_factory=dict)
    backups: dict[Backup, list[LiveBundle]] = field(default_factory=dict)
    descriptors: dict[FileId, int] = field(default_factory=dict)

    def close(self) -> None:
        """Let go of every descriptor."""
        for descriptor in self.descriptors.values():
            os.close(descriptor)
        self.descriptors.clear()
