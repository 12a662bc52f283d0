"""I19: a name that is exchanged for one of root's, again and again, while another user does everything to it."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import stat
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from certfs.store import backing
from tests.support import mounts
from tests.support.mounts import CertfsMount
from tests.support.peer import Peer, User

pytestmark = pytest.mark.mount

OWNER, ATTACKER = (User(uid=uid, gid=uid) for uid in (20_002, 20_001))
SECRET = b"secret"
SECONDS = 1.0
_OTHERS_MAY_READ = struct.pack(
    "<IHHIHHIHHIHHI", 2, 1, 6, 0xFFFFFFFF, 4, 6, 0xFFFFFFFF, 32, 6, 0xFFFFFFFF, 0, 0, 0
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an action ended with, each time: 0, an errno, or -1 for what must not be."""

    action: str
    results: tuple[int, ...]


def get_ready() -> None:
    """Do nothing: whoever is asked for it first has this module, whose import may take longer than a race."""


def keep_exchanging(directory: str, seconds: float) -> int:
    """Exchange ``x`` and ``roots``, as the owner of the directory may; give how often."""
    handle = os.open(directory, os.O_PATH)
    count, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            backing.rename(handle, b"x", handle, b"roots", backing.RENAME_EXCHANGE)
            count += 1
    os.close(handle)
    return count


def _opened(path: str, flags: int) -> int:
    handle = os.open(path, flags | os.O_NONBLOCK, 0o666)
    try:
        return 0 if os.fstat(handle).st_uid == ATTACKER.uid else -1
    finally:
        os.close(handle)


def _attribute(path: str) -> int:
    return 0 if os.getxattr(path, "user.known") != SECRET else -1


def _linked(path: str) -> int:
    other = f"{path}-link"
    os.link(path, other)
    try:
        return 0 if os.lstat(other).st_uid == ATTACKER.uid else -1
    finally:
        os.unlink(other)


def _moved(path: str) -> int:
    other = f"{path}-moved"
    os.rename(path, other)
    try:
        return 0 if os.lstat(other).st_uid == ATTACKER.uid else -1
    finally:
        os.rename(other, path)


def _removed(path: str) -> int:
    os.unlink(path)
    return 0


def _done(call: Callable[..., object], *arguments: object) -> Callable[[str], int]:
    def act(path: str) -> int:
        call(path, *arguments)
        return 0

    return act


def _fifo(path: str) -> int:
    os.mkfifo(path, 0o666)
    os.unlink(path)
    return 0


def _directory(path: str) -> int:
    os.mkdir(path)
    os.rmdir(path)
    return 0


def _symlink(path: str) -> int:
    os.symlink("/etc/hostname", path)
    os.unlink(path)
    return 0


ACTIONS: dict[str, Callable[[str], int]] = {
    "read": lambda path: _opened(path, os.O_RDONLY),
    "write": lambda path: _opened(path, os.O_RDWR),
    "empty": lambda path: _opened(path, os.O_WRONLY | os.O_TRUNC),
    "create": lambda path: _opened(path, os.O_RDWR | os.O_CREAT),
    "exclusive": lambda path: _opened(path, os.O_RDWR | os.O_CREAT | os.O_EXCL),
    "truncate": _done(os.truncate, 3),
    "chmod": _done(os.chmod, 0o666),
    "chown": _done(os.chown, -1, ATTACKER.gid),
    "take": _done(os.chown, ATTACKER.uid, ATTACKER.gid),
    "times": _done(os.utime, (1, 1)),
    "now": _done(os.utime),
    "setxattr": _done(os.setxattr, "user.x", b"1"),
    "removexattr": _done(os.removexattr, "user.known"),
    "getxattr": _attribute,
    "acl": _done(os.setxattr, "system.posix_acl_access", _OTHERS_MAY_READ),
    "noacl": _done(os.removexattr, "system.posix_acl_access"),
    "link": _linked,
    "rename": _moved,
    "unlink": _removed,
    "rmdir": _done(os.rmdir),
    "mkdir": _directory,
    "mkfifo": _fifo,
    "symlink": _symlink,
}


def attack(directory: str, seconds: float) -> list[Outcome]:
    """Do everything to ``x``, in any order; give what came of each."""
    path = f"{directory}/x"
    found: dict[str, set[int]] = {action: set() for action in ACTIONS}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        action = random.choice(list(ACTIONS))  # noqa: S311 - a plan, no secret
        try:
            found[action].add(ACTIONS[action](path))
        except OSError as error:
            found[action].add(error.errno or -2)
        if not os.path.lexists(path):
            with contextlib.suppress(OSError):
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    return [Outcome(action, tuple(sorted(results))) for action, results in found.items()]


def prepare(directory: Path) -> os.stat_result:
    """Make a directory like /tmp that another user owns, with a private file of root's; give that file's status."""
    directory.mkdir()
    roots = directory / "roots"
    roots.write_bytes(SECRET)
    roots.chmod(0o600)
    os.setxattr(roots, "user.known", SECRET)
    os.utime(roots, (7, 7))
    os.chown(directory, OWNER.uid, OWNER.gid)
    directory.chmod(0o1777)
    return roots.stat()


def check(directory: Path, before: os.stat_result) -> None:
    """Find root's file as it was, and no other of root's."""
    own = [path for path in directory.iterdir() if path.lstat().st_uid == 0]
    assert [path.stat().st_ino for path in own] == [before.st_ino]
    (file,) = own
    after = file.stat()
    assert file.read_bytes() == SECRET
    assert os.listxattr(file) == ["user.known"]
    assert os.getxattr(file, "user.known") == SECRET
    for what in ("st_mode", "st_gid", "st_size", "st_mtime_ns", "st_nlink"):
        assert getattr(after, what) == getattr(before, what), what


@pytest.fixture(scope="module")
def shared_mount() -> Iterator[CertfsMount]:
    """Mount once for the module."""
    mounts.need_root()
    with mounts.mounted() as mount:
        yield mount


def race(directory: Path, seconds: float) -> dict[str, set[int]]:
    """Let the two at a directory for a while; give what came of each action."""
    with Peer(user=OWNER) as owner, Peer(user=ATTACKER) as attacker:
        for peer in (owner, attacker):
            peer.call(get_ready)
        owner.send(keep_exchanging, str(directory), seconds)
        outcomes = attacker.call(attack, str(directory), seconds)
        assert owner.receive()
    return {each.action: set(each.results) for each in outcomes}


def test_what_is_exchanged_for_root_s_stays_root_s(shared_mount: CertfsMount) -> None:
    """Nothing is read, written or learnt that a plain directory forbids, and errors are those of a plain directory."""
    place = shared_mount.tree.xensource / "races"
    plain = mounts.scratch_directory()
    plain.chmod(0o755)
    try:
        before = prepare(plain / "races")
        expected = race(plain / "races", SECONDS / 2)
        check(plain / "races", before)
        before = prepare(place)
        found = race(place, SECONDS)
        check(shared_mount.tree.store / place.relative_to(shared_mount.tree.root), before)
    finally:
        shutil.rmtree(plain)
        shutil.rmtree(place, ignore_errors=True)
    assert not {action for action, results in found.items() if -1 in results}
    unknown = {
        action: {
            errno.errorcode.get(each, each) for each in results - expected[action] - {errno.ENOENT}
        }
        for action, results in found.items()
        if results - expected[action] - {errno.ENOENT}
    }
    assert not unknown, stat.filemode(before.st_mode)
