"""A bundle and its directory, and whole stores, for the tests of what keeps them true.

Owns the small steps that a filesystem would take: tell the bundles after each change.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from certfs.core.bundle import BundleSpec
from certfs.store.backing import FileId, file_id
from certfs.store.bundle import Actor, LiveBundle, Published
from certfs.store.bundles import Trust
from certfs.store.directories import Roots
from certfs.store.source_reader import SourceReader
from certfs.store.undo_log import UndoLog

ACTOR = Actor(uid=0, pid=1, command="test")


def queue_length() -> int:
    """Give how many events of inotify(7) the kernel keeps for us."""
    return int(Path("/proc/sys/fs/inotify/max_queued_events").read_text("ascii"))


def nowhere(_path: bytes) -> tuple[int, list[bytes]]:
    """Stand for a mount that there is not."""
    raise AssertionError("nothing is mounted here")


def content(bundle: LiveBundle) -> bytes:
    """Give what a reader of the bundle gets now."""
    return bundle.generation.view.read(0, bundle.generation.size)


@dataclass(slots=True)
class Scene:
    """One bundle, the directory of its sources, and what was told of it."""

    path: Path
    bundle: LiveBundle
    published: list[Published]
    busy: set[FileId]

    async def put(self, name: str, data: bytes) -> None:
        """Write a file and tell the bundle, as a release does."""
        (self.path / name).write_bytes(data)
        await self.bundle.refresh([name.encode()], ACTOR)

    async def remove(self, name: str) -> None:
        """Remove a file and tell the bundle."""
        (self.path / name).unlink()
        await self.bundle.refresh([name.encode()], ACTOR)


def scene(path: Path, reader: SourceReader) -> Scene:
    """Make a bundle of the directory ``path``; the caller closes it."""
    published: list[Published] = []
    busy: set[FileId] = set()
    bundle = LiveBundle(
        BundleSpec((b"certs",), (b"bundle.pem",)),
        reader,
        is_busy=lambda identity: identity in busy,
        observer=published.append,
    )
    bundle.attach(os.open(path, os.O_PATH))
    return Scene(path, bundle, published, busy)


def spec(source: str, bundle: str) -> BundleSpec:
    """Make a specification from paths."""
    return BundleSpec(tuple(source.encode().split(b"/")), tuple(bundle.encode().split(b"/")))


@dataclass(slots=True)
class Store:
    """A store with its bundles, and what was told of them."""

    path: Path
    trust: Trust
    published: list[Published] = field(default_factory=list)
    _fd: int = -1

    def bundle(self, path: str) -> LiveBundle | None:
        """Give the bundle of this path, None where the store has none."""
        wanted = tuple(path.encode().split(b"/"))
        return next((each for each in self.trust.bundles if each.spec.bundle == wanted), None)

    def content(self, path: str) -> bytes:
        """Give what a reader of a bundle gets now."""
        bundle = self.bundle(path)
        assert bundle is not None
        return content(bundle)

    def id(self, path: str = ".") -> FileId:
        """Give the identity of a directory of the store."""
        return file_id((self.path / path).stat())

    async def changed(self, path: str) -> None:
        """Tell of a name that was made, written or removed."""
        directory, _, name = path.rpartition("/")
        await self.trust.changed(self.id(directory or "."), name.encode(), ACTOR)

    async def renamed(self, old: str, new: str) -> None:
        """Rename within one directory and tell as the filesystem does."""
        directory, _, old_name = old.rpartition("/")
        (self.path / old).rename(self.path / new)
        names = (old_name.encode(), new.rpartition("/")[2].encode())
        await self.trust.replaced(self.id(directory or "."), names, ACTOR)
        await self.trust.swap_ends(self.id(directory or "."), names[0], ACTOR)

    async def mkdir(self, path: str) -> None:
        """Make a directory and tell as the filesystem does."""
        directory, _, name = path.rpartition("/")
        with self.trust.swaps.making(self.id(directory or "."), name.encode()):
            (self.path / path).mkdir()
        await self.changed(path)

    async def rmdir(self, path: str) -> None:
        """Remove a directory and tell as the filesystem does."""
        directory, _, name = path.rpartition("/")
        (self.path / path).rmdir()
        await self.changed(path)
        await self.trust.swap_ends(self.id(directory or "."), name.encode(), ACTOR)

    async def put(self, path: str, data: bytes) -> None:
        """Write a file and tell."""
        (self.path / path).write_bytes(data)
        await self.changed(path)

    async def remove(self, path: str) -> None:
        """Remove a file and tell."""
        (self.path / path).unlink()
        await self.changed(path)

    def close(self) -> None:
        """Let go of everything."""
        self.trust.close()
        os.close(self._fd)


def store(
    path: Path,
    specs: Iterable[BundleSpec],
    *,
    swap_timeout: float = 30.0,
    undo_log: Path | None = None,
    is_busy: Callable[[FileId], bool] = lambda _: False,
) -> Store:
    """Open ``path`` as a standalone store and read it."""
    published: list[Published] = []
    fd = os.open(path, os.O_PATH)
    trust = Trust(
        Roots({b"": fd}),
        specs,
        is_busy=is_busy,
        observer=published.append,
        swap_timeout=swap_timeout,
        undo_log=UndoLog(str(undo_log) if undo_log else None),
    )
    trust.load()
    published.clear()
    return Store(path, trust, published, fd)
