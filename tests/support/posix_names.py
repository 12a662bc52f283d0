"""The differential test's operations on names.

Owns the half of the table of operations that works on paths. Importing it adds
them to the table.
"""

from __future__ import annotations

import os

from tests.support.posix_calls import Op, Side, call, data, describe, integer
from tests.support.syscalls import (
    AT_SYMLINK_NOFOLLOW,
    UTIME_NOW,
    UTIME_OMIT,
    renameat2,
    utimensat,
)


@call
def mkdir(side: Side, op: Op) -> None:
    """Values: mode."""
    os.mkdir(side.path(op.paths[0]), integer(op.values[0]))


@call
def rmdir(side: Side, op: Op) -> None:
    """Remove an empty directory."""
    os.rmdir(side.path(op.paths[0]))


@call
def unlink(side: Side, op: Op) -> None:
    """Remove a name."""
    os.unlink(side.path(op.paths[0]))


@call
def rename(side: Side, op: Op) -> None:
    """Values: flags of renameat2."""
    renameat2(side.path(op.paths[0]), side.path(op.paths[1]), integer(op.values[0]))


@call
def link(side: Side, op: Op) -> None:
    """Values: whether to follow a symlink."""
    os.link(side.path(op.paths[0]), side.path(op.paths[1]), follow_symlinks=bool(op.values[0]))


@call
def symlink(side: Side, op: Op) -> None:
    """Values: target."""
    os.symlink(data(op.values[0]), side.path(op.paths[0]))


@call
def readlink(side: Side, op: Op) -> object:
    """Give the target."""
    return os.readlink(side.path(op.paths[0]))


@call
def mknod(side: Side, op: Op) -> None:
    """Values: mode with type, device number."""
    os.mknod(side.path(op.paths[0]), integer(op.values[0]), integer(op.values[1]))


@call
def chmod(side: Side, op: Op) -> None:
    """Values: mode."""
    os.chmod(side.path(op.paths[0]), integer(op.values[0]))


@call
def chown(side: Side, op: Op) -> None:
    """Values: uid, gid, whether to follow a symlink."""
    uid, gid, follow = (integer(value) for value in op.values)
    os.chown(side.path(op.paths[0]), uid, gid, follow_symlinks=bool(follow))


@call
def utimens(side: Side, op: Op) -> object:
    """Values: seconds and nanoseconds of access and of modification, whether to follow."""
    seconds, nanoseconds, seconds2, nanoseconds2, follow = (integer(value) for value in op.values)
    path = side.path(op.paths[0])
    utimensat(
        path,
        (seconds, nanoseconds),
        (seconds2, nanoseconds2),
        0 if follow else AT_SYMLINK_NOFOLLOW,
    )
    status = os.stat(path, follow_symlinks=bool(follow))
    kept = {UTIME_NOW: "now", UTIME_OMIT: "kept"}
    return kept.get(nanoseconds) or status.st_atime_ns


@call
def truncate(side: Side, op: Op) -> None:
    """Values: size."""
    os.truncate(side.path(op.paths[0]), integer(op.values[0]))


@call
def stat_(side: Side, op: Op) -> object:
    """Follow links and describe."""
    return describe(os.stat(side.path(op.paths[0])))


@call
def access(side: Side, op: Op) -> object:
    """Values: mode, whether with the effective ids."""
    return os.access(
        side.path(op.paths[0]), integer(op.values[0]), effective_ids=bool(op.values[1])
    )


@call
def readdir(side: Side, op: Op) -> object:
    """Give every name with its type, and whether its number is the file's number."""
    path = side.path(op.paths[0])
    with os.scandir(path) as entries:
        return sorted(
            (
                entry.name,
                entry.is_dir(follow_symlinks=False),
                entry.is_symlink(),
                entry.inode() == _inode(os.path.join(path, entry.name)),
            )
            for entry in entries
        )


def _inode(path: bytes) -> int | None:
    try:
        return os.lstat(path).st_ino
    except PermissionError:
        return None


@call
def statvfs(side: Side, op: Op) -> object:
    """Give what does not change by itself."""
    status = os.statvfs(side.path(op.paths[0]))
    return (status.f_bsize, status.f_frsize, status.f_blocks, status.f_files, status.f_namemax)


@call
def setxattr(side: Side, op: Op) -> None:
    """Values: name, value, flags, whether to follow."""
    name, value, flags, follow = op.values
    os.setxattr(
        side.path(op.paths[0]),
        data(name),
        data(value),
        integer(flags),
        follow_symlinks=bool(follow),
    )


@call
def acl(side: Side, op: Op) -> object:
    """Set an access control list through its attribute; the same as setxattr."""
    return setxattr(side, op)


@call
def getxattr(side: Side, op: Op) -> object:
    """Values: name, whether to follow."""
    name, follow = op.values
    return os.getxattr(side.path(op.paths[0]), data(name), follow_symlinks=bool(follow))


@call
def removexattr(side: Side, op: Op) -> None:
    """Values: name, whether to follow."""
    name, follow = op.values
    os.removexattr(side.path(op.paths[0]), data(name), follow_symlinks=bool(follow))


@call
def listxattr(side: Side, op: Op) -> object:
    """Values: whether to follow."""
    path = side.path(op.paths[0])
    return sorted(os.listxattr(path, follow_symlinks=bool(op.values[0])))


@call
def umask(side: Side, op: Op) -> None:
    """Values: mask. The same twice, because both sides share the process."""
    del side
    os.umask(integer(op.values[0]))
