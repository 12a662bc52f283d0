"""Open files and directories.

Owns the numbers that the kernel names them by, and what each kind of handle has to know until it is released.
"""

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from certfs.fuse.inodes import Inode
from certfs.fuse.synthetic import Content
from certfs.store.bundle import Actor


@dataclass(slots=True, eq=False)
class FileHandle:
    """A file of the store, opened.

    ``fd`` is its own descriptor, ``actor`` who opened it (known for sources that are written), ``writes`` if it is open
    for writing, ``synchronous`` if every write waits for the disk. It is a writer (promise I3) if it ``has_written``
    since the file was last complete; pages of a shared mapping come with any handle that is open for writing.
    """

    fd: int
    inode: Inode
    actor: Actor | None
    writes: bool
    synchronous: bool
    has_written: bool = False


@dataclass(slots=True, eq=False)
class DirectoryHandle:
    """An open directory: ``names`` is its listing as it was when it was first read."""

    number: int
    names: list[bytes] | None = None


@dataclass(slots=True, eq=False)
class ContentHandle:
    """An open file of our own making: it holds what was opened, whatever the tables have let go (promise I2)."""

    content: Content


Handle = FileHandle | DirectoryHandle | ContentHandle
H = TypeVar("H", bound=Handle)


@dataclass(slots=True)
class HandleTable:
    """All open handles by number.

    ``limit`` is how many files and directories of the store may be open at once (promise I18): each keeps up to two
    descriptors. Content of our own keeps none, so bundles can always be opened.
    """

    limit: int = 1 << 30
    _handles: dict[int, Handle] = field(default_factory=dict)
    _next: int = 0
    _contents: int = 0

    def __len__(self) -> int:
        return len(self._handles)

    def add(self, handle: Handle) -> int:
        """Return a new number for ``handle``."""
        self._next += 1
        self._handles[self._next] = handle
        self._contents += isinstance(handle, ContentHandle)
        return self._next

    def require_room(self) -> None:
        """Raise ENFILE if no further file or directory of the store may be opened."""
        if len(self._handles) - self._contents >= self.limit:
            raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))

    def get(self, number: int, kind: type[H]) -> H:
        """Return the handle of this number if it is of this kind; EBADF otherwise."""
        handle = self._handles.get(number)
        if not isinstance(handle, kind):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return handle

    def find(self, number: int) -> Handle | None:
        """Return the handle of this number, None where there is none."""
        return self._handles.get(number)

    def writers(self) -> Iterator[FileHandle]:
        """Yield the handles that have written to files that are not complete yet."""
        for handle in self._handles.values():
            if isinstance(handle, FileHandle) and handle.has_written:
                yield handle

    def remove(self, number: int) -> Handle | None:
        """Take the handle out of the table and return it."""
        handle = self._handles.pop(number, None)
        self._contents -= isinstance(handle, ContentHandle)
        return handle

    def close(self) -> None:
        """Close the descriptors of all handles."""
        for handle in self._handles.values():
            if isinstance(handle, FileHandle):
                os.close(handle.fd)
        self._handles.clear()
        self._contents = 0
