"""The wheels: certfs, what it needs, and pyfuse3 with libfuse3, compiled for the C library of old hosts (glibc 2.17).

pyfuse3 is published as source. It is compiled with zig, which brings the headers and the symbols of each C library.
"""

import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from scripts.packaging import interpreter
from scripts.packaging.debian import Debian
from scripts.packaging.shell import BuildError, run, say

GLIBC: Final = (2, 17)
"""The C library of XCP-ng 8.3 and XenServer 8.4."""
PLATFORM: Final = "manylinux_2_17_x86_64"
_PLATFORMS: Final = ("manylinux2014_x86_64", PLATFORM)
RUNTIME: Final = "requirements-pool.txt"
"""The lock file of what an installation consists of. A host cannot add to the tree what the pool needs."""
PYTHONS: Final = {"3.11": ("tree", "headers"), "3.13": ("python313",)}
"""The versions of Python that wheels are made for, with the groups of Debian's packages that they come from."""
STABLE: Final = "3.12"
"""From this version on another wheel fits, by the stable ABI: no release of Debian has 3.12, or what follows 3.13."""
_STABLE_HEADERS: Final = "3.13"
_STABLE_FLAGS: Final = "-DPy_LIMITED_API=0x030C0000 -DPyBytes_AS_STRING=PyBytes_AsString"
"""What is newer is hidden then, and so are macros that look into objects; pyfuse3 uses one of these."""
_STABLE_SOURCE: Final = (
    ("_pyfuse3.FUSEError = FUSEError\n", ""),
    ("cdef class FUSEError(Exception):", "class FUSEError(Exception):"),
    ("    cdef readonly int errno_\n", ""),
    (
        "    def __cinit__(self, errno):\n        self.errno_ = errno\n",
        "    def __init__(self, errno):\n        self.errno_ = errno\n",
    ),
    (
        "        return strerror(self.errno_)\n",
        "        return strerror(self.errno_)\n\n_pyfuse3.FUSEError = FUSEError\n",
    ),
)
"""pyfuse3's only type whose base has a form that the stable ABI hides becomes an ordinary class, made later."""


def pins(requirements: str) -> Iterator[tuple[str, str]]:
    """Yield each requirement of a lock file: its name, and its lines with the hashes."""
    block: list[str] = []
    for line in requirements.splitlines():
        if line.lstrip().startswith("#") or not line.strip():
            continue
        block.append(line)
        if not line.rstrip().endswith("\\"):
            yield re.split(r"[=\s]", block[0], maxsplit=1)[0], "\n".join(block) + "\n"
            block = []


class Workshop:
    """Where the wheels are made: the tools, the inputs, and what is done already."""

    def __init__(self, source: Path, directory: Path, debian: Debian) -> None:
        self._source = source
        self._directory = directory
        self._debian = debian
        self._tools = Path(sys.prefix) / "bin"
        self.found = directory / "found"
        """What the index has: wheels as they are published."""
        self.raw = directory / "raw"
        """pyfuse3, against the system's libfuse3."""
        self.repaired = directory / "repaired"
        """pyfuse3 with libfuse3 inside."""
        self.certfs = directory / "certfs"

    @property
    def patchelf(self) -> Path:
        """The program that changes run paths."""
        return self._tools / "patchelf"

    def tool(self, name: str) -> Path:
        """Return a program of the build's own."""
        return self._tools / name

    def build(self) -> None:
        """Make every wheel that is not there yet."""
        self._download()
        self._build_certfs()
        for version in PYTHONS:
            self._build_pyfuse3(version, version)
        stable = self._directory / "stable.cfg"
        stable.write_text(
            f"[bdist_wheel]\npy_limited_api = cp{STABLE.replace('.', '')}\n", encoding="utf-8"
        )
        self._build_pyfuse3(
            STABLE,
            _STABLE_HEADERS,
            _STABLE_FLAGS,
            _STABLE_SOURCE,
            {"DIST_EXTRA_CONFIG": str(stable), "SETUPTOOLS_EXT_SUFFIX": ".abi3.so"},
        )

    def runtime(self, pyfuse3: Path) -> list[Path]:
        """Return the wheels that an installation for Python 3.11 consists of, with that of ``pyfuse3``."""
        return [next(self.certfs.glob("*.whl")), pyfuse3, *sorted(self.found.glob("*.whl"))]

    def pyfuse3(self, directory: Path, version: str) -> Path:
        """Return the wheel of pyfuse3 for a version of Python."""
        return next(directory.glob(f"pyfuse3-*-cp{version.replace('.', '')}-*.whl"))

    def python(self, version: str) -> Path:
        """Return an interpreter, with headers, that runs here and needs nothing of this machine."""
        home = self._directory / f"python{version}"
        program = home / "bin" / f"python{version}"
        if not program.exists():
            say(f"unpacking Python {version}")
            packages = self._directory / f"packages{version}"
            shutil.rmtree(packages, ignore_errors=True)
            shutil.rmtree(home, ignore_errors=True)
            for group in PYTHONS[version]:
                self._debian.extract(group, packages)
            interpreter.install(packages, home, str(home), version, self.patchelf)
            shutil.copytree(packages / "usr/include", home / "include", dirs_exist_ok=True)
        return program

    # --- what the index has

    def _download(self) -> None:
        locked = dict(pins((self._source / RUNTIME).read_text(encoding="utf-8")))
        stamp = self.found / "requirements.txt"
        text = "".join(locked.values())
        if stamp.exists() and stamp.read_text(encoding="utf-8") == text:
            return
        say("fetching the locked wheels")
        target = self._directory / "found.new"
        made_of_them = (self.raw, self.repaired, self._directory / "sdist")
        for path in (target, self.found, *made_of_them):
            shutil.rmtree(path, ignore_errors=True)
        source = locked.pop("pyfuse3")
        self._pip_download(
            locked.values(),
            target,
            *(f"--platform={platform}" for platform in _PLATFORMS),
            *("--only-binary=:all:", "--python-version=3.11", "--implementation=cp"),
            *("--abi=cp311", "--abi=abi3", "--abi=none"),
        )
        self._pip_download(
            [source], self._directory / "sdist", "--no-binary=:all:", "--no-build-isolation"
        )
        (target / stamp.name).write_text(text, encoding="utf-8")
        target.rename(self.found)

    def _pip_download(self, requirements: Iterable[str], target: Path, *options: str) -> None:
        target.mkdir(parents=True, exist_ok=True)
        listed = self._directory / "requirements.txt"
        listed.write_text("".join(requirements), encoding="utf-8")
        run(
            [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--quiet",
                "--no-deps",
                "--require-hashes",
                *options,
                "--dest",
                target,
                "--requirement",
                listed,
            ],
            environment=self._environment(),
        )

    # --- what is built

    def _build_certfs(self) -> None:
        say("building the wheel of certfs")
        shutil.rmtree(self.certfs, ignore_errors=True)
        run(
            [
                sys.executable,
                "-m",
                "pip",
                "wheel",
                "--quiet",
                "--no-deps",
                "--no-build-isolation",
                "--wheel-dir",
                self.certfs,
                self._source,
            ]
        )

    def _build_pyfuse3(
        self,
        version: str,
        compiled_by: str,
        flags: str = "",
        changes: Iterable[tuple[str, str]] = (),
        options: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Make the wheel for ``version`` with the interpreter and the headers of another one, or the same."""
        tag = f"pyfuse3-*-cp{version.replace('.', '')}-*.whl"
        if any(self.repaired.glob(tag)):
            return
        python, fuse = self.python(compiled_by), self._libfuse3()
        say(f"compiling pyfuse3 for Python {version}")
        unpacked = self._directory / f"pyfuse3-{version}"
        shutil.rmtree(unpacked, ignore_errors=True)
        unpacked.mkdir()
        (sdist,) = (self._directory / "sdist").glob("pyfuse3-*.tar.gz")
        run(["tar", "-xzf", sdist, "-C", unpacked, "--strip-components=1"])
        self._change(unpacked / "src/pyfuse3/__init__.pyx", changes)
        include = f"{python.parent.parent}/include"
        headers = f"-I{include}/python{compiled_by} -I{include}"
        run(
            [
                python,
                "-m",
                "pip",
                "wheel",
                "--quiet",
                "--no-deps",
                "--no-build-isolation",
                "--wheel-dir",
                self.raw,
                unpacked,
            ],
            environment={
                **self._environment(),
                "PYTHONPATH": self._site_packages(),
                "PKG_CONFIG_PATH": f"{fuse}/usr/lib/pkgconfig",
                "PKG_CONFIG_SYSROOT_DIR": str(fuse),
                "CFLAGS": f"-O2 -g0 -ffile-prefix-map={self._directory}=. {headers} {flags}",
                "LDSHARED": f"{self._compiler()} -shared -Wl,-s",
                "PYTHONDONTWRITEBYTECODE": "1",
                **options,
            },
        )
        run(
            [
                self.tool("auditwheel"),
                "repair",
                "--plat",
                PLATFORM,
                "--wheel-dir",
                self.repaired,
                self.pyfuse3(self.raw, version),
            ],
            environment={**self._environment(), "LD_LIBRARY_PATH": f"{fuse}/usr/lib"},
        )
        if not any(self.repaired.glob(f"{tag[:-4]}{PLATFORM}.whl")):
            raise BuildError(f"auditwheel made no wheel for {PLATFORM}")

    @staticmethod
    def _change(path: Path, changes: Iterable[tuple[str, str]]) -> None:
        text = path.read_text(encoding="utf-8")
        for before, after in changes:
            if text.count(before) != 1:
                raise BuildError(f"{path} has changed: {before!r} is not there once")
            text = text.replace(before, after)
        path.write_text(text, encoding="utf-8")

    def _libfuse3(self) -> Path:
        """Return a directory with libfuse3 as below /usr."""
        target = self._directory / "fuse3"
        if target.exists():
            return target
        say("compiling libfuse3")
        unpacked = self._directory / "fuse3-source"
        shutil.rmtree(unpacked, ignore_errors=True)
        unpacked.mkdir()
        archives = {path.name: path for path in self._debian.files("fuse3")}
        (original,) = (path for name, path in archives.items() if ".orig.tar" in name)
        (changes,) = (path for name, path in archives.items() if ".debian.tar" in name)
        run(["tar", "-xf", original, "-C", unpacked, "--strip-components=1"])
        run(["tar", "-xf", changes, "-C", unpacked])
        series = (unpacked / "debian/patches/series").read_text(encoding="utf-8").split()
        for name in series:
            run(["patch", "-p1", "-s", "-i", f"debian/patches/{name}"], directory=unpacked)
        environment = {
            **self._environment(),
            "CFLAGS": f"-ffile-prefix-map={unpacked}=.",
            # The version script names symbols that this configuration does not have; ld lets them pass.
            "LDFLAGS": "-Wl,--undefined-version -Wl,-s",
        }
        options = ["utils=false", "examples=false", "tests=false", "useroot=false"]
        run(
            [
                self.tool("meson"),
                "setup",
                "--prefix=/usr",
                "--libdir=lib",
                "--buildtype=release",
                *(f"-D{option}" for option in options),
                "build",
            ],
            directory=unpacked,
            environment=environment,
        )
        staged = self._directory / "fuse3.new"
        shutil.rmtree(staged, ignore_errors=True)
        run(
            [self.tool("ninja"), "-C", "build", "install"],
            directory=unpacked,
            environment={**environment, "DESTDIR": str(staged)},
        )
        staged.rename(target)
        return target

    def _compiler(self) -> Path:
        """Return a C compiler for the old C library."""
        glibc = ".".join(map(str, GLIBC))
        return self._wrapper("cc", f"cc -target x86_64-linux-gnu.{glibc}")

    def _wrapper(self, name: str, arguments: str) -> Path:
        path = self._directory / "bin" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # Also run by another interpreter's build, whose variables are not for this one.
        path.write_text(
            f'#!/bin/sh\nunset PYTHONPATH\nexec {sys.executable} -m ziglang {arguments} "$@"\n',
            encoding="utf-8",
        )
        path.chmod(0o755)
        return path

    def _environment(self) -> dict[str, str]:
        return {
            "PATH": f"{self._tools}:{os.environ['PATH']}",
            "CC": str(self._compiler()),
            "AR": str(self._wrapper("ar", "ar")),
            "ZIG_GLOBAL_CACHE_DIR": str(self._directory / "zig"),
            "ZIG_LOCAL_CACHE_DIR": str(self._directory / "zig"),
        }

    @staticmethod
    def _site_packages() -> str:
        return f"{sys.prefix}/lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
