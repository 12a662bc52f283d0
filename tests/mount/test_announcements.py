"""Watchers of a bundle on the mount get the events of a file that is replaced atomically (I21)."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from inotify_simple import Event, INotify, flags

from tests.support import pki
from tests.support.launching import mount_with
from tests.support.mounts import (
    CertfsMount,
    certfs_program,
    mounted,
    need_fuse,
    scratch_directory,
    wait_until,
)
from tests.support.tree import Tree

pytestmark = pytest.mark.mount

CHANGES = int(os.environ.get("CERTFS_TEST_ANNOUNCED", "60"))
FIRST, SECOND = pki.authority("announced first"), pki.authority("announced second")
THIRD = pki.authority("announced third")


@pytest.fixture
def mount() -> Iterator[CertfsMount]:
    """Give a mount of a host's directories with one trusted certificate."""

    def prepare(tree: Tree) -> None:
        (tree.certs / "first.pem").write_bytes(FIRST.pem)

    with mounted(prepare=prepare) as made:
        yield made


class Watch:
    """An inotify watch of the bundle's directory and one of the bundle itself."""

    def __init__(self, bundle: Path) -> None:
        self.bundle = bundle
        self.queue = INotify()
        self.seen: list[tuple[str, flags]] = []
        everything = flags.MOVED_TO | flags.CREATE | flags.DELETE | flags.MODIFY
        self.directory = self.queue.add_watch(os.fsencode(bundle.parent), everything)
        self.file = -1
        self.watch_file()

    def watch_file(self) -> None:
        """Watch the generation that the bundle's name leads to now."""
        of_file = flags.ATTRIB | flags.DELETE_SELF | flags.MOVE_SELF | flags.MODIFY
        if self.bundle.exists():
            self.file = self.queue.add_watch(os.fsencode(self.bundle), of_file)

    def wait_for(self, where: str, what: flags, *, seconds: float = 60) -> None:
        """Read events until there is one of this kind."""
        deadline = time.monotonic() + seconds
        while True:
            event: Event
            for event in self.queue.read(timeout=500):
                place = "file" if event.wd == self.file else "directory"
                if place == "file" or event.name == self.bundle.name:
                    self.seen += [(place, flag) for flag in flags.from_mask(event.mask)]
            if (where, what) in self.seen:
                return
            assert time.monotonic() < deadline, f"no {what} of the {where}; seen: {self.seen}"


@pytest.fixture
def watch(mount: CertfsMount) -> Iterator[Watch]:
    """Give a watch of the bundle of what users trust."""
    made = Watch(mount.tree.user_bundle)
    yield made
    made.queue.close()


def test_a_change_is_an_event_of_the_directory_and_of_the_file(
    mount: CertfsMount, watch: Watch
) -> None:
    """A program that reads the bundle after either has the new generation."""
    (mount.tree.certs / "second.pem").write_bytes(SECOND.pem)
    watch.wait_for("directory", flags.MOVED_TO)
    watch.wait_for("file", flags.DELETE_SELF)
    assert SECOND.pem in watch.bundle.read_bytes()


def test_the_last_removal_is_the_removal_of_the_bundle(mount: CertfsMount, watch: Watch) -> None:
    """A bundle that has no certificate is gone, and that is what is reported (I7)."""
    (mount.tree.certs / "first.pem").unlink()
    watch.wait_for("directory", flags.DELETE)
    watch.wait_for("file", flags.DELETE_SELF)
    assert not watch.bundle.exists()


def test_a_bundle_that_comes_is_reported_in_its_directory(mount: CertfsMount) -> None:
    """The first certificate of a directory makes its bundle."""
    watch = Watch(mount.tree.pool_bundle)
    (mount.tree.certs_pool / "one.pem").write_bytes(FIRST.pem)
    watch.wait_for("directory", flags.MOVED_TO)
    watch.queue.close()


def test_each_change_is_announced_in_the_end(mount: CertfsMount, watch: Watch) -> None:
    """Changes that follow one another within the interval are announced together, the last one too."""
    for number in range(4):
        (mount.tree.certs / f"{number}.pem").write_bytes(pki.issue(f"change {number}").pem)
    watch.wait_for("directory", flags.MOVED_TO)
    deadline = time.monotonic() + 60
    while watch.bundle.read_bytes().count(b"BEGIN") != 5:
        assert time.monotonic() < deadline
    watch.watch_file()
    watch.seen.clear()
    (mount.tree.certs / "0.pem").unlink()
    watch.wait_for("file", flags.DELETE_SELF)


def test_nobody_else_gets_the_answers_of_the_announcer(mount: CertfsMount) -> None:
    """For every other process the names do not exist and a bundle stays what it is (I8)."""
    own = mount.tree.root / ".certfs"
    assert not (own / "announce").exists()
    with pytest.raises(FileNotFoundError):
        os.rename(own / "announce", mount.tree.user_bundle)
    with pytest.raises(PermissionError):
        os.unlink(mount.tree.user_bundle)


class Reader(threading.Thread):
    """Reads the bundle again and again; notes what it must never see."""

    def __init__(self, bundle: Path) -> None:
        super().__init__()
        self.bundle = bundle
        self.ended = threading.Event()
        self.reads = 0
        self.wrong: list[str] = []
        self.least = 0
        """How many certificates a bundle that is opened from now on has at least."""

    def run(self) -> None:
        """Read until told to end."""
        while not self.ended.is_set():
            least = self.least
            try:
                count = self.bundle.read_bytes().count(b"BEGIN")
            except OSError as error:
                self.wrong.append(str(error))
                continue
            self.reads += 1
            if count < least:
                self.wrong.append(f"{count} certificates, not {least}")


def test_readers_beside_announcements_see_no_error_and_nothing_old(
    mount: CertfsMount, watch: Watch
) -> None:
    """0 stale, 0 ENOENT, while names are renamed onto the bundle that they open (I1)."""
    readers = [Reader(watch.bundle) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        for number in range(CHANGES):
            pem = pki.issue(f"announced {number}").pem
            (mount.tree.certs / f"{number:06}.pem").write_bytes(pem)
            for reader in readers:
                reader.least = number + 2
            time.sleep(0.05)
        watch.watch_file()
        watch.seen.clear()
        (mount.tree.certs / "last.pem").write_bytes(SECOND.pem)
        watch.wait_for("file", flags.DELETE_SELF)
    finally:
        for reader in readers:
            reader.ended.set()
            reader.join()
    assert [reader.wrong for reader in readers] == [[], []]
    assert all(reader.reads > CHANGES for reader in readers)


@pytest.mark.parametrize("readers", [0, 2])
def test_with_no_interval_every_generation_is_announced(readers: int) -> None:
    """After each change there is an event, and what is read then is that change."""
    need_fuse()
    root = scratch_directory()
    tree, beneath = Tree(root / "mount", root / "store"), Tree(root / "store", root / "store")
    for directory in (tree.root, tree.store):
        directory.mkdir()
    beneath.make()
    (beneath.certs / "first.pem").write_bytes(FIRST.pem)
    module = "tests.support.announcing_server"
    environment = mount_with(module, tree.store, tree.root, root / "run")
    watch, threads = Watch(tree.user_bundle), [Reader(tree.user_bundle) for _ in range(readers)]
    try:
        for thread in threads:
            thread.start()
        for number in range(CHANGES // 3):
            watch.seen.clear()
            (tree.certs / f"{number:06}.pem").write_bytes(pki.issue(f"{readers} {number}").pem)
            for thread in threads:
                thread.least = number + 2
            watch.wait_for("directory", flags.MOVED_TO)
            assert watch.bundle.read_bytes().count(b"BEGIN") == number + 2
    finally:
        for thread in threads:
            thread.ended.set()
            thread.join()
        watch.queue.close()
        unmount = [certfs_program(), "unmount", str(tree.root)]
        subprocess.run(unmount, check=True, env=environment, timeout=60)
        shutil.rmtree(root, ignore_errors=True)
    assert [thread.wrong for thread in threads] == [[]] * readers


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=lambda number: number.name)
def test_a_fault_of_the_server_in_the_middle_leaves_no_announcer(
    mount: CertfsMount, number: signal.Signals
) -> None:
    """It ends with the server, whose paths come back as always, and nothing is missing meanwhile (I14, I15)."""
    mount.expected_log += ["was killed", "did not answer", "plain directories", "death"]
    plain = mount.tree.store / "stunnel" / mount.tree.user_bundle.name
    wait_until(plain.exists, seconds=60, what="the first plain copy")
    server = server_of(mount)
    (mount.tree.certs / "second.pem").write_bytes(SECOND.pem)
    third = mount.tree.certs / "third.pem"

    def announces() -> bool:
        # An announcer comes and goes within milliseconds, so there is one for each of many changes.
        if third.exists():
            third.unlink()
        else:
            third.write_bytes(THIRD.pem)
        return announcers(mount) != []

    wait_until(announces, seconds=60, what="an announcement")
    os.kill(server, number)
    wait_until(lambda: server_of(mount) not in {0, server}, seconds=60, what="a new server")
    wait_until(lambda: announcers(mount) == [], seconds=60, what="the announcer's end")
    bundle = mount.tree.user_bundle
    wait_until(lambda: SECOND.pem in bundle.read_bytes(), seconds=60, what="the live mount")


def server_of(mount: CertfsMount) -> int:
    """Return the pid of the server, 0 while there is none."""
    (path,) = mount.tree.root.with_name("run").glob("at-*/state.json")
    server = json.loads(path.read_bytes())["server"]
    return int(server["pid"]) if server else 0


def announcers(mount: CertfsMount) -> list[int]:
    """Return the announcers that run."""
    found = []
    for pid in mount.pids:
        with suppress(OSError):
            if b"announcer.py" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found
