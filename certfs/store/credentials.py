"""Being another user for a system call (setfsuid(2), capabilities(7)).

Concurrency: Linux keeps credentials for each thread. They are changed and restored within one call, with no ``await``
in between, so it does not matter which thread makes it.
"""

import ctypes
import errno
import functools
import os
import platform

_CAP_SETGID = 1 << 6
_CAP_SETUID = 1 << 7
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


class Identity:
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
