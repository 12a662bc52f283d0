"""I12, I19: root serves a user's store at a user's mountpoint, and no link of that user leads it elsewhere."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from certfs.linux import mount_syscalls
from certfs.safe_open import LinkRefusedError
from tests.support import mounts, pki

pytestmark = pytest.mark.mount

USER = 20_001


@pytest.fixture
def home() -> Iterator[Path]:
    """Give a user's directory with a store, a mountpoint ``place/ssl``, and links to a ``victim`` beside it."""
    mounts.need_root()
    base = mounts.scratch_directory()
    home, victim = base / "home", base / "victim"
    for directory in (home / "store" / "stunnel" / "certs", home / "place" / "ssl", victim / "ssl"):
        directory.mkdir(parents=True)
    (home / "store" / "stunnel" / "certs" / "a.pem").write_bytes(pki.authority("a").pem)
    (victim / "ssl" / "precious").touch()
    (home / "link").symlink_to(victim)
    (home / "direct").symlink_to(victim / "ssl")
    for entry in (home, *home.rglob("*")):
        os.chown(entry, USER, USER, follow_symlinks=False)
    yield home
    mounts.kill_all(base.name)
    for point in mounts.mountpoints():
        if point.startswith(f"{base}/"):
            mounts.force_unmount(point)
    shutil.rmtree(base, ignore_errors=True)


def certfs(home: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run certfs as root, with a runtime directory of its own."""
    return subprocess.run(
        [mounts.certfs_program(), *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env={
            **os.environ,
            "CERTFS_RUNTIME_DIR": str(home.parent / "run"),
            "CERTFS_TEST_MOUNT": home.parent.name,
        },
    )


@pytest.mark.parametrize("way", ["link/ssl", "direct", "link/../victim/ssl"])
@pytest.mark.parametrize("what,code", [("store", 4), ("mountpoint", 5)])
def test_a_user_s_link_is_no_way_to_a_store_or_a_mountpoint(
    home: Path, way: str, what: str, code: int
) -> None:
    """Neither is taken by a link that a user may exchange; the error names the link."""
    store, point = (way, "place/ssl") if what == "store" else ("store", way)
    done = certfs(home, "mount", "--store", f"{home}/{store}", f"{home}/{point}")
    assert done.returncode == code, done.stderr
    assert way.split("/", maxsplit=1)[0] in done.stderr
    assert not [point for point in mounts.mountpoints() if point.startswith(f"{home.parent}/")]
    assert os.listdir(home.parent / "victim" / "ssl") == ["precious"]


@pytest.mark.parametrize("command", ["unmount", "restart", "status"])
def test_a_user_s_link_leads_no_command_to_another_mount(home: Path, command: str) -> None:
    """I19: root names a user's mountpoint, and the user has made it a link to another mount of root's."""
    place = home / "place" / "ssl"
    assert certfs(home, "mount", "--store", home / "store", place).returncode == 0
    (home / "theirs").symlink_to(home / "place")
    os.chown(home / "theirs", USER, USER, follow_symlinks=False)
    done = certfs(home, command, home / "theirs" / "ssl")
    assert done.returncode == 5, done.stdout
    assert "theirs" in done.stderr
    assert str(place) in mounts.mountpoints()


def turn(home: Path) -> None:
    """Exchange the directory above the mountpoint for a link that leads elsewhere, as its owner may."""
    (home / "place").rename(home / "moved")
    (home / "place").symlink_to(home.parent / "victim")
    os.chown(home / "place", USER, USER, follow_symlinks=False)


def test_a_mount_that_is_moved_goes_on_and_comes_back_nowhere_else(home: Path) -> None:
    """A directory above the mountpoint is exchanged for a link: the mount goes on where it is now (I14)."""
    place = home / "place" / "ssl"
    assert certfs(home, "mount", "--store", home / "store", place).returncode == 0
    (state,) = (home.parent / "run").glob("*/state.json")
    server = json.loads(state.read_text())["server"]["pid"]
    turn(home)
    bundle = home / "moved" / "ssl" / "stunnel" / "xapi-stunnel-ca-bundle.pem"
    assert b"BEGIN" in bundle.read_bytes()
    os.kill(server, signal.SIGKILL)

    def is_served_again() -> bool:
        with contextlib.suppress(OSError, ValueError, TypeError):
            known = json.loads(state.read_text())
            again = known["phase"] == "serving" and known["server"]["pid"] != server
            return again and str(bundle.parents[1]) in mounts.mountpoints() and bundle.exists()
        return False

    mounts.wait_until(is_served_again, what="the mount where it was moved to")
    victim = home.parent / "victim" / "ssl"
    assert str(victim) not in mounts.mountpoints()
    assert os.listdir(victim) == ["precious"]
    moved = home / "moved" / "ssl"
    for command in ("status", "restart", "unmount"):
        done = certfs(home, command, moved)
        assert done.returncode == 0, done.stderr
    assert not [point for point in mounts.mountpoints() if point.startswith(f"{home.parent}/")]


def test_a_mount_of_others_is_not_taken_away(home: Path) -> None:
    """What has come to the path of a mount of ours meanwhile is left alone (EINVAL)."""
    point = str(home / "place" / "ssl")
    mount_syscalls.bind(str(home / "store"), point)
    try:
        with pytest.raises(OSError, match="another mount is there"):
            mount_syscalls.umount(point, "0:0")
        assert point in mounts.mountpoints()
    finally:
        mounts.force_unmount(point)


def attach(source: Path, point: str, *, beneath: bool = False) -> None:
    """Attach a copy of a tree."""
    try:
        tree = mount_syscalls.clone_tree(str(source))
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        pytest.skip("the kernel has no open_tree(2)")
    try:
        mount_syscalls.attach_tree(tree, point, beneath=beneath)
    finally:
        os.close(tree)


CALLS: dict[str, Callable[[Path, str], None]] = {
    "attach": attach,
    "beneath": partial(attach, beneath=True),
    "bind": lambda source, point: mount_syscalls.bind(str(source), point),
    "bind_tree": lambda source, point: mount_syscalls.bind_tree(str(source), point),
    "umount": lambda _source, point: mount_syscalls.umount(point, "0:0"),
}


@pytest.mark.parametrize("call", CALLS)
def test_no_mount_is_made_or_taken_away_behind_a_link(home: Path, call: str) -> None:
    """Where the way to a mountpoint has become a link between two calls, the second fails (ELOOP)."""
    victim, point = home.parent / "victim" / "ssl", str(home / "place" / "ssl")
    turn(home)
    mount_syscalls.bind(str(home / "store"), str(victim))
    try:
        with pytest.raises(LinkRefusedError):
            CALLS[call](home / "store", point)
        assert mounts.mountpoints().count(str(victim)) == 1
    finally:
        mounts.force_unmount(str(victim))
    assert str(victim) not in mounts.mountpoints()
