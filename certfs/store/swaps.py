"""Swaps: XAPI replaces a source directory D by way of a directory ``D.bk`` beside it (promise I10).

Owns which D.bk there are, and when a swap begins and ends. What a bundle is meanwhile is the bundle's own.

A swap begins when a D.bk is made, wherever that is: through the mount, in the store itself, or while no server runs.
One that was there at the mount begins nothing, so each is known from then on. What was known when a server dies is in
its undo log.
"""

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import trio

from certfs.core.catalog import Source
from certfs.core.certificate import SourceContent
from certfs.store.backing import FileId
from certfs.store.bundle import Actor, LiveBundle
from certfs.store.events import DirectoryEvent
from certfs.store.undo_log import RecordedSwap, Recovered, UndoLog

SWAP_SUFFIX = b".bk"

BackupName = tuple[FileId, bytes]
"""A D.bk: the directory that it is in, or would be, and its name."""


class Swap:
    """A swap of the source directory of one bundle: that is the union with what it was, until ``deadline``.

    The deadline is of trio's clock. To hold a swap that goes on again adds to what it retains, and moves the deadline.
    """

    def __init__(self, bundle: LiveBundle) -> None:
        self._bundle = bundle
        self.deadline = 0.0

    def hold(self, seconds: float, was: Mapping[bytes, SourceContent] | None = None) -> None:
        """Retain what the bundle ``was``, by default what it is now, for so long at most."""
        retained = {name: Source(content) for name, content in was.items()} if was else None
        self._bundle.hold(retained)
        self.deadline = trio.current_time() + seconds

    @property
    def remaining(self) -> float:
        """How many seconds it goes on at most."""
        return self.deadline - trio.current_time()

    def recorded(self) -> RecordedSwap:
        """Return what the next server has to know of it."""
        retained = {name: source.content for name, source in self._bundle.catalog.held()}
        return RecordedSwap(time.monotonic() + self.remaining, retained)


@dataclass(slots=True, eq=False)
class _Backup:
    """A D.bk that ``exists`` or may be made, and the ``bundles`` that come from its D.

    ``external`` if it was not made through this mount, so that D may be known only as it was in the middle of a swap;
    ``removed`` if that was heard and not taken yet; ``own_events`` is how often it was made through the mount, and that
    was not heard yet.
    """

    bundles: list[LiveBundle]
    exists: bool = False
    external: bool = False
    removed: bool = False
    own_events: int = 0


class Swaps:
    """The swaps of all bundles of a mount; each is over ``timeout`` seconds after its beginning at the latest."""

    def __init__(self, timeout: float, undo_log: UndoLog) -> None:
        self._timeout = timeout
        self._undo_log = undo_log
        self._backups: dict[BackupName, _Backup] = {}
        self._swaps: dict[LiveBundle, Swap] = {}
        self._started = trio.Event()
        self._heard: set[BackupName] = set()
        """Of which D.bk something was heard since `look_begins`."""

    def watch(
        self, bundles: Mapping[BackupName, list[LiveBundle]], there: Collection[BackupName]
    ) -> None:
        """Take these names for those of a D.bk from now on: whose D these bundles come from. Some are ``there``."""
        before = self._backups
        self._backups = {name: before.get(name) or _Backup([]) for name in bundles}
        for name, backup in self._backups.items():
            backup.bundles = bundles[name]
            if name not in before and name in there:
                self._note_preexisting(backup)

    def _note_preexisting(self, backup: _Backup) -> None:
        backup.exists = True
        for bundle in backup.bundles:
            self._undo_log.record_swap(bundle.spec, None)

    @contextmanager
    def making(self, directory: FileId, name: bytes) -> Iterator[None]:
        """Make a directory ``name`` in the context: if it is a D.bk, a swap of D begins; its event is then our own.

        That event may be heard when the D.bk is gone again.
        """
        backup = self._backups.get((directory, name))
        if backup is None:
            yield
            return
        backup.own_events += 1
        try:
            yield
        except BaseException:
            backup.own_events -= 1
            raise
        backup.external = False
        self._begin(backup)

    def _begin(self, backup: _Backup) -> None:
        backup.exists = True
        for bundle in backup.bundles:
            self._hold(bundle, self._timeout)

    def forget(self, name: BackupName) -> bool:
        """Take note that this is gone; return whether it was a D.bk, whose swap ends with `ended`."""
        backup = self._backups.get(name)
        if backup is not None:
            backup.exists = False
        return backup is not None

    def swapping(self, name: BackupName) -> list[LiveBundle]:
        """Return the bundles that are being swapped by way of this D.bk."""
        backup = self._backups.get(name)
        return [bundle for bundle in backup.bundles if bundle.is_swapping] if backup else []

    def is_external(self, name: BackupName) -> bool:
        """Whether a swap was not made through this mount from its beginning, so that D may not be known as it is."""
        return name in self._backups and self._backups[name].external

    def ended(self, name: BackupName, actor: Actor | None) -> None:
        """End the swap of a D.bk that is gone, now that D is known as it is; unless the next one has begun.

        To be called when the events of the store were heard, which tell of the next one.
        """
        backup = self._backups.get(name)
        if backup is None or backup.exists:
            return
        backup.external = False
        for bundle in backup.bundles:
            self._swaps.pop(bundle, None)
            bundle.release(actor)
            self._undo_log.forget_swap(bundle.spec)

    def end(self, bundle: LiveBundle, actor: Actor | None) -> None:
        """End the swap of this bundle, though its D.bk may still be there; without one nothing happens."""
        self._swaps.pop(bundle, None)
        if bundle.is_swapping:
            bundle.release(actor)
            self._undo_log.record_swap(bundle.spec, None)

    def apply_events(self, events: Iterable[DirectoryEvent]) -> None:
        """Take note of directories that came and went in the store, before what is read of the store is believed.

        A D.bk that is gone does not end its swap at once, because D may be known only as it was in the middle: see
        `ended`. What is heard may be our own event, of what was done through the mount, and is known then.
        """
        for directory, name, what in events:
            backup = self._backups.get((directory, name))
            if backup is None:
                continue
            self._heard.add((directory, name))
            if what == "gone":
                backup.exists = False
                backup.removed = True
            elif what == "made" and backup.own_events > 0:
                backup.own_events -= 1
                backup.exists = True
            elif not backup.exists and what == "made":
                backup.external = True
                self._begin(backup)
            elif not backup.exists:
                self._note_preexisting(backup)

    def look_begins(self) -> tuple[BackupName, ...]:
        """Return the names to look for where events were lost; `looked` is to be told what was found."""
        self._heard.clear()
        for backup in self._backups.values():
            backup.own_events = 0
        return tuple(self._backups)

    def looked(self, found: Mapping[BackupName, bool]) -> None:
        """Do as `apply_events` with what is there or not: a D.bk that is new may be in the middle of a swap.

        What was heard since the look began is newer.
        """
        self.apply_events(
            DirectoryEvent(*name, "made" if is_there else "gone")
            for name, is_there in found.items()
            if name not in self._heard
        )

    def take_removed(self, *, external: bool) -> list[BackupName]:
        """Return each D.bk that was heard to be removed, once; with ``external`` only those of `is_external`.

        Of the others it is mostly our own event: who removes them through the mount says so, and who it was.
        """
        removed = [
            name
            for name, backup in self._backups.items()
            if backup.removed and (backup.external or not external)
        ]
        for name in removed:
            self._backups[name].removed = False
        return removed

    def was_removed_again(self, name: BackupName) -> bool:
        """Whether a D.bk was heard to be removed since `take_removed` was called."""
        return name in self._backups and self._backups[name].removed

    def recover(self, recovered: Recovered, missing: Callable[[LiveBundle], SourceContent]) -> None:
        """Go on with the swaps of the server before, and with those that began after its end.

        Of these nobody knows what the bundle was at the beginning: what is ``missing`` from the one that was in view.
        To be called before anything is heard, because the sources may have been read in the middle of a swap.
        """
        for backup in self._backups.values():
            if not backup.exists:
                continue
            backup.external = True
            for bundle in backup.bundles:
                swap = recovered.swaps.get(bundle.spec)
                seconds = swap.ends - time.monotonic() if swap else 0.0
                if swap and seconds > 0:
                    self._hold(bundle, seconds, swap.was)
                elif bundle.spec not in recovered.swaps:
                    self._hold(bundle, self._timeout, {b"": missing(bundle)})

    def complete(self, missing: Callable[[LiveBundle], SourceContent]) -> None:
        """Do the same for the swaps that were heard of since then; each goes on for as long as it would."""
        for backup in self._backups.values():
            for bundle in backup.bundles if backup.external else ():
                swap = self._swaps.get(bundle)
                if swap is not None:
                    self._hold(bundle, swap.remaining, {b"": missing(bundle)})

    def record(self) -> None:
        """Record for the next server each D.bk that is there."""
        for backup in self._backups.values():
            for bundle in backup.bundles if backup.exists else ():
                swap = self._swaps.get(bundle)
                self._undo_log.record_swap(bundle.spec, swap.recorded() if swap else None)

    def _hold(
        self, bundle: LiveBundle, seconds: float, was: Mapping[bytes, SourceContent] | None = None
    ) -> None:
        swap = self._swaps.setdefault(bundle, Swap(bundle))
        swap.hold(seconds, was)
        self._undo_log.record_swap(bundle.spec, swap.recorded())
        self._started.set()

    async def expire(self) -> None:
        """End each swap at its deadline, for ever."""
        while True:
            self._started = trio.Event()
            deadlines = [swap.deadline for swap in self._swaps.values()]
            with trio.move_on_at(min(deadlines, default=float("inf"))):
                await self._started.wait()
            for bundle, swap in list(self._swaps.items()):
                if swap.remaining <= 0:
                    self.end(bundle, None)
