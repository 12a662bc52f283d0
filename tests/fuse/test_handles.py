"""Open handles: numbers are never used twice, and a wrong one is EBADF."""

from __future__ import annotations

import errno
import os

import pytest

from certfs.fuse.handles import ContentHandle, DirectoryHandle, FileHandle, HandleTable
from certfs.fuse.inodes import Inode
from certfs.fuse.synthetic import Content, Text
from certfs.store.backing import FileId

CONTENT = Content(1, Text(b""), 0)


def test_a_handle_is_found_by_its_number_and_kind() -> None:
    """Another kind, or a number that nobody was given, is EBADF."""
    table = HandleTable()
    handle = DirectoryHandle(1)
    number = table.add(handle)
    assert table.get(number, DirectoryHandle) is handle
    for wrong, kind in ((number, ContentHandle), (number + 1, DirectoryHandle)):
        with pytest.raises(OSError, match="Bad file descriptor") as caught:
            table.get(wrong, kind)
        assert caught.value.errno == errno.EBADF


def test_numbers_are_not_used_again() -> None:
    """A late request for a closed handle can never meet another file."""
    table = HandleTable()
    first = table.add(ContentHandle(CONTENT))
    assert table.remove(first) is not None
    assert table.remove(first) is None
    assert table.find(first) is None
    assert table.add(ContentHandle(CONTENT)) != first
    assert len(table) == 1


def test_only_so_many_files_are_open_at_once() -> None:
    """I18: beyond the limit the answer is ENFILE, before anything is opened; bundles cost no descriptor."""
    table = HandleTable(limit=2)
    for _ in range(3):
        table.add(ContentHandle(CONTENT))
    first = table.add(DirectoryHandle(1))
    table.require_room()
    table.add(DirectoryHandle(1))
    with pytest.raises(OSError, match="Too many open files in system") as caught:
        table.require_room()
    assert caught.value.errno == errno.ENFILE
    table.remove(first)
    table.require_room()


def test_closing_closes_the_files() -> None:
    """I18: what is still open when the session ends is let go of."""
    reading, writing = os.pipe()
    table = HandleTable()
    inode = Inode(2, FileId(0, 2), None, b"")
    table.add(FileHandle(reading, inode, None, writes=False, synchronous=False))
    table.add(DirectoryHandle(1))
    table.close()
    assert len(table) == 0
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(reading)
    os.close(writing)
