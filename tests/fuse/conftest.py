"""Fixtures for the tests of the adapter."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuse.filesystem import Filesystem, filesystem


@pytest.fixture
def fs(tmp_path: Path) -> Iterator[Filesystem]:
    """Give the operations over an empty store."""
    with filesystem(tmp_path) as made:
        yield made
