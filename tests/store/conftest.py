"""Fixtures for the tests of the store."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from certfs.store.path_walk import PathWalker
from certfs.store.source_reader import SourceReader, ignore_lease_breaks
from tests.store.scenes import nowhere


@pytest.fixture(scope="session", autouse=True)
def _ignore_lease_breaks() -> None:
    """Do as the server does at its start, so that a broken lease ends nobody."""
    ignore_lease_breaks()


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    """Give a descriptor of ``tmp_path``, as a source directory has one."""
    fd = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@pytest.fixture
def reader() -> SourceReader:
    """Give a reader without a mount of its own."""
    return SourceReader(PathWalker(nowhere))
