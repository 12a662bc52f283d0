"""Mounting a FUSE file system whose server gets its descriptor afterwards.

The kernel lets requests wait until somebody reads them from the descriptor. The mount lives as long as a descriptor is
open: whoever passes it on closes his own at once, or requests wait for ever when the server has died.
"""

import os
import select
import socket
from typing import Final

from certfs.linux import mount_syscalls
from certfs.linux.processes import start, wait
from certfs.procfs import FILESYSTEM_TYPE

DEVICE: Final = "/dev/fuse"
_SUBTYPE: Final = FILESYSTEM_TYPE.partition(".")[2]
_OTHERS: Final = ("allow_other",)
_WORDS: Final = {
    mount_syscalls.MS_RDONLY: "ro",
    mount_syscalls.MS_NOSUID: "nosuid",
    mount_syscalls.MS_NODEV: "nodev",
    mount_syscalls.MS_NOEXEC: "noexec",
    mount_syscalls.MS_SYNCHRONOUS: "sync",
    mount_syscalls.MS_DIRSYNC: "dirsync",
    mount_syscalls.MS_NOATIME: "noatime",
}
"""What fusermount3 calls them; those that not every version knows change nothing for a FUSE mount."""


def mount_as_root(source: str, point: str, *, flags: int, allow_other: bool) -> int:
    """Mount at ``point`` and return the descriptor to serve (fuse.rst of the kernel).

    ``source`` is what the mount table names; ``flags`` are mount(2)'s.
    """
    fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    options = [f"fd={fd}", "rootmode=40000", f"user_id={os.geteuid()}", f"group_id={os.getegid()}"]
    options += ["default_permissions", *(_OTHERS if allow_other else ())]
    try:
        mount_syscalls.mount(source, point, FILESYSTEM_TYPE, flags, ",".join(options))
    except OSError:
        os.close(fd)
        raise
    return fd


def mount_as_user(source: str, point: str, *, flags: int, allow_other: bool, seconds: float) -> int:
    """Have fusermount3 mount at ``point`` and return the descriptor to serve.

    It hands the descriptor over through a socket whose number stands in its environment (libfuse's own protocol).
    OSError if it does not; what it has to say goes to standard error.
    """
    name = source.replace("\\", "\\\\").replace(",", "\\,")
    options = [f"fsname={name}", f"subtype={_SUBTYPE}", "default_permissions"]
    options += [word for flag, word in _WORDS.items() if flags & flag]
    options += _OTHERS if allow_other else ()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours:
        with theirs:
            pid = start(
                ("fusermount3", "-o", ",".join(options), "--", point),
                keep=(theirs.fileno(),),
                environment={"_FUSE_COMMFD": str(theirs.fileno())},
            )
        answered = select.select([ours], [], [], seconds)[0]
        _, fds, _, _ = socket.recv_fds(ours, 1, 1) if answered else (b"", [], 0, None)
    wait(pid, seconds)
    if not fds:
        raise PermissionError(1, "fusermount3 did not mount it", point)
    os.set_inheritable(fds[0], False)
    return fds[0]
