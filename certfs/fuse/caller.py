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

import ctypes
import errno
import functools
import os
import platform
import stat
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar, TypeVarTuple

import pyfuse3

from certfs.procfs import Credentials, credentials_of

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_CAP_DAC_OVERRIDE = 1 << 1
_CAP_FSETID = 1 << 4
_CAP_SETGID = 1 << 6
_CAP_SETUID = 1 << 7
_CAP_FOWNER = 1 << 3
_CAP_MKNOD = 1 << 27
_CAP_DAC_READ_SEARCH = 1 << 2
_LENT = _CAP_DAC_OVERRIDE | _CAP_DAC_READ_SEARCH | _CAP_FOWNER | _CAP_FSETID | _CAP_MKNOD
"""Capabilities that a caller who has them keeps: those that decide about names and modes (capabilities(7))."""

_CAPABILITY_VERSION_3 = 0x20080522
_NOBODY = 0xFFFFFFFF
"""No user and no group: setfsuid(2) changes nothing and returns who it is."""
# glibc's setgroups(3) changes all threads of the process (nptl(7)); the system call changes one.
_SETGROUPS = {"x86_64": 116, "aarch64": 159, "riscv64": 159, "ppc64le": 81, "s390x": 206}


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapabilityWord(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


_CapabilityWords = _CapabilityWord * 2

# PyDLL: these calls take less time than letting go of the interpreter's lock and taking it again.
_libc = ctypes.PyDLL(None, use_errno=True)
for _function in (_libc.setfsuid, _libc.setfsgid):
    _function.argtypes = (ctypes.c_uint32,)
    _function.restype = ctypes.c_uint32


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
        with _Identity(ctx.uid, ctx.gid, groups, _CAP_DAC_OVERRIDE):
            return call(*args)
    except PermissionError as e:
        lent = _lent(ctx) if e.errno == errno.EPERM else 0
        if not lent:
            raise
    with _Identity(ctx.uid, ctx.gid, groups, _CAP_DAC_OVERRIDE | lent):
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
    with _Identity(found.uid, found.gid, found.groups, found.capabilities & _LENT):
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
    if ctx.uid != 0:
        return False
    try:
        return bool(_credentials(ctx).capabilities & _CAP_FSETID)
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


class _Identity:
    """Being this user for the file system (setfsuid(2)) and, other than root, with these capabilities only.

    A class, because most changes of every user who is not root go through it.
    """

    __slots__ = ("_capabilities", "_gid", "_groups", "_own_groups", "_uid")

    def __init__(
        self, uid: int, gid: int, groups: tuple[int, ...] | None, capabilities: int
    ) -> None:
        self._uid = uid
        self._gid = gid
        self._groups = groups
        self._own_groups = () if groups is None else tuple(os.getgroups())
        self._capabilities = _all_capabilities()
        if uid != 0:
            self._capabilities &= capabilities | _CAP_SETUID | _CAP_SETGID

    def __enter__(self) -> None:
        try:
            _libc.setfsgid(self._gid)
            if self._groups is not None:
                _set_groups(self._groups)
            _libc.setfsuid(self._uid)
            _set_effective(self._capabilities)
            self._check()
        except BaseException:
            self.__exit__()
            raise

    def _check(self) -> None:
        # setfsuid(2) tells of no failure.
        if _libc.setfsuid(_NOBODY) != self._uid or _libc.setfsgid(_NOBODY) != self._gid:
            raise _denied()

    def __exit__(self, *_: object) -> None:
        gid = os.getegid()
        _libc.setfsuid(0)
        if self._groups is not None:
            _set_groups(self._own_groups)
        _libc.setfsgid(gid)
        _set_effective(_all_capabilities())
        if _libc.setfsuid(_NOBODY) != 0 or _libc.setfsgid(_NOBODY) != gid:
            # A thread that is somebody else for good would answer others in that name.
            os.abort()


def _set_groups(groups: tuple[int, ...]) -> None:
    number = _SETGROUPS.get(platform.machine())
    if number is None:
        raise _denied()
    _check(_libc.syscall(number, len(groups), (ctypes.c_uint32 * len(groups))(*groups)))


@functools.cache
def _all_capabilities() -> int:
    """Return the capabilities of this process; asked for first where no thread has changed its own."""
    words = _CapabilityWords()
    _check(_libc.capget(ctypes.byref(_header()), words))
    return int(words[0].effective) | int(words[1].effective) << 32


def _set_effective(capabilities: int) -> None:
    _check(_libc.capset(ctypes.byref(_header()), _words(capabilities)))


@functools.cache
def _header() -> _CapabilityHeader:
    return _CapabilityHeader(_CAPABILITY_VERSION_3, 0)


@functools.lru_cache(maxsize=64)
def _words(capabilities: int) -> "ctypes.Array[_CapabilityWord]":
    words = _CapabilityWords()
    _check(_libc.capget(ctypes.byref(_header()), words))
    words[0].effective, words[1].effective = capabilities & 0xFFFFFFFF, capabilities >> 32
    return words


def _check(result: int) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _denied() -> OSError:
    return OSError(errno.EACCES, os.strerror(errno.EACCES))
