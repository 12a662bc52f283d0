"""The installed tree: /opt/certfs/VERSION, a virtualenv on an interpreter of its own or on the system's.

Each version has a directory of its own; the link /opt/certfs/current is made where it is installed (`lifecycle`).
"""

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from scripts.packaging import elf, interpreter
from scripts.packaging.debian import HERE
from scripts.packaging.shell import BuildError, run

PREFIX: Final = "/opt/certfs"
PYTHON: Final = "3.11"
SITE: Final = f"lib/python{PYTHON}/site-packages"
"""Where the Python libraries are in the tree."""
OWN_GLIBC: Final = (2, 36)
"""The C library in the tree."""
_LAUNCHER: Final = """\
#!{prefix}/bin/python3 -I
import sys

from certfs.cli import main

sys.exit(main())
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """One version of the packages."""

    version: str
    release: str

    def __str__(self) -> str:
        return f"{self.version}-{self.release}"

    @property
    def prefix(self) -> str:
        """Where its files are installed."""
        return f"{PREFIX}/{self}"


def build(
    target: Path, release: Release, wheels: Sequence[Path], *, packages: Path | None, patchelf: Path
) -> None:
    """Make the tree in ``target``, to be installed as ``release.prefix``.

    ``packages`` are unpacked packages with the interpreter that it brings along; None for the system's.
    """
    shutil.rmtree(target, ignore_errors=True)
    (target / "bin").mkdir(parents=True)
    home = "/usr/bin"
    if packages:
        home = f"{release.prefix}/python/bin"
        place = f"{release.prefix}/python"
        interpreter.install(packages, target / "python", place, PYTHON, patchelf)
        _keep_copyrights(packages, target / "share/licences")
    (target / "pyvenv.cfg").write_text(
        f"home = {home}\ninclude-system-site-packages = false\nversion = {PYTHON}\n",
        encoding="utf-8",
    )
    program = f"../python/bin/python{PYTHON}" if packages else f"/usr/bin/python{PYTHON}"
    (target / "bin/python3").symlink_to(program)
    _install_wheels(target, wheels)
    launcher = target / "bin/certfs"
    launcher.write_text(_LAUNCHER.format(prefix=release.prefix), encoding="utf-8")
    launcher.chmod(0o755)
    (target / "libexec").mkdir()
    for name in ("lifecycle", "host-backup"):
        shutil.copy(HERE / name, target / "libexec" / name)
        (target / "libexec" / name).chmod(0o755)
    for part in ("python/lib", "lib"):
        if (target / part).exists():
            interpreter.compile_modules(target / part, f"{release.prefix}/{part}")


def check(target: Path, release: Release, glibc: tuple[int, ...], *, complete: bool) -> None:
    """BuildError if a file in the tree needs what will not be there."""
    found = [elf.read(path) for path in elf.files(target)]
    wrong = [f"{one.path}: {version}" for one in found for version in elf.too_new(one, glibc=glibc)]
    if complete:
        wrong += elf.unresolved(found)
        loader = f"{release.prefix}/python/lib/{interpreter.LOADER}"
        # The C library is a program too, which nobody runs.
        wrong += [
            f"{one.path}: its loader is {one.interpreter}"
            for one in found
            if one.interpreter not in {None, loader} and not one.soname
        ]
    if not found:
        wrong.append(f"{target}: no ELF file at all")
    if wrong:
        raise BuildError("the tree needs what is not there:\n" + "\n".join(wrong))


def _install_wheels(target: Path, wheels: Sequence[Path]) -> None:
    site = target / SITE
    run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-index",
            "--no-deps",
            "--no-compile",
            "--target",
            site,
            *wheels,
        ]
    )
    shutil.rmtree(site / "bin", ignore_errors=True)  # programs for the interpreter of the build
    if (site / "share").exists():
        shutil.copytree(site / "share", target / "share", dirs_exist_ok=True)
        shutil.rmtree(site / "share")
    for path in site.glob("*.dist-info/direct_url.json"):
        path.unlink()  # where the wheel lay when it was built


def _keep_copyrights(packages: Path, target: Path) -> None:
    for path in sorted((packages / "usr/share/doc").glob("*/copyright")):
        if path.exists():
            target.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / f"{path.parent.name}.txt")


def size(root: Path) -> int:
    """Return how many bytes the files below ``root`` have."""
    return sum(
        os.lstat(os.path.join(directory, name)).st_size
        for directory, _, names in os.walk(root)
        for name in names
    )
