"""Walking a path gives what the kernel gives, without asking our own mount."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certfs.store.backing import FileId, file_id
from certfs.store.path_walk import PathWalker
from tests.store.scenes import nowhere
from tests.support.examples import examples
from tests.support.mounts import need_root

Outcome = FileId | int
"""The identity of what a path leads to, or the errno that there is instead."""


def kernel(start: int, path: bytes) -> Outcome:
    """Resolve a path as the kernel does."""
    try:
        return file_id(os.stat(path, dir_fd=start))
    except OSError as error:
        return error.errno or 0


def walked(start: int, path: bytes) -> Outcome:
    """Resolve a path as certfs does."""
    try:
        fd = PathWalker(nowhere).open(start, path)
    except OSError as error:
        return error.errno or 0
    try:
        return file_id(os.stat(fd))
    finally:
        os.close(fd)


@pytest.fixture(scope="module")
def forest() -> Iterator[Path]:
    """Give a directory with every kind of link."""
    root = Path(tempfile.mkdtemp(prefix="certfs-links-"))
    (root / "d" / "e").mkdir(parents=True)
    (root / "file").write_text("file")
    (root / "d" / "inner").write_text("inner")
    for name, target in {
        "to-file": "file",
        "to-dir": "d",
        "to-absolute": str(root / "file"),
        "to-absolute-dir": str(root / "d"),
        "d/up": "..",
        "d/up-file": "../file",
        "d/e/up-up": "../../to-file",
        "dangling": "nothing",
        "dangling-dir": "nothing/at/all",
        "loop": "loop",
        "loop-a": "loop-b",
        "loop-b": "d/up/loop-a",
        "through-file": "file/x",
        "file-slash": "file/",
        "file-dot": "file/.",
        "dir-slash": "d/",
        "dir-dot": "d/./",
        "to-root": "/",
        "dots": "././d/../d/inner",
        "long": "a" * 300,
    }.items():
        (root / name).symlink_to(target)
    previous = "file"
    for number in range(45):
        (root / f"chain{number}").symlink_to(previous)
        previous = f"chain{number}"
    yield root
    shutil.rmtree(root)


_NAMES = """
    d e up up-file up-up to-file to-dir to-absolute to-absolute-dir file inner dangling
    dangling-dir loop loop-a through-file file-slash file-dot dir-slash dir-dot dots long
    chain10 chain38 chain39 chain40 chain44 . .. none
"""
_PARTS = st.sampled_from(_NAMES.split())


@given(parts=st.lists(_PARTS, min_size=1, max_size=5), slash=st.sampled_from(["", "/", "/.", "//"]))
@examples(400)
def test_any_path_leads_where_the_kernel_says(forest: Path, parts: list[str], slash: str) -> None:
    """path_resolution(7): the same file or the same error, relative and absolute."""
    start = os.open(forest, os.O_PATH)
    try:
        relative = os.fsencode("/".join(parts) + slash)
        absolute = os.fsencode(forest) + b"/" + relative
        assert walked(start, relative) == kernel(start, relative)
        assert walked(start, absolute) == kernel(start, absolute)
    finally:
        os.close(start)


def test_a_chain_ends_after_forty_links(forest: Path) -> None:
    """ELOOP comes with the 41st link, as path_resolution(7) has it."""
    start = os.open(forest, os.O_PATH)
    try:
        assert walked(start, b"chain39") == file_id((forest / "file").stat())
        assert walked(start, b"chain40") == errno.ELOOP
    finally:
        os.close(start)


def test_no_descriptor_is_left(forest: Path) -> None:
    """I18: neither a success nor a failure keeps a descriptor open."""
    start = os.open(forest, os.O_PATH)
    before = len(os.listdir("/proc/self/fd"))
    for name in os.listdir(forest):
        walked(start, os.fsencode(name))
    assert len(os.listdir("/proc/self/fd")) == before
    os.close(start)


def test_a_chain_of_links_with_long_components_is_bounded(tmp_path: Path) -> None:
    """I18: 40 links of 4,000 bytes each are 80,000 steps: they end after 2,048, and at once."""
    for number in range(40):
        (tmp_path / f"l{number}").symlink_to("x/../" * 800 + f"l{number + 1}")
    (tmp_path / "x").mkdir()
    (tmp_path / "l40").write_text("end")
    start = os.open(tmp_path, os.O_PATH)
    began = time.monotonic()
    assert walked(start, b"l0") == errno.ELOOP
    assert time.monotonic() - began < 1
    os.close(start)


@pytest.mark.parametrize("link", ["root", "cwd", "exe"])
def test_a_link_of_proc_shows_its_maker_no_more_than_the_kernel_does(
    tmp_path: Path, link: str
) -> None:
    """I18, I19: a user's link to where a process of root's is leads nowhere, and leaves no descriptor open."""
    need_root()
    (tmp_path / "x.pem").symlink_to(f"/proc/{os.getppid()}/{link}")
    os.chown(tmp_path / "x.pem", 20_001, 20_001, follow_symlinks=False)
    before = os.listdir("/proc/self/fd")
    start = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    for _ in range(3):
        assert walked(start, b"x.pem") == errno.EACCES
    os.close(start)
    assert os.listdir("/proc/self/fd") == before
