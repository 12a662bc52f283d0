"""Calls that an old kernel or C library does not have: something else does their work."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from certfs.linux.descriptors import close_all_but, memory_file
from certfs.linux.processes import in_child


def refuse(_name: str) -> int:
    """Do what an old kernel does."""
    raise OSError(errno.ENOSYS, "Function not implemented")


def read_back(content: bytes) -> bytes:
    """Return what a descriptor of a file in memory gives."""
    with open(memory_file(content), "rb") as stream:
        return stream.read()


def test_a_file_in_memory() -> None:
    """Its content is read from the beginning, also if it is more than a pipe holds."""
    assert read_back(b"x" * 300_000) == b"x" * 300_000


@pytest.mark.parametrize("missing", ["function", "system call"])
def test_a_file_in_memory_where_there_is_none(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Python without memfd_create(), or a kernel, gets a file without a name."""
    if missing == "function":
        monkeypatch.delattr(os, "memfd_create")
    else:
        monkeypatch.setattr(os, "memfd_create", refuse)
    assert read_back(b"x" * 300_000) == b"x" * 300_000


@pytest.mark.parametrize("proc", ["with", "without"])
def test_all_but_some_descriptors_are_closed(
    tmp_path: Path, proc: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is to stay stays, everything else is closed, whether or not /proc says what is open."""
    (tmp_path / "file").touch()
    descriptors = [os.open(tmp_path / "file", os.O_RDONLY) for _ in range(20)]
    kept = descriptors[7]

    def look() -> None:
        if proc == "without":
            monkeypatch.setattr(os, "listdir", refuse)
            monkeypatch.setattr(os, "sysconf", lambda _: 1024)
        close_all_but((kept,))
        monkeypatch.undo()
        names = os.listdir("/proc/self/fd")
        if len(names) != 2 or str(kept) not in names:  # that of the listing
            raise OSError(errno.EBADF, "left", " ".join(names))

    try:
        # The pipe by which a child reports is closed as well: it ends without a word if all is well.
        assert in_child(look, 10.0) is None
    finally:
        for fd in descriptors:
            os.close(fd)
