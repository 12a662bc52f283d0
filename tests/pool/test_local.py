"""What the process of a member hears of the directories of its own host, without an engine."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from certfs.pool.directory import Scan, SourceDirectory
from certfs.pool.local import Watcher
from certfs.pool.store import Store

_CERTS = (b"stunnel", b"certs")


@pytest.fixture
def certs(tmp_path: Path) -> Path:
    """Make a store and return its directory of CA certificates."""
    directory = tmp_path / "stunnel/certs"
    directory.mkdir(parents=True)
    return directory


class Interrupted(SourceDirectory):
    """A directory in which another program is at work while it is read."""

    def __init__(self, root: Store, work: Callable[[], None]) -> None:
        super().__init__(root, _CERTS)
        self._work = work

    def scan(self) -> Scan:
        """Read it, and have the other program work before that is over."""
        found = super().scan()
        self._work()
        return found


def scan(certs: Path, work: Callable[[], None]) -> Scan:
    """Return what the process makes of a directory in which others work meanwhile."""
    root = os.open(certs.parents[1], os.O_RDONLY | os.O_DIRECTORY)
    try:
        store = Store({b"": root})
        with Watcher(store, lambda: None) as watcher:
            return trio.run(watcher.scan, Interrupted(store, work))
    finally:
        os.close(root)


def test_a_swap_that_happens_while_the_directory_is_read_is_one(certs: Path) -> None:
    """What was read counts as part of a swap also when all of that swap happened during the reading (I10, I22)."""

    def swap() -> None:
        certs.with_name("certs.bk").mkdir()
        certs.with_name("certs.bk").rmdir()

    assert scan(certs, swap).swapping


def test_what_is_no_source_wakes_nobody(certs: Path) -> None:
    """Plain copies of bundles and files that are being made cost the process no step, unlike a source (I22)."""
    heard: list[None] = []
    root = os.open(certs.parents[1], os.O_RDONLY | os.O_DIRECTORY)
    directory = SourceDirectory(Store({b"": root}), _CERTS)
    try:
        with Watcher(Store({b"": root}), lambda: heard.append(None)) as watcher:
            (certs.parent / "xapi-stunnel-ca-bundle.pem").touch()
            (certs / "a.pem.x7Gw2q.tmp").touch()
            trio.run(watcher.scan, directory)
            assert not heard
            (certs / "a.pem.x7Gw2q.tmp").rename(certs / "a.pem")
            trio.run(watcher.scan, directory)
            assert heard
            heard.clear()
            certs.rename(certs.with_name("gone"))
            trio.run(watcher.scan, directory)
            assert heard
    finally:
        os.close(root)


def test_a_single_file_that_changes_meanwhile_is_no_swap(certs: Path) -> None:
    """A change of one name during the reading keeps nothing from being published (I22)."""
    assert not scan(certs, (certs / "a.pem").touch).swapping
