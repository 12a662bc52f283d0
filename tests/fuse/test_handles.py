"""Open handles: numbers are never used twice, and a wrong one is EBADF."""

from __future__ import annotations

import errno
import os
from contextlib import suppress

import pytest

from certfs.fuse.handles import ContentHandle, DirectoryHandle, FileHandle, HandleTable
from certfs.fuse.inodes import Inode
from certfs.fuse.nodes import OwnDirectory
from certfs.fuse.synthetic import Content, Text
from certfs.store.backing import FileId

CONTENT = Content(1, Text(b""), 0)
DIRECTORY = OwnDirectory(1, 0)


def test_a_handle_is_found_by_its_number_and_kind() -> None:
    """Another kind, or a number that nobody was given, is EBADF."""
    table = HandleTable()
    handle = DirectoryHandle(0, DIRECTORY)
    number = table.add(handle)
    assert table.get(number, DirectoryHandle) is handle
    for wrong, kind in ((number, ContentHandle), (number + 1, DirectoryHandle)):
        with pytest.raises(OSError, match="Bad file descriptor") as caught:
            table.get(wrong, kind)
        assert caught.value.errno == errno.EBADF


def test_numbers_are_not_used_again() -> None:
    """A late request for a closed handle can never meet another file."""
    table = HandleTable()
    first = table.add(ContentHandle(0, CONTENT))
    assert table.remove(first) is not None
    assert table.remove(first) is None
    assert table.find(first) is None
    assert table.add(ContentHandle(0, CONTENT)) != first
    assert len(table) == 1


def test_only_so_many_files_are_open_at_once() -> None:
    """I18: beyond the limit the answer is ENFILE, before anything is opened; bundles cost no descriptor."""
    table = HandleTable(limit=2)
    for _ in range(3):
        table.add(ContentHandle(0, CONTENT))
    first = table.add(DirectoryHandle(0, DIRECTORY))
    table.require_room(0)
    table.add(DirectoryHandle(0, DIRECTORY))
    with pytest.raises(OSError, match="Too many open files in system") as caught:
        table.require_room(0)
    assert caught.value.errno == errno.ENFILE
    table.remove(first)
    table.require_room(0)


def test_closing_closes_the_files() -> None:
    """I18: what is still open when the session ends is let go of."""
    reading, writing = os.pipe()
    table = HandleTable()
    inode = Inode(2, FileId(0, 2), None, b"")
    table.add(FileHandle(0, reading, inode, None, writes=False, synchronous=False))
    table.add(DirectoryHandle(0, DIRECTORY))
    table.close()
    assert len(table) == 0
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(reading)
    os.close(writing)


def test_a_user_has_its_share_of_open_files() -> None:
    """I18: one user leaves others something, and all users leave root something."""
    table = HandleTable(limit=16)

    def fill(user: int) -> int:
        count = 0
        with suppress(OSError):
            while True:
                table.require_room(user)
                table.add(DirectoryHandle(user, DIRECTORY))
                count += 1
        return count

    assert [fill(user) for user in (1, 2, 3, 0)] == [8, 6, 0, 2]


def test_a_user_has_its_share_of_open_bundles(monkeypatch: pytest.MonkeyPatch) -> None:
    """I18: they cost memory, if no descriptor; root's are not limited."""
    monkeypatch.setattr("certfs.fuse.handles.USER_CONTENTS", 2)
    table = HandleTable()
    handles = [table.add(ContentHandle(1, CONTENT)) for _ in range(2)]
    with pytest.raises(OSError, match="Too many open files in system"):
        table.add(ContentHandle(1, CONTENT))
    for user in (2, 0, 0, 0):
        table.add(ContentHandle(user, CONTENT))
    table.remove(handles[0])
    table.add(ContentHandle(1, CONTENT))


def test_a_user_has_its_share_of_listed_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """I18: many open listings of a large directory; a single one may be as large as it is."""
    monkeypatch.setattr("certfs.fuse.handles.USER_NAMES", 10)
    table = HandleTable()
    handles = [DirectoryHandle(1, DIRECTORY) for _ in range(3)]
    numbers = [table.add(handle) for handle in handles]
    names = [b"x"] * 20
    table.list(handles[0], names)
    table.list(handles[0], names)
    with pytest.raises(OSError, match="Too many open files in system"):
        table.list(handles[1], names)
    table.remove(numbers[0])
    table.list(handles[1], names)
    root = [DirectoryHandle(0, DIRECTORY) for _ in range(3)]
    for handle in root:
        table.add(handle)
        table.list(handle, names)


def test_thousands_of_users_have_four_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    """I18: one who may map user ids (subuid(5)) does not fill the memory with a share for each; root has the rest."""
    monkeypatch.setattr("certfs.fuse.handles.USER_CONTENTS", 2)
    monkeypatch.setattr("certfs.fuse.handles.USER_NAMES", 10)
    table = HandleTable()
    contents, listings = [], []
    for user in range(1, 100):
        with suppress(OSError):
            contents += [table.add(ContentHandle(user, CONTENT)) for _ in range(2)]
        with suppress(OSError):
            listing = DirectoryHandle(user, DIRECTORY)
            number = table.add(listing)
            table.list(listing, [b"x"] * 20)
            listings.append(number)
    assert (len(contents), len(listings)) == (8, 4)
    table.add(ContentHandle(0, CONTENT))
    for number in (contents[0], listings[0]):
        table.remove(number)
    table.add(ContentHandle(200, CONTENT))
    listing = DirectoryHandle(200, DIRECTORY)
    table.add(listing)
    table.list(listing, [b"x"] * 20)
