"""Finding the directories of a store in time, wherever they are.

Owns the patience with ways: a source directory may be reached over a link to a file system that does not answer. Each
look is made in a thread of its own. A way on which nothing has come back for a while is *silent*: the thread is left
alone, and the look is made again without that way, which leads where it led until the thread is back (promises I1,
I15).
"""

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from certfs.core.bundle import BundleSpec
from certfs.store.cached import names_in
from certfs.store.directories import Path, Roles, RoleSources
from certfs.store.patience import MOST_SECONDS, PATIENCE_SECONDS, STEP_SECONDS, Waited
from certfs.store.swaps import SWAP_SUFFIX

_MOST_SILENT: Final = 16
"""How many threads may be left alone; beyond, a look finds nothing new."""


@dataclass(frozen=True, slots=True)
class FoundRoles:
    """What a look has found: the roles, and each bundle that there is or may be."""

    roles: Roles
    specs: tuple[BundleSpec, ...]


@dataclass(slots=True, eq=False)
class _Look:
    """One look; ``lock`` guards ``abandoned``. The thread lets go of what nobody waits for any more."""

    roles: Roles
    specs: tuple[BundleSpec, ...]
    expanded: frozenset[BundleSpec]
    lock: threading.Lock = field(default_factory=threading.Lock)
    done: threading.Event = field(default_factory=threading.Event)
    found: tuple[BundleSpec, ...] = ()
    error: Exception | None = None
    abandoned: bool = False

    def start(self) -> None:
        """Begin in a thread."""
        threading.Thread(target=self._run, name="certfs-ways", daemon=True).start()

    def _run(self) -> None:
        try:
            self.found = tuple(self._expand())
            for spec in self.found:
                self.roles.find(spec.source)
                self.roles.find(spec.bundle[:-1])
                self.roles.note_backup(spec)
            self.roles.watch()
            self.roles.unpin()
        except Exception as e:  # noqa: BLE001 - raised again by whoever waits
            self.error = e
        with self.lock:
            self.done.set()
            if self.abandoned:
                self.roles.close()

    def is_answered(self) -> bool:
        """Wait; whether the look is done, and not stuck on one way for as long as anybody is patient with it."""
        way, waited, total = self.roles.current, Waited(for_threads=True), Waited()
        while not self.done.wait(STEP_SECONDS):
            if self.roles.current != way:
                way = self.roles.current
                waited.restart()
                total.restart()
            elif waited.step() >= PATIENCE_SECONDS or total.step() >= MOST_SECONDS:
                with self.lock:
                    self.abandoned = not self.done.is_set()
                    return not self.abandoned
        return True

    def _expand(self) -> Iterator[BundleSpec]:
        """Yield the specifications without wildcards: as configured, and one for each directory that matches."""
        seen = set()
        for spec in self.specs:
            if not spec.is_pattern:
                yield spec
                continue
            parent = self.roles.find(spec.source[:-1])
            if parent is None:
                continue
            self.roles.patterns.setdefault(parent.id, []).append(spec)
            for name in self._names(spec.source[:-1], parent.descriptor):
                expanded = spec.expand(name)
                # Beside the directories lie the plain copies of their bundles, and D.bk while D is swapped.
                if (
                    expanded is not None
                    and not name.endswith(SWAP_SUFFIX)
                    and self.roles.find(expanded.source)
                ):
                    seen.add(expanded)
                    yield expanded
        for spec in self.expanded - seen - set(self.specs):
            # The directory of a pattern is gone: its bundle goes on as an empty one while it may come back in a swap.
            yield spec

    def _names(self, path: Path, directory: int) -> list[bytes]:
        """Return the names in a directory of a pattern; those of its bundles where it does not answer or say."""
        if not self.roles.is_silent(path):
            self.roles.current = path
            with suppress(
                OSError
            ):  # a user's own file system shows itself to nobody else, or has no end
                return sorted(names_in(directory))
        return sorted(spec.source[-1] for spec in self.expanded if spec.source[:-1] == path)


class WayFinder:
    """Finds what the directories of a store mean; ``silent`` are the ways that do not answer."""

    def __init__(self, sources: RoleSources, specs: Iterable[BundleSpec]) -> None:
        self._sources = sources
        self._specs = tuple(specs)
        self._looks: dict[Path, _Look] = {}

    @property
    def silent(self) -> frozenset[Path]:
        """The paths of directories that a look was given up for, and is not back from."""
        return frozenset(path for path, look in self._looks.items() if not look.done.is_set())

    @property
    def has_answered(self) -> bool:
        """Whether a way that was silent at the last look is no more."""
        return len(self.silent) < len(self._looks)

    def find(
        self, old: Roles, covers: Mapping[Path, int], expanded: Iterable[BundleSpec]
    ) -> FoundRoles:
        """Look for everything; blocks, for a moment for each way that does not answer.

        ``covers`` are the directories mounted over the mount, ``expanded`` the bundles that there are. OSError where
        too many looks are not back.
        """
        self._looks = {path: self._looks[path] for path in self.silent}
        while True:
            look = _Look(
                self._sources.roles(covers, {path: old.known(path) for path in self._looks}),
                self._specs,
                frozenset(expanded),
            )
            look.start()
            if look.is_answered():
                if look.error is not None:
                    look.roles.close()
                    raise look.error
                return FoundRoles(look.roles, look.found)
            way = look.roles.current
            if way in self._looks or len(self._looks) >= _MOST_SILENT:
                raise TimeoutError
            self._looks[way] = look
