"""A machine of its own: a real systemd, booted as the first process of namespaces.

Owns the boot and its end. The root mount is shared there, as systemd has it, and /etc is a bind mount of the machine's
own directory, in the peer group of its origin: what is mounted over one appears over the other as well.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support import mounts
from tests.support.host import copy_etc

SYSTEMD = Path("/lib/systemd/systemd")
_SAID = "boot.log"
"""In the machine's directory: what its first process and systemd said."""
_TARGETS = ("sysinit", "basic", "local-fs", "multi-user", "shutdown", "umount", "final", "network")
_BOOT = """
set -e
umount --lazy --all --types fuse.certfs || true
mount --make-rshared /
mount -t proc proc /proc
mount -t tmpfs run /run
mount --bind "$1/boot.log" /dev/kmsg
mount --bind "$1/etc" /etc
umount -l /sys/fs/cgroup
mount -t cgroup2 none /sys/fs/cgroup
export container=other SYSTEMD_UNIT_PATH="$1/units"
exec "$2" --system --unit="$3" --log-target=kmsg
"""


class BootError(Exception):
    """The machine did not come up; the message is what it said."""


@dataclass(slots=True)
class Machine:
    """A booted systemd."""

    init: int
    """The pid of its first process, as seen from here."""
    directory: Path

    def run(self, *command: str | Path) -> str:
        """Run a command on the machine and return its standard output."""
        result = subprocess.run(
            ["nsenter", f"--target={self.init}", "--mount", "--pid", "--cgroup", *command],
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    def inside(self, path: str) -> Path:
        """Return the path by which this process reaches ``path`` of the machine."""
        return Path(f"/proc/{self.init}/root{path}")


def why_not() -> str | None:
    """Say why no machine can be booted here, None where one can."""
    if os.geteuid() != 0:
        return "that needs root"
    if not SYSTEMD.exists():
        return "there is no systemd"
    if mounts.is_chroot():
        return "this is a chroot, where no other mount namespace can be entered"
    cgroup = _cgroup_tree()
    if cgroup is None or not os.access(cgroup, os.W_OK):
        return "there is no cgroup2 that systemd could run in"
    return None


@contextlib.contextmanager
def directory_of_a_machine() -> Iterator[Path]:
    """Make a machine's directory: ``etc`` with a host's empty directories for certfs, and ``units``."""
    directory = mounts.scratch_directory()
    try:
        copy_etc(directory / "etc")
        (directory / "units").mkdir()
        for name in _TARGETS:
            target = directory / "units" / f"{name}.target"
            target.write_text("[Unit]\nDefaultDependencies=no\n")
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def booted(directory: Path, unit: str) -> Iterator[Machine]:
    """Boot from a machine's directory, until ``unit`` is active; BootError where it does not become so."""
    with _cgroup() as cgroup:
        process = _boot(directory, cgroup, unit)
        try:
            _wait_for(lambda: _children(process.pid), process, directory)
            made = Machine(int(_children(process.pid)[0]), directory)
            _wait_for(lambda: _is_active(made, unit), process, directory)
            yield made
        finally:
            process.kill()
            process.wait()


def _cgroup_tree() -> Path | None:
    table = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    found = re.search(r"^\S+ \S+ \S+ \S+ (\S+) .* - cgroup2 ", table, re.MULTILINE)
    return Path(found[1]) if found else None


@contextlib.contextmanager
def _cgroup() -> Iterator[Path]:
    """Make a cgroup (of version 2) for the machine."""
    tree = _cgroup_tree()
    assert tree is not None
    cgroup = tree / f"certfs-test-{os.getpid()}"
    cgroup.mkdir()
    try:
        yield cgroup
    finally:
        mounts.wait_until(lambda: _removed(cgroup), what="the end of the machine's processes")


def _removed(cgroup: Path) -> bool:
    """Remove a cgroup with all below it; impossible while a killed process is not quite dead."""
    for directory, _, _ in os.walk(cgroup, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(directory)
    return not cgroup.exists()


def _boot(directory: Path, cgroup: Path, unit: str) -> subprocess.Popen[bytes]:
    enter = 'echo $$ > "$1/cgroup.procs" && shift && exec "$@"'
    namespaces = ["unshare", "--cgroup", "--pid", "--mount", "--fork", "--kill-child"]
    boot: list[str | Path] = ["sh", "-c", _BOOT, "sh", directory, SYSTEMD, unit]
    with (directory / _SAID).open("wb") as said:
        return subprocess.Popen(
            ["sh", "-c", enter, "sh", cgroup, *namespaces, *boot],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            env={k: v for k, v in os.environ.items() if k != "CERTFS_RUNTIME_DIR"},
        )


def _wait_for(
    reached: Callable[[], object], process: subprocess.Popen[bytes], directory: Path
) -> None:
    """Wait for a step of the boot."""
    deadline = time.monotonic() + 120
    while not reached():
        if process.poll() is not None or time.monotonic() > deadline:
            said = (directory / _SAID).read_text(errors="backslashreplace")
            raise BootError(f"the machine did not boot (exit {process.poll()}); it said:\n{said}")
        time.sleep(0.05)


def _children(pid: int) -> list[str]:
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return []


def _is_active(made: Machine, unit: str) -> bool:
    with contextlib.suppress(AssertionError):
        return made.run("systemctl", "is-active", unit).strip() == "active"
    return False
