"""The tree of errors that certfs reports to people, with their exit codes.

Owns what a user sees when something is wrong: one sentence that names the file and what is wrong, and one
that says what to do. An exit code, once given, keeps its meaning for good; ``docs/cli.md`` lists them.
Knows nothing of what raises them.
"""

import errno
from typing import ClassVar


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
    """The store is missing, is not a directory, or cannot be read or written."""

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


class BugError(CertfsError):
    """A bug in certfs."""

    exit_code = 70


def from_os_error(where: str, error: OSError, *, advice: str = "") -> CertfsError:
    """Return what people are told of an ``OSError`` about the file ``where``: its kind decides the exit code."""
    message = f"{where}: {error.strerror or error}"
    match error.errno:
        case errno.EACCES | errno.EPERM:
            mend = "run this as the owner of the files, usually root"
            return PrivilegeError(message, advice=advice or mend)
        case errno.EROFS:
            return ReadOnlyError(message, advice=advice or "make the file system writable")
        case errno.ENOSPC | errno.EDQUOT:
            return NoSpaceError(message, advice=advice or "make room; nothing was changed")
        case errno.EIO | errno.EMFILE | errno.ENFILE | errno.ENOMEM:
            return MachineError(message, advice=advice or "the kernel's log (dmesg) says more")
        case errno.ENOENT:
            return StoreError(message, advice=advice or "check the path")
        case _:
            return StoreError(message, advice=advice or "look at what it is with ls -l")
