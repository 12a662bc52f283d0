"""The plain copies: ordinary files, written at once and whole, and only when something changed (I12)."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from certfs.core.bundle import BundleSpec
from certfs.store.bundle import LiveBundle
from certfs.store.plain import PlainCopy, digest, sweep, temporary_name
from certfs.store.source_reader import SourceReader
from tests.store.scenes import content
from tests.support import mounts, pki

ONE, TWO = (pki.authority(f"plain {number}") for number in range(2))


class Plain:
    """A bundle, and the directory that its plain copy is in."""

    def __init__(self, path: Path, reader: SourceReader) -> None:
        self.certs = path / "certs"
        self.certs.mkdir()
        self.place = path / "place"
        self.place.mkdir()
        self.copy_path = self.place / "bundle.pem"
        self.bundle = LiveBundle(
            BundleSpec((b"certs",), (b"place", b"bundle.pem")),
            reader,
            is_busy=lambda _: False,
            observer=lambda _: None,
        )
        self.bundle.attach(os.open(self.certs, os.O_PATH))
        self.fd = os.open(self.place, os.O_PATH)
        self.copy = PlainCopy(self.bundle)

    def put(self, name: str, data: bytes) -> None:
        """Change the bundle."""
        (self.certs / name).write_bytes(data)
        self.bundle.load()

    def write(self) -> None:
        """Bring the copy up to date."""
        self.copy.write(self.fd)

    def is_current(self) -> bool:
        """Ask whether the copy is up to date."""
        return self.copy.is_current

    def close(self) -> None:
        """Let go of the directories."""
        self.bundle.close()
        os.close(self.fd)


@pytest.fixture
def plain(tmp_path: Path, reader: SourceReader) -> Iterator[Plain]:
    """Give an empty bundle and its place."""
    made = Plain(tmp_path, reader)
    yield made
    made.close()


def test_the_copy_is_what_a_reader_gets(plain: Plain) -> None:
    """I12: content, mode and state are right, and nothing else lies beside it."""
    plain.put("a.pem", ONE.pem)
    assert not plain.is_current()
    plain.write()
    assert plain.copy_path.read_bytes() == content(plain.bundle) == ONE.pem
    assert plain.copy_path.stat().st_mode & 0o7777 == 0o644
    assert plain.is_current()
    assert os.listdir(plain.place) == ["bundle.pem"]


def test_each_copy_replaces_the_last(plain: Plain) -> None:
    """I12: a reader of the plain file has the old one whole, the next has the new one."""
    plain.put("a.pem", ONE.pem)
    plain.write()
    with plain.copy_path.open("rb") as old:
        plain.put("b.pem", TWO.pem)
        plain.write()
        assert old.read() == ONE.pem
    assert plain.copy_path.read_bytes() == ONE.pem + TWO.pem


def test_nothing_is_written_when_nothing_changed(plain: Plain) -> None:
    """I18: the same generation again touches neither the inode nor its times."""
    plain.put("a.pem", ONE.pem)
    plain.write()
    before = plain.copy_path.stat()
    plain.write()
    PlainCopy(plain.bundle).write(plain.fd)  # as after a restart
    after = plain.copy_path.stat()
    assert (after.st_ino, after.st_mtime_ns, after.st_ctime_ns) == (
        before.st_ino,
        before.st_mtime_ns,
        before.st_ctime_ns,
    )


def test_an_empty_bundle_has_no_copy(plain: Plain) -> None:
    """I7, I12: removed when the last certificate is gone, and none is made for nothing."""
    plain.write()
    assert plain.is_current()
    plain.put("a.pem", ONE.pem)
    plain.write()
    (plain.certs / "a.pem").unlink()
    plain.bundle.load()
    plain.write()
    assert os.listdir(plain.place) == []
    assert plain.is_current()


def test_a_copy_that_somebody_changed_is_made_again(plain: Plain) -> None:
    """I12: the store's copy is right even if somebody overwrote or removed it."""
    plain.put("a.pem", ONE.pem)
    plain.write()
    plain.copy_path.write_bytes(TWO.pem)
    plain.write()
    assert plain.copy_path.read_bytes() == ONE.pem
    plain.copy_path.unlink()
    plain.write()
    assert plain.copy_path.read_bytes() == ONE.pem


@pytest.mark.parametrize("kind", ["link", "FIFO", "same size", "unreadable"])
def test_whatever_stands_in_the_copy_s_place_is_replaced(plain: Plain, kind: str) -> None:
    """I12: a link is not written through, a FIFO does not block, an equal size deceives nobody."""
    plain.put("a.pem", ONE.pem)
    if kind == "link":
        (plain.place / "target").write_bytes(b"mine")
        plain.copy_path.symlink_to("target")
    elif kind == "FIFO":
        os.mkfifo(plain.copy_path)
    elif kind == "unreadable":
        plain.copy_path.write_bytes(TWO.pem)
        plain.copy_path.chmod(0)
    else:
        plain.copy_path.write_bytes(b"x" * len(ONE.pem))
    thread = threading.Thread(target=plain.write, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert not plain.copy_path.is_symlink()
    assert plain.copy_path.read_bytes() == ONE.pem
    if kind == "link":
        assert (plain.place / "target").read_bytes() == b"mine"


def test_a_directory_in_the_copy_s_place_is_a_reason(plain: Plain) -> None:
    """I12: it is not removed; the reason is kept, and the copy is made when it is gone."""
    plain.put("a.pem", ONE.pem)
    plain.copy_path.mkdir()
    plain.write()
    assert plain.copy.state.error == "Is a directory"
    assert not plain.is_current()
    assert os.listdir(plain.place) == ["bundle.pem"]
    plain.copy_path.rmdir()
    plain.write()
    assert plain.is_current()
    assert plain.copy_path.read_bytes() == ONE.pem


def test_the_owner_of_the_copy_stays(plain: Plain) -> None:
    """I19: a copy that belongs to somebody goes on belonging to them."""
    mounts.need_root()
    plain.put("a.pem", ONE.pem)
    plain.write()
    os.chown(plain.copy_path, 1234, 4321)
    plain.put("b.pem", TWO.pem)
    plain.write()
    status = plain.copy_path.stat()
    assert (status.st_uid, status.st_gid) == (1234, 4321)


def test_leftovers_of_a_killed_server_are_swept(plain: Plain) -> None:
    """I14: an unfinished copy is removed, everything else stays."""
    draft = os.fsdecode(temporary_name(b"bundle.pem"))
    (plain.place / draft).write_bytes(ONE.pem[:10])
    (plain.place / "other.tmp").touch()
    sweep(plain.fd)
    assert os.listdir(plain.place) == ["other.tmp"]


def test_a_leftover_is_not_in_the_way(plain: Plain) -> None:
    """I14: nor does a copy need the sweep to be made."""
    (plain.place / os.fsdecode(temporary_name(b"bundle.pem"))).write_bytes(b"half")
    plain.put("a.pem", ONE.pem)
    plain.write()
    assert os.listdir(plain.place) == ["bundle.pem"]


def test_the_digest_is_that_of_the_content(plain: Plain) -> None:
    """The status tells the SHA-256 of what a reader gets."""
    plain.put("a.pem", ONE.pem)
    assert digest(plain.bundle.generation) == hashlib.sha256(ONE.pem).hexdigest()


@contextlib.contextmanager
def tiny_disk(path: Path) -> Iterator[None]:
    """Put a filesystem of 64 KiB on a directory."""
    mounts.need_root()
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", path], check=False, timeout=10
    )
    if mounted.returncode:
        mounts.missing("the right to mount a tmpfs")
    try:
        yield
    finally:
        subprocess.run(["umount", path], check=True, timeout=10)


def test_a_full_disk_leaves_the_last_copy_and_a_reason(
    tmp_path: Path, reader: SourceReader
) -> None:
    """I12: the old copy stays whole, no draft stays, and the next try mends it."""
    with tiny_disk(tmp_path / "disk"):
        plain = Plain(tmp_path / "disk", reader)
        try:
            plain.put("a.pem", ONE.pem)
            plain.write()
            with contextlib.suppress(OSError), (plain.certs / "filler").open("wb") as filler:
                while True:
                    filler.write(b"x" * 512)
                    filler.flush()
            (plain.certs / "b.pem").symlink_to(tmp_path / "b.pem")
            (tmp_path / "b.pem").write_bytes(b"".join(each.pem for each in pki.many(60)))
            plain.bundle.load()
            plain.write()
            assert plain.copy.state.error == "No space left on device"
            assert plain.copy_path.read_bytes() == ONE.pem
            assert os.listdir(plain.place) == ["bundle.pem"]
            (plain.certs / "filler").unlink()
            plain.write()
            assert plain.is_current()
            assert plain.copy_path.read_bytes() == content(plain.bundle)
        finally:
            plain.close()


def test_an_absent_copy_is_current_on_a_readonly_store(
    tmp_path: Path, reader: SourceReader
) -> None:
    """I12: without certificate and without copy nothing is to be done, also where nothing can be."""
    with tiny_disk(tmp_path / "disk"):
        plain = Plain(tmp_path / "disk", reader)
        try:
            subprocess.run(["mount", "-o", "remount,ro", tmp_path / "disk"], check=True, timeout=10)
            plain.write()
            assert plain.copy.state.error == ""
            assert plain.is_current()
        finally:
            plain.close()


def test_readers_see_old_or_new_and_nothing_else(plain: Plain) -> None:
    """I12: whoever opens the plain file again and again never finds it missing or torn."""
    plain.put("a.pem", ONE.pem)
    plain.write()
    wholes = {ONE.pem, ONE.pem + TWO.pem}
    seen: set[bytes] = set()
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            seen.add(plain.copy_path.read_bytes())

    thread = threading.Thread(target=look)
    thread.start()
    for _ in range(50):
        plain.put("b.pem", TWO.pem)
        plain.write()
        plain.put("b.pem", b"")
        plain.write()
    stop.set()
    thread.join()
    assert seen <= wholes
