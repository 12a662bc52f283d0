"""Making a system call with the identity of the caller of a request (promise I19).

The kernel checks a request before it sends it: this name leads to that inode, whose owner is the caller. When the
server acts on the name, the store may hold something else there, and root may do anything to it. So every call that
makes, moves or removes a *name* is made with the caller's user and group, without root's power over others' files: the
store's own file system then checks the sticky bit and gives new files to the caller, in one step with the call.

CAP_DAC_OVERRIDE is kept for those calls: whether the caller may change the directory depends on its groups and access
control lists, the kernel has decided it, and the directory is reached by its descriptor. A file that was opened by name
gets no such help (``as_caller_alone``).

Concurrency: Linux keeps credentials for each thread. They are changed and restored within one call, with no ``await``
in between, so it does not matter which thread makes it.
"""

import errno
import functools
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar, TypeVarTuple

import pyfuse3

from certfs.procfs import Credentials, credentials_of
from certfs.store.credentials import Identity

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_CAP_DAC_OVERRIDE = 1 << 1
_CAP_FSETID = 1 << 4
_CAP_FOWNER = 1 << 3
_CAP_MKNOD = 1 << 27
_CAP_DAC_READ_SEARCH = 1 << 2
_CAP_SYS_RESOURCE = 1 << 24
_CAP_SYS_ADMIN = 1 << 21
_LENT = _CAP_DAC_OVERRIDE | _CAP_DAC_READ_SEARCH | _CAP_FOWNER | _CAP_FSETID | _CAP_MKNOD
"""Capabilities that a caller who has them keeps: those that decide about names and modes (capabilities(7))."""


def as_caller(ctx: pyfuse3.RequestContext, call: Callable[[*Ts], T], *args: *Ts) -> T:
    """Return what ``call`` returns, which makes, moves or removes a name in a directory that the caller may change.

    A caller with privileges of its own has them: they are looked up when the call is refused without.
    """
    return _in_directory(ctx, None, call, *args)


def as_creator(ctx: pyfuse3.RequestContext, mode: int, call: Callable[[*Ts], T], *args: *Ts) -> T:
    """Do as ``as_caller`` for a call that makes a file of this mode: set-group-id is for members of its group."""
    groups = None
    if mode & stat.S_ISGID and ctx.uid != 0:
        try:
            groups = _credentials(ctx).groups
        except OSError:
            groups = ()
    return _in_directory(ctx, groups, call, *args)


def _in_directory(
    ctx: pyfuse3.RequestContext,
    groups: tuple[int, ...] | None,
    call: Callable[[*Ts], T],
    *args: *Ts,
) -> T:
    if os.geteuid() != 0 or (ctx.uid == 0 and ctx.gid == os.getegid()):
        return call(*args)
    try:
        with Identity(ctx.uid, ctx.gid, groups, _CAP_DAC_OVERRIDE):
            return call(*args)
    except PermissionError as e:
        lent = _lent(ctx) if e.errno == errno.EPERM else 0
        if not lent:
            raise
    with Identity(ctx.uid, ctx.gid, groups, _CAP_DAC_OVERRIDE | lent):
        return call(*args)


def _lent(ctx: pyfuse3.RequestContext) -> int:
    try:
        return _credentials(ctx).capabilities & _LENT & ~_CAP_DAC_OVERRIDE
    except OSError:
        return 0


def as_caller_alone(ctx: pyfuse3.RequestContext, call: Callable[[*Ts], T], *args: *Ts) -> T:
    """Return what ``call`` returns, made with nothing but the caller's own rights; EACCES where they are not known."""
    if ctx.uid == os.geteuid() == 0:
        return call(*args)
    if os.geteuid() != 0:
        if ctx.uid != os.geteuid():
            raise _denied()
        return call(*args)
    found = _credentials(ctx)
    with Identity(found.uid, found.gid, found.groups, found.capabilities & _LENT):
        return call(*args)


def as_spender(user: int, call: Callable[[*Ts], T], *args: *Ts) -> T:
    """Return what ``call`` returns, which may take space for an inode that this user may change.

    Blocks that the store's file system reserves for root (mke2fs(8), -m) and quotas that do not hold for root
    (CAP_SYS_RESOURCE) are for calls of root's. All other rights of root's are kept: the kernel has checked the user.
    """
    if user == 0 or os.geteuid() != 0:
        return call(*args)
    with Identity(user, os.getegid(), None, ~_CAP_SYS_RESOURCE):
        return call(*args)


def is_member(ctx: pyfuse3.RequestContext, group: int) -> bool:
    """Whether the caller is in this group; not where nothing is known of the caller."""
    if group == ctx.gid:
        return True
    try:
        return group in _credentials(ctx).groups
    except OSError:
        return False


def keeps_set_id(ctx: pyfuse3.RequestContext) -> bool:
    """Whether nothing takes set-id bits from what this caller changes: root with CAP_FSETID (capabilities(7)).

    Others are taken not to have it, because what a capability is worth depends on the caller's user namespace.
    """
    return _is_root_with(ctx, _CAP_FSETID)


def sees_trusted(ctx: pyfuse3.RequestContext) -> bool:
    """Whether ``trusted.*`` attributes are listed to the caller: root with CAP_SYS_ADMIN (xattr(7))."""
    return _is_root_with(ctx, _CAP_SYS_ADMIN)


def _is_root_with(ctx: pyfuse3.RequestContext, capability: int) -> bool:
    if ctx.uid != 0:
        return False
    try:
        return bool(_credentials(ctx).capabilities & capability)
    except OSError:
        return True


def is_privileged(ctx: pyfuse3.RequestContext) -> bool:
    """Whether the caller may change files of others (CAP_FOWNER)."""
    if ctx.uid == 0:
        return True
    try:
        return bool(_credentials(ctx).capabilities & _CAP_FOWNER)
    except OSError:
        return False


def _credentials(ctx: pyfuse3.RequestContext) -> Credentials:
    """Return the credentials of the caller, who waits for the answer; EACCES where it is gone.

    Its capabilities are those that count in our own user namespace.
    The ids are compared with those that came with the request: a process that has its number by now is another one.
    """
    if ctx.pid == 0:
        raise _denied()
    found = credentials_of(ctx.pid)
    if found is None or (found.uid, found.gid) != (ctx.uid, ctx.gid):
        raise _denied()
    try:
        foreign = os.stat(f"/proc/{ctx.pid}/ns/user").st_ino != _user_namespace()
    except OSError:
        raise _denied() from None
    return replace(found, capabilities=0) if foreign else found


@functools.cache
def _user_namespace() -> int:
    return os.stat("/proc/self/ns/user").st_ino


def _denied() -> OSError:
    return OSError(errno.EACCES, os.strerror(errno.EACCES))
