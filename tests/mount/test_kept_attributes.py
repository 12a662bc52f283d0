"""The kernel keeps the attributes of a directory of bundles until they change in the store (I1, I13, I19)."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from certfs.fuse.attributes import forgets_for_good
from scripts.benchmark.requests import watched
from tests.support.host import Host
from tests.support.mounts import missing, need_program, wait_until

pytestmark = [pytest.mark.mount, pytest.mark.namespace]


def test_an_open_of_a_settled_bundle_is_two_requests(dom0: Host, tmp_path: Path) -> None:
    """I1: its name is always asked for, and nothing else on the way to it, however long ago it was opened last."""
    need_program("strace")
    if not forgets_for_good(os.uname().release):
        missing("a kernel that may keep attributes")
    bundle, held = dom0.tree.pool_bundle, list[int]()

    def is_settled() -> bool:
        return bool(json.loads(dom0.certfs("status", "--json"))["plain_copies_current"])

    wait_until(is_settled, what="the plain copies, which change the directory")
    with watched(dom0.server(), tmp_path / "trace") as watch:
        wait_until(lambda: watch.during(lambda: os.stat(bundle)) == ["LOOKUP"], what="quiet")
        time.sleep(1)  # So that what is kept for 50 ms is not.
        assert watch.during(lambda: held.append(os.open(bundle, os.O_RDONLY))) == ["LOOKUP", "OPEN"]
        assert watch.during(lambda: os.fstat(held[0])) == []
        time.sleep(1)
        assert watch.during(lambda: os.stat(bundle)) == ["LOOKUP"]
    os.close(held[0])


def seen(directory: Path) -> tuple[int, ...]:
    """Give what the kernel may keep of a directory, all but the time of access."""
    status = directory.stat()
    return (
        *(status.st_mode, status.st_uid, status.st_gid, status.st_nlink, status.st_size),
        *(status.st_mtime_ns, status.st_ctime_ns),
    )


def change_mode(directory: Path) -> None:
    """Take permissions away and give them back another time."""
    directory.chmod(0o700 if directory.stat().st_mode & 0o077 else 0o755)


def change_times(directory: Path) -> None:
    """Set the time of the last change."""
    os.utime(directory, ns=(1, time.time_ns()))


def make_directory(directory: Path) -> None:
    """Make or remove a directory in it."""
    made = directory / "made"
    made.rmdir() if made.exists() else made.mkdir()


@pytest.mark.parametrize("change", [change_mode, change_times, make_directory])
def test_a_change_of_the_directory_in_the_store_is_seen(
    dom0: Host, change: Callable[[Path], None]
) -> None:
    """I13: its mode, times and links show on the mount within 100 ms."""
    took = []
    for _ in range(5):  # The quickest counts: this machine may hold up the others.
        seen(dom0.tree.stunnel)
        change(dom0.store.stunnel)
        began = time.monotonic()
        wait_until(lambda: seen(dom0.tree.stunnel) == seen(dom0.store.stunnel), what="the change")
        took.append(time.monotonic() - began)
    assert min(took) < 0.1


def test_what_the_mount_changes_itself_is_seen_at_once(dom0: Host) -> None:
    """I11: modes, times and links that are changed through the mount are those of the store right after."""
    directory, below = dom0.tree.stunnel, dom0.store.stunnel
    for number in range(20):
        for change in (change_mode, change_times, make_directory):
            change(directory)
            assert seen(directory) == seen(below), (number, change.__name__)


def test_a_permission_taken_away_in_the_store_counts(dom0: Host) -> None:
    """I19: a directory that is closed to others beneath the mount is soon closed to them on it."""
    need_program("setpriv")
    bundle = f"/etc/stunnel/{dom0.tree.pool_bundle.name}"

    def is_open() -> bool:
        other = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
        return dom0.run(*other, "cat", bundle).returncode == 0

    for _ in range(3):
        dom0.store.stunnel.chmod(0o755)
        wait_until(is_open, seconds=10, what="the permission")
        dom0.store.stunnel.chmod(0o700)
        wait_until(lambda: not is_open(), seconds=10, what="its end")


@pytest.mark.parametrize(
    "release, is_kept",
    [
        ("4.19.0+1", False),
        ("5.7.19", False),
        ("5.10.0-8-amd64", True),
        ("6.1", True),
        ("odd", False),
    ],
)
def test_attributes_are_kept_by_kernels_that_forget_them_for_good(
    release: str, *, is_kept: bool
) -> None:
    """I13: an older one may believe an answer that was on its way when it was told to forget."""
    assert forgets_for_good(release) is is_kept
