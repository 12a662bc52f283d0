"""A new kind of file or directory of our own is one class and one registration; the operations ask no number."""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path

import pytest

import certfs.fuse
from certfs.fuse.inodes import ROOT
from certfs.fuse.nodes import Node, OwnDirectory
from certfs.fuse.synthetic import STATUS_DIRECTORY_NUMBER, Text
from tests.fuse.filesystem import CTX, Filesystem, fails


@pytest.fixture
def greeted(fs: Filesystem) -> Filesystem:
    """Give a file system with a new kind of directory, ``.certfs/new``, that has a new kind of file, ``hello``."""
    operations = fs.operations
    directory = OwnDirectory(operations.synthetic._numbers.own(), 5)

    async def hello() -> Node:
        return operations.synthetic.add(Text(b"hello"), 7)

    async def new() -> Node:
        return directory

    directory.add(b"hello", hello)
    operations.own.add(directory)
    parent = operations.own.find(STATUS_DIRECTORY_NUMBER)
    assert isinstance(parent, OwnDirectory)
    parent.add(b"new", new)
    return fs


async def test_a_new_kind_is_found_and_read(greeted: Filesystem) -> None:
    """By name, with its attributes and its content."""
    directory = await greeted.walk(".certfs/new")
    assert stat.S_ISDIR(directory.st_mode)
    file = await greeted.walk(".certfs/new/hello")
    assert (stat.S_IMODE(file.st_mode), file.st_size, file.st_mtime_ns) == (0o644, 5, 7)
    assert await greeted.read(".certfs/new/hello") == b"hello"
    with fails(errno.ENOENT):
        await greeted.walk(".certfs/new/none")
    parent = greeted.operations.own.find(STATUS_DIRECTORY_NUMBER)
    assert parent is not None
    assert parent.names() == [b"status.json", b"summary.json", b"new"]


async def test_a_new_kind_cannot_be_changed(greeted: Filesystem) -> None:
    """I8: like an immutable file, whatever the kind."""
    operations = greeted.operations
    directory = (await greeted.walk(".certfs/new")).st_ino
    file = (await greeted.walk(".certfs/new/hello")).st_ino
    with fails(errno.EPERM):
        await operations.open(file, os.O_WRONLY, CTX)
    for answer in (
        operations.unlink(directory, b"hello", CTX),
        operations.mkdir(directory, b"x", 0o755, CTX),
        operations.rename(directory, b"hello", ROOT, b"x", 0, CTX),
        operations.link(file, ROOT, b"x", CTX),
        operations.setxattr(file, b"user.x", b"1", CTX),
        operations.setxattr(directory, b"user.x", b"1", CTX),
    ):
        with fails(errno.EPERM):
            await answer
    with fails(errno.EISDIR):
        await operations.open(directory, os.O_RDONLY, CTX)
    with fails(errno.ENOTDIR):
        await operations.opendir(file, CTX)
    assert await operations.listxattr(file, CTX) == []
    with fails(errno.ENODATA):
        await operations.getxattr(directory, b"user.x", CTX)


async def test_a_new_kind_is_opened_as_a_directory_and_forgotten(greeted: Filesystem) -> None:
    """I18: a handle keeps no descriptor, a file goes with its last lookup, a directory is there for good."""
    operations = greeted.operations
    directory = (await greeted.walk(".certfs/new")).st_ino
    handle = await operations.opendir(directory, CTX)
    await operations.fsyncdir(handle, datasync=False)
    await operations.releasedir(handle)
    file = (await greeted.walk(".certfs/new/hello")).st_ino
    await operations.forget([(file, 1), (directory, 3)])
    assert operations.own.find(file) is None
    assert operations.own.find(directory) is not None
    with fails(errno.ESTALE):
        await operations.getattr(file, CTX)


def test_only_the_registration_knows_which_kinds_there_are() -> None:
    """The operations ask `OwnNodes.find`; no other place compares a number or a kind with one of ours."""
    asking = re.compile(
        r"== STATUS_DIRECTORY_NUMBER|!= STATUS_DIRECTORY_NUMBER|is_virtual|synthetic\.find"
    )
    package = Path(certfs.fuse.__file__).parent
    found = {
        path.name: len(asking.findall(path.read_text(encoding="utf-8")))
        for path in package.glob("*.py")
    }
    # The announcer's names lie in the directory of the status, and it alone sees them.
    assert {name: count for name, count in found.items() if count} == {"announcements.py": 5}
