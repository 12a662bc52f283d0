"""A link whose target hangs harms nothing beyond itself, on a real mount."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import mounts, pki
from tests.support.tree import Tree

pytestmark = pytest.mark.mount

FIRST, HUNG, LAST, FILE = (pki.authority(f"hang {name}") for name in ("a", "m", "z", "file"))


@dataclass(slots=True)
class HangingDisk:
    """A directory on a filesystem of its own, which can be made to answer nobody."""

    path: Path
    beneath: Path
    pid: int

    def hang(self) -> None:
        """Stop answering."""
        os.kill(self.pid, signal.SIGSTOP)

    def wake(self) -> None:
        """Answer again."""
        os.kill(self.pid, signal.SIGCONT)


@pytest.fixture
def disk() -> Iterator[HangingDisk]:
    """Give a bindfs mount; it is awake and gone at the end, whatever happened."""
    mounts.need_fuse()
    mounts.need_program("bindfs")
    directory = mounts.scratch_directory()
    beneath, path = directory / "beneath", directory / "disk"
    beneath.mkdir()
    path.mkdir()
    # No caching in the kernel: every look at a file asks the process.
    options = "attr_timeout=0,entry_timeout=0,negative_timeout=0"
    process = subprocess.Popen(mounts.bindfs_command("-f", "-o", options, beneath, path))
    try:
        mounts.wait_until(lambda: str(path) in mounts.mountpoints(), what="the bindfs mount")
        yield HangingDisk(path, beneath, process.pid)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGCONT)
        mounts.force_unmount(str(path))
        process.kill()
        process.wait(10)
        shutil.rmtree(directory, ignore_errors=True)


def fill(tree: Tree, disk: HangingDisk, elsewhere: Path) -> None:
    """Put a file and three links into `certs`: two to a good disk, the middle one to the other."""
    (disk.beneath / "ca.crt").write_bytes(HUNG.pem)
    (elsewhere / "first.crt").write_bytes(FIRST.pem)
    (elsewhere / "last.crt").write_bytes(LAST.pem)
    for name, target in (
        ("a-first.pem", elsewhere / "first.crt"),
        ("m-hung.pem", disk.path / "ca.crt"),
        ("z-last.pem", elsewhere / "last.crt"),
    ):
        (tree.certs / name).symlink_to(target)
    (tree.certs / "file.pem").write_bytes(FILE.pem)


def trusted(tree: Tree) -> set[str]:
    """Open and read the bundle."""
    return set(pki.certificates_in(tree.user_bundle.read_bytes()))


def test_a_target_that_hangs_takes_nothing_else_with_it(disk: HangingDisk, tmp_path: Path) -> None:
    """I4, I18: the other links and files stay and change as always, and readers go on."""
    with mounts.mounted(prepare=lambda tree: fill(tree, disk, tmp_path)) as mount:
        mount.expected_log.append("does not answer|symbolic link to nothing")
        every = {FIRST.sha256, HUNG.sha256, LAST.sha256, FILE.sha256}
        assert trusted(mount.tree) == every
        disk.hang()
        started = time.monotonic()
        for _ in range(30):
            # What is known of a target that does not answer counts.
            assert trusted(mount.tree) == every
        assert time.monotonic() - started < 5
        # Changes of all that does answer are seen by the next open.
        (tmp_path / "last.crt").unlink()
        assert trusted(mount.tree) == every - {LAST.sha256}
        (mount.tree.certs / "a-first.pem").unlink()
        assert trusted(mount.tree) == {HUNG.sha256, FILE.sha256}
        (mount.tree.certs / "n.pem").symlink_to(tmp_path / "first.crt")
        assert trusted(mount.tree) == {HUNG.sha256, FILE.sha256, FIRST.sha256}
        disk.wake()


def test_a_target_that_hangs_at_the_start_takes_nothing_else_with_it(
    disk: HangingDisk, tmp_path: Path
) -> None:
    """I4, I12: the mount is there in time, with every certificate that can be read."""

    def prepare(tree: Tree) -> None:
        fill(tree, disk, tmp_path)
        disk.hang()

    started = time.monotonic()
    with mounts.mounted(prepare=prepare) as mount:
        mount.expected_log.append("does not answer")
        assert time.monotonic() - started < 15
        assert trusted(mount.tree) == {FIRST.sha256, LAST.sha256, FILE.sha256}
        disk.wake()
        mounts.wait_until(
            lambda: HUNG.sha256 in trusted(mount.tree), seconds=45, what="the awakened target"
        )


def test_many_targets_that_hang_are_bounded(disk: HangingDisk, tmp_path: Path) -> None:
    """I18: two hundred such links delay readers no more than a few, and take few threads."""

    def prepare(tree: Tree) -> None:
        fill(tree, disk, tmp_path)
        for number in range(200):
            (tree.certs / f"k-{number:03}.pem").symlink_to(disk.path / f"{number}.crt")

    with mounts.mounted(prepare=prepare) as mount:
        mount.expected_log.append("does not answer|symbolic link to nothing")
        before = trusted(mount.tree)
        disk.hang()
        started = time.monotonic()
        for _ in range(10):
            assert trusted(mount.tree) == before
        assert time.monotonic() - started < 10
        threads = sum(len(os.listdir(f"/proc/{pid}/task")) for pid in mount.pids)
        assert threads < 60
        disk.wake()
