"""Files of our own making: a number for each generation, kept as long as somebody knows it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from certfs.fuse import attributes
from certfs.fuse.announcements import GENERATION, Announcements
from certfs.fuse.numbers import FIRST
from certfs.fuse.synthetic import STATUS_DIRECTORY_NUMBER, SyntheticFiles, Text
from certfs.store.path_walk import PathWalker
from certfs.store.source_reader import SourceReader
from tests.store.scenes import Scene, nowhere, scene
from tests.support import pki

ONE, TWO = (pki.authority(f"synthetic {number}") for number in range(2))


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Scene]:
    """Give a bundle with one certificate."""
    (tmp_path / "a.pem").write_bytes(ONE.pem)
    made = scene(tmp_path, SourceReader(PathWalker(nowhere)))
    made.bundle.load()
    yield made
    made.bundle.close()


async def test_a_generation_has_one_number_and_the_next_another(live: Scene) -> None:
    """I2: the kernel cannot mix the pages of two generations."""
    files = SyntheticFiles(lambda: b"")
    first = files.of_bundle(live.bundle)
    assert files.of_bundle(live.bundle) is first
    await live.put("b.pem", TWO.pem)
    second = files.of_bundle(live.bundle)
    assert second.number not in {first.number, STATUS_DIRECTORY_NUMBER}
    assert first.number >= FIRST
    assert first.readable.read(0, 1 << 20) == ONE.pem


def test_a_number_is_known_as_long_as_somebody_knows_it(live: Scene) -> None:
    """I18: lookups and open handles keep it, and nothing else does."""
    files = SyntheticFiles(lambda: b"")
    content = files.of_bundle(live.bundle)
    content.lookups = 2
    content.opens = 1
    content.pushed = True
    files.forget(content.number, 1)
    assert (len(files), content.pushed) == (1, True)
    files.forget(content.number, 1)
    assert files.find(content.number) is content
    # Its pages went with the inode: the next first open puts them into the page cache again.
    assert not content.pushed
    files.closed(content)
    assert files.find(content.number) is None
    assert len(files) == 0
    # The kernel forgot it, the bundle did not change: it is the same file again.
    assert files.of_bundle(live.bundle) is content
    assert files.find(content.number) is content


async def test_former_generations_are_kept_up_to_a_size(
    live: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I18: who changes a source and keeps each generation open does not fill the memory; the oldest are ESTALE."""
    monkeypatch.setattr("certfs.fuse.synthetic.FORMER_BYTES", 7 * len(ONE.pem) // 2)
    files = SyntheticFiles(lambda: b"")
    kept = []
    for number in range(20):
        await live.put("a.pem", pki.authority(f"generation {number}").pem)
        kept.append(files.of_bundle(live.bundle))
        kept[-1].lookups = 1
    for content in kept[:16]:
        with pytest.raises(OSError, match="Stale file handle"):
            content.readable.read(0, 1)
    for content in kept[16:]:
        assert len(content.readable.read(0, 1 << 20)) == content.attributes().st_size
    for content in kept:
        files.forget(content.number, 1)
    assert len(files) == 0
    assert files.of_bundle(live.bundle) is kept[-1]


async def test_a_former_generation_is_announced_once(live: Scene) -> None:
    """I18, I21: who keeps thousands of them open does not have the announcer remove each again after every change."""
    files = SyntheticFiles(lambda: b"")
    first = files.of_bundle(live.bundle)
    first.lookups = 1
    assert files.former(live.bundle) == []
    await live.put("b.pem", TWO.pem)
    assert files.former(live.bundle) == [first.number]
    removed = GENERATION + b"%d" % first.number
    Announcements(files).unlink(STATUS_DIRECTORY_NUMBER, removed, None)
    assert files.former(live.bundle) == []


async def test_what_generations_share_counts_once(
    live: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I2, I18: a large bundle of which little changes can be kept open many times over."""
    for number, each in enumerate(pki.crowd(1500)):
        (live.path / f"{number:04}.pem").write_bytes(each)
    await live.bundle.rescan(None)
    files = SyntheticFiles(lambda: b"")
    first = files.of_bundle(live.bundle)
    first.lookups = 1
    monkeypatch.setattr("certfs.fuse.synthetic.FORMER_BYTES", first.readable.size)
    whole = first.readable.read(0, 1 << 30)
    for number in range(1, 3):
        await live.put("a.pem", pki.authority(f"shared {number}").pem)
        files.of_bundle(live.bundle).lookups = 1
    assert first.readable.read(0, 1 << 30) == whole


def test_forgetting_what_nobody_knows_is_nothing() -> None:
    """A number of a former life does no harm."""
    files = SyntheticFiles(lambda: b"")
    files.forget(FIRST + 99, 1)
    assert len(files) == 0


def test_each_look_at_the_status_is_a_new_file() -> None:
    """A status that is being read does not change under its reader."""
    states = iter([b"one", b"three"])
    files = SyntheticFiles(lambda: next(states))
    first, second = files.of_status(), files.of_status()
    assert first.number != second.number
    assert (first.readable.read(0, 9), second.readable.read(0, 9)) == (b"one", b"three")
    assert (first.readable.size, second.readable.size) == (3, 5)


def test_text_is_read_by_offset() -> None:
    """As pread(2): short at the end, nothing behind it."""
    text = Text(b"content")
    assert (text.read(3, 2), text.read(5, 10), text.read(7, 1), text.read(9, 1)) == (
        b"te",
        b"nt",
        b"",
        b"",
    )


def test_what_the_kernel_may_believe_is_bounded(tmp_path: Path) -> None:
    """I1, I13: a bundle's name not at all, the store's files for half of what is promised."""
    own = attributes.of_content(FIRST, 1000, 5)
    assert own.entry_timeout == 0
    assert (own.st_mode & 0o777, own.st_size) == (0o644, 1000)
    assert (own.st_uid, own.st_gid) == (os.geteuid(), os.getegid())
    assert own.st_blocks == 2
    passed = attributes.from_status(tmp_path.stat(), 7, entry_timeout=0.05)
    assert passed.attr_timeout <= 0.05
    assert passed.st_ino == 7


def test_attributes_are_the_store_s(tmp_path: Path) -> None:
    """I11: every field of stat(2) that the kernel is told."""
    (tmp_path / "a").write_bytes(b"x" * 5000)
    status = (tmp_path / "a").stat()
    entry = attributes.from_status(status, status.st_ino, entry_timeout=0)
    names = (
        "st_ino st_mode st_nlink st_uid st_gid st_rdev st_size st_blksize st_blocks "
        "st_atime_ns st_mtime_ns st_ctime_ns"
    )
    assert [getattr(entry, name) for name in names.split()] == [
        getattr(status, name) for name in names.split()
    ]


def test_looks_at_the_status_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """I18: a user that looks very often is given what others were, and one that keeps many the last of them."""
    files = SyntheticFiles(lambda: b"status")
    assert files.recent_status(1) is None
    first = files.of_status(1)
    first.lookups = 1
    assert files.recent_status(1) is first
    assert files.recent_status(2) is first
    assert files.recent_status(0) is None
    monkeypatch.setattr("certfs.fuse.synthetic._RECENT_NS", 0)
    assert files.recent_status(1) is None
    kept = [first, *(files.of_status(1) for _ in range(31))]
    assert files.recent_status(1) is kept[-1]
    assert files.recent_status(2) is None
    files.forget(first.number, 1)
    assert files.recent_status(1) is None


def test_thousands_of_users_keep_few_statuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """I18: one who may map user ids (subuid(5)) has no 32 statuses for each of them."""
    monkeypatch.setattr("certfs.fuse.synthetic._RECENT_NS", 0)
    files = SyntheticFiles(lambda: b"status")
    files.of_status(0)
    for user in range(1, 1000):
        if files.recent_status(user) is None:
            files.of_status(user)
    assert len(files) == 257
    assert files.recent_status(0) is None
