"""The announcer: makes a change of a bundle an event of inotify(7) on the mount (promise I21).

    python -I -S announcer.py <order

No process writes a bundle, so the kernel has nothing to report. This one makes the system calls of a program that
replaces the file: it renames a name of certfs's own onto the bundle, and removes the generations that are not current
any more. The server answers these calls to this process alone, and changes nothing. The kernel then reports MOVED_TO in
the directory, and ATTRIB and DELETE_SELF of the generation that a watcher has open.

A process of its own, and a short one: calls on the mount wait for the server, so they must never be made by the server
itself; and nothing of the mount is held between two orders. An order is JSON: the path of the mount, its device, and
what to do beneath it. What else may be mounted under that path by then is left alone. Only the standard library, and
little of it, since it is started for each announcement.
"""

import errno
import json
import os
import sys
from functools import cache

_PASSING = frozenset((errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM))
"""Of a server or a machine that is short of something; other errors say that there is nothing to be told any more."""


def main() -> int:
    """Do what standard input says; return 1 where that is worth another try."""
    order = json.load(sys.stdin)
    status = 0
    for operation, *paths in order["steps"]:
        try:
            (directory, name), *target = [_opened(order, path) for path in paths]
            if operation == "rename":
                os.rename(name, target[0][1], src_dir_fd=directory, dst_dir_fd=target[0][0])
            else:
                os.unlink(name, dir_fd=directory)
        except OSError as error:
            status |= error.errno in _PASSING
    return status


@cache
def _directory(mount: str, path: str, device: str) -> int:
    """Open a directory of the mount; OSError where another file system is in its place."""
    fd = os.open(f"{mount}/{path}", os.O_PATH | os.O_DIRECTORY)
    found = os.fstat(fd).st_dev
    if f"{os.major(found)}:{os.minor(found)}" != device:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), path)
    return fd


def _opened(order: dict[str, str], path: str) -> tuple[int, str]:
    parent, _, name = path.rpartition("/")
    return _directory(order["mount"], parent, order["device"]), name


if __name__ == "__main__":
    sys.exit(main())
