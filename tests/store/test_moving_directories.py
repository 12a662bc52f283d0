"""Ways to sources that are turned: links, links behind links, directories on the way, and mounts (I1, I12, I13)."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from certfs.linux import mount_syscalls
from certfs.server.plain_copies import PlainCopies
from certfs.store.bundle import LiveBundle
from certfs.store.bundles import Trust
from certfs.store.source_reader import SourceReader
from tests.store.scenes import Store, queue_length, spec, store
from tests.support import mounts, pki
from tests.support.mounts import need_root

OLD, NEW = (pki.authority(f"moving {name}") for name in ("old", "new"))
BUNDLE = "ca.pem"


def turn(link: Path, target: str) -> None:
    """Let a link lead elsewhere in one step, as a deployment does."""
    draft = link.with_name(f"{link.name}.new")
    draft.symlink_to(target)
    draft.rename(link)


def swap(one: Path, other: Path) -> None:
    """Exchange two directories by renaming."""
    one.rename(one.with_name("away"))
    other.rename(one)


def umount(directory: Path) -> list[str | Path]:
    """Give the command that takes a mount away: a descriptor in it makes it busy where open_tree(2) is missing."""
    try:
        os.close(mount_syscalls.clone_tree("/"))
    except OSError:
        return ["umount", "--lazy", directory]
    return ["umount", directory]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Give a store, and outside of it two releases that a chain of links chooses from.

    ``store/certs -> ../outside/site -> current -> releases/1``
    """
    for number, ca in ((1, OLD), (2, NEW)):
        release = tmp_path / "outside" / "releases" / str(number)
        release.mkdir(parents=True)
        (release / "ca.crt").write_bytes(ca.pem)
        (release / "ca.pem").write_bytes(ca.pem)
    (tmp_path / "outside" / "current").symlink_to("releases/1")
    (tmp_path / "outside" / "site").symlink_to("current")
    (tmp_path / "store").mkdir()
    return tmp_path / "store"


TURNS: dict[str, Callable[[Path], None]] = {
    "the link in the store": lambda root: turn(root / "certs", "../outside/releases/2"),
    "the first outside": lambda root: turn(root / "../outside/site", "releases/2"),
    "the second outside": lambda root: turn(root / "../outside/current", "releases/2"),
    "the directory": lambda root: swap(
        root / "../outside/releases/1", root / "../outside/releases/2"
    ),
    "a directory on the way": lambda root: swap(root / "../outside/releases", root / "other"),
    "the way to the first link": lambda root: swap(root / "../outside", root / "elsewhere"),
}


def prepare_other_ways(root: Path) -> None:
    """Make what some turns put in the place of what was there."""
    (root / "other" / "1").mkdir(parents=True)
    for name in ("ca.pem", "ca.crt"):
        (root / "other" / "1" / name).write_bytes(NEW.pem)
    (root / "elsewhere").mkdir()
    (root / "elsewhere" / "site").symlink_to(root / "other" / "1")


@contextlib.contextmanager
def opened(root: Path) -> Iterator[Store]:
    """Read the store, for as long as the context lasts."""
    found = store(root, [spec("certs", BUNDLE)])
    try:
        yield found
    finally:
        found.close()


@pytest.mark.parametrize("way", TURNS)
async def test_a_source_directory_behind_links_is_followed(root: Path, way: str) -> None:
    """I1, I13: whatever on the way to a source directory is turned, the bundle is that of what `ls` shows."""
    (root / "certs").symlink_to("../outside/site")
    prepare_other_ways(root)
    with opened(root) as found:
        assert found.content(BUNDLE) == OLD.pem
        TURNS[way](root)
        await found.trust.poll_events()
        assert (root / "certs" / "ca.pem").read_bytes() == NEW.pem
        assert found.content(BUNDLE) == NEW.pem
        # What is on the new way counts from now on.
        (root / "certs" / "b.pem").write_bytes(OLD.pem)
        await found.trust.poll_events()
        assert OLD.pem in found.content(BUNDLE)


@pytest.mark.parametrize("way", [*TURNS, "the target's content", "the target's name"])
async def test_a_source_that_is_a_link_is_followed_while_nobody_reads(root: Path, way: str) -> None:
    """I1, I12: whatever on the way to the target is turned, bundle and plain copy follow without a reader."""
    (root / "certs").mkdir()
    (root / "certs" / "a.pem").symlink_to("../../outside/site/ca.crt")
    prepare_other_ways(root)
    turns = TURNS | {
        "the link in the store": lambda root: turn(
            root / "certs" / "a.pem", "../../outside/releases/2/ca.crt"
        ),
        "the target's content": lambda root: (
            (root / "certs/a.pem").resolve().write_bytes(NEW.pem) and None
        ),
        "the target's name": lambda root: (
            (root / "../outside/releases/2/ca.crt").rename(root / "../outside/releases/1/ca.crt")
            and None
        ),
    }
    with opened(root) as found:
        copies = PlainCopies(found.trust, active=True)
        await copies.flush()
        assert (root / BUNDLE).read_bytes() == OLD.pem
        turns[way](root)
        await found.trust.poll_events()
        assert (root / "certs" / "a.pem").read_bytes() == NEW.pem
        assert found.content(BUNDLE) == NEW.pem
        await copies.flush()
        assert (root / BUNDLE).read_bytes() == NEW.pem


@pytest.mark.parametrize("moment", ["before it is opened", "after it was opened"])
async def test_a_directory_that_goes_while_its_copy_is_written_is_no_failure(
    root: Path, moment: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """I12: a place that is removed with its bundle is looked at again, and is no line in the log."""
    certs = root / "trusted" / "certs"
    certs.mkdir(parents=True)
    (certs / "a.pem").write_bytes(NEW.pem)
    open_place = Trust.open_place

    def open_while_removed(trust: Trust, bundle: LiveBundle) -> int:
        if moment == "before it is opened":
            shutil.rmtree(root / "trusted", ignore_errors=True)
        opened = open_place(trust, bundle)
        shutil.rmtree(root / "trusted")
        return opened

    monkeypatch.setattr(Trust, "open_place", open_while_removed)
    found = store(root, [spec("trusted/certs", "trusted/ca.pem")])
    with contextlib.closing(found):
        copies = PlainCopies(found.trust, active=True)
        await copies.flush()
        assert list(copies.stale())  # so it is tried again
        await copies.flush()
        assert not list(copies.stale())
        assert "cannot be written" not in caplog.text


async def test_a_link_into_nowhere_is_followed_when_it_leads_somewhere(root: Path) -> None:
    """I13: what is missing on the way is noticed when it comes."""
    (root / "certs").symlink_to("../outside/later/certs")
    with opened(root) as found:
        assert found.content(BUNDLE) == b""
        (root / "../outside/later/certs").mkdir(parents=True)
        (root / "../outside/later/certs/a.pem").write_bytes(NEW.pem)
        for _ in range(3):
            await found.trust.poll_events()
        assert found.content(BUNDLE) == NEW.pem


def test_a_mount_over_the_mount_is_followed() -> None:
    """I1: a file system mounted over a source directory, where people see it, is what the bundle is made of."""
    need_root()
    with mounts.mounted() as mount:
        certs, bundle = mount.tree.certs, mount.tree.user_bundle
        (certs / "a.pem").write_bytes(OLD.pem)
        assert bundle.read_bytes() == OLD.pem
        subprocess.run(["mount", "-t", "tmpfs", "over", certs], check=True)
        try:
            assert not bundle.exists()
            (certs / "b.pem").write_bytes(NEW.pem)
            assert bundle.read_bytes() == NEW.pem
            plain = mount.tree.store / "stunnel" / bundle.name
            mounts.wait_until(
                lambda: plain.exists() and plain.read_bytes() == NEW.pem, what="the plain copy"
            )
        finally:
            subprocess.run(umount(certs), check=True)
        assert bundle.read_bytes() == OLD.pem


def test_a_turned_link_reaches_the_plain_copy_while_nobody_reads() -> None:
    """I12: as kubelet does it, `..data` is turned; what was revoked is not trusted after the end of the mount."""
    with mounts.mounted() as mount:
        certs, store_certs = mount.tree.certs, mount.tree.store / "stunnel" / "certs"
        volume = mount.tree.root.with_name("volume")
        for name, ca in (("..1", OLD), ("..2", NEW)):
            (volume / name).mkdir(parents=True)
            (volume / name / "ca.crt").write_bytes(ca.pem)
        (volume / "..data").symlink_to("..1")
        (certs / "a.pem").symlink_to(volume / "..data" / "ca.crt")
        plain = store_certs.parent / mount.tree.user_bundle.name

        def shows(ca: pki.Identity) -> bool:
            return plain.exists() and plain.read_bytes() == ca.pem

        mounts.wait_until(lambda: shows(OLD), what="the plain copy")
        turn(volume / "..data", "..2")
        mounts.wait_until(lambda: shows(NEW), what="the new plain copy")
        mount.stop()
        assert plain.read_bytes() == NEW.pem
        mount.start()


async def test_whoever_asks_for_a_link_is_answered_with_what_it_leads_to(root: Path) -> None:
    """I1: of many who have a link read at once, each finds in the bundle what was there before it asked."""
    (root / "certs").mkdir()
    target = root / "target"
    (root / "certs" / "a.pem").symlink_to(target)
    target.write_bytes(OLD.pem)
    stale = []
    with opened(root) as found:
        bundle = found.bundle(BUNDLE)
        assert bundle is not None

        async def ask(ca: pki.Identity, number: int) -> None:
            await bundle.refresh([b"a.pem"], None)
            if found.content(BUNDLE) != ca.pem:
                stale.append(number)

        for turn_number in range(10):
            ca = (NEW, OLD)[turn_number % 2]
            draft = root / "draft"
            draft.write_bytes(ca.pem)
            draft.rename(target)
            async with trio.open_nursery() as nursery:
                for number in range(10):
                    nursery.start_soon(ask, ca, number)
    assert not stale


async def test_what_no_link_leads_over_is_watched_no_more(root: Path) -> None:
    """I18: links that come and go leave no watches behind."""
    (root / "certs").mkdir()
    with opened(root) as found:
        for number in range(200):
            place = root / "places" / str(number)
            place.mkdir(parents=True)
            (place / "ca.crt").write_bytes(OLD.pem)
            turn(root / "certs" / "a.pem", str(place / "ca.crt"))
            await found.trust.poll_events()
        assert found.content(BUNDLE) == OLD.pem
        assert found.trust.watcher.ways < 150


async def test_a_mount_over_a_source_directory_is_followed(root: Path) -> None:
    """I1: what is in view of a source directory counts, before, during and after a mount over it."""
    need_root()
    certs = root / "certs"
    certs.mkdir()
    (certs / "a.pem").write_bytes(OLD.pem)
    with opened(root) as found:
        await trio.run_process(["mount", "-t", "tmpfs", "over", certs])
        try:
            await found.trust.poll_events()
            assert found.content(BUNDLE) == b""
            (certs / "b.pem").write_bytes(NEW.pem)
            await found.trust.poll_events()
            assert found.content(BUNDLE) == NEW.pem
        finally:
            await trio.run_process(umount(certs))
        await found.trust.poll_events()
        assert found.content(BUNDLE) == OLD.pem
        assert os.listdir(certs) == ["a.pem"]


_HOLDER = """
import fcntl, signal, sys, time
signal.signal(signal.SIGIO, signal.SIG_IGN)
file = open(sys.argv[1], "r+b")
fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
print(flush=True)
sys.stdin.readline()
fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
print(flush=True)
sys.stdin.readline()
"""


@contextlib.contextmanager
def leased(path: Path) -> Iterator[Callable[[], None]]:
    """Hold a write lease on a file, as Samba does for a client; give what returns it."""
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        holder.stdout.readline()

        def give_back() -> None:
            assert holder.stdin is not None
            assert holder.stdout is not None
            holder.stdin.write(b"\n")
            holder.stdin.flush()
            holder.stdout.readline()

        yield give_back
        holder.kill()


async def test_a_lease_takes_no_certificate_away(root: Path) -> None:
    """I4: a source that another program has a lease on counts as it was, and is read when that is given back."""
    source = root / "certs" / "a.pem"
    source.parent.mkdir()
    source.write_bytes(OLD.pem)
    with opened(root) as found:
        bundle = found.bundle(BUNDLE)
        assert bundle is not None
        source.write_bytes(NEW.pem)
        with leased(source) as give_back:
            await found.trust.poll_events()
            assert found.content(BUNDLE) == OLD.pem
            assert bundle.is_waiting
            give_back()
            await bundle.wait_until_current()
            assert found.content(BUNDLE) == NEW.pem
            assert not bundle.is_waiting


@contextlib.contextmanager
def disk(beneath: Path, path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Show a directory by a file system of another process, which can be stopped; nothing is cached."""
    mounts.need_fuse()
    mounts.need_program("bindfs")
    options = "attr_timeout=0,entry_timeout=0,negative_timeout=0"
    process = subprocess.Popen(mounts.bindfs_command("-f", "-o", options, beneath, path))
    try:
        mounts.wait_until(path.is_mount, what="the bindfs mount")
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        mounts.force_unmount(str(path))
        process.terminate()
        process.wait(10)


async def test_a_source_directory_that_hangs_costs_a_second_once(root: Path) -> None:
    """I18: what was last read counts, whoever asks, and it is read again when it answers."""
    beneath, certs = root / "beneath", root / "certs"
    beneath.mkdir()
    certs.mkdir()
    (beneath / "a.pem").write_bytes(OLD.pem)
    with disk(beneath, certs) as process, opened(root) as found:
        bundle = found.bundle(BUNDLE)
        assert bundle is not None
        # Nobody tells of what is changed on the other side: it is compared.
        (beneath / "a.pem").write_bytes(NEW.pem)
        await bundle.wait_until_current()
        assert found.content(BUNDLE) == NEW.pem
        process.send_signal(signal.SIGSTOP)
        (beneath / "b.pem").write_bytes(OLD.pem)
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(bundle.wait_until_current)
        for _ in range(20):
            await bundle.wait_until_current()
        assert trio.current_time() - began < 3
        assert found.content(BUNDLE) == NEW.pem
        assert bundle.silent_places == [b"certs"]
        process.send_signal(signal.SIGCONT)
        with trio.fail_after(30):
            while OLD.pem not in found.content(BUNDLE):
                await bundle.wait_until_current()
        assert not bundle.is_waiting


async def test_a_backup_that_hangs_does_not_stop_the_loop(root: Path) -> None:
    """I15, I18: where events were lost, a D.bk on a file system that does not answer is not waited for."""
    events = queue_length()
    if events > 1 << 16:
        pytest.skip(f"{events} events are too many to make here")
    beneath, certs, backup = (root / name for name in ("beneath", "certs", "certs.bk"))
    for directory in (beneath, certs, backup):
        directory.mkdir()
    with disk(beneath, backup) as process, opened(root) as found:
        process.send_signal(signal.SIGSTOP)
        for number in range(events // 2 + 10):
            (certs / f"noise.{number % 2}").touch()
            (certs / f"noise.{number % 2}").unlink()
        (certs / "a.pem").write_bytes(OLD.pem)
        # If the loop were stopped it would stay so: the test must not.
        going_on = threading.Timer(10, process.send_signal, (signal.SIGCONT,))
        going_on.start()
        began = trio.current_time()
        await found.trust.poll_events()
        assert trio.current_time() - began < 5
        going_on.cancel()
        assert found.content(BUNDLE) == OLD.pem


async def test_readers_share_the_look_at_a_slow_target(root: Path) -> None:
    """I18: twenty readers of a bundle with a slow link take as long as two."""
    (root / "certs").mkdir()
    (root / "certs" / "a.pem").symlink_to("../../outside/current/ca.crt")
    with opened(root) as found:
        bundle = found.bundle(BUNDLE)
        assert bundle is not None
        asked = 0

        def slow(*_: object, **__: object) -> bytes:
            nonlocal asked
            asked += 1
            time.sleep(0.1)
            return b""

        with pytest.MonkeyPatch.context() as context:
            context.setattr(SourceReader, "link_stamp", slow)
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(bundle.wait_until_current)
        assert asked in {1, 2}
        assert found.content(BUNDLE) == OLD.pem
