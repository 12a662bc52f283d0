"""I11, I18: a store that does not answer holds up only who asks it; nothing grows with use."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support import frozen, mounts, peer, pki, writers
from tests.support.mounts import CertfsMount
from tests.support.peer import Peer
from tests.support.tree import Tree

pytestmark = [pytest.mark.mount, pytest.mark.slow]

CYCLES = int(os.environ.get("CERTFS_TEST_CYCLES", "1200"))
"""Rounds of some eight operations for the test of growth; the nightly run does 125,000."""


@pytest.fixture
def freezable() -> Iterator[tuple[CertfsMount, Path]]:
    """Mount a store that lies on a filesystem of its own; give both."""
    place = mounts.scratch_directory()
    try:
        with frozen.loop_filesystem(place) as directory:

            def put_aside(store: Tree) -> None:
                shutil.rmtree(store.root)
                store.root.symlink_to(directory / "store")
                (directory / "store").mkdir()
                Tree(root=store.root, store=store.root).make()

            with mounts.mounted(prepare=put_aside) as mount:
                yield mount, directory
    finally:
        shutil.rmtree(place, ignore_errors=True)


def write_and_sync(path: str) -> None:
    """Write a file and wait until it is on disk."""
    with open(path, "wb", buffering=0) as file:
        file.write(b"content")
        os.fsync(file.fileno())


def test_a_frozen_store_holds_up_only_who_writes(
    freezable: tuple[CertfsMount, Path], other_process: Peer
) -> None:
    """While thirty writers wait for the store, readers of files and bundles are answered."""
    mount, filesystem = freezable
    tree = mount.tree
    identity = pki.authority()
    (tree.certs / "a.pem").write_bytes(identity.pem)
    # In another directory than the writers': whoever creates a file there holds up lookups, on any file system.
    (tree.stunnel / "file").write_bytes(b"to be read")
    assert other_process.call(peer.read_or_none, str(tree.user_bundle)) == identity.pem
    with ThreadPoolExecutor(30) as threads:
        with frozen.frozen(filesystem):
            written = [
                threads.submit(write_and_sync, str(tree.xensource / f"written-{number}"))
                for number in range(30)
            ]
            durations = []
            for turn in range(100):
                begin = time.monotonic()
                assert other_process.call(peer.read_or_none, str(tree.user_bundle))
                assert other_process.call(peer.read_file, str(tree.stunnel / "file"))
                other_process.call(os.listdir, str(tree.certs))
                durations.append(time.monotonic() - begin)
                time.sleep(0.01 if turn < 50 else 0)  # while more and more of them wait
            assert not all(writer.done() for writer in written)
        for writer in written:
            writer.result(60)
    # The longest may be this machine's: thirty threads have just been started.
    assert sorted(durations)[-3] < 1.0
    assert max(durations) < 5.0
    assert (tree.xensource / "written-29").read_bytes() == b"content"


def _resident(pids: list[int]) -> int:
    sizes = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids]
    return sum(sizes) * os.sysconf("SC_PAGESIZE")


@pytest.mark.timeout(7200)
def test_nothing_grows_with_use(certfs_mount: CertfsMount) -> None:
    """I18: many thousand operations on new names leave neither memory nor descriptors behind."""
    place = str(certfs_mount.tree.xensource)
    with peer.peers(2) as workers:
        sizes = []
        for share in (CYCLES // 6, CYCLES // 6, CYCLES // 6):
            for worker in workers:
                worker.send(writers.cycle, place, share)
            for worker in workers:
                worker.receive(seconds=3600)
            sizes.append(_resident(certfs_mount.pids))
    assert sizes[-1] - sizes[0] < (4 << 20)


def test_remembered_inodes_do_not_use_up_descriptors() -> None:
    """I18: with more files in use, one after the other, than a process may open, everything still works."""
    mounts.need_program("prlimit")
    limit = 1_000
    with mounts.mounted(wrapper=("prlimit", f"--nofile={limit}:{limit}")) as mount:
        seen, beneath = mount.tree.xensource, mount.tree.store / "xensource"
        for number in range(3 * limit):
            os.close(os.open(beneath / f"{number}", os.O_CREAT | os.O_WRONLY, 0o644))
        for number in range(3 * limit):
            os.chmod(seen / f"{number}", 0o600)
        assert mounts.descriptors_of(mount.pids).total() > limit // 4
        (seen / "one more").write_bytes(b"x")
        assert (seen / "7").read_bytes() == b""
        for number in range(3 * limit):
            os.unlink(seen / f"{number}")
