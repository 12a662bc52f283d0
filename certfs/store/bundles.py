"""All bundles of one mount, and which directory of the store means what to them.

Owns the mapping from directories to roles: this one is the source of that bundle, a change of this name in that
directory replaces a source directory. Directories are known by identity, not by path: XAPI swaps whole directories,
and a map of paths goes wrong then. Knows nothing of FUSE.
"""

import errno
import functools
import os
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress

import trio

from certfs.core.bundle import BundleSpec
from certfs.core.certificate import Certificate, SourceContent
from certfs.safe_open import LinkRefusedError, open_beneath
from certfs.store.backing import FileId, describe, file_id, identity, status_at
from certfs.store.bundle import Actor, LiveBundle, Observer
from certfs.store.cached import is_local, names_in
from certfs.store.covers import find_covers
from certfs.store.directories import Roles, RoleSources, Roots
from certfs.store.events import PendingEvents, StoreEvents, StoreWatcher
from certfs.store.path_walk import PathWalker
from certfs.store.patience import PatientCall
from certfs.store.plain import (
    TEMPORARY_PREFIX,
    PlainCopy,
    date,
    kept_aside,
    missing,
    sweep,
    temporary_name,
)
from certfs.store.source_reader import DEFAULT_SIZE_LIMIT, SourceReader, Writers
from certfs.store.swaps import SWAP_SUFFIX, BackupName, Swaps
from certfs.store.undo_log import UndoLog
from certfs.store.ways import FoundRoles, WayFinder

DEFAULT_SWAP_TIMEOUT = 30.0
_COMPARE_SECONDS = 1.0
_RESOLVE_ATTEMPTS = 4
_SPARE_WAYS = 64
"""How many directories that no link leads over any more may stay watched."""


class Trust:
    """The bundles of a mount, kept true while their directories come, go and are replaced."""

    def __init__(  # noqa: PLR0913 - all but two have defaults
        self,
        roots: Roots,
        specs: Iterable[BundleSpec],
        *,
        is_busy: Callable[[FileId], bool],
        observer: Observer,
        size_limit: int = DEFAULT_SIZE_LIMIT,
        swap_timeout: float = DEFAULT_SWAP_TIMEOUT,
        undo_log: UndoLog | None = None,
        is_served: bool = False,
    ) -> None:
        self.walker = PathWalker(roots.inside)
        self.watcher = StoreWatcher()
        self.pending_events = PendingEvents(self.watcher)
        self.plain: dict[LiveBundle, PlainCopy] = {}
        self.is_alone = True
        """Whether files are opened through this server alone: what its last writer has closed, no other one writes."""
        self._roots = roots
        self._specs = tuple(specs)
        self._reader = SourceReader(
            self.walker,
            size_limit,
            self._is_plain_copy,
            watch_way=self.watcher.watch_way,
            is_served=is_served,
        )
        self._is_busy = is_busy
        self._observer = observer
        self._covers: dict[tuple[bytes, ...], int] = {}
        self._looking_at_mounts = PatientCall()
        sources = RoleSources(roots, self.walker, self.watcher.watch_way)
        self._finder = WayFinder(sources, self._specs)
        self._roles = Roles(sources)
        self._resolving = trio.Lock()
        self._bundles: dict[BundleSpec, LiveBundle] = {}
        self._applying = trio.Lock()
        self._is_loaded = False
        self.on_directories_changed: Callable[[Collection[FileId]], None] = lambda _directories: (
            None
        )
        """Called with directories whose attributes were changed in the store, or may have been."""
        self.on_resolved: Callable[[], None] = lambda: None
        """Called when other directories may mean something to bundles than before."""
        self._ways_in_use = 0
        self._mounts_changed = False
        self._is_local = all(map(is_local, roots.directories.values()))
        self._place_ids: dict[BundleSpec, FileId] = {}
        self.undo_log = undo_log or UndoLog(None)
        self.swaps = Swaps(swap_timeout, self.undo_log)
        self._looking_at_swaps = PatientCall()

    @property
    def bundles(self) -> Iterable[LiveBundle]:
        """Every bundle, whether it exists now or not."""
        return self._bundles.values()

    @property
    def progress(self) -> int:
        """Another number as long as the reading of local directories goes on."""
        return sum(bundle.progress for bundle in self.bundles)

    def load(self) -> None:
        """Find the directories and read all sources; blocks, to be called before anything is served."""
        with suppress(TimeoutError):  # nothing answers: there is nothing yet
            self._take(self._find(), None)
        for bundle in self.bundles:
            bundle.load()
        self._is_loaded = True

    async def recover(self) -> None:
        """Go on with what the server before left, once everything is read and before anything is served."""
        recovered = self.undo_log.recover()
        if recovered is None:
            for bundle in self.bundles:
                bundle.recover({}, functools.partial(self._missing, bundle))
                self.plain[bundle].is_first = True
            self._date()
            return
        lost = [
            spec
            for spec in recovered.specs() - self._bundles.keys()
            if any(pattern.covers(spec.source) for pattern in self._specs if pattern.is_pattern)
            and recovered.swaps.get(spec)
        ]
        for spec in lost:
            # Nothing in the store shows that there is such a directory: it is in the middle of a swap.
            self._new_bundle(spec)
        for bundle in await self._resolve(None) if lost else ():
            bundle.load()
        self.swaps.recover(recovered, self._missing)
        for bundle in self.bundles:
            kept = recovered.sources.get(bundle.spec, {})
            bundle.recover(kept, functools.cache(functools.partial(self._missing, bundle)))
        await self.poll_events()
        self.swaps.complete(self._missing)
        self._date()

    def _date(self) -> None:
        for bundle in self.bundles:
            place = self._roles.places.get(bundle.spec)
            if place is not None:
                date(bundle, place.descriptor)

    def kept_aside(self, bundle: LiveBundle) -> tuple[Certificate, ...]:
        """Return what was only in the file that the first mount found in the place of a bundle, and still is."""
        place = self._roles.places.get(bundle.spec)
        return () if place is None else kept_aside(bundle, place.descriptor)

    def _missing(self, bundle: LiveBundle) -> SourceContent:
        place = self._roles.places.get(bundle.spec)
        return SourceContent() if place is None else missing(bundle, place.descriptor)

    def record(self) -> None:
        """Be the one whose records count from now on."""
        with self.undo_log.rewritten():
            self.swaps.record()
            for bundle in self.bundles:
                bundle.record()

    def sweep(self) -> None:
        """Remove what a killed server left of the plain copies that it was writing."""
        for directory in self._roles.bundles:
            sweep(self._roles.descriptors[directory])

    def bundle_at(self, directory: FileId, name: bytes) -> LiveBundle | None:
        """Return the bundle that this name in this directory is, None for any other name."""
        names = self._roles.bundles.get(directory)
        return names.get(name) if names is not None else None

    def bundles_in(self, directory: FileId) -> dict[bytes, LiveBundle]:
        """Return the bundles that appear in this directory, by name."""
        return self._roles.bundles.get(directory, {})

    def is_hidden(self, directory: FileId, name: bytes) -> bool:
        """Whether the mount must not show this name: a plain copy while it is being written."""
        return name.startswith(TEMPORARY_PREFIX) and directory in self._roles.bundles

    def has_role(self, directory: FileId, name: bytes) -> bool:
        """Whether a change of this name in this directory may mean anything to a bundle."""
        return self.is_source(directory, name) or self._leads_to_source(directory, name)

    def is_on_the_way(self, directory: FileId) -> bool:
        """Whether this directory is one in which the way to a bundle or to its sources goes on."""
        return directory in self._roles.descriptors

    def is_watched(self, directory: FileId) -> bool:
        """Whether every change of this directory in the store itself is heard of."""
        return directory in self.watcher.watched

    def goes_on(self, directory: FileId, name: bytes) -> bool:
        """Whether the way to a bundle or to its sources goes on with this name in this directory."""
        return name in self._roles.components.get(directory, ())

    def is_source(self, directory: FileId, name: bytes) -> bool:
        """Whether this name in this directory is that of a source."""
        bundles = self._roles.sources.get(directory, ())
        return any(bundle.spec.is_source(name) for bundle in bundles)

    async def changed(self, directory: FileId, name: bytes, actor: Actor | None) -> None:
        """Take note that ``name`` in ``directory`` was made, written, replaced or removed."""
        await self.replaced(directory, (name,), actor)

    async def replaced(
        self,
        directory: FileId,
        names: Sequence[bytes],
        actor: Actor | None,
        writers: Writers | None = None,
    ) -> None:
        """Do as ``changed`` for several names at once, so that nobody sees one of them without the others.

        With ``writers`` it is news from the store itself.
        """
        writers = writers or self._writers_beside
        for bundle in self._roles.sources.get(directory, ()):
            sources = [name for name in names if bundle.spec.is_source(name)]
            await bundle.refresh(sources, actor, writers)
        for bundle in list(self.bundles):
            links = bundle.links_over(directory, names)
            if links:
                await bundle.refresh(sorted(links), actor, Writers.UNLIKELY)
        if any(self._leads_to_source(directory, name) for name in names):
            await self._wait_for_store()
            for bundle in await self._resolve(actor):
                await bundle.rescan(actor)

    def _leads_to_source(self, directory: FileId, name: bytes) -> bool:
        roles = self._roles
        return name in roles.components.get(directory, ()) or any(
            spec.expand(name) for spec in roles.patterns.get(directory, ())
        )

    @property
    def _writers_beside(self) -> Writers:
        """What is known of other writers of a file that was changed through the mount and closed.

        Beside another server of this mount, while one takes the other's place, that one may have it open by now.
        """
        return Writers.NONE if self.is_alone else Writers.IDLE

    async def inode_changed(self, inode: FileId, actor: Actor | None) -> None:
        """Take note that a file with several names was written: any of them may be a source."""
        for bundle in list(self.bundles):
            await bundle.refresh(bundle.sources_of(inode), actor, self._writers_beside)

    def write_begins(self, directory: FileId | None, name: bytes, status: os.stat_result) -> None:
        """Take note that a file of this ``status`` and maybe this name is about to be changed in place (I3)."""
        for bundle, source in self._sources_written(directory, name, status):
            bundle.write_begins(source)

    def write_failed(self, directory: FileId | None, name: bytes, status: os.stat_result) -> None:
        """Take note that nothing came of that."""
        for bundle, source in self._sources_written(directory, name, status):
            bundle.write_failed(source)

    def _sources_written(
        self, directory: FileId | None, name: bytes, status: os.stat_result
    ) -> Iterator[tuple[LiveBundle, bytes]]:
        if directory is not None:
            for bundle in self._roles.sources.get(directory, ()):
                if bundle.spec.is_source(name):
                    yield bundle, name
        if status.st_nlink > (0 if directory is None else 1):
            for bundle in self.bundles:
                for other in bundle.sources_of(file_id(status)):
                    yield bundle, other

    def keep_sources(self, directory: FileId, moves: Mapping[bytes, bytes]) -> None:
        """Carry the last complete content over a rename (new by old) of what is being written (promise I3)."""
        for bundle in self._roles.sources.get(directory, ()):
            bundle.keep(moves)

    def is_current(self, bundle: LiveBundle) -> bool:
        """Whether nothing is to be read before an answer about this bundle; two system calls."""
        self._poll()
        is_quiet = not (self._has_news or self._applying.locked())
        return is_quiet and bundle.is_settled

    async def poll_events(self) -> None:
        """Take in what happened in the store itself; two system calls when nothing did.

        Also what another task has begun to take in: nobody is to be told of a bundle that is another one by now.
        """
        self._poll()
        if self._has_news or self._applying.locked():
            async with self._applying:
                if self._mounts_changed or self._finder.has_answered:
                    if self._mounts_changed:
                        self._mounts_changed = False
                        await self._find_covers()
                    # What is in view of a source directory may be another one now, and nothing else tells.
                    await self._wait_for_store()
                    for bundle in await self._resolve(None):
                        await bundle.rescan()
                await self._apply_events(self.pending_events.take())

    @property
    def _has_news(self) -> bool:
        return bool(self.pending_events) or self._mounts_changed or self._finder.has_answered

    async def _wait_for_store(self) -> None:
        """Return when the store answers, if it is no local one: its directories are looked for on the event loop (I15).

        They are listed, because a listing is never answered from the kernel's memory.
        """
        if not self._is_local:
            await trio.to_thread.run_sync(self._list_roots)

    def _list_roots(self) -> None:
        for directory in self._roots.directories.values():
            with suppress(OSError):
                names_in(directory)

    async def _find_covers(self) -> None:
        ways = (
            spec.source[:depth]
            for spec in self._bundles
            for depth in range(1, len(spec.source) + 1)
        )
        # Not a whole tree: what is mounted over one covers its bundles as well, which come back as they were.
        paths = {way for way in ways if not self._roots.is_root(way)}
        device = self.walker.device

        def find() -> dict[tuple[bytes, ...], int]:
            return find_covers(device, paths, self._roots.components)

        try:
            covers = await self._looking_at_mounts.run(find)
        except TimeoutError:
            self._mounts_changed = True  # nothing tells of it again
            return
        except OSError:
            return
        async with self._resolving:
            old, self._covers = self._covers, covers
        for descriptor in old.values():
            os.close(descriptor)

    async def compare(self) -> None:
        """Look at everything that nobody tells of: mounts, the targets of links, directories of other hosts.

        For what is made of all bundles without a reader who asks: status and plain copies. Takes a second at most.
        """
        await self.poll_events()
        with trio.move_on_after(_COMPARE_SECONDS):
            async with trio.open_nursery() as nursery:
                for bundle in list(self.bundles):
                    nursery.start_soon(bundle.wait_until_current)

    async def _apply_events(self, events: StoreEvents) -> None:
        if events.overflow:
            await self._look_for_swaps()
            await self._wait_for_store()
            await self._resolve(None)
            for bundle in list(self.bundles):
                await bundle.rescan()
        for directory, names in events.names.items():
            closed = events.closed.get(directory, set())
            await self.replaced(directory, sorted(names - closed), None, Writers.UNLIKELY)
            await self.replaced(directory, sorted(closed), None, Writers.IDLE)
        for directory, names in events.modified.items():
            await self.replaced(directory, sorted(names), None, Writers.LIKELY)
        await self._end_swaps(external=True)
        if self.watcher.ways > 2 * self._ways_in_use + _SPARE_WAYS:
            in_use = set[FileId]().union(*(bundle.directories_of_links for bundle in self.bundles))
            self.watcher.forget_ways(in_use)
            self._ways_in_use = len(in_use)

    async def _look_for_swaps(self) -> None:
        """Look which D.bk there are, in a thread: events were lost."""
        backups = self.swaps.look_begins()
        if self._looking_at_swaps.is_silent:
            return  # each swap ends at its deadline
        directories = {
            directory: os.dup(self._roles.descriptors[directory])
            for directory in {directory for directory, _name in backups}
        }

        def look() -> dict[BackupName, bool]:
            try:
                return {
                    (directory, name): _has_directory(directories[directory], name)
                    for directory, name in backups
                }
            finally:
                for descriptor in directories.values():
                    os.close(descriptor)

        with suppress(TimeoutError):
            found = await self._looking_at_swaps.run(look)
            self._poll()
            self.swaps.looked(found)

    async def end_swaps(self) -> None:
        """End the swaps whose D.bk was heard to be gone, and of which nobody else has said so by now."""
        async with self._applying:
            await self._end_swaps(external=False)

    async def _end_swaps(self, *, external: bool) -> None:
        while removed := self.swaps.take_removed(external=external):
            for backup in removed:
                await self._read_again(self.swaps.swapping(backup), None)
                self._poll()
                if not self.swaps.was_removed_again(backup):
                    self.swaps.ended(backup, None)

    async def swap_ends(self, directory: FileId, name: bytes, actor: Actor | None) -> None:
        """Take note that ``name`` is gone: if it was a D.bk, the swap of D is over."""
        backup = (directory, name)
        if not self.swaps.forget(backup):
            return
        if self.swaps.is_external(backup):
            await self._read_again(self.swaps.swapping(backup), actor)
        self._poll()
        self.swaps.ended(backup, actor)

    async def _read_again(self, bundles: Sequence[LiveBundle], actor: Actor | None) -> None:
        """Read all sources of these bundles as they are now, whatever was heard of them yet."""
        if bundles:
            await self._wait_for_store()
            for bundle in (*await self._resolve(actor), *bundles):
                await bundle.rescan(actor)

    def _poll(self) -> None:
        """Listen to what happened in the store, and believe at once that a swap began.

        The kernel queues an event before the call that caused it returns. So whoever listens after reading a directory,
        and before believing what it read, knows of a swap that it may have read in the middle of.
        """
        if self._is_loaded:
            events = self.pending_events.poll()
            self.on_directories_changed(self.watcher.watched if events.overflow else events.changed)
            self.swaps.apply_events(events.directories)
            self._mounts_changed = self.watcher.mounts_changed() or self._mounts_changed

    def open_place(self, bundle: LiveBundle) -> int:
        """Open the directory that a bundle's plain copy belongs in, to be closed by the caller; OSError with a reason.

        It is looked for anew each time, beneath the store and without following a link, and has to be the one that the
        bundle was last resolved with: who owns a directory on the way may exchange it at any moment.
        """
        start, path = self._roots.locate(bundle.spec.bundle[:-1])
        descriptor = open_beneath(start, path)
        if self._place_ids.get(bundle.spec) != identity(descriptor)[0]:
            os.close(descriptor)
            raise OSError(errno.ESTALE, "its directory was exchanged a moment ago")
        return descriptor

    def problem_of_place(self, bundle: LiveBundle) -> str:
        """Return why a bundle cannot appear where it should, empty if it can or there is no such directory at all."""
        try:
            os.close(self.open_place(bundle))
        except LinkRefusedError as e:
            return f"{os.fsdecode(e.filename)}: {describe(e)}"
        except OSError:
            return ""
        return ""

    def close(self) -> None:
        """Let go of every descriptor."""
        for bundle in self.bundles:
            bundle.close()
        self._roles.close()
        for descriptor in self._covers.values():
            os.close(descriptor)
        self.watcher.close()

    def _is_plain_copy(self, inode: FileId) -> bool:
        """Whether this is a file that stands where a bundle does, which a link may lead to."""
        for directory, bundles in self._roles.bundles.items():
            for name in bundles:
                status = status_at(self._roles.descriptors[directory], name)
                if status is not None and file_id(status) == inode:
                    return True
        return False

    async def _resolve(self, actor: Actor | None) -> list[LiveBundle]:
        """Find all directories anew; return the bundles that have another source directory than before."""
        changed: list[LiveBundle] = []
        async with self._resolving:
            for _ in range(_RESOLVE_ATTEMPTS):
                known = set(self._roles.descriptors)
                # Which watches are gone with their directories is heard before anything is watched.
                self._poll()
                try:
                    found = await trio.to_thread.run_sync(self._find)
                except TimeoutError:
                    break  # what was last found counts
                changed += self._take(found, actor)
                if known.issuperset(self._roles.descriptors):
                    break
                # What happened there before it was watched by its meaning was heard without one.
        return changed

    def _find(self) -> FoundRoles:
        return self._finder.find(self._roles, self._covers, self._bundles)

    def _take(self, found: FoundRoles, actor: Actor | None) -> list[LiveBundle]:
        """Let the directories have the meaning that was found."""
        old = self._roles
        roles = self._roles = found.roles
        changed = []
        for spec in found.specs:
            bundle = self._bundles.get(spec) or self._new_bundle(spec)
            source = roles.find(spec.source)
            own = os.dup(source.descriptor) if source else None
            owner = source.owner if source else None
            local = source is not None and source.is_local
            if bundle.attach(own, actor, owner, local=local) and source:
                changed.append(bundle)
            if source:
                roles.sources.setdefault(source.id, []).append(bundle)
            parent = roles.find(spec.source[:-1])
            if parent:
                backup = (parent.id, spec.source[-1] + SWAP_SUFFIX)
                roles.backups.setdefault(backup, []).append(bundle)
            place = roles.find_place(spec)
            if place:
                roles.bundles.setdefault(place.id, {})[spec.bundle[-1]] = bundle
        silent = self._finder.silent
        for spec, bundle in list(self._bundles.items()):
            ways = {spec.source[:depth] for depth in range(len(spec.source) + 1)}
            bundle.is_unfound = not silent.isdisjoint(ways)
            gone = (
                bundle.directory is None
                and not bundle.is_swapping
                and self.plain[bundle].is_current
            )
            if gone and spec not in self._specs:
                del self._bundles[spec], self.plain[bundle]
        old.close()
        # In one assignment: a thread that writes a copy may look at it at any moment.
        self._place_ids = {spec: place.id for spec, place in roles.places.items()}
        self.watcher.watch((fd, key) for key, fd in roles.descriptors.items())
        # After that: a D.bk is there now, or will be heard of.
        self.swaps.watch(self._roles.backups, roles.there)
        self.on_resolved()
        return changed

    def _new_bundle(self, spec: BundleSpec) -> LiveBundle:
        name = spec.bundle[-1]
        is_inside = spec.bundle[:-1] == spec.source
        hidden = frozenset({name, temporary_name(name)} if is_inside else ())
        bundle = LiveBundle(
            spec,
            self._reader,
            is_busy=self._is_busy,
            observer=self._observer,
            hidden_names=hidden,
            undo_log=self.undo_log,
            before_change=self._poll,
        )
        self._bundles[spec] = bundle
        self.plain[bundle] = PlainCopy(bundle)
        return bundle


def _has_directory(directory: int, name: bytes) -> bool:
    status = status_at(directory, name)
    return status is not None and stat.S_ISDIR(status.st_mode)
