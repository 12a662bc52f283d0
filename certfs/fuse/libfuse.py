"""Which libfuse3 this process uses; a wheel of pyfuse3 may carry one of its own."""

import ctypes
import os

import pyfuse3


def libfuse() -> tuple[str, str]:
    """Return the version of the libfuse3 that pyfuse3 has loaded, and the file that it is in."""
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as stream:
        paths = {line.split(maxsplit=5)[-1].strip() for line in stream if "libfuse3" in line}
    path = next(iter(sorted(paths)), "")
    if not path or not pyfuse3.__file__:
        return "unknown", path
    version = ctypes.CDLL(path).fuse_pkgversion
    version.restype = ctypes.c_char_p
    return os.fsdecode(version()), path
