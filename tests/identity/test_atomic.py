"""Tests of atomic writing: a whole file or none, and never more readable than in the end."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from certfs.store.atomic import create_exclusive, is_temporary, write_atomic
from tests.support.mounts import need_root


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    """Give a descriptor of an empty directory, opened as the daemon opens the store's."""
    fd = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
@pytest.mark.parametrize("mode", [0o400, 0o440, 0o644])
def test_mode_does_not_depend_on_the_umask(
    directory: int, tmp_path: Path, umask: int, mode: int
) -> None:
    """A file that is written atomically has the mode that was asked for, whatever the umask."""
    before = os.umask(umask)
    try:
        write_atomic(directory, b"file", b"content", mode=mode)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode
    assert (tmp_path / "file").read_bytes() == b"content"


def test_replaces_without_a_trace(directory: int, tmp_path: Path) -> None:
    """Replacing a file leaves its new content and no other name in the directory."""
    (tmp_path / "file").write_bytes(b"old")
    write_atomic(directory, b"file", [b"new ", b"", b"content"], mode=0o600)
    assert (tmp_path / "file").read_bytes() == b"new content"
    assert os.listdir(tmp_path) == ["file"]


def test_does_not_write_through_a_symlink(directory: int, tmp_path: Path) -> None:
    """A symlink of the target's name is replaced; what it leads to is left alone."""
    (tmp_path / "elsewhere").write_bytes(b"elsewhere")
    (tmp_path / "file").symlink_to("elsewhere")
    write_atomic(directory, b"file", b"new", mode=0o600)
    assert not (tmp_path / "file").is_symlink()
    assert (tmp_path / "elsewhere").read_bytes() == b"elsewhere"


def test_owner_is_set_before_the_group_may_read(directory: int, tmp_path: Path) -> None:
    """The owner and group that are asked for are those of the file."""
    need_root()
    write_atomic(directory, b"key", b"secret", mode=0o440, owner=(-1, 4242))
    status = (tmp_path / "key").stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (0, 4242, 0o440)


def test_failure_leaves_the_old_file_alone(directory: int, tmp_path: Path) -> None:
    """When the data cannot be had the old file stays as it is and the temporary is gone."""
    (tmp_path / "file").write_bytes(b"old")

    def pieces() -> Iterator[bytes]:
        yield b"half of the "
        raise OSError(errno.EIO, "the source failed")

    with pytest.raises(OSError, match="the source failed"):
        write_atomic(directory, b"file", pieces(), mode=0o600)
    assert (tmp_path / "file").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_full_disk_leaves_the_old_file_alone(tmp_path: Path) -> None:
    """On a full filesystem the old file stays as it is and nothing is left beside it."""
    need_root()
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=True)
    try:
        (disk / "file").write_bytes(b"old")
        fd = os.open(disk, os.O_PATH | os.O_DIRECTORY)
        try:
            with pytest.raises(OSError, match="No space left"):
                write_atomic(fd, b"file", b"x" * (1 << 20), mode=0o600)
        finally:
            os.close(fd)
        assert (disk / "file").read_bytes() == b"old"
        assert os.listdir(disk) == ["file"]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_exclusive_never_overwrites(directory: int, tmp_path: Path) -> None:
    """Exclusive creation leaves a file of that name alone and says that it is there."""
    create_exclusive(directory, b"file", b"first", mode=0o400)
    with pytest.raises(FileExistsError):
        create_exclusive(directory, b"file", b"second", mode=0o400)
    assert (tmp_path / "file").read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").stat().st_nlink == 1


def test_temporary_names_are_no_sources(directory: int, tmp_path: Path) -> None:
    """The file that is being written has a name that is no source (I6) and that can be told."""
    seen: list[str] = []

    def pieces() -> Iterator[bytes]:
        seen.extend(os.listdir(tmp_path))
        yield b"content"

    write_atomic(directory, b"x.pem", pieces(), mode=0o644)
    (name,) = seen
    assert is_temporary(name.encode())
    assert not name.endswith(".pem")


def test_key_is_written_only_when_nobody_else_may_read(directory: int, tmp_path: Path) -> None:
    """While a key is being written its file already has its final mode."""
    modes: list[int] = []

    def pieces() -> Iterator[bytes]:
        modes.extend(
            stat.S_IMODE((tmp_path / name).stat().st_mode) for name in os.listdir(tmp_path)
        )
        yield b"secret"

    write_atomic(directory, b"key", pieces(), mode=0o400)
    assert modes == [0o400]
