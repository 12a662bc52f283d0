"""Swaps: XAPI replaces a source directory D by way of a directory ``D.bk`` beside it (promise I10).

Owns which D.bk there are, and when a swap begins and ends. What a bundle is meanwhile is the bundle's own.

A swap begins when a D.bk is made, wherever that is: through the mount, in the store itself, or while no server serves.
One that was there at the mount begins nothing, so each is known from then on. What was known when a server dies is in
its undo log.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import trio

from certfs.core.catalog import Source
from certfs.core.certificate import SourceContent
from certfs.store.backing import FileId
from certfs.store.bundle import Actor, LiveBundle
from certfs.store.events import DirectoryEvent
from certfs.store.undo_log import RecordedSwap, Recovered, UndoLog

SWAP_SUFFIX = b".bk"

Backup = tuple[FileId, bytes]
"""A D.bk: the directory that it is in, or would be, and its name."""


class Swaps:
    """The swaps of all bundles of a mount; each is over ``timeout`` seconds after its beginning at the latest.

    ``is_there`` tells whether there is a directory of a name.
    """

    def __init__(
        self, timeout: float, undo_log: UndoLog, is_there: Callable[[FileId, bytes], bool]
    ) -> None:
        self._timeout = timeout
        self._undo_log = undo_log
        self._is_there = is_there
        self._bundles: Mapping[Backup, list[LiveBundle]] = {}
        self._known: set[Backup] = set()
        """Those that are there, as far as anybody said."""
        self._gone: set[Backup] = set()
        self._foreign: set[Backup] = set()
        self._echoes: Counter[Backup] = Counter()
        """How often each was made through the mount, and that was not heard yet."""
        self._started = trio.Event()

    def watch(self, bundles: Mapping[Backup, list[LiveBundle]]) -> None:
        """Take these names for those of a D.bk from now on: whose D these bundles come from."""
        new = bundles.keys() - self._bundles.keys()
        self._bundles = bundles
        self._known &= bundles.keys()
        self._foreign &= bundles.keys()
        for backup in new:
            if self._is_there(*backup):
                self._found(backup)

    def _found(self, backup: Backup) -> None:
        self._known.add(backup)
        for bundle in self._bundles[backup]:
            self._undo_log.record_swap(bundle.spec, None)

    @contextmanager
    def making(self, directory: FileId, name: bytes) -> Iterator[None]:
        """Make a directory ``name`` in the context: if it is a D.bk, a swap of D begins; and its echo is no news.

        An echo may be heard when the D.bk is gone again.
        """
        backup = (directory, name)
        if backup not in self._bundles:
            yield
            return
        self._echoes[backup] += 1
        try:
            yield
        except BaseException:
            self._echoes[backup] -= 1
            raise
        self._begin(backup)
        self._foreign.discard(backup)

    def _begin(self, backup: Backup) -> None:
        for bundle in self._bundles.get(backup, ()):
            self._known.add(backup)
            self._hold(bundle, self._timeout)

    def forget(self, backup: Backup) -> None:
        """Take note that this is gone; if it was a D.bk, its swap ends with `ended`."""
        self._known.discard(backup)

    def swapping(self, backup: Backup) -> list[LiveBundle]:
        """Return the bundles that are being swapped by way of this D.bk."""
        return [bundle for bundle in self._bundles.get(backup, ()) if bundle.is_swapping]

    def is_foreign(self, backup: Backup) -> bool:
        """Whether a swap was not made through this mount from its beginning, so that D may not be known as it is."""
        return backup in self._foreign

    def ended(self, backup: Backup, actor: Actor | None) -> None:
        """End the swap of a D.bk that is gone, now that D is known as it is; unless the next one has begun."""
        bundles = self._bundles.get(backup)
        if bundles is None or backup in self._known or self._is_there(*backup):
            return
        self._foreign.discard(backup)
        for bundle in bundles:
            bundle.release(actor)
            self._undo_log.forget_swap(bundle.spec)

    def end(self, bundle: LiveBundle, actor: Actor | None) -> None:
        """End the swap of this bundle, though its D.bk may still be there; without one nothing happens."""
        if bundle.is_swapping:
            bundle.release(actor)
            self._undo_log.record_swap(bundle.spec, None)

    def hear(self, events: Iterable[DirectoryEvent]) -> None:
        """Take note of directories that came and went in the store, before what is read of the store is believed.

        A D.bk that is gone does not end its swap at once, because D may be known only as it was in the middle: see
        `ended`. What is heard may be the echo of what was done through the mount, and is known then.
        """
        for directory, name, what in events:
            backup = (directory, name)
            if backup not in self._bundles:
                continue
            if what == "gone":
                self._known.discard(backup)
                self._gone.add(backup)
            elif what == "made" and self._echoes[backup] > 0:
                self._echoes[backup] -= 1
                self._known.add(backup)
            elif backup not in self._known:
                if what == "made":
                    self._foreign.add(backup)
                    self._begin(backup)
                else:
                    self._found(backup)

    def look(self) -> None:
        """Do as `hear` where nobody knows what happened: a D.bk that is new may be in the middle of a swap."""
        self._echoes.clear()
        self.hear(
            DirectoryEvent(*backup, "made" if self._is_there(*backup) else "gone")
            for backup in tuple(self._bundles)
        )

    def gone(self, *, foreign: bool) -> set[Backup]:
        """Return each D.bk that was heard to be gone, once; with ``foreign`` only those of `is_foreign`.

        What is heard of the others is mostly an echo: who removes them through the mount says so, and who it was.
        """
        gone = self._gone & self._foreign if foreign else self._gone
        self._gone = self._gone - gone
        return gone

    def was_heard_again(self, backup: Backup) -> bool:
        """Whether a D.bk was heard to be gone since `gone` was called."""
        return backup in self._gone

    def recover(self, recovered: Recovered, missing: Callable[[LiveBundle], SourceContent]) -> None:
        """Go on with the swaps of the server before, and with those that began after its end.

        Of these nobody knows what the bundle was at the beginning: what is ``missing`` from the one that was in view.
        To be called before anything is heard, because the sources may have been read in the middle of a swap.
        """
        for backup in self._known:
            self._foreign.add(backup)
            for bundle in self._bundles[backup]:
                swap = recovered.swaps.get(bundle.spec)
                seconds = swap.ends - time.monotonic() if swap else 0.0
                if swap and seconds > 0:
                    self._hold(bundle, seconds, swap.was)
                elif bundle.spec not in recovered.swaps:
                    self._hold(bundle, self._timeout, {b"": missing(bundle)})

    def complete(self, missing: Callable[[LiveBundle], SourceContent]) -> None:
        """Do the same for the swaps that were heard of since then; each goes on for as long as it would."""
        for backup in self._foreign:
            for bundle in self.swapping(backup):
                seconds = (bundle.swap_deadline or 0.0) - trio.current_time()
                self._hold(bundle, seconds, {b"": missing(bundle)})

    def record(self) -> None:
        """Record for the next server each D.bk that is there."""
        for backup in self._known:
            for bundle in self._bundles[backup]:
                self._record(bundle)

    def _hold(
        self, bundle: LiveBundle, seconds: float, was: Mapping[bytes, SourceContent] | None = None
    ) -> None:
        sources = {name: Source(content) for name, content in was.items()} if was else None
        bundle.hold(trio.current_time() + seconds, sources)
        self._started.set()
        self._record(bundle)

    def _record(self, bundle: LiveBundle) -> None:
        swap = None
        if bundle.swap_deadline is not None:
            ends = time.monotonic() + bundle.swap_deadline - trio.current_time()
            swap = RecordedSwap(
                ends, {name: source.content for name, source in bundle.catalog.held()}
            )
        self._undo_log.record_swap(bundle.spec, swap)

    async def expire(self, bundles: Iterable[LiveBundle]) -> None:
        """End each swap of ``bundles`` (looked through again each time) at its deadline, for ever."""
        while True:
            deadlines = [
                bundle.swap_deadline for bundle in bundles if bundle.swap_deadline is not None
            ]
            self._started = trio.Event()
            with trio.move_on_at(min(deadlines, default=float("inf"))):
                await self._started.wait()
            for bundle in bundles:
                if bundle.swap_deadline is not None and bundle.swap_deadline <= trio.current_time():
                    self.end(bundle, None)
