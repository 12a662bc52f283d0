"""A Python as one that was built with glibc 2.17 (CentOS 7), by taking away what it would not have.

Such are the interpreters that uv and others install. `make` gives a virtual environment on this interpreter with
everything that is installed here; every Python that is started in it, isolated ones (-I) as well, imports this module
first. Imports nothing of ours.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

_NOT_IN_OS = (
    "copy_file_range", "eventfd", "getrandom", "memfd_create", "pidfd_open", "preadv2", "P_PIDFD",
    "RWF_APPEND", "RWF_DSYNC", "RWF_HIPRI", "RWF_NOWAIT", "RWF_SYNC",
)  # fmt: skip
_PREADV_ARGUMENTS = 3
_NOT_IN_LIBC = ("close_range", "memfd_create", "preadv2", "pidfd_open", "renameat2", "statx")


def hide() -> None:
    """Take away what came with glibc 2.18 or later."""
    for name in _NOT_IN_OS:
        if hasattr(os, name):
            delattr(os, name)
    del signal.pidfd_send_signal
    spawn: Callable[..., int] = os.posix_spawn
    preadv: Callable[..., int] = os.preadv
    find: Callable[[ctypes.CDLL, str], object] = ctypes.CDLL.__getattr__

    def old_spawn(*arguments: object, setsid: bool = False, **options: object) -> int:
        if setsid:
            raise NotImplementedError("posix_spawn: setsid unavailable on this platform")
        return spawn(*arguments, **options)

    def old_preadv(*arguments: object) -> int:
        if len(arguments) > _PREADV_ARGUMENTS:
            raise NotImplementedError("preadv2: flags unavailable on this platform")
        return preadv(*arguments)

    def old_find(library: ctypes.CDLL, name: str) -> object:
        if name in _NOT_IN_LIBC:
            raise AttributeError(name)
        return find(library, name)

    for owner, name, function in (
        (os, "posix_spawn", old_spawn),
        (os, "preadv", old_preadv),
        (ctypes.CDLL, "__getattr__", old_find),
    ):
        setattr(owner, name, function)


def make(directory: Path) -> Path:
    """Make the virtual environment in ``directory``; return its command `certfs`."""
    base = Path(sys.executable).resolve()
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = directory / "lib" / version / "site-packages"
    site.mkdir(parents=True)
    (directory / "bin").mkdir()
    (directory / "bin/python").symlink_to(base)
    (directory / "pyvenv.cfg").write_text(f"home = {base.parent}\n")
    (site / "old_python.py").write_bytes(Path(__file__).read_bytes())
    installed = [path for path in sys.path if Path(path).name in {"site-packages", "dist-packages"}]
    lines = ["import old_python; old_python.hide()"]
    lines += [f"import site; site.addsitedir({path!r})" for path in installed]
    (site / "0.pth").write_text("\n".join(lines) + "\n")
    program = directory / "bin/certfs"
    program.write_text(
        f"#!{directory}/bin/python -I\nimport sys\nfrom certfs.cli import main\nsys.exit(main())\n"
    )
    program.chmod(0o755)
    return program
