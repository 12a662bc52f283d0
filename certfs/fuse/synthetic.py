"""Files of our own making: the generations of bundles, and the status.

Owns their node numbers and keeps their content while the kernel remembers the number. A generation has its own inode:
the kernel's page cache then cannot mix two of them, whatever a reader does between two reads (promise I2).
"""

import errno
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn, Protocol

import pyfuse3

from certfs.core.rope import Part, RopeView
from certfs.fuse import attributes, numbers
from certfs.fuse.numbers import Numbers
from certfs.fuse.requests import ROOT_USER
from certfs.store.bundle import LiveBundle

STATUS_DIRECTORY = b".certfs"
STATUS_FILE = b"status.json"
"""The details, with names of sources: for root and the owner of the store."""
SUMMARY_FILE = b"summary.json"
"""For everybody."""
DETAILS_MODE = 0o400
STATUS_DIRECTORY_NUMBER, HIDDEN_STATUS_DIRECTORY_NUMBER = numbers.FIXED

_RECENT_NS = 50_000_000
"""How old a status may be that a user other than root is given: rendering it costs all others time."""
_USER_STATUSES = 32
"""How many of them the kernel may remember for such a user."""
_ALL_STATUSES = 256
"""How many for all of them together."""
FORMER_BYTES = 256 << 20
"""How much of the generations before the present ones is kept for those who have them open."""


class Readable(Protocol):
    """Content that can be read by offset, as pread(2) does."""

    @property
    def size(self) -> int:
        """How many bytes there are."""

    def read(self, offset: int, length: int) -> bytes:
        """Return up to ``length`` bytes from ``offset``."""


@dataclass(frozen=True, slots=True)
class _LetGo:
    """What is left of a generation of which too much was kept: its size."""

    size: int

    def read(self, _offset: int, _length: int) -> NoReturn:
        """Refuse: ESTALE."""
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))


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
    mode: int = 0o644
    owner: tuple[int, int] | None = None
    """User and group, those of this process where none are given."""
    bundle: LiveBundle | None = None
    """Of which this is a generation."""
    is_removed: bool = False
    """Its watchers were told that it is over; once is enough, however long somebody has it open."""
    user: int = ROOT_USER
    """Whom it was made for, if it is a status."""

    def attributes(self) -> pyfuse3.EntryAttributes:
        """Return the attributes of the file."""
        return attributes.of_content(
            self.number, self.readable.size, self.time_ns, mode=self.mode, owner=self.owner
        )

    def content(self) -> "Content":
        """Return what is read of it when it is open."""
        return self

    async def look_up(self, _name: bytes) -> NoReturn:
        """Refuse: a file has no names in it."""
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))

    def names(self) -> NoReturn:
        """Refuse: a file is not listed."""
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))


class _Generations:
    """The content of bundles that is kept in memory, by node number; what several of them share counts once."""

    def __init__(self) -> None:
        self._kept: dict[int, Content] = {}
        self._counts: dict[Part, int] = {}
        self._size = 0

    def keep(self, content: Content) -> None:
        """Take note that this is known."""
        if not isinstance(content.readable, RopeView):
            return
        self._kept[content.number] = content
        for part in content.readable.parts:
            count = self._counts.get(part, 0)
            self._counts[part] = count + 1
            if not count:
                self._size += part.size

    def let_go(self, content: Content) -> None:
        """Take note that it is not, or is to hold nothing any more."""
        if self._kept.pop(content.number, None) is None or not isinstance(
            content.readable, RopeView
        ):
            return
        for part in content.readable.parts:
            count = self._counts.pop(part)
            if count > 1:
                self._counts[part] = count - 1
            else:
                self._size -= part.size

    def bound(self, size: int, is_current: Callable[[Content], bool]) -> None:
        """Empty the oldest that are not current, as long as all together have more than this size."""
        for content in list(self._kept.values()) if self._size > size else ():
            if self._size <= size:
                break
            if not is_current(content):
                self.let_go(content)
                content.readable = _LetGo(content.readable.size)


class SyntheticFiles:
    """All inodes of our own that the kernel remembers, and the present one of each bundle."""

    def __init__(
        self,
        render_status: Callable[[], bytes],
        prepare_status: Callable[[], None] = lambda: None,
        numbers: Numbers | None = None,
        render_summary: Callable[[], bytes] = lambda: b"",
    ) -> None:
        self._render_summary = render_summary
        self.prepare_status = prepare_status
        self._render_status = render_status
        self._contents: dict[int, Content] = {}
        self._current: dict[LiveBundle, tuple[int, Content]] = {}
        self._numbers = numbers or Numbers()
        self._generations = _Generations()
        self._statuses: dict[int, list[Content]] = {}
        self._last_status: Content | None = None
        self._last_summary: Content | None = None

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
            if self._is_known_again(content):
                return content
        content = self.add(generation.view, generation.changed_ns)
        content.bundle = bundle
        self._generations.keep(content)
        self._current[bundle] = (generation.number, content)
        # Who writes a source could fill the memory (promise I18): each descriptor keeps a generation, and one with
        # O_PATH does so without an OPEN that could be refused.
        present = sum(each.readable.size for _number, each in self._current.values())
        self._generations.bound(present + FORMER_BYTES, self.is_current)
        return content

    def recent_status(self, user: int) -> Content | None:
        """Return what this user is given instead of a new status; None where that is a new one (promise I18)."""
        if user == ROOT_USER:
            return None
        last = self._last_status
        if last is not None and self._is_recent(last) and self._is_known_again(last):
            return last
        known = self._statuses.get(user, [])
        if len(known) >= _USER_STATUSES:
            return known[-1]
        others = [each for each in self._statuses if each != ROOT_USER]
        if sum(len(self._statuses[each]) for each in others) >= _ALL_STATUSES:
            # One who may map user ids is thousands of users (subuid(5)).
            return self._statuses[others[-1]][-1]
        return None

    def of_status(self, user: int = ROOT_USER) -> Content:
        """Return a new inode with the status as it is now."""
        content = self.add(Text(self._render_status()), time.time_ns())
        content.user = user
        self._statuses.setdefault(user, []).append(content)
        self._last_status = content
        content.mode = DETAILS_MODE
        return content

    def _is_known_again(self, content: Content) -> bool:
        """Enter content again that the kernel may have forgotten; False if its number is another's by now."""
        if content.number not in self._contents:
            if not self._numbers.claim(content.number):
                return False
            self._contents[content.number] = content
            self._generations.keep(content)
        return True

    def of_summary(self) -> Content:
        """Return an inode with the summary as it is now; the same one while it does not change (promise I18)."""
        last = self._last_summary
        if last is not None and self._is_recent(last) and self._is_known_again(last):
            return last
        text = Text(self._render_summary())
        if last is not None and last.readable == text and self._is_known_again(last):
            return last
        self._last_summary = self.add(text, time.time_ns())
        return self._last_summary

    @staticmethod
    def _is_recent(content: Content) -> bool:
        return 0 <= time.time_ns() - content.time_ns < _RECENT_NS

    def blank(self) -> Content:
        """Return a new inode of nothing."""
        return self.add(Text(b""), time.time_ns())

    def former(self, bundle: LiveBundle) -> list[int]:
        """Return the numbers of the generations of a bundle that the kernel remembers and that are newly over."""
        return [
            content.number
            for content in self._contents.values()
            if content.bundle is bundle
            and content.lookups > 0
            and not (content.is_removed or self.is_current(content))
        ]

    def is_current(self, content: Content) -> bool:
        """Whether this is the present generation of its bundle."""
        bundle = content.bundle
        if bundle is None or not bundle.exists:
            return False
        number, current = self._current.get(bundle, (0, None))
        return current is content and number == bundle.generation.number

    def add(self, readable: Readable, time_ns: int) -> Content:
        """Return a new file with this content, which is known as long as the kernel remembers it."""
        content = Content(self._numbers.own(), readable, time_ns)
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
                self._generations.let_go(content)
                self._numbers.release(content.number)
                self._forget_status(content)

    def _forget_status(self, content: Content) -> None:
        known = self._statuses.get(content.user, [])
        if content in known:
            known.remove(content)
            if not known:
                del self._statuses[content.user]
