"""The known limits of docs/architecture.md: what a caller gets where FUSE or pyfuse3 does not carry a call.

Each is tested as it is, so that the list stays true: a test that fails here may be good news.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import select
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from inotify_simple import INotify, flags

from tests.support import mounts, pki
from tests.support.mounts import CertfsMount
from tests.support.peer import Peer

pytestmark = pytest.mark.mount

_FS_IOC_GETFLAGS = 0x80086601
_LIBC = ctypes.CDLL(None, use_errno=True)


@pytest.fixture(scope="module")
def limits_mount() -> Iterator[CertfsMount]:
    """Mount once for all of them."""
    with mounts.mounted() as mount:
        yield mount


@pytest.fixture
def path(limits_mount: CertfsMount) -> Iterator[Path]:
    """Give a file of 10,000 bytes on the mount."""
    file = limits_mount.tree.xensource / "limits"
    file.write_bytes(b"0123456789" * 1000)
    yield file
    file.unlink()


def beneath(mount: CertfsMount, path: Path) -> Path:
    """Give the same file in the store."""
    return mount.tree.store / path.relative_to(mount.tree.root)


def test_fallocate_is_not_supported_and_glibc_writes_instead(path: Path) -> None:
    """fallocate(2) gives EOPNOTSUPP; posix_fallocate(3) falls back to writing and works."""
    fd = os.open(path, os.O_RDWR)
    try:
        zero, length = ctypes.c_long(0), ctypes.c_long(65536)
        assert _LIBC.fallocate(fd, 0, zero, length) == -1
        assert ctypes.get_errno() == errno.EOPNOTSUPP
        os.posix_fallocate(fd, 0, 65536)
        assert os.fstat(fd).st_size == 65536
    finally:
        os.close(fd)


def test_a_whole_file_is_data(limits_mount: CertfsMount, path: Path) -> None:
    """lseek(2) with SEEK_HOLE finds no hole but the end; the holes themselves are kept beneath."""
    path.write_bytes(b"")
    os.truncate(path, 1 << 20)
    fd = os.open(path, os.O_RDONLY)
    try:
        assert os.lseek(fd, 4096, os.SEEK_DATA) == 4096
        assert os.lseek(fd, 0, os.SEEK_HOLE) == 1 << 20
    finally:
        os.close(fd)
    assert beneath(limits_mount, path).stat().st_blocks == 0


def test_a_file_without_a_name_cannot_be_made(path: Path) -> None:
    """O_TMPFILE gives EOPNOTSUPP; programs make a name and unlink it."""
    with pytest.raises(OSError, match="not supported") as caught:
        os.open(path.parent, os.O_TMPFILE | os.O_RDWR)
    assert caught.value.errno == errno.EOPNOTSUPP


def test_ioctl_is_not_for_this_file(path: Path) -> None:
    """lsattr(1) and chattr(1) get ENOTTY."""
    with path.open("rb") as file, pytest.raises(OSError, match="ioctl") as caught:
        fcntl.ioctl(file, _FS_IOC_GETFLAGS, b"\0" * 8)
    assert caught.value.errno == errno.ENOTTY


def test_copy_file_range_is_done_by_the_kernel(path: Path) -> None:
    """It copies through memory, and the caller does not notice."""
    copy = path.with_name("copy")
    with path.open("rb") as source, copy.open("wb") as target:
        assert os.copy_file_range(source.fileno(), target.fileno(), 10_000) == 10_000
    assert copy.read_bytes() == path.read_bytes()
    copy.unlink()


def test_the_time_of_birth_is_not_told(path: Path) -> None:
    """statx(2) leaves STATX_BTIME out, which stat(1) shows as 0."""
    mounts.need_program("stat")
    ended = subprocess.run(["stat", "-c", "%W", path], check=True, capture_output=True, timeout=10)
    assert ended.stdout == b"0\n"


def test_direct_io_takes_any_alignment(path: Path) -> None:
    """O_DIRECT is not handed on; an unaligned read, which a disk would refuse, works."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        assert os.pread(fd, 7, 3) == b"3456789"
    finally:
        os.close(fd)


def test_a_default_acl_meets_the_umask(limits_mount: CertfsMount, path: Path) -> None:
    """acl(5): beneath the umask does not count where there is a default ACL; here it does, never for more bits."""
    mounts.need_program("setfacl")
    directory = path.parent / "acl"
    directory.mkdir()
    subprocess.run(["setfacl", "-d", "-m", "u::rwx,g::rwx,o::rwx", directory], check=True)
    previous = os.umask(0o027)
    try:
        (directory / "above").mkdir(mode=0o777)
        (beneath(limits_mount, directory) / "beneath").mkdir(mode=0o777)
    finally:
        os.umask(previous)
    modes = [stat.S_IMODE((directory / name).stat().st_mode) for name in ("above", "beneath")]
    assert modes == [0o750, 0o777]
    subprocess.run(["rm", "-r", directory], check=True)


def test_an_append_goes_to_the_end_that_the_kernel_knows(
    limits_mount: CertfsMount, path: Path
) -> None:
    """A descriptor with O_APPEND does not see what was appended beneath since somebody asked for the size."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        with beneath(limits_mount, path).open("ab") as store:
            store.write(b"beneath")
        os.write(fd, b"ABOVE")
        assert path.read_bytes()[10_000:] == b"ABOVEth"
        with beneath(limits_mount, path).open("ab") as store:
            store.write(b"again")
        mounts.wait_until(lambda: os.fstat(fd).st_size == 10_012, what="the new size")
        os.write(fd, b"!")
        assert path.read_bytes()[10_000:] == b"ABOVEthagain!"
    finally:
        os.close(fd)


def test_the_number_of_a_bundle_is_that_of_its_generation(limits_mount: CertfsMount) -> None:
    """I2: st_ino changes with the content; the plain copy beneath has a number of its own."""
    bundle = limits_mount.tree.user_bundle
    source = limits_mount.tree.certs / "number.pem"
    source.write_bytes(pki.authority("number one").pem)
    first = bundle.stat().st_ino
    assert bundle.stat().st_ino == first
    source.write_bytes(pki.authority("number two").pem)
    assert bundle.stat().st_ino != first
    source.unlink()


def test_a_bundle_that_changes_is_no_event(limits_mount: CertfsMount) -> None:
    """inotify(7) tells of what is done to a name; nobody writes a bundle, so its directory's watcher hears nothing."""
    tree = limits_mount.tree
    with INotify() as watch:
        watch.add_watch(str(tree.stunnel), flags.MODIFY | flags.CREATE | flags.CLOSE_WRITE)
        watch.add_watch(str(tree.certs), flags.CLOSE_WRITE)
        (tree.certs / "event.pem").write_bytes(pki.authority("event").pem)
        assert tree.user_bundle.stat().st_size > 0
        names = {event.name for event in watch.read(timeout=200)}
    assert names == {"event.pem"}
    (tree.certs / "event.pem").unlink()


def test_locks_are_the_mount_s(limits_mount: CertfsMount, path: Path, other_process: Peer) -> None:
    """flock(2) and fcntl(2) locks hold among all who come through the mount, and not beneath it."""
    with path.open("r+b") as first, path.open("r+b") as second:
        fcntl.flock(first, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with beneath(limits_mount, path).open("r+b") as store:
            fcntl.flock(store, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.lockf(first, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            other_process.call(try_lock, str(path))
        other_process.call(try_lock, str(beneath(limits_mount, path)))


def try_lock(path: str) -> None:
    """Take a lock of fcntl(2) and give it back; BlockingIOError if somebody has it."""
    with open(path, "r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_the_end_of_a_directory_is_fuse_s(path: Path) -> None:
    """lseek(2) with SEEK_END on a directory gives its size; other filesystems have numbers of their own for it."""
    fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert os.lseek(fd, 0, os.SEEK_END) == os.fstat(fd).st_size
        assert os.lseek(fd, 0, os.SEEK_SET) == 0
    finally:
        os.close(fd)


def test_a_fifo_keeps_its_time(limits_mount: CertfsMount, path: Path) -> None:
    """Writing to a FIFO is the kernel's own affair: the time of the file beneath does not change."""
    fifo = path.with_name("fifo")
    os.mkfifo(fifo)
    before = fifo.stat().st_mtime_ns
    fd = os.open(fifo, os.O_RDWR)
    os.write(fd, b"x")
    time.sleep(0.06)  # what the kernel may remember of the status
    assert fifo.stat().st_mtime_ns == before
    os.close(fd)
    fifo.unlink()
    del limits_mount


def test_pages_that_are_mapped_are_those_of_the_open(limits_mount: CertfsMount, path: Path) -> None:
    """What is changed beneath shows at the next open; pages that somebody has mapped stay what they were."""
    fd = os.open(path, os.O_RDONLY)
    try:
        with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as area:
            assert area[:4] == b"0123"
            with beneath(limits_mount, path).open("r+b") as store:
                store.write(b"ABCD")
            assert area[:4] == b"0123"
            assert path.read_bytes()[:4] == b"ABCD"
    finally:
        os.close(fd)


def test_a_hard_link_from_elsewhere_is_written_unnoticed_beneath(
    limits_mount: CertfsMount,
) -> None:
    """inotify(7) tells of names: what is written beneath under a name that is nobody's is read with the next change."""
    tree, store = limits_mount.tree, limits_mount.tree.store / "stunnel"
    old, new = pki.authority("link old"), pki.authority("link new")
    (tree.certs / "linked.pem").write_bytes(old.pem)
    staged = limits_mount.tree.store / "staged"
    staged.hardlink_to(store / "certs/linked.pem")
    assert tree.user_bundle.read_bytes() == old.pem
    staged.write_bytes(new.pem)
    assert tree.user_bundle.read_bytes() == old.pem
    (store / "certs/linked.pem").chmod(0o600)
    assert tree.user_bundle.read_bytes() == new.pem
    # Through the mount it is noticed at once, whatever the name.
    (tree.root / "staged").write_bytes(old.pem)
    assert tree.user_bundle.read_bytes() == old.pem
    (tree.certs / "linked.pem").unlink()
    staged.unlink()


def test_polling_says_ready(path: Path) -> None:
    """A file of the mount is always ready, as regular files are (poll(2))."""
    with path.open("rb") as file:
        poll = select.poll()
        poll.register(file, select.POLLIN)
        assert poll.poll(0) == [(file.fileno(), select.POLLIN)]


def test_a_regular_file_can_be_watched_by_epoll(path: Path) -> None:
    """epoll_ctl(2) is EPERM on other filesystems; FUSE cannot refuse it."""
    with path.open("rb") as file, select.epoll() as epoll:
        epoll.register(file, select.EPOLLIN)
        assert epoll.poll(0) == [(file.fileno(), select.EPOLLIN)]


def test_nobody_is_offered_not_to_wait(path: Path) -> None:
    """RWF_NOWAIT is refused, and the caller reads as usual (preadv2(2))."""
    with path.open("rb", buffering=0) as file:
        with pytest.raises(OSError, match="not supported"):
            os.preadv(file.fileno(), [bytearray(4)], 0, os.RWF_NOWAIT)
        assert os.pread(file.fileno(), 4, 0) == b"0123"


def test_allocating_needs_more_than_appending(path: Path) -> None:
    """The C library allocates by writing, which it does not do to a file that is opened for appending."""
    with path.open("ab") as file, pytest.raises(OSError, match="Bad file descriptor"):
        os.posix_fallocate(file.fileno(), 0, 100)
