"""`certfs --version`: for a bug report, and with `--verbose` for whoever keeps the bundled libraries up to date."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata

from certfs import __version__
from tests.support.mounts import certfs_program


def said(*arguments: str) -> list[str]:
    """Return the lines that certfs prints."""
    command = [certfs_program(), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def test_the_version_is_one_line() -> None:
    """Programs compare it."""
    assert said("--version") == [f"certfs {__version__}"]


def test_the_versions_of_all_that_it_consists_of() -> None:
    """The interpreter, the libraries that a package may bundle, and each distribution, with its version."""
    first, *rest = said("--version", "--verbose")
    found = {line.strip().partition(" ")[0]: line for line in rest}
    assert first == f"certfs {__version__}"
    assert sys.version.split()[0] in found["Python"]
    assert "libfuse3.so" in found["libfuse3"]
    assert {"OpenSSL", "Linux", "installed"} <= found.keys()
    for name in ("pyfuse3", "cryptography", "trio", "outcome"):
        assert found[name] == f"  {name} {metadata.version(name)}"
    assert said("--verbose", "--version")[1:] == rest
