"""Sources that are symbolic links.

Owns what is special about them: where they lead is not in their directory. Every directory on the way is watched, and
the targets are looked at again when the bundle is asked for. A target may be on a file system that hangs: then it
counts as it was, or has a reason, until it answers.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import trio

from certfs.core.catalog import Source
from certfs.store.backing import FileId, status_at
from certfs.store.link_probe import LinkProbe
from certfs.store.patience import PATIENCE_SECONDS, Shared
from certfs.store.source_reader import Reading, SourceReader, Step, Writers, unanswered


@dataclass(frozen=True, slots=True)
class _Link:
    """The stamp of a link's ``target`` when it was read, how to ask for it again, and the ``way`` to it."""

    target: bytes
    through_mount: bool
    way: tuple[Step, ...]


class SymlinkSources:
    """The sources of one bundle that are symbolic links."""

    def __init__(self, reader: SourceReader) -> None:
        self.reader = reader
        self._links: dict[bytes, _Link] = {}
        self._over: dict[Step, set[bytes]] = {}
        """Which links lead over a name in a directory."""
        self._probe = LinkProbe()
        # What is read later counts later.
        self._reading = trio.Lock()
        self._changes: Shared[list[bytes]] = Shared()

    def __len__(self) -> int:
        return len(self._links)

    @property
    def silent_places(self) -> frozenset[bytes]:
        """The directories that links lead to and that do not answer."""
        return frozenset(self._probe.silent)

    def directories(self) -> set[FileId]:
        """Return every directory that a link leads over."""
        return {directory for directory, _ in self._over}

    def leading_over(self, directory: FileId, names: Iterable[bytes]) -> set[bytes]:
        """Return the links that one of these names in this directory is on the way of."""
        return {link for name in names for link in self._over.get((directory, name), ())}

    def note(self, name: bytes, reading: Reading | None) -> None:
        """Take note of what the source of this name turned out to be."""
        is_link = reading is not None and reading.is_link
        # A target that does not answer is where it was.
        if is_link and reading is not None and not reading.way and name in self._links:
            way = self._links[name].way
        else:
            way = reading.way if is_link and reading is not None else ()
        self._forget(name)
        if reading is not None and is_link:
            self._links[name] = _Link(reading.source.stamp, reading.through_mount, way)
            for step in way:
                self._over.setdefault(step, set()).add(name)

    def _forget(self, name: bytes) -> None:
        link = self._links.pop(name, None)
        for step in link.way if link else ():
            over = self._over.get(step, set())
            over.discard(name)
            if not over:
                self._over.pop(step, None)

    async def read(
        self, directory: int, names: Iterable[bytes], known: Callable[[bytes], Source | None]
    ) -> dict[bytes, Reading | None]:
        """Read these sources; those whose targets do not answer are what they were, or have a reason."""
        async with self._reading:
            before = {name: known(name) for name in names}

            def read(own: int, name: bytes) -> Reading | None:
                # A target that is being written counts as it was, and is looked at again (promise I3).
                return self._read(own, name, before[name], Writers.UNLIKELY)

            readings = await trio.to_thread.run_sync(self._probe.ask, directory, before, read)
        return {
            name: readings[name] if name in readings else _unanswered(source)
            for name, source in before.items()
        }

    def load(self, directory: int, names: Iterable[bytes]) -> dict[bytes, Reading | None]:
        """Do as ``read`` before there is an event loop."""
        readings: dict[bytes, Reading | None] = {name: _unanswered(None) for name in names}
        return readings | self._probe.ask(
            directory, readings, lambda own, name: self._read(own, name, None, Writers.UNLIKELY)
        )

    async def changed(self, directory: int) -> list[bytes]:
        """Return the names of the links whose targets are not what they were when they were read.

        However many readers ask, each place is asked once for all of them.
        """
        # A descriptor of its own: the directory may be replaced before its turn comes.
        directory = os.dup(directory)
        try:
            return await self._changes.run(lambda: self._look(directory))
        finally:
            os.close(directory)

    async def _look(self, directory: int) -> list[bytes]:
        links = dict(self._links)

        def stamp(own: int, name: bytes) -> bytes:
            return self.reader.link_stamp(own, name, through_mount=links[name].through_mount)

        def ask() -> dict[bytes, bytes]:
            return self._probe.ask(
                directory, links, stamp, patience=PATIENCE_SECONDS, most=PATIENCE_SECONDS
            )

        stamps = await trio.to_thread.run_sync(ask)
        for name in (links.keys() - stamps.keys()) & self._links.keys():
            # It may lead over this very mount since somebody changed what it leads through.
            self._links[name] = replace(self._links[name], through_mount=True)
        return [name for name, found in stamps.items() if found != links[name].target]

    def _read(
        self, directory: int, name: bytes, known: Source | None, writers: Writers
    ) -> Reading | None:
        status = status_at(directory, name)
        if status is None:
            return None
        return self.reader.read(directory, name, status, known, writers)


def _unanswered(known: Source | None) -> Reading:
    return Reading(known or unanswered(), is_link=True, through_mount=True)
