"""I11, I19: users, permissions, set-id programs, devices and locks are as on the directory beneath."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import mounts, peer
from tests.support.mounts import CertfsMount
from tests.support.peer import Peer, User

pytestmark = [pytest.mark.mount, pytest.mark.counted]


@pytest.fixture(scope="module")
def shared_mount() -> Iterator[CertfsMount]:
    """Mount once for the module."""
    with mounts.mounted() as mount:
        yield mount


@pytest.fixture
def place(shared_mount: CertfsMount) -> Iterator[Path]:
    """Give an empty directory on the mount, for everybody."""
    place = shared_mount.tree.xensource / "place"
    place.mkdir()
    place.chmod(0o777)
    yield place
    shutil.rmtree(place)


@pytest.fixture
def beneath(shared_mount: CertfsMount, place: Path) -> Path:
    """Give the same directory in the store."""
    return shared_mount.tree.store / place.relative_to(shared_mount.tree.root)


def whoami_by(program: str) -> bytes:
    """Run a set-id program and give what it says."""
    return subprocess.run([program, "-u"], check=True, capture_output=True, timeout=10).stdout


def test_set_id_programs_work_and_lose_their_bits(place: Path) -> None:
    """A set-user-id program runs as its owner; another user's write takes the bit away."""
    mounts.need_root()
    program = place / "id"
    shutil.copy("/usr/bin/id", program)
    os.chown(program, 20_001, 20_001)
    program.chmod(0o4777)
    with Peer(user=User(uid=20_002, gid=20_002)) as other:
        assert other.call(whoami_by, str(program)) == b"20001\n"
        other.call(peer.append_lines, str(program), "", 1)
    assert stat.S_IMODE(program.stat().st_mode) == 0o777


def keep_owner(path: str) -> int:
    """Call chown(path, -1, -1), which changes nothing that it names; give 0 or the errno."""
    try:
        os.chown(path, -1, -1)
    except OSError as error:
        return error.errno or -1
    return 0


def write_byte(path: str) -> int:
    """Write in place; give 0."""
    handle = os.open(path, os.O_WRONLY)
    os.write(handle, b"x")
    os.close(handle)
    return 0


def write_and_keep_owner(path: str) -> int:
    """Write in place and call chown(path, -1, -1) meanwhile; give 0 or the errno."""
    handle = os.open(path, os.O_WRONLY)
    os.write(handle, b"x")
    result = keep_owner(path)
    os.close(handle)
    return result


OWNER, STRANGER, OUTSIDE = 20_001, 20_002, 20_003
"""A user who owns the file (and the group of that number), one who does not, and a group without users."""


@pytest.mark.parametrize("mode", [0o666, 0o2666, 0o2676, 0o4666, 0o6666, 0o6777])
def test_set_id_bits_go_as_beneath(place: Path, beneath: Path, mode: int) -> None:
    """A write, or a chown to nobody else, by anybody takes from a file what it takes from one beneath."""
    mounts.need_root()
    users = (
        User(uid=OWNER, gid=OWNER),
        User(uid=OWNER, gid=OUTSIDE),
        User(uid=STRANGER, gid=STRANGER),
        User(uid=STRANGER, gid=STRANGER, groups=(OWNER,)),
    )
    seen: dict[Path, list[object]] = {place: [], beneath: []}
    for user in users:
        with Peer(user=user) as caller:
            for action in (keep_owner, write_byte, write_and_keep_owner):
                for directory, results in seen.items():
                    path = directory / f"{directory is place}"
                    path.touch()
                    os.chown(path, OWNER, OWNER)
                    path.chmod(mode)
                    before = path.stat().st_ctime_ns
                    result = caller.call(action, str(path))
                    after = path.stat()
                    changed = after.st_ctime_ns != before
                    results.append((user, action.__name__, result, oct(after.st_mode), changed))
                    path.unlink()
    assert seen[place] == seen[beneath]


def test_devices_can_be_opened(place: Path) -> None:
    """The tree of /etc/xensource has links to devices, and root's device nodes work."""
    mounts.need_root()
    os.mknod(place / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    (place / "link").symlink_to("/dev/zero")
    for name in ("zero", "link"):
        with (place / name).open("rb") as device:
            assert device.read(10) == bytes(10)


def open_errno(path: str, flags: int) -> int:
    """Open and close; give 0 or the errno."""
    try:
        os.close(os.open(path, flags))
    except OSError as error:
        return error.errno or -1
    return 0


def test_private_keys_stay_private(shared_mount: CertfsMount) -> None:
    """I19: a key that is 0400 in the store is unreadable for others on the mount."""
    mounts.need_root()
    with Peer(user=User(uid=20_001, gid=20_001)) as other:
        path = str(shared_mount.tree.api_certificate)
        assert other.call(open_errno, path, os.O_RDONLY) == 13
        assert other.call(open_errno, str(shared_mount.tree.pool_bundle), os.O_RDONLY) == 0


def create_for(path: str) -> tuple[int, int]:
    """Create a file and give its owner."""
    handle = os.open(path, os.O_CREAT | os.O_WRONLY, 0o644)
    status = os.fstat(handle)
    os.close(handle)
    return status.st_uid, status.st_gid


def test_what_a_user_creates_is_theirs(place: Path, beneath: Path) -> None:
    """I19: a new file belongs to its creator, in the store too."""
    mounts.need_root()
    with Peer(user=User(uid=20_001, gid=20_001)) as other:
        assert other.call(create_for, str(place / "theirs")) == (20_001, 20_001)
    assert (beneath / "theirs").stat().st_uid == 20_001


def test_access_control_lists(place: Path) -> None:
    """The programs setfacl and getfacl work, and the list decides who may read."""
    mounts.need_program("setfacl", "getfacl")
    mounts.need_root()
    secret = place / "secret"
    secret.write_bytes(b"x")
    secret.chmod(0o600)
    subprocess.run(["setfacl", "-m", "u:20001:r", secret], check=True, timeout=10)
    shown = subprocess.run(
        ["getfacl", "-cn", secret], check=True, capture_output=True, text=True, timeout=10
    ).stdout
    assert "user:20001:r--" in shown
    results = []
    for uid in (20_001, 20_002):
        with Peer(user=User(uid=uid, gid=uid)) as other:
            results.append(other.call(open_errno, str(secret), os.O_RDONLY))
    assert results == [0, 13]


def test_a_running_program_cannot_be_written(place: Path) -> None:
    """Writing to an executable that runs is ETXTBSY; replacing it by rename works."""
    program = place / "sleep"
    shutil.copy("/usr/bin/sleep", program)
    with subprocess.Popen([program, "60"]) as running:
        try:
            assert open_errno(str(program), os.O_WRONLY) == 26
            shutil.copy("/usr/bin/true", place / "new")
            (place / "new").rename(program)
            assert subprocess.run([program], check=False, timeout=10).returncode == 0
        finally:
            running.kill()


def lock_and_tell(path: str, told: str) -> bool:
    """Wait for a record lock on a file; give whether the holder had told us by then."""
    with open(path, "r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        return os.path.exists(told)


def test_a_record_lock_is_waited_for(place: Path) -> None:
    """F_SETLKW in another process returns when the holder lets go, not before."""
    path = place / "locked"
    path.touch()
    with Peer() as other, path.open("r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        other.send(lock_and_tell, str(path), str(place / "told"))
        (place / "told").touch()
        fcntl.lockf(file, fcntl.LOCK_UN)
        assert other.receive() is True


def test_root_without_the_capability_loses_set_id_bits(place: Path, tmp_path: Path) -> None:
    """I11, I19: what keeps set-user-id when a file is emptied is CAP_FSETID, not being root (capabilities(7))."""
    mounts.need_root()
    mounts.need_program("setpriv")
    modes = []
    for directory in (place, tmp_path):
        path = directory / "program"
        path.touch()
        os.chown(path, 65534, 65534)
        path.chmod(0o4755)
        less = ["setpriv", "--bounding-set=-fsetid", "--inh-caps=-fsetid"]
        subprocess.run([*less, "sh", "-c", f": > {path}"], check=True, timeout=30)
        modes.append(oct(path.stat().st_mode))
        path.unlink()
    assert modes == ["0o100755", "0o100755"]


def test_root_without_the_capability_sees_no_trusted_attributes(place: Path, beneath: Path) -> None:
    """I11, I19: trusted attributes are listed to CAP_SYS_ADMIN, which root in a container does not have (xattr(7))."""
    mounts.need_root()
    mounts.need_program("setpriv")
    (place / "file").touch()
    os.setxattr(beneath / "file", "trusted.x", b"secret")
    program = "import os, sys; print(os.listxattr(sys.argv[1]))"
    less = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]
    for command, listed in ((less, "[]\n"), ([], "['trusted.x']\n")):
        for directory in (beneath, place):
            words = [*command, sys.executable, "-S", "-c", program, str(directory / "file")]
            assert (
                subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout
                == listed
            )
