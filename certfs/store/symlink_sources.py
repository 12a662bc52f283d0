"""Sources that are symbolic links.

Owns what is special about them: nobody tells when a target changes, so it is looked at again when the bundle is asked
for; and a target may be on a filesystem that hangs, so it counts as it was, or has a reason, until it answers.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import trio

from certfs.core.catalog import Source
from certfs.store.backing import status_at
from certfs.store.link_probe import Targets
from certfs.store.source_reader import Reading, SourceReader, Writers, unanswered


@dataclass(frozen=True, slots=True)
class _Link:
    """The stamp of a link's ``target`` when it was read, and how to ask for it again."""

    target: bytes
    through_mount: bool


class LinkedSources:
    """The sources of one bundle that are symbolic links."""

    def __init__(self, reader: SourceReader) -> None:
        self._reader = reader
        self._links: dict[bytes, _Link] = {}
        self._targets = Targets()
        # One question at a time: however many readers come, a target that hangs keeps one thread.
        self._asking = trio.Lock()

    def __len__(self) -> int:
        return len(self._links)

    def note(self, name: bytes, reading: Reading | None) -> None:
        """Take note of what the source of this name turned out to be."""
        if reading is not None and reading.is_link:
            self._links[name] = _Link(reading.source.stamp, reading.through_mount)
        else:
            self._links.pop(name, None)

    async def read(
        self, directory: int, names: Iterable[bytes], known: Callable[[bytes], Source | None]
    ) -> dict[bytes, Reading | None]:
        """Read these sources; those whose targets do not answer are what they were, or have a reason."""
        before = {name: known(name) for name in names}

        def read(own: int, name: bytes) -> Reading | None:
            # A target that is being written counts as it was, and is looked at again (promise I3).
            return self._read(own, name, before[name], Writers.UNLIKELY)

        async with self._asking:
            readings = await trio.to_thread.run_sync(self._targets.ask, directory, before, read)
        return {
            name: readings[name] if name in readings else _unanswered(source)
            for name, source in before.items()
        }

    def load(self, directory: int, names: Iterable[bytes]) -> dict[bytes, Reading | None]:
        """Do as ``read`` before there is an event loop."""
        readings: dict[bytes, Reading | None] = {name: _unanswered(None) for name in names}
        return readings | self._targets.ask(
            directory, readings, lambda own, name: self._read(own, name, None, Writers.UNLIKELY)
        )

    async def changed(self, directory: int) -> list[bytes]:
        """Return the names of the links whose targets are not what they were when they were read."""
        links = dict(self._links)

        def stamp(own: int, name: bytes) -> bytes:
            return self._reader.link_stamp(own, name, through_mount=links[name].through_mount)

        # A descriptor of its own: the directory may be replaced before its turn comes.
        directory = os.dup(directory)
        try:
            async with self._asking:
                stamps = await trio.to_thread.run_sync(self._targets.ask, directory, links, stamp)
        finally:
            os.close(directory)
        for name in (links.keys() - stamps.keys()) & self._links.keys():
            # It may lead over this very mount since somebody changed what it leads through.
            self._links[name] = _Link(self._links[name].target, through_mount=True)
        return [name for name, found in stamps.items() if found != links[name].target]

    def _read(
        self, directory: int, name: bytes, known: Source | None, writers: Writers
    ) -> Reading | None:
        status = status_at(directory, name)
        if status is None:
            return None
        return self._reader.read(directory, name, status, known, writers)


def _unanswered(known: Source | None) -> Reading:
    return Reading(known or unanswered(), is_link=True, through_mount=True)
