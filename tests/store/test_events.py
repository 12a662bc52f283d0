"""What inotify tells is turned into names of directories that are known by identity."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from certfs.errors import StoreError
from certfs.store.backing import FileId, file_id
from certfs.store.events import StoreWatcher


@pytest.fixture
def watcher() -> Iterator[StoreWatcher]:
    """Give a watcher of nothing yet."""
    made = StoreWatcher()
    yield made
    made.close()


def watch(watcher: StoreWatcher, *paths: Path) -> list[FileId]:
    """Watch exactly these directories."""
    fds = [os.open(path, os.O_PATH) for path in paths]
    identities = [file_id(os.stat(fd)) for fd in fds]
    watcher.watch(zip(fds, identities, strict=True))
    for fd in fds:
        os.close(fd)
    return identities


def test_quiet_is_quiet(watcher: StoreWatcher, tmp_path: Path) -> None:
    """I18: nothing happened, nothing is told."""
    watch(watcher, tmp_path)
    assert not watcher.read()


def test_every_way_to_change_a_name_is_told(watcher: StoreWatcher, tmp_path: Path) -> None:
    """I13: made, written, renamed, linked, chmoded and removed, with any bytes for a name."""
    (directory,) = watch(watcher, tmp_path)
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\n.pem"))
    for change, names in (
        (lambda: odd.write_bytes(b"x"), {b"\xff\n.pem"}),
        (lambda: odd.rename(tmp_path / "b"), {b"\xff\n.pem", b"b"}),
        (lambda: (tmp_path / "b").chmod(0o600), {b"b"}),
        (lambda: (tmp_path / "l").symlink_to("b"), {b"l"}),
        (lambda: (tmp_path / "h").hardlink_to(tmp_path / "b"), {b"h", b"b"}),
        ((tmp_path / "b").unlink, {b"b"}),
        ((tmp_path / "d").mkdir, {b"d"}),
    ):
        change()
        events = watcher.read()
        assert not events.overflow
        assert set(events.names) == {directory}
        assert events.names[directory] <= names
        assert events.names[directory]


def test_a_write_is_told_apart_from_its_end(watcher: StoreWatcher, tmp_path: Path) -> None:
    """I3: what matters is that the file was closed; but truncate(2) needs no open file (I13)."""
    (tmp_path / "a").touch()
    (directory,) = watch(watcher, tmp_path)
    with (tmp_path / "a").open("ab", buffering=0) as file:
        file.write(b"x")
        events = watcher.read()
        assert (events.names, events.modified) == ({}, {directory: {b"a"}})
        file.write(b"y")
    events = watcher.read()
    assert (events.names, events.modified) == ({directory: {b"a"}}, {})
    os.truncate(tmp_path / "a", 0)
    assert watcher.read().modified == {directory: {b"a"}}


def test_directories_are_told_apart(watcher: StoreWatcher, tmp_path: Path) -> None:
    """Each name comes with the directory that it is in."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, second = watch(watcher, tmp_path / "a", tmp_path / "b")
    (tmp_path / "a" / "x").touch()
    (tmp_path / "b" / "y").touch()
    assert watcher.read().names == {first: {b"x"}, second: {b"y"}}


def test_what_is_no_longer_watched_is_not_told(watcher: StoreWatcher, tmp_path: Path) -> None:
    """The directories that are watched are exactly those of the last call."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    watch(watcher, tmp_path / "a")
    (second,) = watch(watcher, tmp_path / "b")
    (tmp_path / "a" / "x").touch()
    (tmp_path / "b" / "y").touch()
    assert set(watcher.read().names) == {second}


def test_a_directory_that_is_gone_is_no_error(watcher: StoreWatcher, tmp_path: Path) -> None:
    """The kernel ends the watch by itself; asking to end it once more is nothing."""
    (tmp_path / "a").mkdir()
    watch(watcher, tmp_path / "a")
    (tmp_path / "a").rmdir()
    watcher.read()
    watch(watcher, tmp_path)
    (tmp_path / "b").touch()
    assert watcher.read()


def test_a_directory_that_cannot_be_watched_is_a_reason(
    watcher: StoreWatcher, tmp_path: Path
) -> None:
    """I13: serving goes on, the others are watched, and why one is not can be asked."""
    (tmp_path / "file").touch()
    identities = watch(watcher, tmp_path, tmp_path / "file")
    assert watcher.problem == "Not a directory"
    (tmp_path / "a").touch()
    assert set(watcher.read().names) == {identities[0]}
    watch(watcher, tmp_path)
    assert not watcher.problem


def use_up(used: list[StoreWatcher]) -> None:
    """Make watchers until there is none to be had."""
    while len(used) < 100:
        used.append(StoreWatcher())


@pytest.mark.parametrize("spare", range(5, 9))
def test_a_system_without_inotify_to_give_is_told_of(spare: int) -> None:
    """One clear line instead of a traceback: which limit it is, and how to raise it.

    Whichever of a watcher's four descriptors is the one that there is none for.
    """
    used: list[StoreWatcher] = []
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The limit of instances is the system's; that of descriptors fails in the same way.
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + spare, hard))
    try:
        with pytest.raises(StoreError, match="inotify: Too many open files"):
            use_up(used)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for each in used:
            each.close()


def test_a_change_of_a_directory_itself_is_told(watcher: StoreWatcher, tmp_path: Path) -> None:
    """I13, I19: its mode, its times, its own name and the names in it; the time of access is not."""
    inside = tmp_path / "inside"
    inside.mkdir()
    (directory,) = watch(watcher, inside)
    assert watcher.watched == {directory}
    for change in (
        lambda: inside.chmod(0o700),
        lambda: os.utime(inside, (1, 1)),
        (inside / "made").mkdir,
        lambda: inside.rename(tmp_path / "renamed"),
    ):
        change()
        assert watcher.read().changed == {directory}
    os.listdir(tmp_path / "renamed")
    assert watcher.read().changed == set()


def test_a_directory_that_is_gone_is_not_watched(watcher: StoreWatcher, tmp_path: Path) -> None:
    """I1: the next directory may get its number, and what is kept of that would be told by nothing."""
    (tmp_path / "d").mkdir()
    stays, gone = watch(watcher, tmp_path, tmp_path / "d")
    assert watcher.watched == {stays, gone}
    (tmp_path / "d").rmdir()
    watcher.read()
    assert watcher.watched == {stays}
