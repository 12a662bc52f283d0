"""The plain copies of the bundles in the store, as a notifier sees them.

Owns finding them, what identifies their content, and watching for a change. A plain copy is replaced by rename a moment
after the bundle changed, so who is told of it reads the same from the live mount and from plain files.
"""

import base64
import binascii
import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import islice
from typing import BinaryIO, Final

from certfs.linux import inotify
from certfs.protocol.notify_spec import HOST_CERTIFICATE, NotifierSpec
from certfs.protocol.specs import Tree

_DIRECTORY: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_LARGEST: Final = 256 << 20
_MOST_NAMES: Final = 1 << 18
_BLOCK: Final = re.compile(
    rb"-----BEGIN CERTIFICATE-----\n([A-Za-z0-9+/=\n]*)-----END CERTIFICATE-----\n"
)
_ABSENT: Final = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ELOOP))


@dataclass(frozen=True, slots=True)
class Content:
    """What a file holds: ``sha256`` is that of its bytes, empty where there is no file."""

    sha256: str = ""
    certificates: frozenset[bytes] = frozenset()
    """The SHA-256 of each certificate."""


@dataclass(slots=True)
class PlainFiles:
    """The files that anybody wants to know of, and what they hold now."""

    spec: NotifierSpec
    queue: int = field(default_factory=inotify.open_queue)
    contents: dict[str, Content] = field(default_factory=dict)
    """By path from the root of the mount; a file that is gone keeps its entry, with no content."""
    _stamps: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def look(self) -> None:
        """Read what has changed; what cannot be read just now keeps the content that it had, and is an OSError."""
        inotify.drain(self.queue)
        problem = None
        known: set[str] = set()
        for pattern in self._patterns:
            try:
                for path, directory, name in self._matching(pattern):
                    known.add(path)
                    self._read(path, directory, name)
                if "*" not in pattern:
                    self.contents.setdefault(pattern, Content())
            except OSError as error:
                problem = error
                known.update(path for path in self.contents if fnmatchcase(path, pattern))
        for path in self.contents.keys() - known:
            self.contents[path] = Content()
            self._stamps.pop(path, None)
        if problem:
            raise problem

    def gone(self) -> set[str]:
        """Return what is known of bundles of a pattern that are not there any more."""
        absent = {path for path, content in self.contents.items() if not content.sha256}
        return absent - set(self._patterns)

    def data(self, path: str) -> bytes | None:
        """Return what the file at ``path`` holds now, None where there is none."""
        for _path, directory, name in self._matching(path):
            if file := _opened(name, directory):
                with file:
                    return file.read(_LARGEST)
        return None

    @property
    def _patterns(self) -> tuple[str, ...]:
        return (*self.spec.bundles, HOST_CERTIFICATE)

    def shown(self, path: str) -> str:
        """Return where a file is seen by its readers."""
        tree, rest = self._tree(path)
        return os.path.join(tree.target, rest) if tree else path

    def _tree(self, path: str) -> tuple[Tree | None, str]:
        first, _, rest = path.partition("/")
        for tree in self.spec.trees:
            if not tree.name:
                return tree, path
            if tree.name == first:
                return tree, rest
        return None, path

    def _matching(self, pattern: str) -> Iterator[tuple[str, int, str]]:
        """Yield the path, an open directory and the name of each file of this form; its directories are watched."""
        tree, rest = self._tree(pattern)
        if tree is None:
            return
        *parents, last = rest.split("/")
        head = pattern.removesuffix(last)
        directory = os.open(f"/proc/self/fd/{tree.fd}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # Watched before it is looked at, so that a change in between is reported.
            inotify.watch_directory(self.queue, directory)
            for parent in parents:
                child = os.open(parent, _DIRECTORY, dir_fd=directory)
                os.close(directory)
                directory = child
                inotify.watch_directory(self.queue, directory)
            for name in _expanded(last, directory):
                yield head + name, directory, name
        except OSError as error:
            if error.errno not in _ABSENT:
                raise
        finally:
            os.close(directory)

    def _read(self, path: str, directory: int, name: str) -> None:
        file = _opened(name, directory)
        if file is None:
            self.contents[path] = Content()
            self._stamps.pop(path, None)
            return
        with file:
            status = os.fstat(file.fileno())
            stamp = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
            if self._stamps.get(path) == stamp:
                return
            data = file.read(_LARGEST)
        self.contents[path] = Content(hashlib.sha256(data).hexdigest(), frozenset(_prints(data)))
        self._stamps[path] = stamp


def _opened(name: str, directory: int) -> BinaryIO | None:
    """Open a regular file, None where there is none."""
    try:
        fd = os.open(name, _FILE, dir_fd=directory)
    except OSError as error:
        if error.errno not in _ABSENT:
            raise
        return None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        return None
    return open(fd, "rb")


def _expanded(last: str, directory: int) -> list[str]:
    before, star, after = last.partition("*")
    if not star:
        return [last]
    with os.scandir(f"/proc/self/fd/{directory}") as entries:
        names = [entry.name for entry in islice(entries, _MOST_NAMES)]
    return [
        name
        for name in names
        if name.startswith(before) and name.endswith(after) and len(name) >= len(last)
    ]


def _prints(data: bytes) -> Iterator[bytes]:
    for block in _BLOCK.finditer(data):
        with suppress(binascii.Error):
            yield hashlib.sha256(base64.b64decode(block[1])).digest()
