"""I15, I18: a store that does not answer delays those who ask it; bundles are served, and the server lives."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import frozen, mounts
from tests.support.mounts import CertfsMount
from tests.support.peer import Peer
from tests.support.tree import Tree

pytestmark = pytest.mark.mount

LONGEST = 1.0
"""Seconds that an open of a bundle may take."""


def use_disk(disk: Path) -> Callable[[Tree], None]:
    """Give what puts a file system in the place of a fresh store."""

    def prepare(tree: Tree) -> None:
        subprocess.run(["mount", "--bind", disk, tree.root], check=True, timeout=30)
        tree.make()
        for number in range(20):
            (tree.xensource / f"file-{number}").write_bytes(b"x" * 100)

    return prepare


@pytest.fixture
def disk() -> Iterator[tuple[CertfsMount, Path]]:
    """Give a mount over a file system of its own, which can be frozen."""
    place = mounts.scratch_directory()
    try:
        with (
            frozen.loop_filesystem(place) as filesystem,
            mounts.mounted(prepare=use_disk(filesystem), standard=False) as mount,
        ):
            yield mount, filesystem
    finally:
        shutil.rmtree(place, ignore_errors=True)


_started: list[threading.Thread] = []


def begin_all(directory: str) -> int:
    """Begin a change of every kind, each in a thread of its own; give how many."""
    held = os.open(f"{directory}/file-0", os.O_RDONLY)
    written = os.open(f"{directory}/file-1", os.O_RDWR)
    appended = os.open(f"{directory}/file-2", os.O_WRONLY | os.O_APPEND)
    changes: list[Callable[[], object]] = [
        lambda: os.mkdir(f"{directory}/new-directory"),
        lambda: os.mkfifo(f"{directory}/new-fifo"),
        lambda: os.symlink("x", f"{directory}/new-link"),
        lambda: os.link(f"{directory}/file-3", f"{directory}/new-name"),
        lambda: os.open(f"{directory}/new-file", os.O_WRONLY | os.O_CREAT),
        lambda: os.open(f"{directory}/file-4", os.O_WRONLY | os.O_TRUNC),
        lambda: os.write(written, b"y" * 10),
        lambda: os.write(appended, b"y" * 10),
        lambda: os.ftruncate(written, 5),
        lambda: os.fsync(written),
        lambda: os.truncate(f"{directory}/file-5", 5),
        lambda: os.chmod(f"{directory}/file-6", 0o600),
        lambda: os.chown(f"{directory}/file-7", 1, 1),
        lambda: os.utime(f"{directory}/file-8"),
        lambda: os.setxattr(f"{directory}/file-9", "user.x", b"1"),
        lambda: os.rename(f"{directory}/file-10", f"{directory}/renamed"),
        lambda: os.unlink(f"{directory}/file-11"),
        lambda: os.close(held),
        lambda: os.close(appended),
    ]

    def make(change: Callable[[], object]) -> None:
        with contextlib.suppress(OSError):
            change()

    for change in changes:
        thread = threading.Thread(target=make, args=(change,), daemon=True)
        thread.start()
        _started.append(thread)
        time.sleep(0.02)
    return len(_started)


def unlink_open_file(directory: str) -> int:
    """Open a file and remove its name: its blocks are freed when it is closed."""
    held = os.open(f"{directory}/file-12", os.O_RDONLY)
    os.unlink(f"{directory}/file-12")
    return held


def close(descriptor: int) -> None:
    """Close a descriptor."""
    os.close(descriptor)


def end_all() -> int:
    """Wait for the changes; give how many are not done."""
    for thread in _started:
        thread.join(20)
    return sum(thread.is_alive() for thread in _started)


def longest_open(path: Path, seconds: float) -> float:
    """Open and read a bundle again and again; give the longest time that it took."""
    longest = 0.0
    end = time.monotonic() + seconds
    while (begun := time.monotonic()) < end:
        assert path.read_bytes().count(b"BEGIN") == 1
        longest = max(longest, time.monotonic() - begun)
        time.sleep(0.005)
    return longest


def test_a_frozen_store_delays_only_those_who_change_it(disk: tuple[CertfsMount, Path]) -> None:
    """Whatever call waits for the disk, and however many, bundles are opened within a second."""
    mount, filesystem = disk
    bundle = mount.tree.pool_bundle
    pids = set(mount.pids)
    with Peer() as changer, Peer() as holder:
        held = holder.call(unlink_open_file, str(mount.tree.xensource))
        changer.call(os.listdir, str(mount.tree.xensource))
        with frozen.frozen(filesystem):
            changer.send(begin_all, str(mount.tree.xensource))
            assert longest_open(bundle, 0.7) < LONGEST
            holder.send(close, held)
            assert longest_open(bundle, 0.7) < LONGEST
            assert changer.receive() == 19
            assert longest_open(bundle, 0.7) < LONGEST
        assert changer.call(end_all) == 0
        holder.receive()
    assert set(mount.pids) == pids


@contextlib.contextmanager
def stopped(mount: CertfsMount) -> Iterator[None]:
    """Let a mount answer nobody for a while."""
    pids = mount.pids
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def look_in(directory: str) -> list[str]:
    """List a directory and look at what is in it."""
    with contextlib.suppress(OSError):
        os.stat(f"{directory}/x")
        return os.listdir(directory)
    return []


def test_a_mount_inside_the_store_that_answers_nobody() -> None:
    """A dead file system below the store hangs who asks for it, and no reader of a bundle."""
    mounts.need_root()
    with mounts.mounted() as other, mounts.mounted() as mount:
        inside = mount.tree.store / "xensource" / "inside"
        inside.mkdir()
        subprocess.run(["mount", "--bind", other.tree.root, inside], check=True, timeout=30)
        try:
            seen = mount.tree.xensource / "inside"
            assert set(os.listdir(seen)) >= {"xensource", "stunnel"}
            with Peer() as victim, Peer() as lister:
                with stopped(other):
                    victim.send(look_in, str(seen))
                    assert longest_open(mount.tree.pool_bundle, 0.5) < LONGEST
                    lister.send(look_in, str(mount.tree.xensource))
                    assert longest_open(mount.tree.pool_bundle, 0.5) < LONGEST
                victim.receive()
                lister.receive()
        finally:
            subprocess.run(["umount", "-l", inside], check=True, timeout=30)
