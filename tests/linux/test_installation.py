"""Which version of certfs starts the next process, where a package keeps several beside each other."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from certfs.linux import installation


def install(directory: Path, version: str) -> Path:
    """Make what a package installs, as far as it matters here."""
    prefix = directory / version
    (prefix / "bin").mkdir(parents=True)
    for name in ("python3", "certfs"):
        (prefix / "bin" / name).write_text("#!/bin/sh\n")
        (prefix / "bin" / name).chmod(0o755)
    return prefix


def point(directory: Path, target: str) -> None:
    """Let the link ``current`` lead to ``target``."""
    (directory / "current").unlink(missing_ok=True)
    (directory / "current").symlink_to(target)


def test_a_process_of_an_old_version_starts_the_current_one(tmp_path: Path) -> None:
    """I17: after an upgrade, what a running process starts is of the new version."""
    old, new = install(tmp_path, "1-1"), install(tmp_path, "2-1")
    point(tmp_path, "2-1")
    assert installation.current(str(old)) == str(new)
    assert installation.current(str(new)) == str(new)


@pytest.mark.parametrize("target", ["", "1-1", "missing", "incomplete", "../elsewhere"])
def test_any_other_link_changes_nothing(tmp_path: Path, target: str) -> None:
    """No link, one to nothing, to half an installation or out of the directory: each process starts its own version."""
    own = install(tmp_path / "opt", "1-1")
    install(tmp_path, "elsewhere")
    (tmp_path / "opt" / "incomplete" / "bin").mkdir(parents=True)
    if target:
        point(tmp_path / "opt", target)
    assert installation.current(str(own)) == str(own)


def test_what_a_new_process_is_started_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interpreter is of the current version; the command goes through the link, which stays right over upgrades."""
    old = install(tmp_path, "1-1")
    monkeypatch.setattr(sys, "prefix", str(old))
    monkeypatch.setattr(sys, "executable", f"{old}/bin/python3")
    assert installation.interpreter() == f"{old}/bin/python3"
    assert installation.program() == f"{old}/bin/certfs"
    install(tmp_path, "2-1")
    point(tmp_path, "2-1")
    assert installation.interpreter() == f"{tmp_path}/2-1/bin/python3"
    assert installation.program() == f"{tmp_path}/current/bin/certfs"


def test_an_installation_without_versions_starts_itself() -> None:
    """A virtualenv or a checkout is what it is."""
    assert installation.interpreter() == sys.executable
    assert os.path.basename(installation.program() or "certfs") == "certfs"
