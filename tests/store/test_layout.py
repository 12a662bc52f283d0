"""The directories that a standalone store needs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from certfs.core.bundle import PLATFORM_BUNDLES
from certfs.store.layout import make_directories
from tests.store.scenes import spec


@pytest.fixture(autouse=True)
def _no_umask() -> Iterator[None]:
    """Do as the server does: modes are what is asked for."""
    previous = os.umask(0)
    yield
    os.umask(previous)


def modes(root: Path) -> dict[str, int]:
    """Give every directory with its mode."""
    return {
        str(path.relative_to(root)): path.stat().st_mode & 0o7777
        for path in sorted(root.rglob("*"))
    }


def test_a_host_s_directories_have_the_platform_s_modes(directory: int, tmp_path: Path) -> None:
    """What XAPI makes with mode 0700 is made so; the optional layout is not made."""
    make_directories(directory, PLATFORM_BUNDLES, platform=True)
    assert modes(tmp_path) == {
        "stunnel": 0o755,
        "stunnel/certs": 0o700,
        "stunnel/certs-pool": 0o700,
        "xensource": 0o755,
    }


def test_what_is_there_stays_as_it_is(directory: int, tmp_path: Path) -> None:
    """I19: a directory that somebody opened or closed further keeps its mode."""
    (tmp_path / "stunnel" / "certs").mkdir(parents=True)
    (tmp_path / "stunnel" / "certs").chmod(0o750)
    make_directories(directory, PLATFORM_BUNDLES, platform=False)
    assert modes(tmp_path)["stunnel/certs"] == 0o750
    assert "xensource" not in modes(tmp_path)


def test_the_place_of_a_bundle_is_made_too(directory: int, tmp_path: Path) -> None:
    """Somebody without XAPI names two paths, and both work at once."""
    make_directories(directory, [spec("a/b/in", "c/d/out.pem")], platform=False)
    assert modes(tmp_path) == {"a": 0o755, "a/b": 0o755, "a/b/in": 0o700, "c": 0o755, "c/d": 0o755}


def test_a_file_in_the_way_is_an_error(directory: int, tmp_path: Path) -> None:
    """Nothing is removed to make room."""
    (tmp_path / "stunnel").write_text("mine")
    with pytest.raises(NotADirectoryError):
        make_directories(directory, PLATFORM_BUNDLES, platform=False)
