"""I15, I18: a store that does not answer delays those who ask it; bundles are served, and the server lives."""

from __future__ import annotations

import contextlib
import json
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
from tests.support.peer import Peer, User
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
    pids = set(mount.daemon())
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
    assert set(mount.daemon()) == pids


def make_many(directory: str, count: int) -> int:
    """Make so many directories, each in a thread of its own; give how many threads there are."""
    threading.stack_size(64 << 10)
    for number in range(count):
        thread = threading.Thread(
            target=outcome, args=(os.mkdir, f"{directory}/new-{number}"), daemon=True
        )
        thread.start()
        _started.append(thread)
    return len(_started)


def outcome(call: Callable[[str], object], path: str) -> int:
    """Call a function; give 0 or the errno."""
    try:
        call(path)
    except OSError as error:
        return error.errno or -1
    return 0


def test_one_user_does_not_take_every_task(disk: tuple[CertfsMount, Path]) -> None:
    """I18: however many calls of a user wait for a frozen disk, others open bundles, list, and look at files."""
    mount, filesystem = disk
    place = mount.tree.xensource / "place"
    place.mkdir()
    place.chmod(0o777)
    with Peer(user=User(uid=20_001, gid=20_001)) as user, Peer() as other:
        with frozen.frozen(filesystem):
            assert user.call(make_many, str(place), 300) == 300
            begun = time.monotonic()
            assert longest_open(mount.tree.pool_bundle, 0.5) < LONGEST
            assert other.call(outcome, os.listdir, str(mount.tree.stunnel)) == 0
            assert other.call(outcome, os.stat, str(mount.tree.xensource / "file-1")) == 0
            assert time.monotonic() - begun < 2 + LONGEST
        assert user.call(end_all) == 0
    assert len(list(place.iterdir())) == 300


@contextlib.contextmanager
def bindfs(directory: Path, mountpoint: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Show a directory through the FUSE file system of another program."""
    mounts.need_program("bindfs")
    with subprocess.Popen(["bindfs", "-f", directory, mountpoint]) as process:
        try:
            mounts.wait_until(
                lambda: str(mountpoint) in mounts.mountpoints(), what="the bindfs mount"
            )
            yield process
        finally:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            process.wait(20)


@contextlib.contextmanager
def stopped(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Let a file system answer nobody for a while."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def test_a_store_that_answers_nobody_at_all() -> None:
    """I1, I15: over a FUSE file system that is dead, bundles are served with their last known content."""
    mounts.need_root()
    place = mounts.scratch_directory()
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, place, ignore_errors=True)
        store: list[subprocess.Popen[bytes]] = []
        aside = mounts.scratch_directory()
        stack.callback(aside.rmdir)

        def use_bindfs(tree: Tree) -> None:
            store.append(stack.enter_context(bindfs(place, tree.root)))
            tree.make()

        with mounts.mounted(prepare=use_bindfs, standard=False) as mount:
            mount.expected_log.append("the store does not answer")
            assert longest_open(mount.tree.pool_bundle, 0.1) < LONGEST
            with stopped(store[0]):
                time.sleep(0.1)  # The kernel believes names and attributes for 50 ms.
                assert longest_open(mount.tree.pool_bundle, 0.5) < LONGEST
                # Any change of the mount table makes the server look for its directories again.
                subprocess.run(["mount", "-t", "tmpfs", "tmpfs", aside], check=True, timeout=30)
                assert longest_open(mount.tree.pool_bundle, 0.5) < LONGEST
                subprocess.run(["umount", aside], check=True, timeout=30)
                silent = json.loads((mount.tree.root / ".certfs/status.json").read_bytes())
                assert any(bundle["not_answering"] for bundle in silent["bundles"])
            mounts.wait_until(
                lambda: "the store answers again" in mount.read_log(), what="the end of the wait"
            )


def look_in(directory: str) -> list[str]:
    """List a directory and look at what is in it."""
    with contextlib.suppress(OSError):
        os.stat(f"{directory}/x")
        return os.listdir(directory)
    return []


def test_a_mount_inside_the_store_that_answers_nobody() -> None:
    """A dead file system below the store hangs who asks for it, and no reader of a bundle."""
    mounts.need_root()
    place = mounts.scratch_directory()
    (place / "x").touch()
    with mounts.mounted() as mount:
        inside = mount.tree.store / "xensource" / "inside"
        inside.mkdir()
        with bindfs(place, inside) as other:
            seen = mount.tree.xensource / "inside"
            assert os.listdir(seen) == ["x"]
            with Peer() as victim, Peer() as lister:
                with stopped(other):
                    victim.send(look_in, str(seen))
                    assert longest_open(mount.tree.pool_bundle, 0.5) < LONGEST
                    lister.send(look_in, str(mount.tree.xensource))
                    assert longest_open(mount.tree.pool_bundle, 0.5) < LONGEST
                victim.receive()
                lister.receive()
            subprocess.run(["umount", "-l", inside], check=True, timeout=30)
    shutil.rmtree(place, ignore_errors=True)
