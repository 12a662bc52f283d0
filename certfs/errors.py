"""The tree of errors that certfs reports to people, with their exit codes.

Owns what a user sees when something is wrong: one sentence that names the file and what is wrong, and one
that says what to do. An exit code, once given, keeps its meaning for good; ``docs/cli.md`` lists them.
Knows nothing of what raises them.
"""

import errno
from collections.abc import Mapping
from typing import ClassVar, Final


class CertfsError(Exception):
    """A mistake or a condition outside of certfs that its user can mend: no traceback is shown for it.

    ``message`` says what is wrong and names the file; ``advice`` says what to do, or is empty.
    """

    exit_code: ClassVar[int] = 70
    """Of an error without a kind of its own, which a test refuses."""
    name: ClassVar[str] = ""
    """What programs know the error by, where that is not the name of its class."""

    def __init__(self, message: str, *, advice: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.advice = advice

    def __str__(self) -> str:
        return f"{self.message}: {self.advice}" if self.advice else self.message

    def to_json(self) -> dict[str, object]:
        """Return what a program is told that asked for JSON."""
        return {
            "error": self.name or type(self).__name__,
            "exit_code": self.exit_code,
            "message": self.message,
            "advice": self.advice,
        }


class ConfigError(CertfsError):
    """The configuration file is missing, is not TOML, or holds an unknown key or an impossible value."""

    exit_code = 3


class StoreError(CertfsError):
    """The store, or another file or directory that is needed, is missing or is not what it must be."""

    exit_code = 4


class MountpointError(CertfsError):
    """The mountpoint is missing, is not a directory, or something is in its way."""

    exit_code = 5


class FuseError(CertfsError):
    """FUSE is not available here, or the kernel or fusermount3 refused the mount."""

    exit_code = 6


class NotMountedError(CertfsError):
    """No certfs is mounted where the command was told to look."""

    exit_code = 7


class AlreadyRunningError(CertfsError):
    """Another certfs already serves these paths."""

    exit_code = 8


class DeadlineError(CertfsError):
    """Something did not start, stop or answer in the time it was given."""

    exit_code = 9


class PrivilegeError(CertfsError):
    """The command needs rights that its caller does not have."""

    exit_code = 10


class ReadOnlyError(CertfsError):
    """A file system that would have to be written is read-only."""

    exit_code = 11


class NoSpaceError(CertfsError):
    """A disk or a quota is full."""

    exit_code = 12


class MachineError(CertfsError):
    """The machine failed: an input or output error, or it is out of files or memory."""

    exit_code = 13


class SystemdError(CertfsError):
    """systemd refused a request, or is not there."""

    exit_code = 14


class BusyError(CertfsError):
    """Another certfs command is changing the same files."""

    exit_code = 15


class BugError(CertfsError):
    """A bug in certfs."""

    exit_code = 70


_RIGHTS: Final = (PrivilegeError, "run this as the owner of the files, usually root")
_READ_ONLY: Final = (ReadOnlyError, "make the file system writable")
_FULL: Final = (NoSpaceError, "make room; nothing was changed")
_MACHINE: Final = (MachineError, "the kernel's log (dmesg) says more")
_DEAD: Final = (
    DeadlineError,
    (
        "the processes that served it are dead: for the host's own directories certfs mount serves it again; "
        "for others certfs status MOUNTPOINT says what does"
    ),
)
_CONDITIONS: Final[Mapping[int, tuple[type[CertfsError], str]]] = {
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EROFS: _READ_ONLY,
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EIO: _MACHINE,
    errno.EMFILE: _MACHINE,
    errno.ENFILE: _MACHINE,
    errno.ENOMEM: _MACHINE,
    errno.ENOTCONN: _DEAD,  # a mount whose server has died (fuse.rst of the kernel)
    errno.ECONNABORTED: _DEAD,
    errno.ENOENT: (StoreError, "check the path"),
}
"""What people are told of what the system answers."""


def from_os_error(where: str, error: OSError, *, advice: str = "") -> CertfsError:
    """Return what people are told of an ``OSError`` about the file ``where``: its kind decides the exit code."""
    kind, mend = _CONDITIONS.get(error.errno or 0, (StoreError, "look at what it is with ls -l"))
    return kind(f"{where}: {error.strerror or error}", advice=advice or mend)
