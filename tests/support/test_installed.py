"""Tests that a run against an installed tree tests that tree, in every process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import installed
from tests.support.mounts import CertfsMount

_WHERE = """\
import json, os, sys
import certfs.cli
print(json.dumps([certfs.__file__, sys.prefix, os.path.realpath(sys.executable)]))
"""


def test_a_run_notices_that_it_tests_another_tree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is wrong now; with another tree to be tested all of it is."""
    assert list(installed.wrong()) == []
    monkeypatch.setenv(installed.VARIABLE, str(tmp_path))
    found = "\n".join(installed.wrong())
    for what in (
        "certfs is imported from",
        "the interpreter is",
        "the prefix is",
        "the command is",
    ):
        assert what in found


def test_a_session_with_the_wrong_tree_runs_no_test(tmp_path: Path) -> None:
    """It ends with a usage error (4) that names what is wrong, before it has collected anything."""
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/test_structure.py"],
        cwd=Path(__file__).parents[2],
        env={**os.environ, installed.VARIABLE: str(tmp_path)},
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    said = ran.stdout + ran.stderr
    assert ran.returncode == pytest.ExitCode.USAGE_ERROR, said
    assert f"certfs is imported from {installed.PACKAGE}, not of {tmp_path}" in said
    assert "passed" not in said


@pytest.mark.parametrize("isolated", [["-I"], []])
def test_processes_that_tests_start_have_the_same_certfs(isolated: list[str]) -> None:
    """What this interpreter imports in a process of its own is what the tests import."""
    ran = subprocess.run(
        [sys.executable, *isolated, "-c", _WHERE],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    imported, where, program = json.loads(ran.stdout)
    assert Path(imported).parent == installed.PACKAGE
    assert where == sys.prefix
    assert program == os.path.realpath(sys.executable)


@pytest.mark.mount
def test_processes_of_a_mount_are_of_what_is_tested(certfs_mount: CertfsMount) -> None:
    """Each runs this interpreter; those of a self-contained tree have no library of the host in their memory."""
    tree = installed.prefix()
    daemon = certfs_mount.daemon()
    assert len(daemon) >= 2
    for pid in daemon:
        assert Path(f"/proc/{pid}/exe").readlink() == Path(sys.executable).resolve()
        if tree:
            assert _mapped(pid)
            assert {path for path in _mapped(pid) if not path.is_relative_to(tree)} == set()


def _mapped(pid: int) -> set[Path]:
    """Give the programs and libraries that a process has in its memory."""
    lines = [line.split(maxsplit=5) for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    return {
        Path(words[5]) for words in lines if len(words) == 6 and "x" in words[1] and "/" in words[5]
    }
