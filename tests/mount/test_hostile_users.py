"""I19: what the kernel checked for one user is never done by root to something else."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from certfs.store import backing
from tests.support import frozen, mounts
from tests.support.mounts import CertfsMount
from tests.support.peer import Peer, User
from tests.support.tree import Tree

pytestmark = pytest.mark.mount

VICTIM, ATTACKER = (User(uid=uid, gid=uid) for uid in (20_001, 20_002))
SECRET = b"secret"
RACE_SECONDS = 1.0


@pytest.fixture(scope="module")
def shared_mount() -> Iterator[CertfsMount]:
    """Mount once for the module."""
    mounts.need_root()
    with mounts.mounted() as mount:
        yield mount


@pytest.fixture
def place(shared_mount: CertfsMount) -> Iterator[Path]:
    """Give a new directory on the mount that everybody may write to, like /tmp."""
    place = shared_mount.tree.xensource / f"place-{time.monotonic_ns()}"
    place.mkdir()
    place.chmod(0o1777)
    yield place
    shutil.rmtree(place)


@pytest.fixture
def beneath(shared_mount: CertfsMount, place: Path) -> Path:
    """Give the same directory in the store, where everybody can go as well."""
    return shared_mount.tree.store / place.relative_to(shared_mount.tree.root)


@pytest.fixture(scope="module")
def victim() -> Iterator[Peer]:
    """Give a user with secrets."""
    with Peer(user=VICTIM) as peer:
        yield peer


@pytest.fixture(scope="module")
def attacker() -> Iterator[Peer]:
    """Give another user, without any right to them."""
    with Peer(user=ATTACKER) as peer:
        yield peer


def keep_making(path: str, seconds: float) -> int:
    """Make a private file with a secret and remove it, again and again; give how often."""
    made = 0
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(FileExistsError, FileNotFoundError, PermissionError):
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            os.write(handle, SECRET)
            os.close(handle)
            made += 1
            os.unlink(path)
    return made


def keep_opening(path: str, seconds: float) -> tuple[int, int, list[int]]:
    """Open or make the same file; give how often it was another's, how often our own, and the errors."""
    others, own = 0, 0
    errors = set()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            errors.add(error.errno or 0)
            continue
        if os.fstat(handle).st_uid == ATTACKER.uid:
            own += 1
            with contextlib.suppress(OSError):
                os.unlink(path)
        else:
            others += 1
        os.close(handle)
    return others, own, sorted(errors)


def test_a_private_file_is_not_opened_by_who_tries_to_make_it(
    place: Path, victim: Peer, attacker: Peer
) -> None:
    """An open with O_CREAT that another user's O_EXCL overtakes is refused, and by the errno of a plain directory."""
    path = str(place / "x")
    victim.send(keep_making, path, RACE_SECONDS)
    others, own, errors = attacker.call(keep_opening, path, RACE_SECONDS)
    made = victim.receive()
    assert others == 0
    assert made
    assert own
    assert set(errors) <= {errno.EACCES}


def outcome(call: str, *arguments: object) -> int:
    """Call a function of os; give 0 or the errno."""
    try:
        getattr(os, call)(*arguments)
    except OSError as error:
        return error.errno or -1
    return 0


def exchange(directory: str, one: str, other: str) -> int:
    """Exchange two names with renameat2(2); give 0 or the errno."""
    handle = os.open(directory, os.O_PATH)
    try:
        backing.rename(handle, one.encode(), handle, other.encode(), backing.RENAME_EXCHANGE)
    except OSError as error:
        return error.errno or -1
    finally:
        os.close(handle)
    return 0


def make(path: str, kind: str) -> None:
    """Make a private file or directory."""
    if kind == "directory":
        os.mkdir(path, 0o700)
    else:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))


def is_there(path: str) -> bool:
    """Whether the path exists, asked of the kernel: it believes the answer for an instant."""
    return os.path.lexists(path)


@pytest.mark.parametrize("action", ["unlink", "rmdir", "rename", "replace", "exchange"])
def test_a_name_that_means_another_file_by_now(
    place: Path, beneath: Path, victim: Peer, attacker: Peer, action: str
) -> None:
    """In a directory with the sticky bit nobody removes or moves another's file, however the name came to mean it."""
    kind = "directory" if action == "rmdir" else "file"
    attacker.call(make, str(place / "x"), kind)
    victim.call(make, str(beneath / "theirs"), kind)
    attacker.call(make, str(place / "mine"), kind)
    assert attacker.call(is_there, str(place / "mine"))
    assert attacker.call(is_there, str(place / "x"))
    # Both are in the kernel's memory now, as the attacker's.
    (beneath / "x").rename(beneath / "away")
    (beneath / "theirs").rename(beneath / "x")
    if action == "exchange":
        got = attacker.call(exchange, str(place), "mine", "x")
    elif action == "rename":
        got = attacker.call(outcome, "rename", str(place / "x"), str(place / "taken"))
    elif action == "replace":
        got = attacker.call(outcome, "rename", str(place / "mine"), str(place / "x"))
    else:
        got = attacker.call(outcome, action, str(place / "x"))
    assert got in {errno.EPERM, errno.ESTALE}
    assert (beneath / "x").stat().st_uid == VICTIM.uid


def test_a_file_made_private_beneath_is_private_at_once(
    place: Path, beneath: Path, victim: Peer, attacker: Peer
) -> None:
    """An open is checked against the mode that the file has in the store, not against what the kernel remembers."""
    victim.call(make, str(place / "x"), "file")
    (beneath / "x").chmod(0o644)
    assert attacker.call(outcome, "close", attacker_opens(attacker, place / "x")) == 0
    (beneath / "x").chmod(0o600)
    assert attacker_opens(attacker, place / "x") == -errno.EACCES


def attacker_opens(attacker: Peer, path: Path) -> int:
    """Let the attacker open a file for reading; give the descriptor there or the negative errno."""
    return attacker.call(open_or_errno, str(path))


def open_or_errno(path: str) -> int:
    """Open for reading; give the descriptor or the negative errno."""
    try:
        return os.open(path, os.O_RDONLY)
    except OSError as error:
        return -(error.errno or 1)


def test_what_is_made_belongs_to_who_made_it(place: Path, beneath: Path, attacker: Peer) -> None:
    """Owner, group and mode are those of a plain directory, also where the group comes from the directory."""
    shared = beneath / "shared"
    shared.mkdir()
    os.chown(shared, 0, 20_009)
    shared.chmod(0o2777)
    attacker.call(keep_kinds, str(place / "shared"))
    found = {
        entry.name: (entry.lstat().st_uid, entry.lstat().st_gid, oct(entry.lstat().st_mode))
        for entry in shared.iterdir()
    }
    uid, group = ATTACKER.uid, 20_009
    assert found == {
        "directory": (uid, group, oct(stat.S_IFDIR | 0o2750)),
        "file": (uid, group, oct(stat.S_IFREG | 0o640)),
        "set-id": (uid, group, oct(stat.S_IFREG | 0o4750)),
        "fifo": (uid, group, oct(stat.S_IFIFO | 0o600)),
        "link": (uid, group, oct(stat.S_IFLNK | 0o777)),
    }


def keep_kinds(directory: str) -> None:
    """Make one of each kind."""
    os.mkdir(f"{directory}/directory", 0o750)
    for name, mode in (("file", 0o640), ("set-id", 0o6750)):
        os.close(os.open(f"{directory}/{name}", os.O_CREAT | os.O_WRONLY, mode))
    os.mkfifo(f"{directory}/fifo", 0o600)
    os.symlink("x", f"{directory}/link")


def fill(directory: str) -> tuple[int, int]:
    """Take all the space that there is, in files and in attributes of files; give how often each was possible."""
    block = b"x" * (1 << 16)
    written = attributes = 0
    file = os.open(f"{directory}/large", os.O_WRONLY | os.O_CREAT, 0o600)
    with contextlib.suppress(OSError):
        while True:
            written += os.write(file, block)
    os.fsync(file)
    os.close(file)
    with contextlib.suppress(OSError):
        while True:
            os.close(os.open(f"{directory}/{attributes}", os.O_WRONLY | os.O_CREAT, 0o600))
            os.setxattr(f"{directory}/{attributes}", "user.x", block[:3000])
            attributes += 1
    return written, attributes


def test_blocks_reserved_for_root_are_for_root() -> None:
    """A user fills a mount as far as the directory beneath and no further; root's writes go on (I11, I19)."""
    mounts.need_root()
    place = mounts.scratch_directory()

    def use(disk: Path) -> Callable[[Tree], None]:
        def prepare(tree: Tree) -> None:
            subprocess.run(["mount", "--bind", disk, tree.root], check=True, timeout=30)
            tree.make()

        return prepare

    try:
        with (
            frozen.loop_filesystem(place, reserved=20) as disk,
            mounts.mounted(prepare=use(disk), standard=False) as mount,
            Peer(user=ATTACKER) as peer,
        ):
            users = mount.tree.xensource / "users"
            users.mkdir()
            users.chmod(0o777)
            peer.call(fill, str(users))
            left = os.statvfs(disk)
            assert left.f_bfree - left.f_bavail > left.f_blocks // 10
            with (mount.tree.xensource / "root's").open("wb") as file:
                assert file.write(b"x" * (1 << 20)) == 1 << 20
    finally:
        shutil.rmtree(place, ignore_errors=True)
