"""A program under a kernel that looks like Linux 4.19: ``python old_kernel.py COMMAND [ARGUMENT...]``.

Owns a filter (seccomp(2)) that answers ENOSYS to every system call that is newer. All processes that the command starts
inherit it. Imports nothing of ours, so that any Python can run it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys

_FIRST_NEWER = 335
"""The first number that Linux 4.19 does not know on x86-64 (arch/x86/entry/syscalls/syscall_64.tbl)."""
_AUDIT_ARCH_X86_64 = 0xC000003E
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _SECCOMP_MODE_FILTER = 22, 38, 2
_SECCOMP_RET_ALLOW, _SECCOMP_RET_ERRNO = 0x7FFF0000, 0x00050000
_LOAD, _JUMP_IF_EQUAL, _JUMP_IF_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_NUMBER, _ARCHITECTURE = 0, 4
"""Offsets in struct seccomp_data."""

_FILTER = (
    # code, jump if true, jump if false, value
    (_LOAD, 0, 0, _ARCHITECTURE),
    (_JUMP_IF_EQUAL, 0, 3, _AUDIT_ARCH_X86_64),
    (_LOAD, 0, 0, _NUMBER),
    (_JUMP_IF_AT_LEAST, 0, 1, _FIRST_NEWER),
    (_RETURN, 0, 0, _SECCOMP_RET_ERRNO | errno.ENOSYS),
    (_RETURN, 0, 0, _SECCOMP_RET_ALLOW),
)


class _Program(ctypes.Structure):
    """Struct sock_fprog of linux/filter.h."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def is_possible() -> bool:
    """Whether the numbers above are those of this machine."""
    return platform.machine() == "x86_64"


def refuse_newer_calls() -> None:
    """Answer ENOSYS to newer calls, in this process and all that it starts; OSError where that is not allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    # Only root may do without: set-user-ID programs such as fusermount3 gain nothing from then on.
    if os.geteuid() != 0 and libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_NO_NEW_PRIVS)")
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in _FILTER)
    program = _Program(len(_FILTER), code)
    if libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_SECCOMP)")


if __name__ == "__main__":
    refuse_newer_calls()
    os.execvp(sys.argv[1], sys.argv[1:])
