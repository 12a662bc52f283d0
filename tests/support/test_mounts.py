"""The fixtures for mounts clean up after themselves, proven on another filesystem."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.support import mounts, peer


@pytest.mark.mount
def test_a_bindfs_mount_is_gone_afterwards() -> None:
    """What a test mounted is neither mounted nor on disk when it ended."""
    with mounts.bindfs() as tree:
        assert str(tree.root) in mounts.mountpoints()
        (tree.certs / "a.pem").write_bytes(b"x")
        assert (tree.store / "stunnel/certs/a.pem").read_bytes() == b"x"
    assert str(tree.root) not in mounts.mountpoints()
    assert not tree.root.parent.exists()


@pytest.mark.mount
def test_stale_mounts_are_swept() -> None:
    """A mount of a session that no longer runs is unmounted and removed at the next start."""
    mounts.need_fuse()
    mounts.need_program("bindfs")
    ended = subprocess.Popen(["true"])
    ended.wait()
    scratch = mounts.scratch_directory()
    stale = scratch.with_name(scratch.name.replace(str(os.getpid()), str(ended.pid), 1))
    scratch.rename(stale)
    (stale / "mount").mkdir()
    (stale / "store").mkdir()
    mounts.mount_bindfs(stale / "store", stale / "mount")
    mounts.sweep_stale_mounts()
    assert str(stale / "mount") not in mounts.mountpoints()
    assert not stale.exists()


def test_processes_are_found_by_their_mark() -> None:
    """A process that was started for a mount is found, and is gone when it ended."""
    process = subprocess.Popen(["sleep", "60"], env={"CERTFS_TEST_MOUNT": "some mark"})
    try:
        mounts.wait_until(lambda: mounts.processes_with("some mark") == [process.pid])
        assert mounts.descriptors_of([process.pid]).total() >= 3
    finally:
        process.kill()
        process.wait()
    assert mounts.processes_with("some mark") == []


def test_a_peer_is_another_process_and_raises_as_it_saw(tmp_path: Path) -> None:
    """A peer reads in its own process, and an error there is the same error here."""
    (tmp_path / "file").write_bytes(b"content")
    with peer.Peer() as other:
        assert other.call(os.getpid) == other.pid != os.getpid()
        assert other.call(peer.read_file, str(tmp_path / "file")) == b"content"
        assert other.call(peer.read_or_none, str(tmp_path / "none")) is None
        with pytest.raises(NotADirectoryError):
            other.call(peer.read_file, str(tmp_path / "file" / "below"))
        seen = other.call(peer.look, str(tmp_path / "file"))
    assert seen == peer.Look(7, b"content", b"content")


def test_a_peer_acts_as_another_user(tmp_path: Path) -> None:
    """A peer with a user is refused what that user is refused."""
    mounts.need_root()
    secret = tmp_path / "secret"
    secret.write_bytes(b"x")
    secret.chmod(0o600)
    with (
        peer.Peer(user=peer.User(uid=20001, gid=20001)) as other,
        pytest.raises(PermissionError),
    ):
        other.call(peer.read_file, str(secret))
