"""What a caller's change does to the set-id bits of a file, as the kernel would have it.

Owns the rules of chown(2), chmod(2) and truncate(2) that depend on who asks. It is the daemon
that makes the calls, often as root, so the caller's share of the rules is applied here.
"""

import errno
import os
import stat

import pyfuse3

from certfs.fuse.base import error
from certfs.fuse.caller import is_member, keeps_set_id
from certfs.store.backing import fd_path


def drop_set_id(fd: int, ctx: pyfuse3.RequestContext) -> None:
    """Take set-id bits away as the kernel does when somebody who is not root truncates a file.

    For write(2) the kernel does it itself, with a SETATTR; a truncation comes to us with nothing else. Without group
    execute, set-group-id goes only for those outside the group (setattr_should_drop_sgid() in fs/attr.c).
    """
    status = os.fstat(fd)
    if not status.st_mode & (stat.S_ISUID | stat.S_ISGID) or keeps_set_id(ctx):
        return
    kept = status.st_mode & ~stat.S_ISUID
    if kept & stat.S_ISGID and (kept & stat.S_IXGRP or not is_member(ctx, status.st_gid)):
        kept &= ~stat.S_ISGID
    if kept != status.st_mode:
        os.chmod(fd_path(fd), stat.S_IMODE(kept))


def change_owner(fd: int, uid: int, gid: int, ctx: pyfuse3.RequestContext) -> None:
    """Change owner and group (-1 leaves one as it is), and take set-id bits away as for the caller (chown(2)).

    The kernel takes them away when we do it, but set-group-id without group execute only from those outside the group,
    which root never is.
    """
    loses = _loses_set_group_id(fd, ctx)
    os.chown(fd_path(fd), uid, gid)
    if loses:
        _clear_set_group_id(fd)


def keep_owner(fd: int, ctx: pyfuse3.RequestContext, writing: bool) -> None:  # noqa: FBT001 - called by position
    """Do what a SETATTR without any field stands for: chown(path, -1, -1), which changes ctime and takes set-id away.

    The kernel sends the same before a write that takes set-group-id away, to a file that somebody is ``writing``. Only
    there a caller who is neither owner nor root may do that.
    """
    if ctx.uid in {0, os.stat(fd).st_uid} or not _loses_set_group_id(fd, ctx):
        change_owner(fd, -1, -1, ctx)
    elif writing:
        _clear_set_group_id(fd)
    else:
        raise error(errno.EPERM)


def set_mode(fd: int, mode: int, ctx: pyfuse3.RequestContext) -> None:
    """Change the mode; set-group-id is for members of the group only (chmod(2)).

    For chmod(2) the kernel has seen to that, but not where it takes set-user-id away before a write.
    """
    if mode & stat.S_ISGID and not (is_member(ctx, os.stat(fd).st_gid) or keeps_set_id(ctx)):
        mode &= ~stat.S_ISGID
    os.chmod(fd_path(fd), mode)


def _loses_set_group_id(fd: int, ctx: pyfuse3.RequestContext) -> bool:
    """Whether a change by this caller takes set-group-id from the file (setattr_should_drop_sgid() in fs/attr.c)."""
    status = os.stat(fd)
    return (
        bool(status.st_mode & stat.S_ISGID)
        and not stat.S_ISDIR(status.st_mode)
        and not is_member(ctx, status.st_gid)
        and not keeps_set_id(ctx)
    )


def _clear_set_group_id(fd: int) -> None:
    os.chmod(fd_path(fd), stat.S_IMODE(os.stat(fd).st_mode) & ~stat.S_ISGID)
