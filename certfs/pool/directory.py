"""A source directory in the store: what is in it now, and bringing it to what the pool has.

Owns reading it without believing a file that is being written, and the order of steps by which several files change as
one: ``mkdir D.bk``, additions, removals, fsync, ``rmdir D.bk``. A reader sees the old, the new, or both (I10). Also
without that rule, in the plain files or long after a crash, they have all of the old or all of the new: a file that is
changed holds both until every addition is there. Knows nothing of the engine.
"""

import errno
import os
import stat
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from certfs.core.catalog import Source
from certfs.pool.keys import MOST_VALUE_BYTES, Digest, Value, encode, name_defect
from certfs.pool.store import Store
from certfs.safe_open import closing
from certfs.store.atomic import write_atomic
from certfs.store.backing import status_at
from certfs.store.path_walk import PathWalker, nowhere
from certfs.store.source_reader import SourceReader, Writers, source_names
from certfs.store.swaps import SWAP_SUFFIX

SWAP_SECONDS: Final = 30.0
"""How long a D.bk of another program is waited for; older, it is a leftover (I10)."""
_SWAP_MODE: Final = 0o700
_FILE_MODE: Final = 0o644
_READABLE: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Scan:
    """What was found: ``values`` by name, None for the whole where the directory is missing.

    ``unsettled`` names are being written. ``local_only`` has names that cannot be in the pool, each with the reason.
    ``swapping`` while another program replaces the directory.
    """

    values: dict[bytes, Value] | None
    unsettled: frozenset[bytes] = frozenset()
    local_only: Mapping[bytes, str] = field(default_factory=dict)
    swapping: bool = False

    @property
    def content(self) -> dict[bytes, Digest] | None:
        """The digests by name."""
        if self.values is None:
            return None
        return {name: value.digest for name, value in self.values.items()}


class SourceDirectory:
    """The directory ``path`` of the store."""

    def __init__(self, store: Store, path: tuple[bytes, ...]) -> None:
        self._store = store
        self.path = path
        self._known: dict[bytes, Source] = {}
        self._reader = SourceReader(PathWalker(nowhere), size_limit=1 << 20)

    @property
    def name(self) -> str:
        """What the journal calls it."""
        return self.path[-1].decode("ascii")

    @property
    def _swap(self) -> bytes:
        return self.path[-1] + SWAP_SUFFIX

    def scan(self) -> Scan:
        """Read the directory; OSError where that fails for another reason than that it is missing."""
        parent = self._parent()
        if parent is None:
            return Scan(None)
        with closing(parent):
            swapping = self._is_swapping(parent)
            try:
                directory = os.open(self.path[-1], _READABLE | os.O_NOFOLLOW, dir_fd=parent)
            except FileNotFoundError:
                return Scan(None, swapping=swapping)
        with closing(directory):
            return self._read(directory, swapping=swapping)

    def apply(
        self,
        names: Mapping[bytes, Value | None],
        *,
        both: Mapping[bytes, Value],
        finish_swap: bool,
        aside: Mapping[bytes, int],
    ) -> None:
        """Write and remove files, all or, after a crash, some of them; OSError.

        ``both`` has what a changed name holds until all additions are there: the old and the new.
        ``aside`` has for names whose file is to be kept the descriptor of the directory that it is copied to first.
        ``finish_swap`` if a ``D.bk`` that is there was made by an application that was interrupted.
        """
        self._store.make(self.path, 0o700)
        with closing(self._store.open(self.path[:-1])) as parent:
            swap = len(names) > 1 or finish_swap
            if swap:
                self._begin_swap(parent, ours=finish_swap)
            with closing(
                os.open(self.path[-1], _READABLE | os.O_NOFOLLOW, dir_fd=parent)
            ) as directory:
                self._change(directory, names, both, aside)

    def end_swap(self) -> None:
        """Remove the ``D.bk`` of an application that is complete and journalled."""
        parent = self._parent()
        if parent is not None:
            with suppress(FileNotFoundError):
                os.rmdir(self._swap, dir_fd=parent)
            os.close(parent)

    def _parent(self) -> int | None:
        try:
            return self._store.open(self.path[:-1])
        except FileNotFoundError:
            return None

    def _is_swapping(self, parent: int) -> bool:
        status = status_at(parent, self._swap)
        return status is not None and time.time() - status.st_ctime < SWAP_SECONDS

    def _begin_swap(self, parent: int, *, ours: bool) -> None:
        try:
            os.mkdir(self._swap, _SWAP_MODE, dir_fd=parent)
        except FileExistsError:
            if not ours and self._is_swapping(parent):
                raise OSError(errno.EBUSY, "another program replaces the directory") from None

    def _read(self, directory: int, *, swapping: bool) -> Scan:
        values: dict[bytes, Value] = {}
        unsettled: set[bytes] = set()
        local_only: dict[bytes, str] = {}
        known: dict[bytes, Source] = {}
        for name in source_names(directory):
            status = status_at(directory, name)
            if status is None:
                continue
            if stat.S_ISLNK(status.st_mode):
                local_only[name] = "it is a symbolic link"
                continue
            reading = self._reader.read(
                directory, name, status, self._known.get(name), Writers.LIKELY
            )
            if reading is None:
                continue
            if reading.source.kept or reading.is_held:
                unsettled.add(name)
                continue
            known[name] = reading.source
            value = encode(reading.source.content.certificates)
            reason = name_defect(name)
            if value is not None and len(value.pem) > MOST_VALUE_BYTES:
                reason = f"it has more than {MOST_VALUE_BYTES} bytes of certificates"
            if value is not None and reason:
                local_only[name] = reason
            elif value is not None:
                values[name] = value
        self._known = known
        return Scan(values, frozenset(unsettled), local_only, swapping)

    def _change(
        self,
        directory: int,
        names: Mapping[bytes, Value | None],
        both: Mapping[bytes, Value],
        aside: Mapping[bytes, int],
    ) -> None:
        for name, keep in aside.items():
            self._put_aside(directory, name, keep)
        # Additions first: killed at any point, what is there has all of the old or all of the new.
        for name, value in names.items():
            first = both.get(name, value)
            if first is not None:
                write_atomic(directory, name, first.pem, mode=_FILE_MODE)
        for name in both:
            value = names[name]
            if value is not None:
                write_atomic(directory, name, value.pem, mode=_FILE_MODE)
        for name, value in names.items():
            if value is None:
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=directory)
        os.fsync(directory)

    @staticmethod
    def _put_aside(directory: int, name: bytes, keep: int) -> None:
        """Copy a file to where files are kept that the pool has overruled; the last of each name stays."""
        try:
            file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
        except FileNotFoundError:
            return
        with open(file, "rb") as stream:
            write_atomic(keep, name, stream.read(1 << 20), mode=0o600)
