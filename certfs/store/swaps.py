"""Swaps: XAPI replaces a source directory D by way of a directory ``D.bk`` beside it (promise I10).

Owns which names are those of a D.bk, and when a swap begins and ends. What a bundle is meanwhile is the bundle's own.
"""

from collections.abc import Iterable, Mapping

import trio

from certfs.store.backing import FileId
from certfs.store.live import Actor, LiveBundle

SWAP_SUFFIX = b".bk"

Backup = tuple[FileId, bytes]
"""A D.bk: the directory that it is in, or would be, and its name."""


class Swaps:
    """The swaps of all bundles of a mount; each is over ``timeout`` seconds after its beginning at the latest."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._bundles: Mapping[Backup, list[LiveBundle]] = {}
        self._started = trio.Event()

    def watch(self, bundles: Mapping[Backup, list[LiveBundle]]) -> None:
        """Take these names for those of a D.bk from now on: whose D these bundles come from."""
        self._bundles = bundles

    def begins(self, directory: FileId, name: bytes) -> None:
        """Take note that a directory ``name`` was made: if it is a D.bk, a swap of D begins."""
        for bundle in self._bundles.get((directory, name), ()):
            bundle.hold(trio.current_time() + self._timeout)
            self._started.set()

    def ends(self, directory: FileId, name: bytes, actor: Actor | None) -> None:
        """Take note that ``name`` is gone: if it was a D.bk, the swap of D is over."""
        for bundle in self._bundles.get((directory, name), ()):
            self.end(bundle, actor)

    @staticmethod
    def end(bundle: LiveBundle, actor: Actor | None) -> None:
        """End the swap of this bundle; without one nothing happens."""
        bundle.release(actor)

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
