"""The test suite against the installed tree: what is tested is what hosts get, not the checkout.

In a mount namespace of its own the tree is at /opt/certfs. The tests lie in a copy of the repository without the
package's source, and run by the tree's interpreter, with what only tests need from a directory of its own.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from scripts.packaging.shell import run, say
from scripts.packaging.tree import PREFIX, Release
from scripts.packaging.wheels import pins

_SCRIPT: Final = """\
set -e
mkdir -p "$1"
mount -t tmpfs -o mode=755 none "$1"
cp -a "$2" "$1/$3"
ln -s "$3" "$1/current"
cd "$4"
shift 4
exec "$@"
"""


def run_suite(
    root: Path, tree: Path, release: Release, scratch: Path, arguments: Sequence[str]
) -> int:
    """Run pytest with ``arguments``; return its exit status."""
    copy = scratch / "suite"
    _export(root, copy)
    extra = _test_packages(root, scratch)
    python = f"{release.prefix}/bin/python3"
    say(f"running the suite with {python}")
    environment = {
        **os.environ,
        "PYTHONPATH": str(extra),
        "PATH": f"{extra}/bin:{os.environ['PATH']}",
    }
    environment.pop("SOURCE_DATE_EPOCH")
    command = [python, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    words: list[str | Path] = [
        "sh",
        "-c",
        _SCRIPT,
        "sh",
        PREFIX,
        tree,
        str(release),
        copy,
        *command,
    ]
    return subprocess.run(
        ["unshare", "--mount", "--propagation", "private", *words], check=False, env=environment
    ).returncode


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
    for name in dict(pins((root / "requirements.txt").read_text(encoding="utf-8"))):
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
