"""I19: a system call that the kernel checked for a user is made with that user's rights, not with root's."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pyfuse3
import pytest

from certfs.fuse import caller, files, names
from certfs.fuse.handles import FileHandle
from certfs.fuse.inodes import ROOT
from certfs.store import backing
from tests.fuse.filesystem import Filesystem, fails
from tests.support import mounts
from tests.support.peer import Peer, User

USER = User(uid=20_001, gid=20_001, groups=(20_005,))


@dataclass(frozen=True, slots=True)
class Request:
    """What the kernel says of a caller."""

    uid: int
    gid: int
    pid: int
    umask: int = 0


@pytest.fixture(scope="module")
def user() -> Iterator[pyfuse3.RequestContext]:
    """Give a request of an ordinary user, whose process exists."""
    mounts.need_root()
    with Peer(user=USER) as peer:
        yield cast("pyfuse3.RequestContext", Request(USER.uid, USER.gid, peer.pid))


@pytest.fixture
def shared(fs: Filesystem) -> Path:
    """Give a directory of the store that everybody may write to, like /tmp."""
    path = fs.path / "shared"
    path.mkdir()
    path.chmod(0o1777)
    return path


Making = Callable[[Filesystem, pyfuse3.RequestContext, int], Awaitable[object]]

KINDS: dict[str, tuple[object, str, Making]] = {
    "mkdir": (names, "_mkdir", lambda fs, ctx, d: fs.operations.mkdir(d, b"x", 0o755, ctx)),
    "mknod": (
        names,
        "_mknod",
        lambda fs, ctx, d: fs.operations.mknod(d, b"x", stat.S_IFIFO | 0o644, 0, ctx),
    ),
    "symlink": (names, "_symlink", lambda fs, ctx, d: fs.operations.symlink(d, b"x", b"y", ctx)),
    "create": (
        files,
        "_open_in",
        lambda fs, ctx, d: fs.operations.create(d, b"x", 0o644, os.O_WRONLY | os.O_CREAT, ctx),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
async def test_an_exchange_right_after_making_gives_nothing_away(
    fs: Filesystem,
    shared: Path,
    user: pyfuse3.RequestContext,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever puts root's file in the place of what was just made does not become its owner."""
    roots = shared / "roots"
    roots.touch(mode=0o600)
    os.chown(shared, user.uid, user.gid)
    module, function, make = KINDS[kind]
    original = getattr(module, function)

    def make_and_exchange(directory: int, *args: object) -> object:
        result = original(directory, *args)
        backing.rename(directory, b"x", directory, b"roots", backing.RENAME_EXCHANGE)
        return result

    monkeypatch.setattr(module, function, make_and_exchange)
    # What the caller is told then, of a file that is not the one it made, does not matter.
    await make(fs, user, await fs.number("shared"))
    assert os.stat(shared / "x").st_uid == 0
    assert os.lstat(shared / "roots").st_uid == USER.uid


async def test_an_open_file_is_the_one_that_was_made(
    fs: Filesystem, shared: Path, user: pyfuse3.RequestContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I19: with a private file of others put in its place, a new file's handle is not for the pages of that file."""
    secret = shared / "secret"
    secret.touch(mode=0o600)
    os.chown(shared, user.uid, user.gid)
    original = files._open_in

    def make_and_exchange(directory: int, name: bytes, flags: int, mode: int) -> int:
        handle = original(directory, name, flags, mode)
        backing.rename(directory, b"x", directory, b"secret", backing.RENAME_EXCHANGE)
        return handle

    monkeypatch.setattr(files, "_open_in", make_and_exchange)
    info, entry = await fs.operations.create(
        await fs.number("shared"), b"x", 0o600, os.O_RDWR | os.O_CREAT | os.O_EXCL, user
    )
    made = fs.operations.handles.get(info.fh, FileHandle)
    assert entry.st_ino == made.inode.number == os.fstat(made.fd).st_ino
    assert entry.st_uid == user.uid
    await fs.operations.release(info.fh)


async def create(fs: Filesystem, ctx: pyfuse3.RequestContext, flags: int = 0) -> int:
    """Answer a CREATE of shared/x; give the handle."""
    directory = await fs.number("shared")
    info, _ = await fs.operations.create(
        directory, b"x", 0o600, os.O_RDWR | os.O_CREAT | flags, ctx
    )
    return int(info.fh)


async def test_a_file_that_exists_is_handed_back_to_the_kernel(
    fs: Filesystem, shared: Path, user: pyfuse3.RequestContext
) -> None:
    """The first time with ESTALE, so that the kernel looks again; then it is opened with the caller's rights only."""
    (shared / "x").touch(mode=0o600)
    for expected in (errno.ESTALE, errno.EACCES, errno.ESTALE):
        with fails(expected):
            await create(fs, user)
    with fails(errno.EEXIST):
        await create(fs, user, os.O_EXCL)


@pytest.mark.parametrize(
    "owner,group,mode,opens",
    [
        (USER.uid, 0, 0o600, True),
        (0, USER.gid, 0o660, True),
        (0, USER.groups[0], 0o660, True),
        (0, 0, 0o666, True),
        (0, 0, 0o660, False),
        (0, USER.groups[0], 0o606, False),
        (USER.uid, 0, 0o066, False),
    ],
)
async def test_the_second_time_the_caller_s_rights_decide(  # noqa: PLR0913, PLR0917 - a table
    fs: Filesystem,
    shared: Path,
    user: pyfuse3.RequestContext,
    owner: int,
    group: int,
    mode: int,
    opens: bool,  # noqa: FBT001
) -> None:
    """User, group and supplementary groups count as for an open(2) of the caller's own, also against it."""
    path = shared / "x"
    path.write_bytes(b"content")
    os.chown(path, owner, group)
    path.chmod(mode)
    with fails(errno.ESTALE):
        await create(fs, user)
    if opens:
        await fs.operations.release(await create(fs, user, os.O_TRUNC))
        assert path.read_bytes() == b""
    else:
        with fails(errno.EACCES):
            await create(fs, user)


@pytest.mark.parametrize("kind", ["symlink", "fifo", "directory"])
async def test_only_a_regular_file_is_opened_the_second_time(
    fs: Filesystem, shared: Path, user: pyfuse3.RequestContext, kind: str
) -> None:
    """A link is not followed, and a FIFO keeps no thread: the kernel has to look."""
    path = shared / "x"
    if kind == "symlink":
        path.symlink_to("/etc/passwd")
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    for _ in range(2):
        with fails(errno.ESTALE):
            await create(fs, user)


async def test_a_file_that_took_another_s_number_is_not_taken_for_it(
    fs: Filesystem, shared: Path, user: pyfuse3.RequestContext
) -> None:
    """A store may give a new file the number of one that is gone: what was checked for that one does not count."""
    path = shared / "x"
    path.touch(mode=0o666)
    path.chmod(0o666)
    number = await fs.number("shared/x")
    # The same number with another owner and mode is what a new file looks like.
    path.chmod(0o600)
    for request in (
        lambda: fs.operations.open(number, os.O_RDONLY, user),
        lambda: fs.operations.setxattr(number, b"user.x", b"1", user),
        lambda: fs.operations.link(number, ROOT, b"y", user),
    ):
        with fails(errno.ESTALE):
            await request()
    entry = await fs.walk("shared/x")
    assert stat.S_IMODE(entry.st_mode) == 0o600


def test_a_thread_is_itself_again(user: pyfuse3.RequestContext) -> None:
    """After a call for a user, also one that fails, the thread has root's rights and groups as before."""

    def credentials() -> list[str]:
        with open("/proc/thread-self/status", encoding="utf-8") as status:
            return [line for line in status if line.startswith(("Uid", "Gid", "Groups", "Cap"))]

    def fail() -> None:
        raise OSError(errno.EIO, "a disk that fails")

    before = credentials()
    inside = caller.as_caller(user, credentials)
    assert inside != before
    with pytest.raises(OSError, match="a disk"):
        caller.as_caller_alone(user, fail)
    assert credentials() == before


def test_a_process_that_is_another_one_by_now_lends_nothing(user: pyfuse3.RequestContext) -> None:
    """Groups and privileges are those of the process that asked: a number that was given again counts for nothing."""
    for pid in (os.getpid(), 0, 1 << 22):
        gone = cast("pyfuse3.RequestContext", Request(USER.uid, USER.gid, pid))
        assert not caller.is_member(gone, USER.groups[0])
        with pytest.raises(PermissionError):
            caller.as_caller_alone(gone, os.getpid)
    assert caller.is_member(user, USER.groups[0])
