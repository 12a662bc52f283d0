"""The bundles of a store stay true while their directories come, go and are replaced."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from certfs.core.bundle import PLATFORM_BUNDLES, BundleSpec
from certfs.store.backing import file_id
from certfs.store.plain import temporary_name
from tests.store.scenes import ACTOR, Store, queue_length, spec, store
from tests.support import pki

ONE, TWO, THREE = (pki.authority(f"trust {number}") for number in range(3))
USER, POOL = "stunnel/xapi-stunnel-ca-bundle.pem", "stunnel/xapi-pool-ca-bundle.pem"
GENERAL = "trusted-certs/ca-bundle-general.pem"

Opener = Callable[..., Store]


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """Give the directories of a host."""
    for directory in ("stunnel/certs", "stunnel/certs-pool", "xensource"):
        (tmp_path / "store" / directory).mkdir(parents=True)
    return tmp_path / "store"


@pytest.fixture
def opened(host: Path) -> Iterator[Opener]:
    """Give a function that opens the store; all are closed at the end."""
    stores: list[Store] = []

    def open_store(
        specs: tuple[BundleSpec, ...] = PLATFORM_BUNDLES, *, swap_timeout: float = 30.0
    ) -> Store:
        stores.append(store(host, specs, swap_timeout=swap_timeout))
        return stores[-1]

    yield open_store
    for each in stores:
        each.close()


async def test_a_store_is_read_as_it_is(host: Path, opened: Opener) -> None:
    """I12: at start every bundle is what its directory holds."""
    (host / "stunnel/certs/a.pem").write_bytes(ONE.pem)
    (host / "stunnel/certs-pool/b.pem").write_bytes(TWO.pem)
    found = opened()
    assert found.content(USER) == ONE.pem
    assert found.content(POOL) == TWO.pem


async def test_a_bundle_is_found_by_its_place(opened: Opener) -> None:
    """A name means something only in the directory where it does."""
    found = opened()
    name = b"xapi-pool-ca-bundle.pem"
    assert found.trust.bundle_at(found.id("stunnel"), name) is found.bundle(POOL)
    assert found.trust.bundle_at(found.id("xensource"), name) is None
    assert found.trust.bundle_at(found.id("stunnel"), b"other") is None
    assert set(found.trust.bundles_in(found.id("stunnel"))) == {
        b"xapi-pool-ca-bundle.pem",
        b"xapi-stunnel-ca-bundle.pem",
    }


async def test_the_draft_of_a_plain_copy_is_hidden(opened: Opener) -> None:
    """The mount never shows a plain copy that is being written."""
    found = opened()
    assert found.trust.is_hidden(found.id("stunnel"), temporary_name(b"x"))
    assert not found.trust.is_hidden(found.id("xensource"), temporary_name(b"x"))
    assert not found.trust.is_hidden(found.id("stunnel"), b"x")


async def test_only_names_with_a_role_are_told(opened: Opener) -> None:
    """I18: a change of any other file costs the bundles nothing."""
    found = opened()
    trust, certs, stunnel = found.trust, found.id("stunnel/certs"), found.id("stunnel")
    assert trust.has_role(certs, b"a.pem")
    assert trust.has_role(stunnel, b"certs")
    assert not trust.has_role(certs, b"a.tmp")
    assert not trust.has_role(stunnel, b"stunnel.conf")
    assert not trust.has_role(found.id("xensource"), b"a.pem")


async def test_a_source_directory_may_come_later(host: Path, opened: Opener) -> None:
    """I1: a host without the directory has no bundle; with the directory it has one."""
    (host / "stunnel/certs").rmdir()
    found = opened()
    (host / "stunnel/certs").mkdir()
    (host / "stunnel/certs/a.pem").write_bytes(ONE.pem)
    await found.changed("stunnel/certs")
    assert found.content(USER) == ONE.pem


async def test_a_parent_directory_may_come_later(host: Path, opened: Opener) -> None:
    """I1: the same for any directory on the way."""
    (host / "stunnel/certs").rmdir()
    (host / "stunnel/certs-pool").rmdir()
    (host / "stunnel").rmdir()
    found = opened()
    (host / "stunnel/certs").mkdir(parents=True)
    (host / "stunnel/certs/a.pem").write_bytes(ONE.pem)
    await found.changed("stunnel")
    assert found.content(USER) == ONE.pem
    await found.put("stunnel/certs/b.pem", TWO.pem)
    assert found.content(USER) == ONE.pem + TWO.pem


async def test_a_renamed_away_directory_no_longer_counts(host: Path, opened: Opener) -> None:
    """I1: what happens in it afterwards changes nothing."""
    (host / "stunnel/certs/a.pem").write_bytes(ONE.pem)
    found = opened()
    await found.renamed("stunnel/certs", "stunnel/gone")
    await found.put("stunnel/gone/b.pem", TWO.pem)
    assert found.content(USER) == b""


async def test_a_source_directory_may_be_a_link(host: Path, opened: Opener) -> None:
    """I6: whoever keeps certificates elsewhere may link the directory."""
    (host / "stunnel/certs").rmdir()
    (host / "elsewhere").mkdir()
    (host / "elsewhere/a.pem").write_bytes(ONE.pem)
    (host / "stunnel/certs").symlink_to("../elsewhere")
    found = opened()
    assert found.content(USER) == ONE.pem
    await found.put("elsewhere/b.pem", TWO.pem)
    assert found.content(USER) == ONE.pem + TWO.pem


async def test_two_bundles_of_one_directory_stay_equal(opened: Opener) -> None:
    """One directory may feed two bundles."""
    found = opened((spec("stunnel/certs", "x/one.pem"), spec("stunnel/certs", "two.pem")))
    await found.put("stunnel/certs/a.pem", ONE.pem)
    assert found.content("x/one.pem") == found.content("two.pem") == ONE.pem


async def test_a_bundle_in_its_own_source_directory_does_not_feed_itself(
    host: Path, opened: Opener
) -> None:
    """I1: neither its plain copy nor the draft of one brings back what was removed."""
    found = opened((spec("stunnel/certs", "stunnel/certs/all.pem"),))
    await found.put("stunnel/certs/a.pem", ONE.pem)
    for name in (b"all.pem", temporary_name(b"all.pem")):
        (host / "stunnel/certs" / name.decode()).write_bytes(TWO.pem)
        await found.trust.poll_events()
        await found.changed(f"stunnel/certs/{name.decode()}")
        for bundle in found.trust.bundles:
            await bundle.rescan()
        assert found.content("stunnel/certs/all.pem") == ONE.pem


# --- patterns: the newer layout ------------------------------------------------


async def test_each_directory_of_a_pattern_has_its_bundle(host: Path, opened: Opener) -> None:
    """``trusted-certs/ca-*`` stands for as many bundles as there are directories."""
    (host / "trusted-certs/ca-general").mkdir(parents=True)
    (host / "trusted-certs/ca-general/a.pem").write_bytes(ONE.pem)
    found = opened()
    assert found.content(GENERAL) == ONE.pem
    await found.mkdir("trusted-certs/pinned-x")
    await found.put("trusted-certs/pinned-x/b.pem", TWO.pem)
    assert found.content("trusted-certs/pinned-bundle-x.pem") == TWO.pem


async def test_a_pattern_that_appears_with_its_parent_is_found(host: Path, opened: Opener) -> None:
    """The newer layout may be made on a running host."""
    found = opened()
    (host / "trusted-certs/ca-general").mkdir(parents=True)
    (host / "trusted-certs/ca-general/a.pem").write_bytes(ONE.pem)
    await found.changed("trusted-certs")
    assert found.content(GENERAL) == ONE.pem


async def test_the_directory_of_a_pattern_may_go_and_come_back(host: Path, opened: Opener) -> None:
    """I1: without its directory the bundle is empty, with it it is there again."""
    (host / "trusted-certs/ca-general").mkdir(parents=True)
    (host / "trusted-certs/ca-general/a.pem").write_bytes(ONE.pem)
    found = opened()
    await found.renamed("trusted-certs/ca-general", "trusted-certs/other")
    gone = found.bundle(GENERAL)
    assert gone is None or not gone.exists
    await found.renamed("trusted-certs/other", "trusted-certs/ca-general")
    assert found.content(GENERAL) == ONE.pem


async def test_a_file_whose_name_matches_a_pattern_is_no_bundle(host: Path, opened: Opener) -> None:
    """Plain copies lie beside the directories, and their names match the pattern, too."""
    (host / "trusted-certs/ca-general").mkdir(parents=True)
    (host / "trusted-certs/ca-bundle-general.pem").write_bytes(ONE.pem)
    (host / "trusted-certs/ca-notes.txt").write_text("who asked for what")
    found = opened()
    names = {b"/".join(each.spec.bundle).decode() for each in found.trust.bundles}
    assert names == {USER, POOL, GENERAL}


# --- swaps ---------------------------------------------------------------------


async def erase_old(found: Store, new: dict[str, bytes], seen: list[bytes]) -> None:
    """Replace ``stunnel/certs`` as XAPI's Erase_old does; note the bundle after each step."""

    def look() -> None:
        seen.append(found.content(USER))

    await found.mkdir("stunnel/certs.bk")
    look()
    # A directory onto an empty one, which goes with it.
    await found.renamed("stunnel/certs", "stunnel/certs.bk")
    look()
    await found.mkdir("stunnel/certs")
    look()
    for name, pem in new.items():
        await found.put(f"stunnel/certs/{name}", pem)
        look()
    for name in os.listdir(found.path / "stunnel/certs.bk"):
        await found.remove(f"stunnel/certs.bk/{name}")
        look()
    await found.rmdir("stunnel/certs.bk")


async def test_a_swap_never_drops_trust(host: Path, opened: Opener) -> None:
    """I10: after each step the old ones are there, from the last step on only the new ones."""
    (host / "stunnel/certs/a.pem").write_bytes(ONE.pem)
    (host / "stunnel/certs/b.pem").write_bytes(TWO.pem)
    found = opened()
    seen: list[bytes] = []
    await erase_old(found, {"b.pem": TWO.pem, "c.pem": THREE.pem}, seen)
    for step in seen:
        assert {ONE.sha256, TWO.sha256} <= set(pki.certificates_in(step))
    assert found.content(USER) == TWO.pem + THREE.pem


async def test_a_swap_is_of_one_directory(opened: Opener) -> None:
    """I10: the other bundle takes no part in it."""
    found = opened()
    await found.put("stunnel/certs-pool/a.pem", ONE.pem)
    await found.mkdir("stunnel/certs.bk")
    await found.remove("stunnel/certs-pool/a.pem")
    assert found.content(POOL) == b""


async def test_a_backup_that_was_there_at_the_start_begins_nothing(
    host: Path, opened: Opener
) -> None:
    """I10: a ``.bk`` left over from a crash does not keep old certificates."""
    (host / "stunnel/certs.bk").mkdir()
    (host / "stunnel/certs/a.pem").write_bytes(ONE.pem)
    found = opened()
    await found.remove("stunnel/certs/a.pem")
    assert found.content(USER) == b""


async def test_a_swap_that_nobody_ends_ends_by_itself(
    opened: Opener, mock_clock: trio.testing.MockClock
) -> None:
    """I10: after 30 s, not before, and only that swap."""
    found = opened()
    await found.put("stunnel/certs/a.pem", ONE.pem)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(found.trust.swaps.expire)
        await trio.testing.wait_all_tasks_blocked()
        await found.mkdir("stunnel/certs.bk")
        await found.remove("stunnel/certs/a.pem")
        mock_clock.jump(29.9)
        await trio.testing.wait_all_tasks_blocked()
        assert found.content(USER) == ONE.pem
        mock_clock.jump(0.2)
        await trio.testing.wait_all_tasks_blocked()
        assert found.content(USER) == b""
        nursery.cancel_scope.cancel()


async def test_a_second_swap_has_a_deadline_of_its_own(
    opened: Opener, mock_clock: trio.testing.MockClock
) -> None:
    """I10: the clock of an earlier swap does not end a later one."""
    found = opened(swap_timeout=10.0)
    await found.put("stunnel/certs/a.pem", ONE.pem)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(found.trust.swaps.expire)
        await trio.testing.wait_all_tasks_blocked()
        await found.mkdir("stunnel/certs.bk")
        await found.rmdir("stunnel/certs.bk")
        mock_clock.jump(8)
        await found.mkdir("stunnel/certs.bk")
        await trio.testing.wait_all_tasks_blocked()
        await found.remove("stunnel/certs/a.pem")
        mock_clock.jump(8)
        await trio.testing.wait_all_tasks_blocked()
        assert found.content(USER) == ONE.pem
        mock_clock.jump(3)
        await trio.testing.wait_all_tasks_blocked()
        assert found.content(USER) == b""
        nursery.cancel_scope.cancel()


async def test_a_swap_of_a_pattern_s_directory_keeps_its_bundle(host: Path, opened: Opener) -> None:
    """I10: also while the directory that the bundle is named after is not there."""
    (host / "trusted-certs/ca-general").mkdir(parents=True)
    (host / "trusted-certs/ca-general/a.pem").write_bytes(ONE.pem)
    found = opened()
    await found.mkdir("trusted-certs/ca-general.bk")
    await found.renamed("trusted-certs/ca-general", "trusted-certs/ca-general.bk")
    assert found.content(GENERAL) == ONE.pem
    # D.bk matches the pattern as well as D, and is no bundle of its own.
    assert found.bundle("trusted-certs/ca-bundle-general.bk.pem") is None
    await found.mkdir("trusted-certs/ca-general")
    await found.put("trusted-certs/ca-general/b.pem", TWO.pem)
    assert set(pki.certificates_in(found.content(GENERAL))) == {ONE.sha256, TWO.sha256}
    await found.remove("trusted-certs/ca-general.bk/a.pem")
    await found.rmdir("trusted-certs/ca-general.bk")
    assert found.content(GENERAL) == TWO.pem


# --- changes in the store itself -----------------------------------------------


async def test_changes_in_the_store_are_caught_up_with(host: Path, opened: Opener) -> None:
    """I13: a file made, overwritten, renamed and removed beneath is seen without being told."""
    found = opened()
    path = host / "stunnel/certs/a.pem"
    path.write_bytes(ONE.pem)
    await found.trust.poll_events()
    assert found.content(USER) == ONE.pem
    path.write_bytes(TWO.pem)
    await found.trust.poll_events()
    assert found.content(USER) == TWO.pem
    path.rename(host / "stunnel/certs/a.bak")
    await found.trust.poll_events()
    assert found.content(USER) == b""
    (host / "stunnel/certs/a.bak").rename(path)
    path.unlink()
    (host / "stunnel/certs/b.pem").write_bytes(THREE.pem)
    await found.trust.poll_events()
    assert found.content(USER) == THREE.pem


async def test_a_writer_in_the_store_is_waited_for(host: Path, opened: Opener) -> None:
    """I3, I13: what another process is writing beneath counts when that process closes it."""
    (host / "stunnel/certs/a.pem").write_bytes(ONE.pem)
    found = opened()
    with (host / "stunnel/certs/a.pem").open("wb", buffering=0) as file:
        file.write(TWO.pem[:80])
        # Something else that makes certfs look at the file in mid-write.
        (host / "stunnel/certs/a.pem").chmod(0o600)
        await found.trust.poll_events()
        assert found.content(USER) == ONE.pem
        file.write(TWO.pem[80:])
    await found.trust.poll_events()
    assert found.content(USER) == TWO.pem


async def test_a_directory_replaced_in_the_store_is_followed(host: Path, opened: Opener) -> None:
    """I13: the directory that has the name now is the source, and is watched."""
    (host / "stunnel/certs/a.pem").write_bytes(ONE.pem)
    found = opened()
    (host / "stunnel/certs").rename(host / "stunnel/old")
    (host / "stunnel/certs").mkdir()
    (host / "stunnel/certs/b.pem").write_bytes(TWO.pem)
    await found.trust.poll_events()
    assert found.content(USER) == TWO.pem
    (host / "stunnel/old/c.pem").write_bytes(THREE.pem)
    await found.trust.poll_events()
    assert found.content(USER) == TWO.pem
    (host / "stunnel/certs/d.pem").write_bytes(THREE.pem)
    await found.trust.poll_events()
    assert found.content(USER) == TWO.pem + THREE.pem


async def test_nothing_is_missed_when_the_kernel_drops_events(host: Path, opened: Opener) -> None:
    """I13: when the queue of events overflowed, everything is read again."""
    found = opened()
    events = queue_length()
    if events > 1 << 16:
        pytest.skip(f"{events} events are too many to make here")
    noise = [host / "stunnel/certs" / name for name in ("noise.one", "noise.two")]
    for number in range(events // 2 + 10):
        # Two names in turn: the kernel merges equal neighbours.
        noise[number % 2].touch()
        noise[number % 2].unlink()
    (host / "stunnel/certs/a.pem").write_bytes(ONE.pem)
    (host / "stunnel/certs-pool/b.pem").write_bytes(TWO.pem)
    await found.trust.poll_events()
    assert found.content(USER) == ONE.pem
    assert found.content(POOL) == TWO.pem


async def test_our_own_changes_come_back_as_nothing(opened: Opener) -> None:
    """I20: the echo of a change that was told already is no second change."""
    found = opened()
    await found.put("stunnel/certs/a.pem", ONE.pem)
    told = len(found.published)
    await found.trust.poll_events()
    assert len(found.published) == told == 1


async def test_a_file_with_two_names_is_one_file(host: Path, opened: Opener) -> None:
    """I1: written under a name outside of the source directory, it is seen under the one inside."""
    (host / "staged").write_bytes(ONE.pem)
    (host / "stunnel/certs/a.pem").hardlink_to(host / "staged")
    found = opened()
    (host / "staged").write_bytes(TWO.pem)
    await found.trust.inode_changed(found.id("staged"), ACTOR)
    assert found.content(USER) == TWO.pem


async def test_closing_lets_go_of_every_descriptor(host: Path) -> None:
    """I18: whatever came and went, nothing stays open."""
    before = len(os.listdir("/proc/self/fd"))
    found = store(host, PLATFORM_BUNDLES)
    await found.put("stunnel/certs/a.pem", ONE.pem)
    await erase_old(found, {"b.pem": TWO.pem}, [])
    await found.mkdir("trusted-certs")
    await found.mkdir("trusted-certs/ca-x")
    await found.rmdir("trusted-certs/ca-x")
    await found.trust.poll_events()
    found.close()
    assert len(os.listdir("/proc/self/fd")) == before


async def test_many_swaps_leave_no_descriptor(opened: Opener) -> None:
    """I18: descriptors are bounded by what there is, not by what happened."""
    found = opened()
    await erase_old(found, {"a.pem": ONE.pem}, [])
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        await erase_old(found, {"a.pem": ONE.pem}, [])
    assert len(os.listdir("/proc/self/fd")) == before


async def test_beside_another_server_what_was_closed_here_may_be_written_there(
    host: Path, opened: Opener
) -> None:
    """I3, I17: while one server takes another's place, a file counts as it was until its writer there has closed it."""
    found = opened()
    path = host / "stunnel/certs/a.pem"
    await found.put("stunnel/certs/a.pem", ONE.pem)
    found.trust.is_alone = False
    with path.open("r+b", buffering=0) as through_another:
        through_another.truncate(0)
        through_another.write(TWO.pem[:100])
        await found.changed("stunnel/certs/a.pem")
        assert found.content(USER) == ONE.pem
        await found.trust.inode_changed(file_id(path.stat()), ACTOR)
        assert found.content(USER) == ONE.pem
        through_another.write(TWO.pem[100:])
    await found.changed("stunnel/certs/a.pem")
    assert found.content(USER) == TWO.pem
    with path.open("r+b"):
        # What is whole counts: who only has it open must not hold back what another has written.
        path.write_bytes(THREE.pem)
        await found.changed("stunnel/certs/a.pem")
        assert found.content(USER) == THREE.pem
    path.write_bytes(b"-----BEGIN CERTIFICATE-----\n")
    await found.changed("stunnel/certs/a.pem")
    assert found.content(USER) == b""
