"""The differential test's operations on open files.

Owns the half of the table of operations that works on handles. Importing it
adds them to the table.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import stat
import struct

from tests.support.posix_calls import Op, Side, call, data, describe, integer
from tests.support.syscalls import UTIME_NOW, UTIME_OMIT, futimens

_FLOCK = struct.Struct("hhqqi4x")
F_OFD_GETLK = 36
F_OFD_SETLK = 37


@call
def open_(side: Side, op: Op) -> None:
    """Values: flags, mode. O_NONBLOCK is always added: a FIFO must not block the test."""
    flags, mode = (integer(value) for value in op.values)
    path = side.path(op.paths[0])
    side.put(op.slots[0], os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, mode))


@call
def close(side: Side, op: Op) -> None:
    """Close, if it is open."""
    side.close(op.slots[0])


@call
def dup(side: Side, op: Op) -> None:
    """Duplicate the first into the second."""
    side.put(op.slots[1], os.dup(side.handle(op.slots[0])))


@call
def pread(side: Side, op: Op) -> object:
    """Values: length, offset."""
    length, offset = (integer(value) for value in op.values)
    return os.pread(side.handle(op.slots[0]), length, offset)


@call
def pwrite(side: Side, op: Op) -> object:
    """Values: bytes, offset."""
    return os.pwrite(side.handle(op.slots[0]), data(op.values[0]), integer(op.values[1]))


@call
def read(side: Side, op: Op) -> object:
    """Values: length. From where the handle is."""
    return os.read(side.handle(op.slots[0]), integer(op.values[0]))


@call
def write(side: Side, op: Op) -> object:
    """Values: bytes. To where the handle is."""
    return os.write(side.handle(op.slots[0]), data(op.values[0]))


@call
def seek(side: Side, op: Op) -> object:
    """Values: offset, whence. In a directory only its start is a place with a meaning."""
    handle = side.handle(op.slots[0])
    offset, whence = (integer(value) for value in op.values)
    if stat.S_ISDIR(os.fstat(handle).st_mode):
        offset, whence = 0, os.SEEK_SET
    return os.lseek(handle, offset, whence)


@call
def ftruncate(side: Side, op: Op) -> None:
    """Values: size."""
    os.ftruncate(side.handle(op.slots[0]), integer(op.values[0]))


@call
def fsync(side: Side, op: Op) -> None:
    """Values: whether only the data."""
    (os.fdatasync if op.values[0] else os.fsync)(side.handle(op.slots[0]))


@call
def fstat(side: Side, op: Op) -> object:
    """Describe."""
    return describe(os.fstat(side.handle(op.slots[0])))


@call
def fchmod(side: Side, op: Op) -> None:
    """Values: mode."""
    os.fchmod(side.handle(op.slots[0]), integer(op.values[0]))


@call
def fchown(side: Side, op: Op) -> None:
    """Values: uid, gid."""
    os.fchown(side.handle(op.slots[0]), *(integer(value) for value in op.values))


@call
def futimens_(side: Side, op: Op) -> object:
    """Values: seconds and nanoseconds of access and of modification."""
    seconds, nanoseconds, seconds2, nanoseconds2 = (integer(value) for value in op.values)
    handle = side.handle(op.slots[0])
    futimens(handle, (seconds, nanoseconds), (seconds2, nanoseconds2))
    status = os.fstat(handle)
    kept = nanoseconds in (UTIME_NOW, UTIME_OMIT)
    return (None if kept else status.st_atime_ns, describe(status))


@call
def fxattr(side: Side, op: Op) -> object:
    """Values: name, value. Set it, read it back, list all."""
    handle = side.handle(op.slots[0])
    name = data(op.values[0])
    os.setxattr(handle, name, data(op.values[1]))
    return (os.getxattr(handle, name), sorted(os.listxattr(handle)))


@call
def fchdir_list(side: Side, op: Op) -> object:
    """List through an open directory, also one that was removed."""
    return sorted(os.listdir(side.handle(op.slots[0])))


@call
def copy_range(side: Side, op: Op) -> object:
    """Values: length, offset in the source, offset in the target."""
    length, source, target = (integer(value) for value in op.values)
    return os.copy_file_range(
        side.handle(op.slots[0]), side.handle(op.slots[1]), length, source, target
    )


@call
def map_write(side: Side, op: Op) -> object:
    """Values: bytes, offset. Through a shared mapping, clipped to the file, then msync."""
    handle = side.handle(op.slots[0])
    size = os.fstat(handle).st_size
    content, offset = data(op.values[0]), integer(op.values[1])
    with mmap.mmap(handle, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE) as area:
        clipped = content[: max(0, size - offset)]
        area[offset : offset + len(clipped)] = clipped
        area.flush()
        return len(clipped)


@call
def map_read(side: Side, op: Op) -> object:
    """Values: whether the mapping is private and is written."""
    handle = side.handle(op.slots[0])
    size = os.fstat(handle).st_size
    if op.values[0]:
        private = mmap.MAP_PRIVATE
        with mmap.mmap(handle, size, private, mmap.PROT_READ | mmap.PROT_WRITE) as area:
            area[0:1] = b"!"
            return area[:]
    with mmap.mmap(handle, size, mmap.MAP_SHARED, mmap.PROT_READ) as area:
        return area[:]


@call
def flock(side: Side, op: Op) -> None:
    """Values: operation. Never waits."""
    fcntl.flock(side.handle(op.slots[0]), integer(op.values[0]) | fcntl.LOCK_NB)


@call
def lock(side: Side, op: Op) -> None:
    """Values: type, start, length, whether of the open file description. Never waits."""
    kind, start, length, description = (integer(value) for value in op.values)
    request = _FLOCK.pack(kind, os.SEEK_SET, start, length, 0)
    command = F_OFD_SETLK if description else fcntl.F_SETLK
    fcntl.fcntl(side.handle(op.slots[0]), command, request)


@call
def get_lock(side: Side, op: Op) -> object:
    """Values: type, start, length, whether of the open file description."""
    kind, start, length, description = (integer(value) for value in op.values)
    request = _FLOCK.pack(kind, os.SEEK_SET, start, length, 0)
    command = F_OFD_GETLK if description else fcntl.F_GETLK
    answer = fcntl.fcntl(side.handle(op.slots[0]), command, request)
    found, _, first, count, _ = _FLOCK.unpack(answer)
    return found if found == fcntl.F_UNLCK else (found, first, count)
