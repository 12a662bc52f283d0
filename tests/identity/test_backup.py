"""Whether a host's own backup would leave out what certfs presents."""

from __future__ import annotations

from pathlib import Path

import pytest

from certfs.identity.backup import ORIGINAL, find_backup
from certfs.identity.health import judge
from certfs.identity.paths import HostPaths

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def paths(tmp_path: Path) -> HostPaths:
    """The directories of a host with XAPI, whose configuration says nothing of backups."""
    (tmp_path / "xapi.conf").write_text("# host-backup = /commented\nlog = x\n")
    (tmp_path / "xapi.conf.d").mkdir()
    return HostPaths(tmp_path / "xensource", tmp_path / "stunnel")


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A program that can be run."""
    (tmp_path / "backup").write_text("#!/bin/sh\n")
    (tmp_path / "backup").chmod(0o755)
    return tmp_path / "backup"


def configure(paths: HostPaths, name: str, program: Path | str) -> Path:
    """Have a file of XAPI's configuration name a program."""
    path = paths.xensource.parent / "xapi.conf.d" / name
    path.write_text(f"host-backup = {program}\n")
    return path


def names(paths: HostPaths) -> list[str]:
    """Return what is found."""
    return [finding.name for finding in find_backup(paths)]


def test_a_host_whose_backup_leaves_everything_out(paths: HostPaths) -> None:
    """XAPI's own program does not cross file systems: the file that is missing is named, with what to write."""
    (finding,) = find_backup(paths)
    assert finding.name == "HOST_BACKUP_EMPTY"
    assert finding.file == paths.xensource.parent / "xapi.conf.d/certfs.conf"
    assert "host-backup = " in finding.mend
    assert finding in judge(paths)


def test_a_host_whose_backup_is_configured(paths: HostPaths, program: Path) -> None:
    """Any program that the configuration names is the admin's choice; quotes and blanks are not part of it."""
    configure(paths, "certfs.conf", program)
    assert names(paths) == []
    configure(paths, "certfs.conf", f'"{program}" ')
    assert names(paths) == []


def test_the_last_value_counts(paths: HostPaths, program: Path) -> None:
    """The files are read by name, after xapi.conf."""
    configure(paths, "a.conf", program)
    last = configure(paths, "z.conf", ORIGINAL)
    (finding,) = find_backup(paths)
    assert (finding.name, finding.file) == ("HOST_BACKUP_EMPTY", last)


def test_a_program_that_is_not_there(paths: HostPaths) -> None:
    """A line that outlived its package makes every backup fail."""
    path = configure(paths, "certfs.conf", "/missing/host-backup")
    (finding,) = find_backup(paths)
    assert (finding.name, finding.file) == ("HOST_BACKUP_MISSING", path)


def test_a_host_without_xapi_has_no_such_backup(paths: HostPaths) -> None:
    """A store of one's own, or a host without XAPI, is not told of it; neither is one with a file that is none."""
    (paths.xensource.parent / "xapi.conf").unlink()
    assert names(paths) == []
    (paths.xensource.parent / "xapi.conf").mkdir()
    assert names(paths) == []


def test_what_the_packages_install_is_what_is_asked_for(paths: HostPaths) -> None:
    """The file in the packages names the program of the packages."""
    (finding,) = find_backup(paths)
    shipped = (ROOT / "scripts/packaging/xapi.conf").read_text().splitlines()[-1]
    assert shipped in finding.mend
