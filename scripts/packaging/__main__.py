"""What `scripts/package` runs, with the locked tools: builds, checks, and fills dist/."""

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from certfs import __version__
from scripts.packaging import archives, bom, chroot, suite, tree
from scripts.packaging.debian import Debian, sha256
from scripts.packaging.shell import BuildError, run, say
from scripts.packaging.tree import OWN_GLIBC, PYTHON, Release
from scripts.packaging.wheels import PYTHONS, STABLE, Workshop

ROOT: Final = Path(__file__).resolve().parents[2]
PARTS: Final = ("wheels", "tar", "rpm", "deb")


class Build:
    """One run: the inputs, and where things go."""

    def __init__(self, release: Release, output: Path, epoch: int) -> None:
        self._release = release
        self._output = output
        self._epoch = epoch
        self._scratch = ROOT / "build/packaging"
        self._debian = Debian(self._scratch / "debian")
        self._workshop = Workshop(ROOT, self._scratch / "wheels", self._debian)
        self._own_tree = self._scratch / "tree-own"

    def lock(self) -> None:
        """Pin the versions that Debian has now."""
        self._debian.lock_file.write_text(self._debian.lock(), encoding="utf-8")

    def run(self, parts: tuple[str, ...]) -> list[Path]:
        """Build these parts and return their files."""
        self._output.mkdir(parents=True, exist_ok=True)
        self._workshop.build()
        if {"tar", "rpm"} & set(parts):
            self._make_own_tree()
        steps: Mapping[str, Callable[[], list[Path]]] = {
            "wheels": self._wheels,
            "tar": self._tar,
            "rpm": self._rpm,
            "deb": self._deb,
        }
        made: list[Path] = []
        for part in parts:
            say(f"making {part}")
            made += steps[part]()
        return made

    def test(self, arguments: list[str]) -> int:
        """Run the tests against the tree; return pytest's exit status."""
        self._workshop.build()
        self._make_own_tree()
        return suite.run_suite(ROOT, self._own_tree, self._release, self._scratch, arguments)

    def _wheels(self) -> list[Path]:
        directory = self._output / "wheels"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        wheels = [
            *self._workshop.certfs.glob("*.whl"),
            *(
                self._workshop.pyfuse3(self._workshop.repaired, version)
                for version in (*PYTHONS, STABLE)
            ),
        ]
        made = [Path(shutil.copy(path, directory / path.name)) for path in wheels]
        made.append(self._bill("pyfuse3-wheels", wheels, ("fuse3",), directory))
        return made

    def _make_own_tree(self) -> None:
        say(f"making the tree of {self._release}")
        packages = self._scratch / "packages"
        shutil.rmtree(packages, ignore_errors=True)
        self._debian.extract("tree", packages)
        wheels = self._workshop.runtime(self._workshop.pyfuse3(self._workshop.raw, PYTHON))
        tree.build(
            self._own_tree,
            self._release,
            wheels,
            packages=packages,
            patchelf=self._workshop.patchelf,
        )
        self._bill("certfs", wheels, ("tree",), self._own_tree / "share")
        tree.check(self._own_tree, self._release, OWN_GLIBC, complete=True)
        chroot.check(self._own_tree, self._release, self._scratch / "chroot")

    def _tar(self) -> list[Path]:
        return [
            archives.tar(self._own_tree, self._release, self._output, self._scratch, self._epoch)
        ]

    def _rpm(self) -> list[Path]:
        return [archives.rpm(self._own_tree, self._release, self._output, self._scratch)]

    def _deb(self) -> list[Path]:
        target = self._scratch / "tree-system"
        wheels = self._workshop.runtime(self._workshop.pyfuse3(self._workshop.raw, PYTHON))
        tree.build(target, self._release, wheels, packages=None, patchelf=self._workshop.patchelf)
        self._bill("certfs", wheels, (), target / "share")
        tree.check(target, self._release, OWN_GLIBC, complete=False)
        return [archives.deb(target, self._release, self._output, self._scratch)]

    def _bill(
        self, name: str, wheels: list[Path], groups: tuple[str, ...], directory: Path
    ) -> Path:
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"{name}.cdx.json"
        packages = [pin for group in groups for pin in self._debian.pins(group)]
        text = bom.document(
            name, str(self._release), wheels=wheels, packages=packages, epoch=self._epoch
        )
        path.write_text(text, encoding="utf-8")
        return path


def _epoch() -> int:
    """Return the time that every file gets: that of the last commit, or SOURCE_DATE_EPOCH."""
    given = os.environ.get("SOURCE_DATE_EPOCH")
    return int(given or run(["git", "log", "-1", "--format=%ct"], directory=ROOT))


def main() -> int:
    """Build what the arguments name; return the exit status."""
    parser = argparse.ArgumentParser(prog="scripts/package")
    parser.add_argument("parts", nargs="*", metavar="PART", help=" ".join(PARTS))
    parser.add_argument("--release", default="1", help="the packages' release number")
    parser.add_argument("--output", default=ROOT / "dist", type=Path)
    parser.add_argument("--lock", action="store_true", help="pin Debian's present versions")
    parser.add_argument(
        "--test",
        nargs=argparse.REMAINDER,
        metavar="ARGUMENT",
        help="run the test suite against the tree instead, with these arguments for pytest",
    )
    arguments = parser.parse_args()
    unknown = set(arguments.parts) - set(PARTS)
    if unknown:
        parser.error(f"no such part: {' '.join(sorted(unknown))}; there are {' '.join(PARTS)}")
    try:
        epoch = _epoch()
        os.environ["SOURCE_DATE_EPOCH"] = str(epoch)
        build = Build(
            Release(version=__version__, release=arguments.release),
            arguments.output.absolute(),
            epoch,
        )
        if arguments.lock:
            build.lock()
            return 0
        if arguments.test is not None:
            return build.test(arguments.test)
        made = build.run(tuple(arguments.parts) or PARTS)
    except BuildError as error:
        say(f"FAILED: {error}")
        return 1
    for path in made:
        print(f"{sha256(path)}  {path.stat().st_size / 1e6:6.1f} MB  {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
