"""One bundle is kept true to its directory, one generation for each change."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from certfs.core.bundle import BundleSpec
from certfs.store.backing import FileId, file_id
from certfs.store.bundle import LiveBundle
from certfs.store.source_reader import SourceReader
from tests.store.scenes import ACTOR, Scene, content, scene
from tests.support import pki

ONE, TWO, THREE = (pki.authority(f"live {number}") for number in range(3))


@pytest.fixture
def live(tmp_path: Path, reader: SourceReader) -> Iterator[Scene]:
    """Give a bundle of an empty directory."""
    (tmp_path / "certs").mkdir()
    made = scene(tmp_path / "certs", reader)
    yield made
    made.bundle.close()


async def test_a_change_is_one_generation_with_its_actor(live: Scene) -> None:
    """I1, I20: the next generation has the certificate, and the observer knows who brought it."""
    before = live.bundle.generation
    await live.put("a.pem", ONE.pem)
    assert content(live.bundle) == ONE.pem
    assert live.bundle.generation.number == before.number + 1
    assert live.bundle.generation.certificates == 1
    (published,) = live.published
    assert published.actor == ACTOR
    assert [entry.source for entry in published.change.added] == [b"a.pem"]


async def test_an_open_generation_stays_what_it_was(live: Scene) -> None:
    """I2: who holds a generation reads it to its end."""
    await live.put("a.pem", ONE.pem)
    pinned = live.bundle.generation
    await live.put("b.pem", TWO.pem)
    await live.remove("a.pem")
    assert pinned.view.read(0, pinned.size) == ONE.pem
    assert content(live.bundle) == TWO.pem


async def test_writing_the_same_again_is_no_change(live: Scene) -> None:
    """I20: no generation, no word in the log."""
    await live.put("a.pem", ONE.pem)
    number = live.bundle.generation.number
    await live.put("a.pem", ONE.pem)
    assert live.bundle.generation.number == number
    assert len(live.published) == 1


async def test_a_further_copy_is_told_of_and_changes_nothing(live: Scene) -> None:
    """I5, I20: no generation, but a word in the log."""
    await live.put("a.pem", ONE.pem)
    number = live.bundle.generation.number
    await live.put("b.pem", ONE.pem)
    assert live.bundle.generation.number == number
    assert not live.published[-1].change
    assert [each.source for each in live.published[-1].change.copied] == [b"b.pem"]


async def test_a_bundle_without_a_certificate_does_not_exist(live: Scene) -> None:
    """I7: empty is absent, also after there was one."""
    existed = [live.bundle.exists]
    for data in (ONE.pem, b""):
        await live.put("a.pem", data)
        existed.append(live.bundle.exists)
    assert existed == [False, True, False]


async def test_a_reason_is_told_once(live: Scene) -> None:
    """I9, I20: a defect is told when it appears and not at every look."""
    await live.put("a.pem", b"junk")
    await live.bundle.refresh([b"a.pem"], ACTOR)
    await live.bundle.rescan()
    (published,) = live.published
    assert [(name, remark.reason) for name, remark in published.remarks] == [
        (b"a.pem", "no PEM block")
    ]


async def test_a_rescan_finds_what_nobody_told(live: Scene) -> None:
    """I13: files that came, changed and went; what did not change is not read again."""
    for name, each in (("a.pem", ONE), ("b.pem", TWO)):
        await live.put(name, each.pem)
    kept = live.bundle.catalog.get(b"b.pem")
    (live.path / "a.pem").unlink()
    (live.path / "c.pem").write_bytes(THREE.pem)
    await live.bundle.rescan()
    assert content(live.bundle) == TWO.pem + THREE.pem
    assert live.bundle.catalog.get(b"b.pem") is kept
    assert len(live.published) == 3


async def test_a_file_that_is_being_written_counts_as_it_was(live: Scene) -> None:
    """I3: its last complete content stays until it is busy no longer."""
    await live.put("a.pem", ONE.pem)
    live.busy.add(file_id((live.path / "a.pem").stat()))
    await live.put("a.pem", TWO.pem[:50])
    await live.bundle.rescan()
    assert content(live.bundle) == ONE.pem
    live.busy.clear()
    await live.put("a.pem", TWO.pem)
    assert content(live.bundle) == TWO.pem


async def test_a_new_file_that_is_being_written_is_not_there_yet(live: Scene) -> None:
    """I3: and nothing is said of it that would worry anybody."""
    (live.path / "a.pem").write_bytes(ONE.pem[:50])
    live.busy.add(file_id((live.path / "a.pem").stat()))
    await live.bundle.refresh([b"a.pem"], ACTOR)
    assert not live.bundle.exists
    assert [remark.severity for each in live.published for _, remark in each.remarks] in ([], [0])


async def test_a_rename_carries_the_last_complete_content(live: Scene) -> None:
    """I3: a source that is renamed while it is written still stands for what it was."""
    await live.put("a.pem", ONE.pem)
    live.busy.add(file_id((live.path / "a.pem").stat()))
    (live.path / "a.pem").write_bytes(b"torn")
    (live.path / "a.pem").rename(live.path / "b.pem")
    live.bundle.keep({b"a.pem": b"b.pem"})
    await live.bundle.refresh([b"a.pem", b"b.pem"], ACTOR)
    assert content(live.bundle) == ONE.pem
    assert live.bundle.catalog.names() == [b"b.pem"]


async def test_a_large_source_is_read_beside_the_loop(live: Scene) -> None:
    """I18: what takes long to parse is parsed in a thread, and others are answered meanwhile."""
    (live.path / "a.pem").write_bytes(b"".join(each.pem for each in pki.many(100)))
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count_turns)
        await live.bundle.refresh([b"a.pem"], ACTOR)
        nursery.cancel_scope.cancel()
    assert live.bundle.generation.certificates == 100
    assert turns > 0


async def test_settle_waits_for_what_was_asked_before(live: Scene) -> None:
    """I1: who looks after a change that is still being read sees it."""
    (live.path / "a.pem").write_bytes(b"".join(each.pem for each in pki.many(100)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(live.bundle.refresh, [b"a.pem"], ACTOR)
        await trio.testing.wait_all_tasks_blocked()
        await live.bundle.wait_until_current()
        assert live.bundle.generation.certificates == 100


async def test_a_link_is_looked_at_again(live: Scene, tmp_path: Path) -> None:
    """I1: a target elsewhere may change, vanish and come back; settling sees each."""
    target = tmp_path / "elsewhere.crt"
    (live.path / "a.pem").symlink_to(target)
    await live.bundle.refresh([b"a.pem"], ACTOR)
    assert not live.bundle.exists
    for pem in (ONE.pem, TWO.pem):
        target.write_bytes(pem)
        await live.bundle.wait_until_current()
        assert content(live.bundle) == pem
    target.unlink()
    await live.bundle.wait_until_current()
    assert not live.bundle.exists


async def test_a_link_to_a_file_that_is_being_written_is_whole(live: Scene, tmp_path: Path) -> None:
    """I3: the last complete content of a link's target counts until its writer closes."""
    target = tmp_path / "elsewhere.crt"
    target.write_bytes(ONE.pem)
    (live.path / "a.pem").symlink_to(target)
    await live.bundle.refresh([b"a.pem"], ACTOR)
    with target.open("wb", buffering=0) as file:
        for piece in (TWO.pem[:70], TWO.pem[70:]):
            file.write(piece)
            await live.bundle.wait_until_current()
            assert content(live.bundle) == ONE.pem
    await live.bundle.wait_until_current()
    assert content(live.bundle) == TWO.pem


async def test_a_directory_that_goes_takes_its_certificates_with_it(live: Scene) -> None:
    """I1: no source directory, no bundle; a new one is read."""
    await live.put("a.pem", ONE.pem)
    assert live.bundle.attach(None, ACTOR)
    assert not live.bundle.exists
    assert live.bundle.attach(os.open(live.path, os.O_PATH), ACTOR)
    await live.bundle.rescan()
    assert content(live.bundle) == ONE.pem


async def test_what_was_read_of_a_directory_that_went_is_not_published(
    tmp_path: Path, reader: SourceReader
) -> None:
    """I1: a directory replaced in the middle of reading it does not bring its certificates back."""
    (tmp_path / "certs").mkdir()
    (tmp_path / "certs" / "a.pem").write_bytes(ONE.pem)
    reading, go_on = threading.Event(), threading.Event()

    def pause(_identity: FileId) -> bool:
        reading.set()
        assert go_on.wait(10)
        return False

    bundle = LiveBundle(
        BundleSpec((b"certs",), (b"bundle.pem",)), reader, is_busy=pause, observer=lambda _: None
    )
    bundle.attach(os.open(tmp_path / "certs", os.O_PATH))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bundle.rescan)
        await trio.to_thread.run_sync(reading.wait, 10)
        bundle.attach(None)
        go_on.set()
    assert not bundle.exists
    assert not bundle.catalog.names()


async def test_a_file_that_is_opened_for_writing_while_it_is_read_counts_as_it_was(
    tmp_path: Path, reader: SourceReader
) -> None:
    """I3: who begins to write in the middle of the reading does not tear it."""
    (tmp_path / "certs").mkdir()
    path = tmp_path / "certs" / "a.pem"
    path.write_bytes(ONE.pem)
    asked = 0

    def begin_to_write(_identity: FileId) -> bool:
        nonlocal asked
        asked += 1
        return asked == 4

    bundle = LiveBundle(
        BundleSpec((b"certs",), (b"bundle.pem",)),
        reader,
        is_busy=begin_to_write,
        observer=lambda _: None,
    )
    bundle.attach(os.open(tmp_path / "certs", os.O_PATH))
    await bundle.refresh([b"a.pem"], ACTOR)
    path.write_bytes(TWO.pem[:60])
    await bundle.refresh([b"a.pem"], ACTOR)
    assert asked == 4
    assert content(bundle) == ONE.pem
    bundle.close()


async def test_a_swap_holds_what_was(live: Scene) -> None:
    """I10: from hold to release nothing is lost, afterwards nothing is kept."""
    await live.put("a.pem", ONE.pem)
    live.bundle.hold()
    await live.remove("a.pem")
    await live.put("b.pem", TWO.pem)
    assert content(live.bundle) == ONE.pem + TWO.pem
    live.bundle.release(ACTOR)
    assert content(live.bundle) == TWO.pem
    assert not live.bundle.is_swapping


async def test_a_second_hold_keeps_the_first(live: Scene) -> None:
    """I10: beginning again adds what the bundle is by then."""
    await live.put("a.pem", ONE.pem)
    live.bundle.hold()
    await live.put("a.pem", TWO.pem)
    live.bundle.hold()
    assert set(pki.certificates_in(content(live.bundle))) == {ONE.sha256, TWO.sha256}


async def test_sources_are_known_by_the_file_that_they_were_read_from(live: Scene) -> None:
    """I1: a file with several names, written under one of them, is found under the others."""
    await live.put("a.pem", ONE.pem)
    (live.path / "b.pem").hardlink_to(live.path / "a.pem")
    await live.bundle.refresh([b"b.pem"], ACTOR)
    await live.put("c.pem", TWO.pem)
    assert live.bundle.sources_of(file_id((live.path / "a.pem").stat())) == [b"a.pem", b"b.pem"]


async def test_a_hidden_name_is_no_source(tmp_path: Path, reader: SourceReader) -> None:
    """A bundle that appears in its own source directory does not feed on its own plain copy."""
    (tmp_path / "a.pem").write_bytes(ONE.pem)
    (tmp_path / "bundle.pem").write_bytes(TWO.pem)
    bundle = LiveBundle(
        BundleSpec((b"certs",), (b"certs", b"bundle.pem")),
        reader,
        is_busy=lambda _: False,
        observer=lambda _: None,
        hidden_names=frozenset({b"bundle.pem"}),
    )
    bundle.attach(os.open(tmp_path, os.O_PATH))
    bundle.load()
    await bundle.refresh([b"bundle.pem"], ACTOR)
    assert content(bundle) == ONE.pem
    bundle.close()
