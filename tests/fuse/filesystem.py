"""The operations without a mount, called in the order in which the kernel calls them.

Owns the small part of the kernel's side that a test needs: looking up a path, open files and their numbers.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyfuse3
import pytest

from certfs.core.bundle import BundleSpec
from certfs.fuse.base import Tables
from certfs.fuse.calls import Calls
from certfs.fuse.handles import HandleTable
from certfs.fuse.inodes import ROOT, InodeTable
from certfs.fuse.operations import Operations
from certfs.fuse.synthetic import SyntheticFiles
from certfs.store.bundle import Published
from certfs.store.bundles import Trust
from certfs.store.directories import Roots

CTX = pyfuse3.RequestContext()
"""A request of root's, with the pid 0."""

SPECS = (
    BundleSpec((b"certs",), (b"bundle.pem",)),
    BundleSpec((b"pool",), (b"pool-bundle.pem",)),
)


@dataclass(slots=True)
class Filesystem:
    """The operations over a store of two bundles."""

    path: Path
    operations: Operations
    trust: Trust
    published: list[Published]
    doorbell: int
    """Writing to this descriptor looks like a request that waits to be read."""

    async def walk(self, path: str) -> pyfuse3.EntryAttributes:
        """Look a path up, component by component."""
        number = ROOT
        entry = await self.operations.getattr(ROOT, CTX)
        for part in path.split("/"):
            entry = await self.operations.lookup(number, part.encode(), CTX)
            number = entry.st_ino
        return entry

    async def number(self, path: str) -> int:
        """Give the node number of a path, the root's for none."""
        return (await self.walk(path)).st_ino if path else ROOT

    async def open(self, path: str, flags: int = os.O_RDONLY) -> int:
        """Look up and open; give the handle."""
        info = await self.operations.open(await self.number(path), flags, CTX)
        return int(info.fh)

    async def create(self, path: str, flags: int = os.O_WRONLY) -> int:
        """Create and open; give the handle."""
        directory, _, name = path.rpartition("/")
        try:
            info, _ = await self.operations.create(
                await self.number(directory), name.encode(), 0o644, flags | os.O_CREAT, CTX
            )
        except pyfuse3.FUSEError as e:
            if e.errno != errno.ESTALE:
                raise
            # The kernel looks again and finds the file.
            return await self.open(path, flags & ~os.O_EXCL)
        return int(info.fh)

    async def write(self, handle: int, data: bytes, offset: int = 0) -> None:
        """Write at an offset."""
        assert await self.operations.write(handle, offset, data) == len(data)

    async def put(self, path: str, data: bytes) -> None:
        """Create, write, close."""
        handle = await self.create(path)
        await self.write(handle, data)
        await self.operations.release(handle)

    async def read(self, path: str) -> bytes:
        """Look up, open, read, close."""
        handle = await self.open(path)
        try:
            return bytes(await self.operations.read(handle, 0, 1 << 24))
        finally:
            await self.operations.release(handle)

    async def rename(self, old: str, new: str, flags: int = 0) -> None:
        """Rename within the root or a directory of it."""
        (old_directory, _, old_name), (new_directory, _, new_name) = (
            old.rpartition("/"),
            new.rpartition("/"),
        )
        await self.operations.rename(
            await self.number(old_directory),
            old_name.encode(),
            await self.number(new_directory),
            new_name.encode(),
            flags,
            CTX,
        )

    async def unlink(self, path: str) -> None:
        """Remove a name."""
        directory, _, name = path.rpartition("/")
        await self.operations.unlink(await self.number(directory), name.encode(), CTX)


def fails(code: int) -> pytest.RaisesExc[pyfuse3.FUSEError]:
    """Expect a handler to answer an errno."""
    return pytest.RaisesExc(pyfuse3.FUSEError, check=lambda error: error.errno == code)


@contextmanager
def filesystem(path: Path) -> Iterator[Filesystem]:
    """Open a store with the directories ``certs`` and ``pool``."""
    for name in ("certs", "pool", "other"):
        (path / name).mkdir(exist_ok=True)
    fd = os.open(path, os.O_PATH)
    published: list[Published] = []
    roots = Roots({b"": fd})
    made: list[Operations] = []
    trust = Trust(
        roots,
        SPECS,
        is_busy=lambda identity: bool(made) and made[0].is_busy(identity),
        observer=published.append,
    )
    calls = Calls()
    operations = Operations(
        roots,
        trust,
        Tables(
            InodeTable(limit=100, let_go=calls.let_go),
            HandleTable(),
            SyntheticFiles(lambda: b'{"version": 1}\n'),
        ),
        calls,
    )
    made.append(operations)
    waiting, doorbell = os.pipe()
    operations.pending_requests.descriptor = waiting
    trust.load()
    try:
        yield Filesystem(path, operations, trust, published, doorbell)
    finally:
        operations.close()
        trust.close()
        for each in (fd, waiting, doorbell):
            os.close(each)
