"""The further plain copy of a bundle: whole, only written when it differs, and never where others may write (I12)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from certfs.notifier.copies import keep
from certfs.notifier.targets import RefusedError


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Give a directory of our own that nobody else may write to."""
    made = tmp_path / "place"
    made.mkdir(mode=0o755)
    return made


def test_a_copy_is_written_only_when_it_differs(place: Path) -> None:
    """An unchanged bundle leaves the file and its inode alone; a bundle that is gone leaves no file (I7)."""
    copy = place / "ca.pem"
    assert keep(str(copy), b"one")
    inode = copy.stat().st_ino
    assert not keep(str(copy), b"one")
    assert copy.stat().st_ino == inode
    assert keep(str(copy), b"two")
    assert (copy.read_bytes(), copy.stat().st_ino == inode) == (b"two", False)
    assert copy.stat().st_mode & 0o777 == 0o644
    assert keep(str(copy), None)
    assert not keep(str(copy), None)
    assert list(place.iterdir()) == []


def test_a_link_is_replaced_and_not_followed(place: Path, tmp_path: Path) -> None:
    """What it leads to stays as it is."""
    other = tmp_path / "other"
    other.write_bytes(b"other")
    (place / "ca.pem").symlink_to(other)
    keep(str(place / "ca.pem"), b"one")
    assert other.read_bytes() == b"other"
    assert not (place / "ca.pem").is_symlink()


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o775])
def test_a_directory_that_others_may_write_to_is_refused(place: Path, mode: int) -> None:
    """The reason names the directory; nothing is written. Where there is no bundle they could make one of their own."""
    place.chmod(mode)
    with pytest.raises(RefusedError, match=f"others may .* {place}"):
        keep(str(place / "ca.pem"), b"one")
    assert list(place.iterdir()) == []


def test_a_link_on_the_way_is_refused(place: Path, tmp_path: Path) -> None:
    """Whoever owns the link could turn it."""
    (tmp_path / "link").symlink_to(place)
    with pytest.raises(RefusedError, match="is a link"):
        keep(str(tmp_path / "link" / "ca.pem"), b"one")


def test_what_a_kill_left_is_no_obstacle(place: Path) -> None:
    """A draft of a killed notifier is removed."""
    (place / ".ca.pem.certfs-new").write_bytes(b"half")
    keep(str(place / "ca.pem"), b"one")
    assert [path.name for path in place.iterdir()] == ["ca.pem"]


def test_a_place_in_the_store_is_refused(place: Path) -> None:
    """In a directory of sources the copy would be one, and no certificate would ever leave the bundle."""
    (place / "trusted").mkdir()
    store = os.open(place, os.O_PATH)
    try:
        with pytest.raises(RefusedError, match=f"{place} is the store"):
            keep(str(place / "trusted" / "all.pem"), b"one", store=[store])
    finally:
        os.close(store)
    assert list((place / "trusted").iterdir()) == []
