"""A file system of another user's that takes every request and answers none.

Owns the thread that reads them. A process whose request was taken cannot be killed before the connection ends, unlike
one whose request still waits to be read (request_wait_answer() in fs/fuse/dev.c of the kernel).
"""

from __future__ import annotations

import os
import select
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from certfs.linux import mount_syscalls
from tests.support import mounts

SWALLOWER = 20_001
_INIT = 26
_HEADER = struct.Struct("<IIQ")
_LARGEST = (1 << 20) + 4096
_VERSION = struct.pack("<IIIIHHIIHHI28x", 7, 31, 1 << 16, 0, 12, 9, 1 << 16, 1, 256, 0, 0)


@contextmanager
def swallowing(point: Path) -> Iterator[None]:
    """Mount one at ``point``, of the user SWALLOWER, who lets everybody in."""
    mounts.need_fuse()
    mounts.need_root()
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    options = f"fd={device},rootmode=40000,user_id={SWALLOWER},group_id={SWALLOWER},allow_other"
    mount_syscalls.mount("swallower", str(point), "fuse", 0, options)
    over = threading.Event()
    thread = threading.Thread(target=_take, args=(device, over))
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        mounts.force_unmount(str(point))
        os.close(device)


def _take(device: int, over: threading.Event) -> None:
    while not over.is_set():
        if not select.select([device], [], [], 0.05)[0]:
            continue
        try:
            request = os.read(device, _LARGEST)
        except OSError:  # it was taken back
            continue
        _length, operation, number = _HEADER.unpack_from(request)
        if operation == _INIT:
            os.write(device, struct.pack("<IiQ", 16 + len(_VERSION), 0, number) + _VERSION)
