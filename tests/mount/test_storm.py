"""I1, I15, I18: one user with many processes does not keep root from a bundle, nor from the present one."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import mounts, pki, storm
from tests.support.mounts import CertfsMount

pytestmark = pytest.mark.mount

PROCESSES = int(os.environ.get("CERTFS_TEST_STORM_PROCESSES", "4"))
SECONDS = float(os.environ.get("CERTFS_TEST_STORM_SECONDS", "1.5"))
ENOUGH, LONG_ENOUGH = 300, 20.0
"""Opens that are measured at least, unless that takes so many seconds."""
THREADS = 16
USER = 20_001
FILES = min(30, resource.getrlimit(resource.RLIMIT_NOFILE)[1] * 3 // 4 // (PROCESSES * THREADS))
"""What each thread of the user keeps open: more than certfs gives to one user, and less than bindfs has for all."""
LONGEST = 1.0
"""Seconds that an open may take; where the machine alone makes it slower, twice what it takes on bindfs."""
P99 = 0.1
"""Seconds that one in a hundred may take beyond what it takes on bindfs."""


@dataclass(frozen=True, slots=True)
class Opens:
    """How long root's opens took, in seconds."""

    p99: float
    longest: float
    count: int


@contextlib.contextmanager
def own_processors(name: str) -> Iterator[tuple[str, ...]]:
    """Give a control group, which shares the processors fairly with all others together; none where there are none."""
    root = Path("/sys/fs/cgroup")
    if (root / "cgroup.controllers").exists():
        parent = root
    elif (root / "cpu" / "cgroup.procs").exists():
        parent = root / "cpu"
    else:
        yield ()
        return
    group = parent / f"certfs-test-{os.getpid()}-{name}"
    try:
        group.mkdir()
    except OSError:
        yield ()
        return
    try:
        yield (str(group),)
    finally:
        mounts.wait_until(lambda: not (group / "cgroup.procs").read_text(), what="an empty group")
        group.rmdir()


@contextlib.contextmanager
def stormed(name: str, tree: Path, bundle: Path) -> Iterator[None]:
    """Let a user do everything at once in a tree."""
    (tree / "shared").mkdir()
    (tree / "shared").chmod(0o1777)
    with own_processors(name) as group, contextlib.ExitStack() as stack:
        started = [
            stack.enter_context(
                subprocess.Popen(
                    [
                        sys.executable,
                        storm.__file__,
                        *map(str, (tree, bundle, THREADS, FILES, USER, number)),
                        *group,
                    ],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
            )
            for number in range(PROCESSES)
        ]
        try:
            for process in started:
                assert process.stdout is not None
                assert process.stdout.readline() == b"ready\n"
            yield
        finally:
            for process in started:
                process.kill()


def opens_of(path: Path, change: Iterator[bytes]) -> Opens:
    """Open and read a file as root for a while; ``change`` changes it now and then, and gives what it must hold."""
    taken: list[float] = []
    expected = next(change)
    start = time.monotonic()
    # One in a hundred of a few opens is the slowest of them, which says nothing.
    while (begun := time.monotonic()) < start + SECONDS or (
        len(taken) < ENOUGH and begun < start + LONG_ENOUGH
    ):
        content = path.read_bytes()
        taken.append(time.monotonic() - begun)
        assert content == expected
        if len(taken) % 20 == 0:
            expected = next(change)
        time.sleep(0.005)
    taken.sort()
    return Opens(taken[len(taken) * 99 // 100], taken[-1], len(taken))


def renewed(mount: CertfsMount) -> Iterator[bytes]:
    """Replace the only source of a bundle, again and again; give what the bundle is then."""
    certificates = [pki.authority(f"storm {number}").pem for number in range(2)]
    while True:
        for certificate in certificates:
            (mount.tree.certs / "storm.pem").write_bytes(certificate)
            yield certificate


def rewritten(path: Path) -> Iterator[bytes]:
    """Do the same to a file."""
    while True:
        for content in (b"x" * 2000, b"y" * 2000):
            path.write_bytes(content)
            yield content


def test_a_storm_delays_root_s_opens_hardly_more_than_elsewhere() -> None:
    """Beside a thousand threads root opens the present bundle about as fast as a file on bindfs; nothing is ended."""
    mounts.need_root()
    mounts.need_program("bindfs")
    directory = mounts.scratch_directory()
    beneath, other = directory / "beneath", directory / "bindfs"
    for each in (beneath, other):
        each.mkdir()
    subprocess.run(["bindfs", beneath, other], check=True, timeout=30)
    try:
        (other / "file").touch()
        with stormed("bindfs", other, other / "file"):
            elsewhere = opens_of(other / "file", rewritten(other / "file"))
    finally:
        mounts.force_unmount(str(other))
        shutil.rmtree(directory, ignore_errors=True)
    with mounts.mounted() as mount:
        daemon = mount.daemon()
        bundle = mount.tree.user_bundle
        change = renewed(mount)
        next(change)
        with stormed("certfs", mount.tree.xensource, bundle):
            here = opens_of(bundle, change)
        print(f"bindfs {elsewhere}\ncertfs {here}")
        assert mount.daemon() == daemon
        shutil.rmtree(mount.tree.xensource / "shared")
    assert here.p99 <= elsewhere.p99 + P99
    assert here.longest <= max(LONGEST, 2 * elsewhere.longest)
