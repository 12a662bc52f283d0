"""The quickstart, run for real: what it shows is the product's promise (I1) at work."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import mounts

pytestmark = [pytest.mark.mount, pytest.mark.stunnel]

_SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "quickstart.py"
_STEP = re.compile(r"client -> (host-\w): (\w+)|\$ (cp|rm) .*host-d|(host-d -> this host: \w+)")
_STORY = [
    ("host-b", "accepted"),
    ("host-d", "REFUSED"),
    "cp",
    ("host-d", "accepted"),
    "rm",
    ("host-d", "REFUSED"),
    ("host-b", "accepted"),
    "host-d -> this host: REFUSED",
    "cp",
    "host-d -> this host: accepted",
    "rm",
    "host-d -> this host: REFUSED",
]


@pytest.fixture
def directory() -> Iterator[Path]:
    """A place for a demo, unmounted and removed afterwards."""
    mounts.need_fuse()
    mounts.need_program("stunnel4")
    base = mounts.scratch_directory()
    try:
        yield base / "a demo"
    finally:
        mounts.force_unmount(str(base / "a demo" / "mount"))
        shutil.rmtree(base, ignore_errors=True)


def run(directory: Path) -> str:
    """Run the quickstart; give what it printed."""
    result = subprocess.run(
        [sys.executable, _SCRIPT, directory],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def story(output: str) -> list[str | tuple[str, str]]:
    """Give the steps that the quickstart reports, in their order."""
    return [step[3] or step[4] or (step[1], step[2]) for step in _STEP.finditer(output)]


def test_clients_follow_the_directory_each_time_it_is_run(directory: Path) -> None:
    """I1: refused, accepted after the cp, refused after the rm; the same again the second time."""
    assert story(run(directory)) == _STORY
    assert story(run(directory)) == _STORY


def test_it_leaves_the_mount_and_no_stunnel(directory: Path) -> None:
    """When it returns the tree is served, and none of its stunnels runs."""
    run(directory)
    bundle = directory / "mount" / "stunnel" / "xapi-pool-ca-bundle.pem"
    assert bundle.read_bytes().count(b"BEGIN CERTIFICATE") == 3
    running = [command_line(path) for path in Path("/proc").glob("[0-9]*/cmdline")]
    assert not [line for line in running if os.fsencode(directory / "stunnel") in line]


def test_what_it_says_about_ending_it_is_true(directory: Path) -> None:
    """The two commands under "End it" leave neither mount nor files."""
    commands = run(directory).partition("End it\n")[2]
    subprocess.run(["sh", "-e", "-c", commands], check=True, capture_output=True, timeout=60)
    assert not directory.exists()
    assert str(directory / "mount") not in mounts.mountpoints()


def command_line(path: Path) -> bytes:
    """Read a process's command line; empty if the process has ended."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_pool_follows_its_hosts() -> None:
    """What is copied in on one of three hosts is accepted on another at once, and refused when it is removed (I22)."""
    mounts.need_root()
    mounts.need_fuse()
    mounts.need_program("stunnel4", "etcd", "ip")
    root = _SCRIPT.parents[1]
    ran = subprocess.run(
        [sys.executable, "-m", "scripts.quickstart_pool"],
        cwd=root, capture_output=True, text=True, timeout=150, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    verdicts = re.findall(r"host 3 -> host 1: (\w+)", ran.stdout)
    assert verdicts == ["REFUSED", "accepted", "REFUSED"]
    assert ran.stdout.count("in sync") == 4
