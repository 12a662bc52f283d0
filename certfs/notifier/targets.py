"""How a reader is told: the command line for a unit or a command, and the signal for a process.

Owns what may be run (no shell, no program that others could exchange) and with what environment and user. Under systemd
commands run as transient units: what certfs.service may not do (signal others, change the user, use the network), its
children may not either.
"""

import errno
import os
import signal
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from certfs.procfs import command_of
from certfs.protocol.notify_spec import NotifySpec
from certfs.safe_open import closing

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_LANG: Final = "C.UTF-8"
_WAITS_SINCE: Final = 236
"""The first systemd whose systemd-run has --wait, --pipe and --collect."""
_WRITABLE_BY_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH
_PID_FILE_BYTES: Final = 64
_LARGEST_PID: Final = 1 << 22
"""PID_MAX_LIMIT (proc(5), pid_max)."""
_MOST_LINKS: Final = 40
_COMM_LENGTH: Final = 15
"""What the kernel keeps of a process's name (proc(5), comm)."""


class RefusedError(Exception):
    """A target that is not run: the text says why."""


class NotRunning(Exception):  # noqa: N818 - it is no error
    """There is no process to tell; the text says why."""


@dataclass(frozen=True, slots=True)
class Systemd:
    """The service manager of this machine, as far as it is of use: ``version`` is 0 where none runs."""

    version: int = 0
    bus: str = ""
    """The socket of its message bus, which systemd-run --wait needs."""
    for_user: bool = False
    """It is the manager of an ordinary user's session."""

    @property
    def runs_commands(self) -> bool:
        """Whether a command can be run by it now, and waited for: a user's manager comes and goes with the sessions."""
        return self.version >= _WAITS_SINCE and os.path.exists(self.bus)

    @property
    def options(self) -> tuple[str, ...]:
        """What makes systemctl and systemd-run ask the right one."""
        return ("--user",) if self.for_user else ("--system",)


@dataclass(frozen=True, slots=True)
class Run:
    """A process to start: its ``command``, environment and, if not certfs's own, its user."""

    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    user: str | None = None


def run_of(
    spec: NotifySpec, about: Mapping[str, str], systemd: Systemd, *, unit_name: str
) -> Run | None:
    """Return what to start for ``spec``, None where the reader was told already (by a signal).

    ``about`` are the variables ``CERTFS_...`` of a command. Raises `RefusedError`, `NotRunning`, or OSError.
    """
    if spec.systemd_unit:
        if not systemd.version:
            raise RefusedError("systemd does not run here")
        words = (
            "systemctl",
            *systemd.options,
            "--no-ask-password",
            spec.action,
            "--",
            spec.systemd_unit,
        )
        return Run(words, _environment())
    if spec.pid_file:
        pid = _process_of(spec)
        if not _send(pid, spec):
            number = str(pid)
            return _transient(
                ("kill", "-s", spec.signal, "--", number), {}, spec, systemd, unit_name
            )
        return None
    check_command(spec.command[0])
    if systemd.runs_commands:
        return _transient(spec.command, about, spec, systemd, unit_name)
    return Run(spec.command, {**_environment(spec.user), **about}, spec.user or None)


def check_command(program: str) -> None:
    """Raise `RefusedError` where a program is missing, or where others than root and this user could exchange it."""
    if not program.startswith("/"):
        raise RefusedError(f"{program} is not an absolute path")
    path, pending, links = "/", ["", *program.split("/")], 0
    while pending:
        name = pending.pop(0)
        if name == "..":
            path = os.path.dirname(path)  # which was looked at on the way here
            continue
        if name == ".":
            continue
        path = os.path.join(path, name)
        try:
            status = os.lstat(path)
            _check_owner(path, status)
            if stat.S_ISLNK(status.st_mode):
                target = os.readlink(path)
                pending[:0] = target.split("/")
                path = "/" if target.startswith("/") else os.path.dirname(path)
                links += 1
                if links > _MOST_LINKS:
                    raise RefusedError(f"{program}: {os.strerror(errno.ELOOP)}")
        except OSError as error:
            raise RefusedError(f"{path}: {error.strerror}") from None
    if not (os.path.isfile(path) and os.access(path, os.X_OK)):
        raise RefusedError(f"{path} is not a program: chmod a+x {path}")


def _check_owner(path: str, status: os.stat_result) -> None:
    """Raise `RefusedError` for a file, a directory or a link that others can exchange, where it is on the way."""
    if status.st_uid not in {0, os.geteuid()}:
        raise RefusedError(f"{path} belongs to another user: chown -h root {path}")
    is_sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
    shared = status.st_mode & _WRITABLE_BY_OTHERS
    if shared and not is_sticky and not stat.S_ISLNK(status.st_mode):
        raise RefusedError(f"others may write to {path}: chmod go-w {path}")


def _environment(user: str = "") -> dict[str, str]:
    """Return the environment of what runs as ``user``, by default the one who runs certfs and may have a session."""
    kept = () if user else ("XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS", "HOME")
    environment = {"PATH": PATH, "LANG": _LANG}
    if os.geteuid() != 0:
        environment["XDG_RUNTIME_DIR"] = session_directory()
    return environment | {name: os.environ[name] for name in kept if os.environ.get(name)}


def session_directory() -> str:
    """Return where the sockets of this user's session are, also for a mount that was made outside of one."""
    return os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"


def _transient(
    command: tuple[str, ...],
    about: Mapping[str, str],
    spec: NotifySpec,
    systemd: Systemd,
    unit_name: str,
) -> Run:
    """Return a run of ``command`` as a unit of its own, whose end systemd-run waits for and reports."""
    if not systemd.runs_commands:
        raise RefusedError("certfs may not signal this process, and systemd cannot do it instead")
    variables = {"PATH": PATH, "LANG": _LANG, **about}
    words = (
        "systemd-run",
        *systemd.options,
        "--no-ask-password", "--quiet", "--wait", "--pipe", "--collect",
        f"--unit={unit_name}",
        f"--property=RuntimeMaxSec={spec.timeout:g}",
        f"--property=TimeoutStopSec={spec.grace:g}",
        *((f"--property=User={spec.user}",) if spec.user else ()),
        *(f"--setenv={name}={value}" for name, value in variables.items()),
        "--",
        # systemd puts variables in place of what follows a $ (systemd.service(5), "Command lines").
        *(word.replace("$", "$$") for word in command),
    )  # fmt: skip
    return Run(words, _environment())


def _process_of(spec: NotifySpec) -> int:
    try:
        fd = os.open(spec.pid_file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotRunning(f"there is no {spec.pid_file}") from None
    with closing(fd):
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise RefusedError(f"{spec.pid_file} is not a regular file")
        text = os.read(fd, _PID_FILE_BYTES).partition(b"\n")[0].strip()
    if not text:
        raise NotRunning(f"{spec.pid_file} is empty")
    if not text.isdigit() or not 1 < int(text) <= _LARGEST_PID:
        raise RefusedError(f"{spec.pid_file} does not hold the number of a process")
    return int(text)


def _send(pid: int, spec: NotifySpec) -> bool:
    """Send the signal if the process is the one that is meant; False where that is not allowed."""
    number = signal.Signals[f"SIG{spec.signal}"]
    pidfd = None
    with suppress(AttributeError, OSError):
        # Held while the name is compared: the number cannot become another process's in between (Linux 5.3).
        pidfd = os.pidfd_open(pid)
    try:
        _check_name(pid, spec.process)
        if pidfd is not None:
            signal.pidfd_send_signal(pidfd, number)
        else:
            os.kill(pid, number)
    except ProcessLookupError:
        raise NotRunning(f"there is no process {pid}") from None
    except PermissionError:
        return False
    finally:
        if pidfd is not None:
            os.close(pidfd)
    return True


def _check_name(pid: int, wanted: str) -> None:
    name = command_of(pid)
    if name != os.fsencode(wanted)[:_COMM_LENGTH]:
        raise NotRunning(f"process {pid} is {os.fsdecode(name)!a} and not {wanted!a}")
