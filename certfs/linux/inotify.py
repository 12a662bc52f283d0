"""inotify(7) in a few lines, for processes that have only the standard library."""

import ctypes
import os
from typing import Final

CREATE: Final = 0x100
DELETE: Final = 0x200
CLOSE_WRITE: Final = 0x8
MOVED: Final = 0x40 | 0x80
ONLY_DIRECTORY: Final = 0x01000000
_NON_BLOCKING: Final = os.O_NONBLOCK | os.O_CLOEXEC
_EVENTS_BYTES: Final = 65536

_libc = ctypes.CDLL(None, use_errno=True)


def open_queue() -> int:
    """Return a descriptor that is readable when something has happened; OSError where there can be none."""
    return _checked(_libc.inotify_init1(_NON_BLOCKING))


def watch_directory(queue: int, directory: int) -> None:
    """Have changes of names in the open ``directory``, and files that were written in it, reported on ``queue``."""
    path = f"/proc/self/fd/{directory}".encode()
    mask = CREATE | DELETE | CLOSE_WRITE | MOVED | ONLY_DIRECTORY
    _checked(_libc.inotify_add_watch(queue, path, mask))


def drain(queue: int) -> None:
    """Throw away what is queued: the caller looks for itself what has changed."""
    while True:
        try:
            if not os.read(queue, _EVENTS_BYTES):
                return
        except BlockingIOError:
            return


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
