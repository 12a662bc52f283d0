"""I1, I15: a way to a source directory that leads to a file system which does not answer, or answers only its user."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from certfs.linux import mount_syscalls
from tests.support import liar, mounts, pki
from tests.support.mounts import CertfsMount
from tests.support.tree import Tree

pytestmark = pytest.mark.mount

ONE, OTHER = (pki.authority(f"ways {name}") for name in ("one", "other"))
USER = 20_001
LONGEST = 1.0
"""Seconds that an open of a bundle may take (docs/security.md)."""
HANG_SECONDS = 12.0
"""More than a server may be silent before it is replaced."""


@contextlib.contextmanager
def other_filesystem() -> Iterator[tuple[Path, Path, int]]:
    """Mount a file system of another process: yield where, what is beneath, and the process."""
    mounts.need_root()
    mounts.need_program("bindfs")
    place = mounts.scratch_directory()
    beneath, seen = place / "beneath", place / "seen"
    for each in (beneath, seen):
        each.mkdir()
    with subprocess.Popen(["bindfs", "-f", beneath, seen]) as process:
        try:
            mounts.wait_until(lambda: str(seen) in mounts.mountpoints(), what="bindfs")
            yield seen, beneath, process.pid
        finally:
            process.send_signal(signal.SIGCONT)
            mounts.force_unmount(str(seen))
            process.kill()
    shutil.rmtree(place, ignore_errors=True)


@contextlib.contextmanager
def private_filesystem() -> Iterator[Path]:
    """Mount what only an ordinary user may look at: root is answered EACCES (mount.fuse3(8), allow_other)."""
    mounts.need_root()
    place = mounts.scratch_directory()
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={device},rootmode=40000,user_id={USER},group_id={USER}"
    mount_syscalls.mount("private", str(place), "fuse", 0, options)
    try:
        yield place
    finally:
        mounts.force_unmount(str(place))
        os.close(device)
        place.rmdir()


def opened_in_time(bundle: Path, seconds: float) -> None:
    """Open and read a bundle again and again; it has a certificate, and each time takes no longer than it may."""
    end = time.monotonic() + seconds
    while (begun := time.monotonic()) < end:
        assert b"BEGIN" in bundle.read_bytes()
        assert time.monotonic() - begun < LONGEST
        time.sleep(0.01)


def fill(beneath: Path) -> None:
    """Make a source directory some way below the root of a file system."""
    (beneath / "a" / "certs").mkdir(parents=True)
    (beneath / "a" / "certs" / "x.pem").write_bytes(ONE.pem)


def link_to(directory: Path, tree: Tree) -> None:
    """Let the user's source directory be a link."""
    os.rmdir(tree.root / "stunnel" / "certs")
    (tree.root / "stunnel" / "certs").symlink_to(directory / "a" / "certs")


def turned(mount: CertfsMount, directory: Path) -> None:
    """Let a link in the store lead to a directory, in one step."""
    link = mount.tree.store / "stunnel" / "certs"
    draft = link.with_name("draft")
    draft.symlink_to(directory)
    draft.rename(link)


def test_a_way_that_hangs_when_it_is_turned_to_stops_no_reader() -> None:
    """The store's owner turns a link to a dead file system: bundles are read, and nobody takes the server for hung."""
    with other_filesystem() as (seen, beneath, process):
        fill(beneath)
        (beneath / "b").symlink_to("a")

        def prepare(tree: Tree) -> None:
            tree.make()
            link_to(seen, tree)

        with mounts.mounted(prepare=prepare, standard=False) as mount:
            mount.expected_log += ["does not answer"]
            pids = set(mount.daemon())
            mounts.wait_until(mount.tree.user_bundle.exists, what="the bundle")
            os.kill(process, signal.SIGSTOP)
            turned(mount, seen / "b" / "certs")
            opened_in_time(mount.tree.pool_bundle, HANG_SECONDS)
            opened_in_time(mount.tree.user_bundle, 1)
            assert pids <= set(mount.daemon())
            os.kill(process, signal.SIGCONT)
            (beneath / "a" / "certs" / "draft").write_bytes(OTHER.pem)
            (beneath / "a" / "certs" / "draft").rename(beneath / "a" / "certs" / "y.pem")
            mounts.wait_until(
                lambda: OTHER.pem in mount.tree.user_bundle.read_bytes(), what="what is there now"
            )


def test_a_server_starts_beside_a_way_that_hangs() -> None:
    """A dead file system on the way to one bundle is waited for a moment, and the others are served."""
    with other_filesystem() as (seen, beneath, process):
        fill(beneath)

        def prepare(tree: Tree) -> None:
            tree.make()
            link_to(seen, tree)
            os.kill(process, signal.SIGSTOP)

        with mounts.mounted(prepare=prepare, standard=False) as mount:
            mount.expected_log += ["does not answer"]
            opened_in_time(mount.tree.pool_bundle, 1)
            os.kill(process, signal.SIGCONT)
            mounts.wait_until(mount.tree.user_bundle.exists, what="the bundle")


def test_a_file_system_that_shows_root_nothing_takes_one_bundle_with_it() -> None:
    """A user's own FUSE mount over a source directory, or behind a link, is a bundle without sources and no error."""
    with private_filesystem() as seen, mounts.mounted() as mount:
        pids = set(mount.daemon())
        certs = mount.tree.store / "stunnel" / "certs"
        changes: list[Callable[[], object]] = [
            lambda: certs.rename(certs.with_name("away")),
            lambda: certs.symlink_to(seen),
            lambda: turned(mount, seen / "a" / "certs"),
            certs.unlink,
            certs.mkdir,
            lambda: subprocess.run(["mount", "--bind", seen, certs], check=False, timeout=30),
        ]
        try:
            for change in changes:
                change()
                opened_in_time(mount.tree.pool_bundle, 0.3)
        finally:
            subprocess.run(["umount", "-l", certs], check=False, timeout=30)
        assert pids <= set(mount.daemon())
        (certs / "z.pem").write_bytes(OTHER.pem)
        mounts.wait_until(mount.tree.user_bundle.exists, what="the directory that is there again")


def test_a_directory_of_directories_that_cannot_be_listed_ends_no_server(tmp_path: Path) -> None:
    """I16: a user's own FUSE mount over the place of a pattern, which lists nothing, is a pattern without bundles."""
    with liar.lying(tmp_path, tmp_path), mounts.mounted() as mount:
        pids = set(mount.daemon())
        purposes = mount.tree.store / "trusted-certs"
        purposes.mkdir()
        subprocess.run(["mount", "--bind", tmp_path / "mute", purposes], check=True, timeout=30)
        try:
            (mount.tree.store / "stunnel" / "certs" / "z.pem").write_bytes(OTHER.pem)
            opened_in_time(mount.tree.user_bundle, 0.3)
        finally:
            subprocess.run(["umount", "-l", purposes], check=False, timeout=30)
        assert pids <= set(mount.daemon())
