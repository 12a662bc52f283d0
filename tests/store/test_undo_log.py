"""What a server leaves, the next one finds: sources in the middle of a write, swaps in the middle (I3, I10, I17)."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from certfs.core.bundle import PLATFORM_BUNDLES, BundleSpec
from certfs.core.certificate import parse_source
from certfs.store.backing import FileId
from certfs.store.undo_log import RecordedSwap, UndoLog, recover
from tests.store.scenes import ACTOR, Store, store
from tests.support import pki
from tests.support.examples import examples

ONE, TWO, THREE = (pki.authority(f"undo {number}") for number in range(3))
POOL = "stunnel/xapi-pool-ca-bundle.pem"
GENERAL = "trusted-certs/ca-bundle-general.pem"
SPEC = PLATFORM_BUNDLES[0]


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """Give a store with two sources in its pool."""
    path = tmp_path / "host"
    for name in ("stunnel/certs", "stunnel/certs-pool", "trusted-certs"):
        (path / name).mkdir(parents=True)
    (path / "stunnel/certs-pool/one.pem").write_bytes(ONE.pem)
    (path / "stunnel/certs-pool/two.pem").write_bytes(TWO.pem)
    return path


class Servers:
    """Servers of one store, one after the other: each opens the store, recovers, and records."""

    def __init__(self, host: Path, notes: Path) -> None:
        self.host = host
        self.notes = notes

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[Store]:
        """Serve; the end of the context is a death: nothing is taken back."""
        made = store(self.host, PLATFORM_BUNDLES, undo_log=self.notes)
        try:
            await made.trust.recover()
            made.trust.record()
            yield made
        finally:
            made.close()


@pytest.fixture
def server(host: Path, tmp_path: Path) -> Servers:
    """Give servers of ``host``."""
    return Servers(host, tmp_path / "undo-log")


def begin_to_write(found: Store, path: str) -> int:
    """Empty a source as a writer through the mount does, and tell what the filesystem tells."""
    directory, _, name = path.rpartition("/")
    file = os.open(found.path / path, os.O_WRONLY)
    found.trust.write_begins(found.id(directory), name.encode(), os.stat(file))
    os.ftruncate(file, 0)
    return file


async def test_what_was_being_written_counts_as_it_was(host: Path, server: Servers) -> None:
    """I3, I17: its writer is alive, so its last complete content counts until that one closes."""
    async with server() as found:
        file = begin_to_write(found, "stunnel/certs-pool/one.pem")
    for _ in range(2):
        async with server() as found:
            assert found.content(POOL) == ONE.pem + TWO.pem
    async with server() as found:
        os.write(file, THREE.pem)
        os.close(file)
        await found.trust.poll_events()
        assert found.content(POOL) == THREE.pem + TWO.pem
    assert os.listdir(server.notes) == []
    assert (host / "stunnel/certs-pool/one.pem").read_bytes() == THREE.pem


@pytest.mark.parametrize(
    "written, counts",
    [
        (b"", ONE.pem),
        (THREE.pem[:100], ONE.pem),
        (THREE.pem + ONE.pem[:100], ONE.pem),
        (THREE.pem, THREE.pem),
    ],
    ids=["nothing", "half", "one and a half", "all"],
)
async def test_what_lost_its_writer_counts_if_it_is_whole(
    server: Servers, written: bytes, counts: bytes
) -> None:
    """I3, I14: nobody will say that it is complete; what is not, counts as it was, and says so (I9)."""
    async with server() as found:
        file = begin_to_write(found, "stunnel/certs-pool/one.pem")
        os.write(file, written)
        os.close(file)
    for _ in range(2):
        async with server() as found:
            assert found.content(POOL) == counts + TWO.pem
            bundle = found.bundle(POOL)
            assert bundle is not None
            source = bundle.catalog.get(b"one.pem")
            assert source is not None
            reasons = [remark.reason for remark in source.content.remarks]
            assert bool(reasons) == (counts != written)
    async with server() as found:
        (found.path / "stunnel/certs-pool/one.pem").chmod(0o600)
        await found.trust.poll_events()
        assert found.content(POOL) == counts + TWO.pem
        await found.put("stunnel/certs-pool/one.pem", THREE.pem)
        assert found.content(POOL) == THREE.pem + TWO.pem
    assert os.listdir(server.notes) == []


async def test_a_write_that_failed_is_none(server: Servers) -> None:
    """I3: where nothing was changed nothing is left."""
    async with server() as found:
        file = os.open(found.path / "stunnel/certs-pool/one.pem", os.O_RDONLY)
        place = (found.id("stunnel/certs-pool"), b"one.pem", os.stat(file))
        found.trust.write_begins(*place)
        assert len(os.listdir(server.notes)) == 1
        found.trust.write_failed(*place)
        os.close(file)
        assert os.listdir(server.notes) == []


async def test_a_file_with_two_names_is_left_under_each(server: Servers) -> None:
    """I3: whichever name it is written by, also one that nobody knows."""
    async with server() as found:
        pool = found.path / "stunnel/certs-pool"
        (pool / "also.pem").hardlink_to(pool / "one.pem")
        await found.changed("stunnel/certs-pool/also.pem")
        file = os.open(pool / "one.pem", os.O_WRONLY)
        found.trust.write_begins(None, b"", os.stat(file))
        recovered = recover(str(server.notes))
        assert recovered is not None
        assert [set(sources) for sources in recovered.sources.values()] == [
            {b"one.pem", b"also.pem"}
        ]
        os.ftruncate(file, 0)
        os.close(file)
        await found.remove("stunnel/certs-pool/also.pem")
    async with server() as found:
        assert found.content(POOL) == ONE.pem + TWO.pem


async def test_a_removed_source_is_not_left(server: Servers) -> None:
    """I1: deleted is deleted, also by another program while nobody serves."""
    async with server() as found:
        os.close(begin_to_write(found, "stunnel/certs-pool/one.pem"))
        os.close(begin_to_write(found, "stunnel/certs-pool/two.pem"))
        await found.remove("stunnel/certs-pool/one.pem")
    (server.host / "stunnel/certs-pool/two.pem").unlink()
    async with server() as found:
        assert found.content(POOL) == b""


async def test_a_writer_that_nobody_knew_of_takes_nothing_away(server: Servers) -> None:
    """I3, I13: a source that is overwritten while nobody serves counts as the plain copy has it."""
    async with server() as found:
        bundle = found.bundle(POOL)
        assert bundle is not None
        directory = found.trust.open_place(bundle)
        found.trust.plain[bundle].write(directory)
        os.close(directory)
    with (server.host / "stunnel/certs-pool/one.pem").open("wb", buffering=0) as file:
        file.write(THREE.pem[:100])
        async with server() as found:
            assert found.content(POOL) == ONE.pem + TWO.pem
            file.write(THREE.pem[100:])
            file.close()
            await found.trust.poll_events()
            assert found.content(POOL) == THREE.pem + TWO.pem


async def test_a_swap_goes_on(server: Servers) -> None:
    """I10, I17: in each of its steps, and its end is seen whoever saw the beginning."""
    async with server() as found:
        await found.mkdir("stunnel/certs-pool.bk")
    async with server() as found:
        await found.renamed("stunnel/certs-pool", "stunnel/certs-pool.bk")
        assert found.content(POOL) == ONE.pem + TWO.pem
    async with server() as found:
        assert found.content(POOL) == ONE.pem + TWO.pem
        await found.mkdir("stunnel/certs-pool")
        await found.put("stunnel/certs-pool/a.pem", THREE.pem)
    async with server() as found:
        assert found.content(POOL) == THREE.pem + ONE.pem + TWO.pem
        await found.remove("stunnel/certs-pool.bk/one.pem")
        await found.remove("stunnel/certs-pool.bk/two.pem")
        await found.rmdir("stunnel/certs-pool.bk")
        assert found.content(POOL) == THREE.pem
    assert os.listdir(server.notes) == []


async def test_a_swap_that_ended_meanwhile_is_over(server: Servers) -> None:
    """I10: its D.bk is gone, or its time is up."""
    async with server() as found:
        await found.mkdir("stunnel/certs-pool.bk")
        await found.remove("stunnel/certs-pool/one.pem")
    (server.host / "stunnel/certs-pool.bk").rmdir()
    async with server() as found:
        assert found.content(POOL) == TWO.pem


async def test_a_backup_without_a_swap_stays_one(server: Servers) -> None:
    """I10: one that was there at the mount, and one whose swap the script has ended, begin nothing later."""
    (server.host / "stunnel/certs.bk").mkdir()
    (server.host / "stunnel/certs/one.pem").write_bytes(ONE.pem)
    async with server() as found:
        await found.mkdir("stunnel/certs-pool.bk")
        bundle = found.bundle(POOL)
        assert bundle is not None
        found.trust.swaps.end(bundle, ACTOR)
    for _ in range(2):
        async with server() as found:
            assert not any(bundle.is_swapping for bundle in found.trust.bundles)


async def test_a_swap_of_a_directory_that_no_name_shows_goes_on(server: Servers) -> None:
    """I10: the directory of a pattern is gone in the middle of its swap, and so is what its bundle is known by."""
    async with server() as found:
        await found.mkdir("trusted-certs/ca-general")
        await found.put("trusted-certs/ca-general/a.pem", ONE.pem)
        await found.mkdir("trusted-certs/ca-general.bk")
        await found.renamed("trusted-certs/ca-general", "trusted-certs/ca-general.bk")
    async with server() as found:
        assert found.content(GENERAL) == ONE.pem
        await found.mkdir("trusted-certs/ca-general")
        await found.put("trusted-certs/ca-general/b.pem", TWO.pem)
        assert found.content(GENERAL) == ONE.pem + TWO.pem
        await found.remove("trusted-certs/ca-general.bk/a.pem")
        await found.rmdir("trusted-certs/ca-general.bk")
        assert found.content(GENERAL) == TWO.pem


async def test_a_swap_in_the_store_itself_is_one(host: Path, server: Servers) -> None:
    """I10, I13: seen in one look or in several, and ended by what ends any other."""
    async with server() as found:
        for look in (True, False):
            (host / "stunnel/certs-pool.bk").mkdir()
            if look:
                await found.trust.poll_events()
            (host / "stunnel/certs-pool").rename(host / "stunnel/certs-pool.bk")
            await found.trust.poll_events()
            assert found.content(POOL) == ONE.pem + TWO.pem
            (host / "stunnel/certs-pool.bk").rename(host / "stunnel/certs-pool")
            await found.trust.poll_events()
            assert not any(bundle.is_swapping for bundle in found.trust.bundles)
            assert found.content(POOL) == ONE.pem + TWO.pem


async def test_the_echo_of_a_swap_that_is_over_begins_none(server: Servers) -> None:
    """I1, I10: heard when the D.bk is gone again, it holds nothing, not even for a moment."""
    async with server() as found:
        for _ in range(2):
            await found.mkdir("stunnel/certs-pool.bk")
            await found.rmdir("stunnel/certs-pool.bk")
        told = len(found.published)
        found.trust._poll()
        assert not any(bundle.is_swapping for bundle in found.trust.bundles)
        await found.trust.poll_events()
        await found.trust.end_swaps()
        assert len(found.published) == told
        (found.path / "stunnel/certs-pool.bk").mkdir()
        await found.trust.poll_events()
        assert [bundle.spec.source[-1] for bundle in found.trust.bundles if bundle.is_swapping] == [
            b"certs-pool"
        ]


async def test_whoever_ends_a_swap_is_named(server: Servers) -> None:
    """I20: also when a reader hears of the rmdir before the mount has told of it."""
    async with server() as found:
        await found.mkdir("stunnel/certs-pool.bk")
        await found.remove("stunnel/certs-pool/one.pem")
        (found.path / "stunnel/certs-pool.bk").rmdir()
        await found.trust.poll_events()
        assert found.content(POOL) == ONE.pem + TWO.pem
        await found.trust.swap_ends(found.id("stunnel"), b"certs-pool.bk", ACTOR)
        assert found.content(POOL) == TWO.pem
        assert found.published[-1].actor == ACTOR


async def test_a_swap_that_ends_in_the_store_is_over(server: Servers) -> None:
    """I10, I13: also one that began through the mount, when somebody looks after it who has waited a little."""
    async with server() as found:
        await found.mkdir("stunnel/certs-pool.bk")
        await found.remove("stunnel/certs-pool/one.pem")
        (found.path / "stunnel/certs-pool.bk").rmdir()
        await found.trust.poll_events()
        await found.trust.end_swaps()
        assert found.content(POOL) == TWO.pem


async def test_a_directory_renamed_to_a_backup_is_no_swap(host: Path, server: Servers) -> None:
    """I10: a swap begins with a mkdir; who renames D away has taken it away."""
    async with server() as found:
        (host / "stunnel/certs-pool").rename(host / "stunnel/certs-pool.bk")
        await found.trust.poll_events()
        assert found.content(POOL) == b""


async def test_the_echo_of_a_swap_begins_none(server: Servers) -> None:
    """I10: what inotify says later of a swap that the script has ended is no news."""
    async with server() as found:
        await found.mkdir("stunnel/certs-pool.bk")
        bundle = found.bundle(POOL)
        assert bundle is not None
        found.trust.swaps.end(bundle, ACTOR)
        await found.trust.poll_events()
        assert not bundle.is_swapping


async def test_a_swap_that_begins_while_d_is_read_is_one(host: Path) -> None:
    """I10, I13: what was read in the middle of a swap counts with what the bundle was before."""
    pool = host / "stunnel/certs-pool"
    swaps: Iterator[bool] = iter(())

    def swap_once(_: FileId) -> bool:
        if next(swaps, False):
            pool.with_name("certs-pool.bk").mkdir()
            pool.rename(pool.with_name("certs-pool.bk"))
            pool.mkdir()
            for name in ("one.pem", "two.pem"):
                (pool.with_name("certs-pool.bk") / name).unlink()
        return False

    found = store(host, PLATFORM_BUNDLES, is_busy=swap_once)
    bundle = found.bundle(POOL)
    assert bundle is not None
    swaps = iter((True,))
    await bundle.rescan()
    assert found.content(POOL) == ONE.pem + TWO.pem
    await found.trust.poll_events()
    assert found.content(POOL) == ONE.pem + TWO.pem
    pool.with_name("certs-pool.bk").rmdir()
    await found.trust.poll_events()
    assert found.content(POOL) == b""
    found.close()


async def test_a_swap_ends_with_what_d_holds_then(host: Path, server: Servers) -> None:
    """I10, I13: also where D was filled in the store, and the mount heard of its end before it heard of that."""
    pool = host / "stunnel/certs-pool"
    backup = pool.with_name("certs-pool.bk")
    async with server() as found:
        backup.mkdir()
        pool.rename(backup)
        pool.mkdir()
        await found.trust.poll_events()
        (pool / "three.pem").write_bytes(THREE.pem)
        (backup / "one.pem").unlink()
        (backup / "two.pem").unlink()
        backup.rmdir()
        await found.trust.swap_ends(found.id("stunnel"), b"certs-pool.bk", ACTOR)
        assert found.content(POOL) == THREE.pem


async def test_a_log_of_any_names_comes_back(tmp_path: Path) -> None:
    """I3: names of files may hold any bytes."""

    @settings(examples(50), suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        kept=st.dictionaries(
            st.binary(min_size=1, max_size=40),
            st.sampled_from([ONE.pem, TWO.pem, ONE.pem + THREE.pem]),
            max_size=5,
        ),
        directory=st.binary(min_size=1, max_size=20).filter(lambda name: b"/" not in name),
    )
    def comes_back(kept: dict[bytes, bytes], directory: bytes) -> None:
        spec = BundleSpec((b"stunnel", directory), (b"stunnel", directory + b".pem"))
        contents = {name: parse_source(text) for name, text in kept.items()}
        swap = RecordedSwap(time.monotonic() + 30, contents)
        mine = UndoLog(str(tmp_path / "notes"))
        with mine.rewritten():
            mine.record_swap(spec, swap)
            mine.record_sources(spec, contents)
        recovered = recover(str(tmp_path / "notes"))
        assert recovered is not None
        assert recovered.sources == ({spec: contents} if contents else {})
        assert recovered.swaps == {spec: swap}

    comes_back()


def test_nothing_is_left_by_who_is_not_to(tmp_path: Path) -> None:
    """I17: of two servers, one leaves something: the one that is in charge."""
    old, new = (UndoLog(str(tmp_path / "notes")) for _ in range(2))
    content = parse_source(ONE.pem)
    new.record_sources(SPEC, {b"early.pem": content})
    with old.rewritten():
        old.record_sources(SPEC, {b"old.pem": content})
    with new.rewritten():
        new.record_sources(SPEC, {b"new.pem": content})
    old.close()
    old.record_sources(SPEC, {b"late.pem": content})
    recovered = recover(str(tmp_path / "notes"))
    assert recovered is not None
    assert recovered.sources == {SPEC: {b"new.pem": content}}


def test_what_cannot_be_left_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """I9: a runtime directory that cannot be written to is in the way of nothing, and in the log."""
    (tmp_path / "file").write_text("in the way")
    mine = UndoLog(str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING):
        with mine.rewritten():
            mine.record_sources(SPEC, {b"a.pem": parse_source(ONE.pem)})
        mine.record_sources(SPEC, {b"b.pem": parse_source(ONE.pem)})
        mine.record_sources(SPEC, {})
    assert len(caplog.records) == 1
    assert os.strerror(errno.EEXIST) in caplog.text or os.strerror(errno.ENOTDIR) in caplog.text


def test_notes_of_somebody_else_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """I9: a note that cannot be read is in the log, and the others count."""
    mine = UndoLog(str(tmp_path))
    with mine.rewritten():
        mine.record_sources(SPEC, {b"a.pem": parse_source(ONE.pem)})
    for name, text in (("1-1", "\n"), ("1-2", "{}\n"), ("1-3", "[1]\n"), ("1-4", '{"from": 1}\n')):
        (tmp_path / name).write_text(text)
    (tmp_path / "2-1.swap.new").write_text('{"from": "half"')
    with caplog.at_level(logging.WARNING):
        recovered = recover(str(tmp_path))
    assert recovered is not None
    assert list(recovered.sources) == [SPEC]
    assert len(caplog.records) == 4
    assert recover(str(tmp_path / "nothing")) is None
