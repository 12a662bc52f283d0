"""System calls that Python lacks do what their man pages say."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path
from typing import cast

import pytest

from certfs.store import backing
from certfs.store.backing import file_id, stamp, stamp_head, status_at


def test_a_rename_may_refuse_to_replace(directory: int, tmp_path: Path) -> None:
    """renameat2(2), RENAME_NOREPLACE: EEXIST, and both files stay."""
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    with pytest.raises(FileExistsError):
        backing.rename(directory, b"a", directory, b"b", backing.RENAME_NOREPLACE)
    assert (tmp_path / "b").read_text() == "b"


def test_a_rename_may_exchange(directory: int, tmp_path: Path) -> None:
    """renameat2(2), RENAME_EXCHANGE: each has the other's name."""
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    backing.rename(directory, b"a", directory, b"b", backing.RENAME_EXCHANGE)
    assert (tmp_path / "a").read_text() == "b"


def test_a_plain_rename_replaces(directory: int, tmp_path: Path) -> None:
    """rename(2)."""
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    backing.rename(directory, b"a", directory, b"b")
    assert os.listdir(tmp_path) == ["b"]


def test_times_are_set_through_a_descriptor(tmp_path: Path) -> None:
    """utimensat(2): to the nanosecond, one or both, also before 1970, and of a link itself."""
    (tmp_path / "link").symlink_to("nothing")
    fd = os.open(tmp_path / "link", backing.O_PATH_NOFOLLOW)
    backing.set_times(fd, -1_500_000_001, 2_000_000_003)
    backing.set_times(fd, None, 4_000_000_005)
    os.close(fd)
    status = (tmp_path / "link").lstat()
    assert (status.st_atime_ns, status.st_mtime_ns) == (-1_500_000_001, 4_000_000_005)


def test_a_failure_has_its_errno(tmp_path: Path) -> None:
    """A call by ctypes raises the OSError that os would."""
    fd = os.open(tmp_path, os.O_PATH)
    os.close(fd)
    with pytest.raises(OSError, match="No such file") as caught:
        backing.set_times(fd, 0, 0)
    assert caught.value.errno == errno.ENOENT


def test_the_status_of_nothing_is_none(directory: int, tmp_path: Path) -> None:
    """A dangling link is something, a missing name is nothing."""
    (tmp_path / "link").symlink_to("nothing")
    assert status_at(directory, b"link") is not None
    assert status_at(directory, b"nothing") is None


def test_a_stamp_changes_with_the_file(tmp_path: Path) -> None:
    """Content, identity and mode each change it; the head says which inode it is of."""
    path = tmp_path / "a"
    path.write_text("a")
    stamps = [stamp(path.stat())]
    path.write_text("bb")
    stamps.append(stamp(path.stat()))
    path.rename(tmp_path / "old")
    path.write_text("bb")
    stamps.append(stamp(path.stat()))
    assert len(set(stamps)) == 3
    assert stamps[2].startswith(stamp_head(file_id(path.stat())))
    assert not stamps[1].startswith(stamp_head(file_id(path.stat())))


def test_an_error_is_told_without_the_path() -> None:
    """The kernel was given a path under /proc, which says nothing to a person."""
    error = OSError(errno.EACCES, os.strerror(errno.EACCES), "/proc/self/fd/7")
    assert backing.describe(error) == "Permission denied"
    assert backing.describe(OSError(errno.ELOOP, "x")) == "too many symbolic links"
    assert backing.describe(OSError("odd")) == "odd"


class OldLibrary:
    """A C library before glibc 2.28, which has no renameat2()."""

    def __getitem__(self, name: str) -> object:
        """Return a function of the real one."""
        return ctypes.CDLL(None, use_errno=True)[name]


@pytest.mark.parametrize("machine", [os.uname().machine, "unknown"])
def test_renaming_with_an_old_c_library(tmp_path: Path, machine: str) -> None:
    """The system call is made by its number; where that is not known, it is one that the kernel does not have."""
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    call = backing.RenameAt2(cast("ctypes.CDLL", OldLibrary()), machine)
    directory = os.open(tmp_path, os.O_PATH)
    result = call(directory, b"a", directory, b"b", backing.RENAME_NOREPLACE)
    assert (result, ctypes.get_errno()) == (
        -1,
        errno.ENOSYS if machine == "unknown" else errno.EEXIST,
    )
    if machine != "unknown":
        assert call(directory, b"a", directory, b"b", backing.RENAME_EXCHANGE) == 0
        assert (tmp_path / "a").read_text() == "b"
    os.close(directory)
