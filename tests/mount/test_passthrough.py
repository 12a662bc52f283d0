"""I11: beyond the bundles the mount is the directory beneath, in every corner of POSIX."""

from __future__ import annotations

import functools
import hashlib
import mmap
import os
import random
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import differential, mounts, peer, snapshot
from tests.support.mounts import CertfsMount
from tests.support.syscalls import (
    Fallocate,
    Rename,
    fallocate,
    inodes_of_entries,
    renameat2,
)
from tests.support.tree import Tree

pytestmark = pytest.mark.mount

OPERATIONS = int(os.environ.get("CERTFS_TEST_OPERATIONS", "6000"))
"""How many random operations are compared; the nightly run does millions."""
SEED = int(os.environ.get("CERTFS_TEST_SEED", "1"))
"""The nightly run takes another one every time."""


@pytest.fixture(scope="module")
def shared_mount() -> Iterator[CertfsMount]:
    """Mount once for the module."""
    with mounts.mounted() as mount:
        mount.expected_log.append("stunnel/certs/")
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


# -- everything at random ---------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("where", ["xensource", "stunnel/certs", "."])
def test_random_operations_end_as_on_a_plain_directory(where: str) -> None:
    """Thousands of operations by three users have the same results and the same final trees."""
    with (
        mounts.mounted() as mount,
        mounts.plain() as plain,
        differential.comparison(plain.root, mount.tree.root / where) as comparison,
    ):
        mount.expected_log.append("stunnel/certs/")
        comparison.run(operations=OPERATIONS // 3, seed=SEED)


# -- identity of inodes --------------------------------------------------------------


def test_inode_numbers_are_the_stores(shared_mount: CertfsMount, place: Path) -> None:
    """Numbers, link counts and the numbers that readdir gives are those of the store."""
    (place / "file").write_bytes(b"x")
    (place / "hard").hardlink_to(place / "file")
    (place / "soft").symlink_to("file")
    (place / "directory").mkdir()
    os.mkfifo(place / "fifo")
    tree = shared_mount.tree
    bundles = {tree.user_bundle.name.encode(), tree.pool_bundle.name.encode()}
    for name in ("xensource", "stunnel"):
        seen, expected = (
            snapshot.take(os.fsencode(root / name), inodes=True) for root in (tree.root, tree.store)
        )
        different = snapshot.differences(expected, seen, ignore=lambda path: path in bundles)
        assert different == []
    listed = {entry.name: entry.inode() for entry in os.scandir(place)}
    assert listed == {path.name: path.lstat().st_ino for path in place.iterdir()}


def test_the_dots_are_the_directory_and_its_parent(place: Path, beneath: Path) -> None:
    """The numbers of . and .. in a listing are those of the store, also right below the root."""
    (place / "inner").mkdir()
    for seen, expected in ((place, beneath), (place / "inner", beneath / "inner")):
        ours, theirs = (inodes_of_entries(os.fsencode(path)) for path in (seen, expected))
        assert (ours[b"."], ours[b".."]) == (theirs[b"."], theirs[b".."])
    root = place.parent.parent
    assert inodes_of_entries(os.fsencode(root))[b"."] == root.stat().st_ino


def test_synthetic_numbers_are_nobody_elses(certfs_mount: CertfsMount) -> None:
    """A bundle's number is never that of a file in the store, and new with every generation."""
    tree = certfs_mount.tree
    numbers = []
    (pool_source,) = tree.certs_pool.iterdir()
    text = pool_source.read_bytes()
    for turn in range(20):
        (tree.certs / "x.pem").write_bytes(text + b"\n" * turn if turn % 2 else b"")
        if turn % 2:
            numbers.append(tree.user_bundle.stat().st_ino)
    stored = {path.lstat().st_ino for path in tree.store.rglob("*")}
    assert len(set(numbers)) == len(numbers)
    assert not stored & set(numbers)
    certfs_mount.expected_log.append("empty file")


# -- files ---------------------------------------------------------------------------


def test_appending_from_several_processes_loses_nothing(place: Path) -> None:
    """O_APPEND is atomic: of four processes with 400 lines each every line is there, whole."""
    (place / "log").touch()
    with peer.peers(4) as writers:
        for number, writer in enumerate(writers):
            writer.send(peer.append_lines, str(place / "log"), str(number), 400)
        for writer in writers:
            writer.receive()
    lines = (place / "log").read_text().splitlines()
    expected = [
        f"{mark} {number} {'x' * (number % 50)}" for mark in "0123" for number in range(400)
    ]
    assert sorted(lines) == sorted(expected)


def test_direct_reads_and_writes(place: Path) -> None:
    """O_DIRECT with aligned buffers writes and reads what is expected, also beside the cache."""
    path = place / "direct"
    path.write_bytes(b"a" * 16384)
    handle = os.open(path, os.O_RDWR | os.O_DIRECT)
    try:
        with mmap.mmap(-1, 8192) as buffer:
            buffer[:] = b"b" * 8192
            assert os.pwritev(handle, [buffer], 4096) == 8192
            assert path.read_bytes() == b"a" * 4096 + b"b" * 8192 + b"a" * 4096
            assert os.preadv(handle, [buffer], 0) == 8192
            assert buffer[:] == b"a" * 4096 + b"b" * 4096
    finally:
        os.close(handle)


def test_a_large_file_is_what_was_written(place: Path, beneath: Path) -> None:
    """64 MiB in odd pieces come back the same, through the mount and beneath."""
    block = random.Random(1).randbytes(1 << 20)  # noqa: S311 - reproducible on purpose
    digest = hashlib.sha256()
    with (place / "large").open("wb") as file:
        for number in range(64):
            piece = block[number * 777 :] + block[: number * 777]
            digest.update(piece)
            file.write(piece)
    for path in (place / "large", beneath / "large"):
        with path.open("rb") as file:
            assert hashlib.file_digest(file, "sha256").digest() == digest.digest()


def test_a_deleted_file_stays_usable(place: Path) -> None:
    """What is open can be read, written, cut and changed after its name is gone."""
    path = place / "file"
    path.write_bytes(b"content")
    with path.open("r+b", buffering=0) as file:
        path.unlink()
        path.write_bytes(b"another file")
        assert file.read() == b"content"
        file.write(b" and more")
        os.ftruncate(file.fileno(), 11)
        os.fchmod(file.fileno(), 0o640)
        os.utime(file.fileno(), ns=(1, 2))
        status = os.fstat(file.fileno())
        assert (status.st_nlink, status.st_size, status.st_mtime_ns) == (0, 11, 2)
        assert stat.S_IMODE(status.st_mode) == 0o640
        assert os.pread(file.fileno(), 100, 0) == b"content and"
    assert path.read_bytes() == b"another file"


def test_copies_within_the_kernel(place: Path) -> None:
    """copy_file_range, sendfile and splice carry the right bytes."""
    (place / "source").write_bytes(b"0123456789" * 10_000)
    source = os.open(place / "source", os.O_RDONLY)
    target = os.open(place / "target", os.O_RDWR | os.O_CREAT, 0o644)
    assert os.copy_file_range(source, target, 50_000, 5, 0) == 50_000
    os.lseek(target, 0, os.SEEK_END)
    assert os.sendfile(target, source, 50_005, 49_995) == 49_995
    assert (place / "target").read_bytes() == (b"0123456789" * 10_000)[5:]
    reader, writer = os.pipe()
    os.lseek(source, 0, os.SEEK_SET)
    moved = os.splice(source, writer, 30_000)
    assert os.read(reader, moved) == (b"0123456789" * 10_000)[:moved]
    for handle in (source, target, reader, writer):
        os.close(handle)


def test_what_pyfuse3_does_not_carry_fails_cleanly(place: Path) -> None:
    """Fallocate and O_TMPFILE are EOPNOTSUPP; a hole is read as zeros and sought as data."""
    with (place / "file").open("w+b") as file:
        with pytest.raises(OSError, match="not supported"):
            fallocate(file.fileno(), Fallocate.NONE, 0, 4096)
        os.posix_fallocate(file.fileno(), 0, 10_000)  # the C library does it by writing
        assert os.fstat(file.fileno()).st_size == 10_000
        os.ftruncate(file.fileno(), 1 << 20)
        assert os.lseek(file.fileno(), 0, os.SEEK_DATA) == 0
        assert os.lseek(file.fileno(), 0, os.SEEK_HOLE) == 1 << 20
        file.seek(0)
        assert file.read() == bytes(1 << 20)
    with pytest.raises(OSError, match="not supported"):
        os.open(place, os.O_TMPFILE | os.O_RDWR, 0o600)


# -- directories ------------------------------------------------------------------------


@pytest.mark.slow
def test_ten_thousand_files_come_and_go(place: Path) -> None:
    """A directory of 10,000 files is listed completely, and `rm -rf` removes all of it."""
    crowd = place / "crowd"
    crowd.mkdir()
    for number in range(10_000):
        os.close(os.open(crowd / f"{number:05}", os.O_CREAT | os.O_WRONLY, 0o644))
    assert sorted(os.listdir(crowd)) == [f"{number:05}" for number in range(10_000)]
    subprocess.run(["rm", "-rf", crowd], check=True, timeout=120)
    assert not crowd.exists()


def test_a_listing_is_stable_while_others_come_and_go(place: Path) -> None:
    """What stays during a listing is in it exactly once, however much comes and goes."""
    stay = {f"stay {number:04}" for number in range(500)}
    for name in stay:
        (place / name).touch()
    stop = threading.Event()

    def disturb() -> None:
        number = 0
        while not stop.is_set():
            (place / f"come {number % 50}").touch()
            (place / f"come {number % 50}").rename(place / f"gone {number % 50}")
            (place / f"gone {number % 50}").unlink()
            number += 1

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        for _ in range(30):
            seen = [name for name in os.listdir(place) if name.startswith("stay")]
            assert len(seen) == len(stay)
            assert set(seen) == stay
    finally:
        stop.set()
        thread.join()


def test_a_listing_continues_after_deleting_what_it_gave(place: Path) -> None:
    """Deleting each entry as it is read leaves none behind: what `rm -r` and `find -delete` do."""
    for number in range(3_000):
        (place / f"{number}").touch()
    with os.scandir(place) as entries:
        for entry in entries:
            os.unlink(entry.path)
    assert os.listdir(place) == []


# -- changes beneath ---------------------------------------------------------------------------


def _holds(path: Path, content: bytes) -> bool:
    return path.read_bytes() == content


def test_changes_in_the_store_are_seen(place: Path, beneath: Path) -> None:
    """I13: content, size, names and modes that change beneath show on the mount in 100 ms."""
    path, below = place / "file", beneath / "file"
    path.write_bytes(b"one")
    assert path.read_bytes() == b"one"
    for content in (b"two", b"three and more", b""):
        below.write_bytes(content)
        mounts.wait_until(functools.partial(_holds, path, content), seconds=0.1)
        assert path.stat().st_size == len(content)
    below.chmod(0o600)
    mounts.wait_until(lambda: stat.S_IMODE(path.stat().st_mode) == 0o600, seconds=0.1)
    (beneath / "new").touch()
    mounts.wait_until((place / "new").exists, seconds=0.1)
    (beneath / "new").rename(beneath / "newer")
    mounts.wait_until((place / "newer").exists, seconds=0.1)
    mounts.wait_until(lambda: not (place / "new").exists(), seconds=0.1)
    below.unlink()
    mounts.wait_until(lambda: not path.exists(), seconds=0.1)


def _rename_onto_what_is_full(directory: Path) -> int | None:
    """Rename with a whiteout onto a directory that is not empty; give the errno."""
    (directory / "full" / "entry").mkdir(parents=True)
    (directory / "from" / "moved").mkdir(parents=True)
    os.utime(directory / "from", (1, 1))
    source, target = (os.fsencode(directory / name) for name in ("from/moved", "full"))
    with pytest.raises(OSError) as caught:  # noqa: PT011 - which one depends on the store
        renameat2(source, target, Rename.WHITEOUT)
    return caught.value.errno


def test_what_a_failed_rename_left_is_seen(place: Path, beneath: Path) -> None:
    """Ext4 makes and unmakes the whiteout of a rename that fails: the directory's times show it at once.

    Other file systems refuse whiteouts; the mount says what they say.
    """
    (beneath / "plain").mkdir()
    (beneath / "seen").mkdir()
    expected = _rename_onto_what_is_full(beneath / "plain")
    assert _rename_onto_what_is_full(place / "seen") == expected
    seen, below = (directory / "seen" / "from" for directory in (place, beneath))
    assert seen.stat().st_mtime_ns == below.stat().st_mtime_ns


def test_the_whole_filesystem_says_what_the_store_says(shared_mount: CertfsMount) -> None:
    """Statfs of the mount is that of the store."""
    tree: Tree = shared_mount.tree
    seen, expected = os.statvfs(tree.root), os.statvfs(tree.store)
    assert (seen.f_bsize, seen.f_frsize, seen.f_blocks, seen.f_files, seen.f_namemax) == (
        expected.f_bsize,
        expected.f_frsize,
        expected.f_blocks,
        expected.f_files,
        expected.f_namemax,
    )


_ASK_FOR_LEASES = """
import fcntl, os, signal, sys
signal.signal(signal.SIGIO, signal.SIG_IGN)
file = os.open(sys.argv[1], os.O_RDONLY)
print(flush=True)
while True:
    try:
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except BlockingIOError:
        continue
    fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
"""


def test_a_lease_beneath_keeps_nobody_from_opening(place: Path, beneath: Path) -> None:
    """I11: open(2) waits until the kernel has broken it, as on a plain directory; EAGAIN was not asked for.

    The next server of a restart asks for one on each source while the mount of this one is in use.
    """
    path = place / "leased"
    path.write_bytes(b"x")
    command = [sys.executable, "-c", _ASK_FOR_LEASES, str(beneath / "leased")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as asking:
        try:
            assert asking.stdout is not None
            asking.stdout.readline()
            for flags in (os.O_WRONLY, os.O_WRONLY | os.O_TRUNC, os.O_RDWR | os.O_CREAT):
                for _ in range(100):
                    os.close(os.open(path, flags))
        finally:
            asking.kill()
