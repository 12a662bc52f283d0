"""One bundle kept true to its source directory.

Owns the way from "this source may have changed" to the next generation: reading in order, publishing in one step,
swaps (promise I10). Knows files and trio, and nothing of FUSE: whoever serves requests calls ``refresh`` for the names
that it changed and ``wait_until_current`` before it answers what the bundle is.

Concurrency: ``_apply`` has no await, so a generation is published in one step. Reads that may take long happen in a
thread under ``_lock``, which is fair: ``wait_until_current`` waits for the refreshes asked for before it, and for no
later one.
"""

import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import trio

from certfs.core.bundle import BundleSpec, Generation
from certfs.core.catalog import Catalog, Change, Source
from certfs.core.certificate import (
    Certificate,
    Fingerprint,
    Remark,
    SourceContent,
    own_signature,
)
from certfs.core.signature import OwnSignature
from certfs.safe_open import closing
from certfs.store.backing import FileId, file_id, stamp, stamp_head, stamp_of_data, status_at
from certfs.store.backing import identity as identity_of
from certfs.store.cached import status_cached
from certfs.store.path_walk import Owner, as_owner
from certfs.store.patience import PatientCall, Shared
from certfs.store.source_reader import (
    Reading,
    SourceReader,
    Writers,
    as_it_was,
    is_lock_link,
    recovered,
    source_names,
)
from certfs.store.symlink_sources import SymlinkSources
from certfs.store.undo_log import UndoLog

# What may be done on the event loop: 8 KiB have two dozen certificates at most, of 0.3 ms each if OpenSSL is asked.
_INLINE_SIZE = 8 << 10
_INLINE_NAMES = 2
_INLINE_SIGNATURES = 4


@dataclass(frozen=True, slots=True)
class Actor:
    """Who made a change (promise I20): ``command`` is the name of the process, for the log.

    ``login`` is the user who has logged in, whoever it acts as now: on a host of the platform everybody is root.
    """

    uid: int
    pid: int
    command: str
    login: int | None = None


@dataclass(frozen=True, slots=True)
class Published:
    """What an observer is told of a ``bundle``: what changed, and who did it (None: it came from the store itself).

    ``remarks`` are those on sources that were just read, with the source's name (promise I9).
    """

    bundle: "LiveBundle"
    change: Change
    actor: Actor | None
    remarks: tuple[tuple[bytes, Remark], ...] = ()


@dataclass(frozen=True, slots=True)
class _Batch:
    """Sources that were read, and the names of those among them that are links and were not.

    ``verified`` is what became of the signatures that had to be verified to put the certificates in order.
    """

    readings: dict[bytes, Reading | None]
    links: list[bytes]
    verified: Mapping[Fingerprint, OwnSignature] = field(default_factory=dict)


Observer = Callable[[Published], None]


class LiveBundle:
    """A bundle and its source directory.

    ``is_busy`` tells whether an inode is being written through the mount; ``observer`` is told of every change.
    What its files do not show is recorded in ``undo_log``. ``before_change`` is called when something was
    read and before it counts.
    """

    def __init__(  # noqa: PLR0913 - all but two have a name at the call
        self,
        spec: BundleSpec,
        reader: SourceReader,
        *,
        is_busy: Callable[[FileId], bool],
        observer: Observer,
        hidden_names: frozenset[bytes] = frozenset(),
        undo_log: UndoLog | None = None,
        before_change: Callable[[], None] = lambda: None,
    ) -> None:
        self.spec = spec
        self.catalog = Catalog()
        self.generation = Generation(0, 0, self.catalog.snapshot(), time.time_ns())
        self.directory: int | None = None
        self.directory_id: FileId | None = None
        self._is_local = False
        self._reader = replace(reader, readers=spec.readers)
        self._is_busy = is_busy
        self._observer = observer
        self._hidden_names = hidden_names
        self._undo_log = undo_log or UndoLog(None)
        self._before_change = before_change
        self._holds = 0
        self._kept: dict[bytes, SourceContent] = {}
        """What is in the undo log: sources that do not count with what their files hold."""
        self._kept_since: dict[bytes, float] = {}
        self._links = SymlinkSources(self._reader)
        self._lock = trio.Lock()
        self._reading = PatientCall()
        self._comparing: Shared[None] = Shared()
        self._is_unread = False
        """Whether the source directory did not answer when it was last to be read."""
        self.is_unfound = False
        """Whether the way to the source directory did not answer when that was last looked for."""
        self._held: set[bytes] = set()
        """Sources that another program had a lease on when they were last to be read: nobody tells when it ends."""
        self._link_turns: dict[bytes, object] = {}
        """The last reading of each link that is under way."""
        self.progress = 0
        """Counts what was read and verified of a local store: it takes its time, but it answers."""

    @property
    def exists(self) -> bool:
        """Whether the bundle has a certificate (promise I7)."""
        return self.generation.certificates > 0

    @property
    def is_swapping(self) -> bool:
        """Whether the bundle is the union with what it was before a swap."""
        return self.catalog.is_swapping

    @property
    def is_settled(self) -> bool:
        """Whether ``wait_until_current`` has nothing to wait for."""
        return (
            self._is_local
            and not (self._links or self._held or self._is_unread)
            and not self._lock.locked()
        )

    @property
    def silent_places(self) -> list[bytes]:
        """What does not answer: places that links lead to, and the source directory itself."""
        is_silent = self._reading.is_silent or self.is_unfound
        own = [b"/".join(self.spec.source)] if is_silent else []
        return [*own, *sorted(self._links.silent_places)]

    @property
    def is_waiting(self) -> bool:
        """Whether something does not answer, or is kept from being read, and nobody tells when that ends."""
        return bool(self._held or self._is_unread or self.is_unfound or self._links.silent_places)

    @property
    def directories_of_links(self) -> set[FileId]:
        """Every directory that a source leads over which is a link."""
        return self._links.directories()

    def links_over(self, directory: FileId, names: Iterable[bytes]) -> set[bytes]:
        """Return the sources that are links and lead over one of these names in this directory."""
        return self._links.leading_over(directory, names)

    async def wait_until_current(self) -> None:
        """Return when every change asked for before this call is published, and what nobody tells of is looked at.

        That is the targets of links, and a source directory that other hosts or processes may change. Who does not
        answer within a second counts as it was.
        """
        if self._links and self.directory is not None:
            await self.refresh(await self._links.changed(self.directory), None)
        if self._held:
            await self.refresh(sorted(self._held), None, Writers.IDLE)
        if self.directory is not None and (self._is_unread or not self._is_local):
            await self._comparing.run(self.rescan)
        if self._lock.locked() and not self._reading.is_silent:
            async with self._lock:
                pass

    async def refresh(
        self, names: Iterable[bytes], actor: Actor | None, writers: Writers = Writers.NONE
    ) -> None:
        """Read these sources again and publish what they say now.

        With other ``writers`` than none these are news from the store itself, maybe of a change already published: an
        unchanged stamp is then an unchanged file, and one that somebody outside still writes is waited for.
        """
        names = [name for name in names if name not in self._hidden_names]
        if not names or self.directory is None:
            return
        if not self._lock.locked() and self._is_quick(self.directory, names):
            batch = self._read(self.directory, names, writers)
            if len(self._unverified(batch)) <= _INLINE_SIGNATURES:
                self._apply(batch.readings, actor)
                return
        await self._read_away(lambda directory: self._read(directory, names, writers), actor)

    async def rescan(self, actor: Actor | None = None) -> None:
        """Read the whole directory again: every source whose stamp changed, and those that came and went."""
        await self._read_away(self._read_all, actor)

    async def _read_away(self, read: Callable[[int], _Batch], actor: Actor | None) -> None:
        """Read in a thread and publish; then the links among the sources, which nothing else waits for."""
        async with self._lock:
            if self.directory is None:
                return
            # A descriptor of its own: the directory may be replaced while the thread reads.
            directory, identity = os.dup(self.directory), self.directory_id
            with closing(directory):
                # Safe across this await: nobody else publishes readings of files while the lock is held.
                batch = await self._read_in_time(lambda own: self._verify(read(own)), directory)
                # What was read of a directory that is no longer the source counts no more; its successor is read next.
                if batch is None or identity != self.directory_id:
                    return
                self._apply(batch.readings, actor, batch.verified)
        if batch.links:
            await self._read_links(batch.links, actor)

    async def _read_in_time(self, read: Callable[[int], _Batch], directory: int) -> _Batch | None:
        """Read in a thread; None where a file system that is not a local one does not answer in time."""
        if self._is_local:
            return await trio.to_thread.run_sync(read, directory)
        if self._reading.is_silent:
            return None
        own = os.dup(directory)

        def call() -> _Batch:
            with closing(own):
                return read(own)

        try:
            batch = await self._reading.run(call)
        except TimeoutError:
            self._is_unread = True
            return None
        self._is_unread = False
        return batch

    async def _read_links(self, names: list[bytes], actor: Actor | None) -> None:
        if self.directory is None:
            return
        directory, identity = os.dup(self.directory), self.directory_id
        turn = object()
        self._link_turns |= dict.fromkeys(names, turn)
        with closing(directory):
            readings = await self._links.read(directory, names, self.catalog.get)
            batch = await trio.to_thread.run_sync(self._verify, _Batch(readings, []))
            if identity == self.directory_id:
                # What was read again since then counts, be it a link or not. What is only being read again comes later,
                # and whoever asked for this reading does not wait for that.
                turns = {name: self._link_turns.get(name) for name in batch.readings}
                last = {name: batch.readings[name] for name, last in turns.items() if last}
                self._apply(last, actor, batch.verified)
                self._link_turns |= {
                    name: each for name, each in turns.items() if each not in {None, turn}
                }

    def attach(
        self,
        directory: int | None,
        actor: Actor | None = None,
        owner: Owner | None = None,
        *,
        local: bool = True,
    ) -> bool:
        """Take ``directory`` (the bundle's from now on) as the source directory; True if it is another than before.

        ``owner`` is that of a link which it was reached by: only what this user may read counts. ``local`` if its file
        system asks nobody else.

        Without a directory the sources are gone at once; with another one, ``rescan`` reads it.
        """
        directory_id = None if directory is None else identity_of(directory)[0]
        if (directory_id, owner) == (self.directory_id, self._reader.owner):
            if directory is not None:
                os.close(directory)
            return False
        if self.directory is not None:
            os.close(self.directory)
        self.directory, self.directory_id = directory, directory_id
        self._reader = self._links.reader = replace(self._reader, owner=owner)
        self._is_local = directory is not None and local
        if directory is None:
            self._apply(dict.fromkeys(self.catalog.names()), actor)
        return True

    def load(self) -> None:
        """Read the whole directory at start, when there is nobody yet to wait for it."""
        if self.directory is None:
            return
        batch = self._read_all(self.directory)
        self._apply(batch.readings, None)
        if batch.links:
            self._apply(self._links.load(self.directory, batch.links), None)

    def recover(
        self, kept: Mapping[bytes, SourceContent], missing: Callable[[], SourceContent]
    ) -> None:
        """Let sources count as they did with the server before: ``kept``.

        What some process has open for writing whom that one did not know counts as it is where it is whole, else as
        what is ``missing`` from the bundle that was in view last.
        """
        found = {name: source for name, source in self.catalog.sources() if source.kept}
        sources: dict[bytes, Source] = {
            name: replace(source, content=kept[name]) if name in kept else self._read_idle(name)
            for name, source in found.items()
        }
        for name in sources.keys() - kept.keys():
            if sources[name].kept:
                sources[name] = replace(sources[name], content=missing())
        for name in kept.keys() - found.keys():
            known = self.catalog.get(name)
            if known is not None:
                sources[name] = recovered(self._with_stamp(name, known), kept[name])
        for name, source in sources.items():
            self._keep(name, source if source.kept else None)
        remarks = [
            (name, remark) for name, source in sources.items() for remark in source.content.remarks
        ]
        self._publish(self.catalog.update(sources), None, tuple(remarks))

    def _read_idle(self, name: bytes) -> Source:
        directory = -1 if self.directory is None else self.directory
        status = status_at(directory, name)
        reading = (
            self._reader.read(directory, name, status, writers=Writers.IDLE) if status else None
        )
        return reading.source if reading else as_it_was(None)

    def _with_stamp(self, name: bytes, source: Source) -> Source:
        """Return a source with the stamp of its file: nobody has written it since it was read, however young it is."""
        status = None if self.directory is None else status_at(self.directory, name)
        is_file = status is not None and stat.S_ISREG(status.st_mode)
        return replace(source, stamp=stamp(status)) if status and is_file else source

    def write_begins(self, name: bytes) -> None:
        """Take note that a source is about to be changed in place: it counts as it is until that is done (I3)."""
        source = self.catalog.get(name)
        if source is not None:
            self._keep(name, source)

    def write_failed(self, name: bytes) -> None:
        """Take note that it was not changed."""
        source = self.catalog.get(name)
        if source is None or not source.kept:
            self._keep(name, None)

    def _keep(self, name: bytes, source: Source | None) -> None:
        """Record what a source counts with for the next server; None where the file says that itself."""
        before = self._kept.get(name)
        if source is None:
            if before is None:
                return
            del self._kept[name], self._kept_since[name]
        elif before is source.content:
            return
        else:
            self._kept[name] = source.content
            self._kept_since.setdefault(name, time.time())
        self.record()

    def incomplete(self) -> Iterator[tuple[bytes, float, SourceContent]]:
        """Yield the sources that count as they were, since when (time.time), and with what."""
        for name, content in self._kept.items():
            yield name, self._kept_since[name], content

    def is_incomplete(self, inode: FileId) -> bool:
        """Whether this inode is, or may be, one of the sources that count as they were."""
        head = stamp_head(inode)
        known = map(self.catalog.get, self._kept)
        return any(one and one.stamp[: len(head)] in {head, b""} for one in known)

    def record(self) -> None:
        """Record for the next server what the files do not show."""
        self._undo_log.record_sources(self.spec, self._kept)

    def hold(self, was: Mapping[bytes, Source] | None = None) -> None:
        """Start a swap; ``was`` is what the bundle had then, by default what it has now."""
        self._holds += 1
        self._publish(self.catalog.hold(was), None)

    def release(self, actor: Actor | None) -> None:
        """End a swap; without one nothing happens."""
        if self.is_swapping:
            self._publish(self.catalog.release(), actor)

    def sources_of(self, inode: FileId) -> list[bytes]:
        """Return the names of the sources that were read from this inode, or that nobody could read yet."""
        head = stamp_head(inode)
        return [
            name
            for name, source in self.catalog.sources()
            if source.stamp[: len(head)] in {head, b""}
        ]

    def keep(self, moves: Mapping[bytes, bytes]) -> None:
        """Let files that were renamed while they are being written count as they did (I3); ``moves`` is new by old."""
        kept = {
            new: source
            for old, new in moves.items()
            # Under any other name it is no source any more, and nobody would ever take it out again.
            if self.spec.is_source(new) and (source := self.catalog.get(old)) is not None
        }
        self._publish(self.catalog.update(kept), None)

    def close(self) -> None:
        """Let go of the source directory."""
        if self.directory is not None:
            os.close(self.directory)
            self.directory = None

    def _is_quick(self, directory: int, names: list[bytes]) -> bool:
        """Whether these sources can be read on the event loop: small files in memory, on a local file system."""
        if not self._is_local or len(names) > _INLINE_NAMES:
            return False
        for name in names:
            try:
                status = status_cached(directory, name)
            except FileNotFoundError:
                continue
            except OSError:
                return False
            # A link may lead to a slow filesystem.
            if status.st_size > _INLINE_SIZE or stat.S_ISLNK(status.st_mode):
                return False
        return True

    def _read_all(self, directory: int, writers: Writers = Writers.UNLIKELY) -> _Batch:
        names = []
        with suppress(OSError), as_owner(self._reader.owner):
            found = source_names(directory, self.spec.is_source)
            names = [name for name in found if name not in self._hidden_names]
        batch = self._read(directory, names, writers)
        gone: dict[bytes, Reading | None] = dict.fromkeys(self.catalog.names())
        for name in batch.links:
            gone.pop(name, None)
        return _Batch(gone | batch.readings, batch.links)

    def _read(self, directory: int, names: Iterable[bytes], writers: Writers) -> _Batch:
        """Read those sources that are files, and name those that are links; blocks."""
        readings: dict[bytes, Reading | None] = {}
        links: list[bytes] = []
        for name in names:
            self.progress += self._is_local
            known = self.catalog.get(name)
            status = status_at(directory, name)
            if status is None or is_lock_link(name, status):
                readings[name] = None
            elif stat.S_ISLNK(status.st_mode):
                links.append(name)
            elif self._is_busy(file_id(status)):
                # The last complete content counts until the last writer closes (promise I3).
                readings[name] = Reading(as_it_was(known))
            elif known and writers is not Writers.NONE and _still_interrupted(known, status):
                readings[name] = Reading(replace(known, stamp=stamp(status)))
            else:
                unless_changed = None if writers is Writers.NONE else known
                reading = self._reader.read(directory, name, status, unless_changed, writers)
                if self._is_busy(file_id(status)):
                    # Somebody began to write while it was read.
                    reading = Reading(as_it_was(known))
                readings[name] = reading
        return _Batch(readings, links)

    def _unverified(self, batch: _Batch) -> list[Certificate]:
        readings = batch.readings.values()
        return self.catalog.unverified(
            reading.source.content for reading in readings if reading is not None
        )

    def _verify(self, batch: _Batch) -> _Batch:
        """Verify the signatures that the order of these sources depends on; for a thread."""
        verified: dict[Fingerprint, OwnSignature] = {}
        for each in self._unverified(batch):
            verified[each.fingerprint] = own_signature(each)
            self.progress += self._is_local
        return replace(batch, verified=verified)

    def _apply(
        self,
        readings: dict[bytes, Reading | None],
        actor: Actor | None,
        verified: Mapping[Fingerprint, OwnSignature] = MappingProxyType({}),
    ) -> None:
        holds = self._holds
        self._before_change()
        changes: dict[bytes, Source | None] = {}
        remarks: list[tuple[bytes, Remark]] = []
        for name, reading in readings.items():
            self._links.note(name, reading)
            self._link_turns.pop(name, None)
            if reading is not None and reading.is_held:
                self._held.add(name)
            else:
                self._held.discard(name)
            changes[name] = source = reading.source if reading is not None else None
            self._keep(name, source if source is not None and source.kept else None)
            if source is not None and source.content.remarks:
                known = self.catalog.get(name)
                if known is None or known.content.remarks != source.content.remarks:
                    remarks.extend((name, remark) for remark in source.content.remarks)
        self._publish(self.catalog.update(changes, verified), actor, tuple(remarks))
        if self._holds != holds:
            # A swap began while this was read: it may be of D as it was before, which counts meanwhile.
            self._publish(self.catalog.hold(), actor)

    def _publish(
        self, change: Change, actor: Actor | None, remarks: tuple[tuple[bytes, Remark], ...] = ()
    ) -> None:
        if change:
            self.generation = Generation(
                self.generation.number + 1,
                len(self.catalog),
                self.catalog.snapshot(),
                time.time_ns(),
            )
        if change or remarks or change.copied or change.uncopied:
            self._observer(Published(self, change, actor, remarks))


def _still_interrupted(known: Source, status: os.stat_result) -> bool:
    """Whether a source that counts as it was holds what it held when that was decided: only its mode was changed."""
    return known.kept and stamp_of_data(known.stamp) == stamp_of_data(stamp(status))
