"""The test suite against the installed tree: what is tested is what hosts get, not the checkout.

In a mount namespace of its own the tree is at /opt/certfs. The tests lie in a copy of the repository without the
package's source, and run by the tree's interpreter, with what only tests need from a directory of its own. They are
told which tree it is, and refuse to run with another (tests/support/installed.py). What is added to the tree is a line
by which isolated processes find the modules of the tests, as they do in a checkout: some are servers. They do not find
what only tests need.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from scripts.packaging.shell import run, say
from scripts.packaging.tree import PREFIX, SITE, Release
from scripts.packaging.wheels import RUNTIME, pins

_SCRIPT: Final = """\
set -e
mount -t tmpfs -o mode=755 none "$1"
stat -c %d "$1" >"$2"
cp -a "$3" "$1/$4"
ln -s "$4" "$1/current"
echo "$5" >"$1/$4/$6/tests.pth"
cd "$5"
shift 6
exec "$@"
"""
_NOT_FOR_TESTS: Final = (
    "COVERAGE_FILE",
    "COVERAGE_PROCESS_START",
    "COVERAGE_RCFILE",
    "PYTEST_ADDOPTS",
    "PYTHONDONTWRITEBYTECODE",
    "SOURCE_DATE_EPOCH",
)
_MOST_AGAIN: Final = 3
_PATIENCE: Final = 10.0
"""Seconds in which processes end whose parent has just ended."""


def run_suite(
    root: Path, tree: Path, release: Release, scratch: Path, arguments: Sequence[str]
) -> int:
    """Run pytest with ``arguments``; return its exit status, or 1 if the tests left processes running.

    Up to three tests that failed are run once more by themselves, as `scripts/test` does.
    """
    suite = _Suite(root, tree, release, scratch)
    say(f"running the suite with {release.prefix}/bin/python3")
    status = suite.run(arguments)
    failed = suite.failed()
    if status == 1 and 1 <= len(failed) <= _MOST_AGAIN:
        say("once more, by itself, what failed:")
        status = suite.run(["-ra", *failed])
        again = suite.failed()
        for name in failed:
            if name not in again:
                say(f"UNSTEADY: {name}")
        failed = again
    for name in failed:
        say(f"FAILED: {name}")
    for process in suite.left:
        say(f"LEFT RUNNING, and killed: {process}")
    if status == 0 and suite.left:
        status = 1
    say(f"the suite {'FAILED' if status else 'passed'} from {release.prefix}")
    return status


class _Suite:
    """The tests, ready to be run against one tree."""

    def __init__(self, root: Path, tree: Path, release: Release, scratch: Path) -> None:
        self._root = root
        self._tree = tree
        self._release = release
        self._scratch = scratch
        self._copy = scratch / "suite"
        self._device = scratch / "suite-device"
        self._cache = scratch / "suite-cache"
        self.left: list[str] = []
        """Processes of the tree that were there when pytest had ended."""
        _export(root, self._copy)
        self._extra = _test_packages(root, scratch)

    def run(self, arguments: Sequence[str]) -> int:
        """Run pytest with ``arguments``, and return its exit status."""
        shutil.rmtree(self._cache, ignore_errors=True)
        self._device.unlink(missing_ok=True)
        pytest = (f"{self._release.prefix}/bin/python3", "-m", "pytest")
        command: list[str | Path] = [
            *("unshare", "--mount", "--propagation", "private", "sh", "-c", _SCRIPT, "sh"),
            *(PREFIX, self._device, self._tree, str(self._release), self._copy, SITE),
            *(*pytest, "-o", f"cache_dir={self._cache}", *arguments),
        ]
        is_new = not Path(PREFIX).exists()
        Path(PREFIX).mkdir(parents=True, exist_ok=True)
        try:
            return subprocess.run(command, check=False, env=self._environment()).returncode
        finally:
            if self._device.exists():
                self.left += _end_processes(int(self._device.read_text()))
            if is_new:
                Path(PREFIX).rmdir()

    def failed(self) -> list[str]:
        """Return the names of the tests that failed in the last run."""
        path = self._cache / "v/cache/lastfailed"
        return sorted(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else []

    def _environment(self) -> dict[str, str]:
        """Return the environment of the tests: no program of the checkout is found by its name."""
        environment = {k: v for k, v in os.environ.items() if k not in _NOT_FOR_TESTS}
        path = [
            directory
            for directory in environment["PATH"].split(":")
            if not Path(directory).is_relative_to(self._root)
        ]
        return {
            **environment,
            "PYTHONPATH": str(self._extra),
            "PATH": ":".join([f"{self._extra}/bin", *path]),
            "CERTFS_TEST_PREFIX": self._release.prefix,
        }


def _end_processes(device: int) -> list[str]:
    """Kill the processes whose program is on this file system; return what they were, but those that end in time."""
    deadline = time.monotonic() + _PATIENCE
    while (found := _processes_on(device)) and time.monotonic() < deadline:
        time.sleep(0.1)
    said = []
    for pid in found:
        try:
            command = Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8", errors="replace")
            os.kill(pid, signal.SIGKILL)
        except OSError:
            continue  # it has ended meanwhile
        said.append(f"{pid} {command.replace(chr(0), ' ').strip()}")
    return said


def _processes_on(device: int) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and os.stat(f"/proc/{name}/exe").st_dev == device:
                found.append(int(name))
        except OSError:
            continue  # a thread of the kernel, or a process that has ended
    return found


def _export(root: Path, target: Path) -> None:
    """Copy what is in the repository, but the package's source."""
    shutil.rmtree(target, ignore_errors=True)
    names = run(["git", "ls-files", "-z"], directory=root).split("\0")
    for name in names:
        if name and not name.startswith("certfs/") and (root / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, target / name, follow_symlinks=False)


def _test_packages(root: Path, scratch: Path) -> Path:
    """Return a directory with what only the tests need."""
    target = scratch / "suite-packages"
    locked = dict(pins((root / "requirements-dev.txt").read_text(encoding="utf-8")))
    for name in dict(pins((root / RUNTIME).read_text(encoding="utf-8"))):
        locked.pop(name, None)
    listed = scratch / "suite-requirements.txt"
    text = "".join(locked.values())
    if target.exists() and listed.exists() and listed.read_text(encoding="utf-8") == text:
        return target
    shutil.rmtree(target, ignore_errors=True)
    listed.write_text(text, encoding="utf-8")
    options = ("--quiet", "--no-deps", "--require-hashes", "--only-binary=:all:")
    run([sys.executable, "-m", "pip", "install", *options, "--target", target, "-r", listed])
    return target
