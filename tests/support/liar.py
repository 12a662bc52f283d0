"""A file system of another user's which says that everything in it is root's.

Owns a tree of fixed names: ``link`` and ``certs/link.pem`` are links to the target that it is started with, ``file``
is a file, ``runtime`` a directory, ``mute`` one that cannot be listed, and ``endless`` one that never ends, as are
those of a store. Run as ``python -m tests.support.liar MOUNTPOINT USER TARGET``; root mounts it, with the options that
fusermount3 would give it for that user.
"""

# ruff: noqa: ARG002 - arguments of pyfuse3's, which this needs none of

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyfuse3
import trio

from certfs.linux import mount_syscalls
from tests.support import mounts

LIAR = 20_001
_DIRECTORY, _FILE, _LINK = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o644, stat.S_IFLNK | 0o777
_ENDLESS, _MUTE = 6, 8
_NAMES = {
    (1, b"link"): 2,
    (1, b"certs"): 3,
    (3, b"link.pem"): 2,
    (1, b"file"): 4,
    (1, b"runtime"): 5,
    (1, b"endless"): _ENDLESS,
    (1, b"mute"): _MUTE,
    (1, b"xensource"): _ENDLESS,
    (1, b"trusted-certs"): _ENDLESS,
    (1, b"stunnel"): 7,
    (7, b"certs"): _ENDLESS,
    (7, b"certs-pool"): _ENDLESS,
    (7, b"crls"): _ENDLESS,
}
_MODES = {
    1: _DIRECTORY,
    2: _LINK,
    3: _DIRECTORY,
    4: _FILE,
    5: _DIRECTORY,
    _ENDLESS: _DIRECTORY,
    7: _DIRECTORY,
    _MUTE: _DIRECTORY,
}


class _Operations(pyfuse3.Operations):
    def __init__(self, target: bytes) -> None:
        super().__init__()
        self._target = target

    async def getattr(
        self, inode: int, ctx: pyfuse3.RequestContext | None = None
    ) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino, entry.st_mode, entry.st_nlink = pyfuse3.InodeT(inode), _MODES[inode], 1
        return entry

    async def lookup(
        self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext | None = None
    ) -> pyfuse3.EntryAttributes:
        number = _NAMES.get((parent_inode, name))
        if number is None:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return await self.getattr(number)

    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        return self._target

    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        if inode == _MUTE:
            raise pyfuse3.FUSEError(errno.EIO)
        return inode

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        if fh == _ENDLESS:
            entry = await self.getattr(_ENDLESS)
            while pyfuse3.readdir_reply(token, b"%d.pem" % start_id, entry, start_id + 1):
                start_id += 1
            return
        names = [(name, number) for (parent, name), number in _NAMES.items() if parent == fh]
        for position, (name, number) in enumerate(names, start=1):
            if position > start_id:
                entry = await self.getattr(number)
                if not pyfuse3.readdir_reply(token, name, entry, position):
                    return

    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(inode))


def main(point: str, user: str, target: str) -> None:
    """Serve until it is unmounted."""
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id={user},group_id={user},allow_other"
    mount_syscalls.mount("liar", point, "fuse", 0, options)
    pyfuse3.init(_Operations(os.fsencode(target)), f"/dev/fd/{device}", set())
    print("mounted", flush=True)
    trio.run(pyfuse3.main)


@contextmanager
def lying(point: Path, target: Path) -> Iterator[None]:
    """Mount one at ``point``, of the user LIAR, with links to ``target``."""
    mounts.need_fuse()
    mounts.need_root()
    command: list[str | Path] = [sys.executable, "-m", __name__, point, str(LIAR), target]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"mounted\n"
            yield
        finally:
            mounts.force_unmount(str(point))
            process.terminate()


if __name__ == "__main__":
    main(*sys.argv[1:])
