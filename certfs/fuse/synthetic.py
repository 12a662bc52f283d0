"""Files of our own making: the generations of bundles, and the status.

Owns their node numbers and keeps their content while the kernel remembers the number. A generation has its own inode:
the kernel's page cache then cannot mix two of them, whatever a reader does between two reads (promise I2).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from certfs.fuse.inodes import FIRST_SYNTHETIC
from certfs.store.bundle import LiveBundle

STATUS_DIRECTORY = b".certfs"
STATUS_FILE = b"status.json"
STATUS_DIRECTORY_NUMBER = FIRST_SYNTHETIC


class Readable(Protocol):
    """Content that can be read by offset, as pread(2) does."""

    @property
    def size(self) -> int:
        """How many bytes there are."""

    def read(self, offset: int, length: int) -> bytes:
        """Return up to ``length`` bytes from ``offset``."""


@dataclass(frozen=True, slots=True)
class Text:
    """Readable bytes."""

    data: bytes

    @property
    def size(self) -> int:
        """How many bytes there are."""
        return len(self.data)

    def read(self, offset: int, length: int) -> bytes:
        """Return up to ``length`` bytes from ``offset``."""
        return self.data[offset : offset + length]


@dataclass(slots=True, eq=False)
class Content:
    """One inode of our own: what it holds never changes. ``time_ns`` is its mtime, in nanoseconds since the epoch."""

    number: int
    readable: Readable
    time_ns: int
    lookups: int = 0
    opens: int = 0
    pushed: bool = False
    bundle: LiveBundle | None = None
    """Of which this is a generation."""


class SyntheticFiles:
    """All inodes of our own that the kernel remembers, and the present one of each bundle."""

    def __init__(
        self,
        render_status: Callable[[], bytes],
        prepare_status: Callable[[], None] = lambda: None,
    ) -> None:
        self.prepare_status = prepare_status
        self._render_status = render_status
        self._contents: dict[int, Content] = {}
        self._current: dict[LiveBundle, tuple[int, Content]] = {}
        self._next = STATUS_DIRECTORY_NUMBER

    def __len__(self) -> int:
        return len(self._contents)

    def find(self, number: int) -> Content | None:
        """Return the content that has this node number."""
        return self._contents.get(number)

    def of_bundle(self, bundle: LiveBundle) -> Content:
        """Return the inode of the bundle's present generation."""
        generation = bundle.generation
        current = self._current.get(bundle)
        if current is not None and current[0] == generation.number:
            content = current[1]
            self._contents[content.number] = content
            return content
        content = self._add(generation.view, generation.changed_ns)
        content.bundle = bundle
        self._current[bundle] = (generation.number, content)
        return content

    def of_status(self) -> Content:
        """Return a new inode with the status as it is now."""
        return self._add(Text(self._render_status()), time.time_ns())

    def blank(self) -> Content:
        """Return a new inode of nothing."""
        return self._add(Text(b""), time.time_ns())

    def former(self, bundle: LiveBundle) -> list[int]:
        """Return the numbers of the generations of a bundle that the kernel remembers and that are not its present."""
        return [
            content.number
            for content in self._contents.values()
            if content.bundle is bundle and content.lookups > 0 and not self.is_current(content)
        ]

    def is_current(self, content: Content) -> bool:
        """Whether this is the present generation of its bundle."""
        bundle = content.bundle
        if bundle is None or not bundle.exists:
            return False
        number, current = self._current.get(bundle, (0, None))
        return current is content and number == bundle.generation.number

    def _add(self, readable: Readable, time_ns: int) -> Content:
        self._next += 1
        content = Content(self._next, readable, time_ns)
        self._contents[content.number] = content
        return content

    def forget(self, number: int, lookups: int) -> None:
        """Take back ``lookups``; content that nobody remembers is let go."""
        content = self._contents.get(number)
        if content is not None:
            content.lookups -= lookups
            self._let_go(content)

    def closed(self, content: Content) -> None:
        """Take note that an open handle of this content is gone."""
        content.opens -= 1
        self._let_go(content)

    def _let_go(self, content: Content) -> None:
        if content.lookups <= 0:
            # The kernel has dropped the inode and the pages with it.
            content.pushed = False
            if content.opens <= 0:
                self._contents.pop(content.number, None)
