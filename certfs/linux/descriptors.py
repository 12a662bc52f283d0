"""Files in memory and open descriptors, on every kernel and C library that certfs runs on.

Python has some calls only where the C library that it was built with has them: memfd_create() came with glibc 2.27,
close_range() with Linux 5.9.
"""

import os
import tempfile
from collections.abc import Collection


def memory_file(content: bytes) -> int:
    """Return a descriptor from which ``content`` can be read: of a file in memory, or of one without a name."""
    try:
        fd = os.memfd_create("certfs")
    except (AttributeError, OSError):  # no such function; no such system call, or it is forbidden
        with tempfile.TemporaryFile(prefix="certfs-") as stream:
            fd = os.dup(stream.fileno())
    with open(fd, "wb", closefd=False) as stream:
        stream.write(content)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def close_all_but(keep: Collection[int]) -> None:
    """Close every descriptor of this process, or of this thread if it has a table of its own, but these.

    Asks /proc what is open: closing all that could be is half a million calls where close_range(2) is missing.
    """
    try:
        names = os.listdir("/proc/thread-self/fd")
    except OSError:
        names = [str(fd) for fd in range(os.sysconf("SC_OPEN_MAX"))]
    for fd in map(int, names):
        if fd not in keep:
            try:
                os.close(fd)
            except OSError:
                continue  # that of the listing itself, or one that is not open
