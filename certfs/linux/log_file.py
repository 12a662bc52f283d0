"""The log file of a daemon, which is standard error of all its processes.

Owns opening it where other users own the directory, following it when logrotate(8) renames it, and the bound on its
size. A log that cannot be written or followed is no reason to stop.
"""

import errno
import fcntl
import os
import stat
from contextlib import suppress
from typing import Final

from certfs.safe_open import closing, open_trusted, server_of

LOG_BYTES: Final = 4 << 20
"""A log that grows beyond moves to ``NAME.1``."""
_STDERR: Final = 2


def open_log(path: str) -> int:
    """Open a log for appending and make it where it is missing; OSError with the reason.

    Its owner has to be this user or root, and a regular file may have one name only: whoever owns the directory could
    put in its place a file of the host, by a link or a hard link, or one of their own.
    """
    # Without O_NONBLOCK a FIFO without a reader would be waited for.
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY
    descriptor = open_trusted(path, flags)
    reason = _refusal(descriptor)
    if reason:
        os.close(descriptor)
        raise OSError(errno.EPERM, reason, path)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_APPEND)
    return descriptor


def _refusal(descriptor: int) -> str:
    status = os.fstat(descriptor)
    if status.st_uid not in {0, os.geteuid()} or server_of(descriptor) is not None:
        return "it belongs to another user"
    if stat.S_ISREG(status.st_mode):
        return "it has another name (a hard link)" if status.st_nlink > 1 else ""
    return "" if stat.S_ISCHR(status.st_mode) else "it is neither a file nor a terminal"


def follow(path: str) -> None:
    """Go on in the file that has the name ``path`` now, where logrotate(8) has renamed the one that is written.

    With its ``copytruncate`` nothing is to be done, because the file is open for appending.
    """
    with suppress(OSError):
        here = os.fstat(_STDERR)
        if not stat.S_ISREG(here.st_mode) or _id_of(path) == (here.st_dev, here.st_ino):
            return
        descriptor = open_log(path)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, _STDERR)
        os.close(descriptor)


def _id_of(path: str) -> tuple[int, int] | None:
    """Return device and inode number of what has this name, None where nothing has.

    By the way that `open_log` takes: any other could be made to lead over the mount that this very process serves.
    """
    try:
        descriptor = open_trusted(path, os.O_PATH)
    except FileNotFoundError:
        return None
    with closing(descriptor):
        status = os.fstat(descriptor)
        return status.st_dev, status.st_ino


def bound(path: str) -> None:
    """Keep the log below `LOG_BYTES`: its content moves to ``path.1``.

    The file is emptied in place, since several processes have it open for appending; a line that is written between
    the copy and the emptying is lost.
    """
    with suppress(OSError):
        if os.fstat(_STDERR).st_size < LOG_BYTES:
            return
        with closing(
            open_trusted(os.path.dirname(path) or ".", os.O_PATH | os.O_DIRECTORY)
        ) as directory:
            _copy(directory, f"{os.path.basename(path)}.1")
        os.ftruncate(_STDERR, 0)


def _copy(directory: int, name: str) -> None:
    """Make a new file ``name`` of what has been written to the log."""
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with (
        closing(os.open(name, flags, 0o600, dir_fd=directory)) as copy,
        open(f"/proc/self/fd/{_STDERR}", "rb") as written,
    ):
        os.sendfile(copy, written.fileno(), 0, LOG_BYTES * 2)
