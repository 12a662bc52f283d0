"""Directories of our own making, and all nodes of our own by number.

Owns the one question "is it one of ours?" and the interface by which such a node is asked for everything else. A new
kind of file or directory of our own is a class with this interface and one `OwnDirectory.add`; the operations do not
change. Files of our own are `certfs.fuse.synthetic.Content`.
"""

import errno
import os
from collections.abc import Awaitable, Callable
from typing import Protocol

import pyfuse3

from certfs.fuse import attributes
from certfs.fuse.inodes import Inode
from certfs.fuse.synthetic import Content, SyntheticFiles


class OwnNode(Protocol):
    """What a node of our own answers; it behaves like an immutable file (promise I8)."""

    number: int
    lookups: int

    def attributes(self) -> pyfuse3.EntryAttributes:
        """Return the attributes of the node."""

    def content(self) -> Content:
        """Return what is read of an open file; EISDIR for a directory."""

    async def look_up(self, name: bytes) -> "Node":
        """Return the node of a name in a directory; ENOENT, or ENOTDIR for a file."""

    def names(self) -> list[bytes]:
        """Return the names that a listing of a directory shows; ENOTDIR for a file."""


Node = OwnNode | Inode
Find = Callable[[], Awaitable[Node]]
"""Finds the node that a name stands for now."""


class OwnDirectory:
    """A directory of our own: it has the names that were added."""

    def __init__(self, number: int, time_ns: int, *, mode: int = 0o755) -> None:
        self.number = number
        self.lookups = 0
        self._time_ns = time_ns
        self._mode = mode
        self._entries: dict[bytes, Find] = {}
        self._listed: list[bytes] = []

    def add(self, name: bytes, find: Find, *, listed: bool = True) -> None:
        """Add a name; one that is not ``listed`` is reached by name only."""
        self._entries[name] = find
        if listed:
            self._listed.append(name)

    def attributes(self) -> pyfuse3.EntryAttributes:
        """Return the attributes of the directory."""
        return attributes.of_directory(self.number, self._time_ns, mode=self._mode)

    def content(self) -> Content:
        """Refuse: a directory is not read like a file."""
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))

    async def look_up(self, name: bytes) -> Node:
        """Return the node of a name."""
        find = self._entries.get(name)
        if find is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return await find()

    def names(self) -> list[bytes]:
        """Return the names that are listed."""
        return self._listed.copy()


class OwnNodes:
    """All nodes of our own that the kernel knows."""

    def __init__(self, files: SyntheticFiles) -> None:
        self._files = files
        self._directories: dict[int, OwnDirectory] = {}

    def add(self, directory: OwnDirectory) -> None:
        """Add a directory, which is there for good."""
        self._directories[directory.number] = directory

    def find(self, number: int) -> OwnNode | None:
        """Return the node of our own that has this number, None where it is not one of ours."""
        return self._files.find(number) or self._directories.get(number)

    def forget(self, number: int, lookups: int) -> bool:
        """Take back ``lookups``; False if it is none of ours."""
        if self._files.find(number) is not None:
            self._files.forget(number, lookups)
            return True
        return number in self._directories
