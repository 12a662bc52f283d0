"""A Python of its own: Debian's interpreter with its C library and libraries, in one directory, nothing of the host's.

The kernel finds the dynamic loader by the absolute path in the program, so that such a directory is made for one
place. The loader finds the libraries by the program's run path, absolute as well: $ORIGIN would need /proc. DT_RPATH is
what also holds for the libraries' libraries, and it goes before LD_LIBRARY_PATH (ld.so(8)).
"""

import os
import shutil
from pathlib import Path
from typing import Final

from scripts.packaging import elf
from scripts.packaging.shell import BuildError, run

_LIBRARIES: Final = ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu")
LOADER: Final = "ld-linux-x86-64.so.2"
_LEFT_OUT: Final = frozenset(
    (
        "__pycache__", "sitecustomize.py", "distutils", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "test",
        "tkinter", "turtledemo", "venv", "EXTERNALLY-MANAGED",
    )
)  # fmt: skip
"""Parts of the standard library that a file system has no use for."""


def install(packages: Path, target: Path, place: str, version: str, patchelf: Path) -> Path:
    """Make an interpreter in ``target``, to be run as ``place``, of unpacked packages; return the program."""
    library = target / "lib"
    (target / "bin").mkdir(parents=True)
    library.mkdir()
    for directory in _LIBRARIES:
        for path in sorted((packages / directory).glob("*.so*")):
            shutil.copy2(path, library / path.name, follow_symlinks=False)
    for path in sorted(library.iterdir()):
        if path.is_symlink() and not path.exists():
            path.unlink()  # a development file's link into another package
    shutil.copytree(
        packages / "usr/lib" / f"python{version}",
        library / f"python{version}",
        symlinks=True,
        ignore=shutil.ignore_patterns(*_LEFT_OUT),
    )
    program = target / "bin" / f"python{version}"
    shutil.copy2(packages / "usr/bin" / program.name, program)
    (target / "bin" / "python3").symlink_to(program.name)
    _leave_out_modules(target)
    run(
        [
            patchelf,
            "--set-interpreter",
            f"{place}/lib/{LOADER}",
            "--force-rpath",
            "--set-rpath",
            f"{place}/lib",
            program,
        ]
    )
    return program


def _leave_out_modules(target: Path) -> None:
    """Remove extension modules for tests, and those that need a library that is not in the packages."""
    for path in target.glob("lib/python*/lib-dynload/*"):
        if path.name.startswith(("_test", "_ctypes_test", "_xx", "xx")):
            path.unlink()
    found = {path: elf.read(path) for path in elf.files(target)}
    names = {path.name for path in target.glob("lib/*")}
    for path, one in found.items():
        if any(name not in names for name in one.needed):
            if path.parent.name != "lib-dynload":
                raise BuildError(
                    f"{path} needs {one.needed}, and not all of them are in the packages"
                )
            path.unlink()


def compile_modules(root: Path, place: str) -> None:
    """Compile every module below ``root``, which will be ``place``; what comes out depends on the sources alone."""
    with os.scandir(root) as entries:
        directories = [entry.name for entry in entries if entry.is_dir()]
    if not directories:
        return
    import compileall  # noqa: PLC0415
    import py_compile  # noqa: PLC0415

    compileall.compile_dir(
        root,
        quiet=2,
        stripdir=str(root),
        prependdir=place,
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        maxlevels=20,
        workers=1,
    )
