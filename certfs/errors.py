"""The tree of errors that certfs reports to people, with their exit codes.

Owns what a user sees when something is wrong: one sentence that names the file and what is wrong, and one
that says what to do. An exit code, once given, keeps its meaning for good; ``docs/cli.md`` lists them.
Knows nothing of what raises them.
"""

from typing import ClassVar


class CertfsError(Exception):
    """A mistake or a condition outside of certfs that its user can mend: no traceback is shown for it.

    ``message`` says what is wrong and names the file; ``advice`` says what to do, or is empty.
    """

    exit_code: ClassVar[int] = 1
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
