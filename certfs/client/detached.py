"""Running a command that sees the plain directories.

Root gives the command a mount namespace of its own, without anything of certfs: inside plain, outside live. An ordinary
user, who cannot do that, unmounts, runs the command and mounts again.
"""

import os
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from typing import Final, NoReturn

from certfs import procfs
from certfs.client import mount as mounting
from certfs.client.instances import ask, find, unmount
from certfs.errors import CertfsError, DeadlineError, MountpointError, PrivilegeError
from certfs.linux import mount_syscalls, mount_table
from certfs.linux.waiting import waiting
from certfs.protocol import state_file, timeouts
from certfs.protocol.messages import STALE_UNKNOWN
from certfs.protocol.state_file import State
from certfs.protocol.summary import read_hosts
from certfs.supervisor import stand_in

_FROM_TERMINAL: Final = (signal.SIGINT, signal.SIGQUIT)
"""What a terminal sends to the command as well."""
_IGNORED_BY_PYTHON: Final = (signal.SIGPIPE, signal.SIGXFSZ)

Warn = Callable[[tuple[str, ...]], None]


def run_detached(
    mountpoint: str | None, command: tuple[str, ...], *, if_mounted: bool, warn: Warn
) -> int:
    """Run ``command`` with plain directories and return its exit code (negative: the signal), or become the command.

    ``warn`` is told before that which plain copies are not what is served. ``if_mounted``: nothing mounted is fine, but
    what another user has mounted there is not, because the command would see it. OSError if it cannot be run.
    """
    if os.geteuid() == 0:
        if not if_mounted:
            find(mountpoint)
        # Also mounts of which nothing is noted any more: a backup would have their directories empty.
        if any(map(procfs.is_ours, procfs.mounts())):
            warn(_flush())
            _leave_certfs()
        _become(command)
    try:
        directory = find(mountpoint)
    except CertfsError:
        if not if_mounted:
            raise
        _check_no_other(mountpoint)
        _become(command)
    return _unmounted(directory, state_file.read_state(directory), command, warn)


def _check_no_other(mountpoint: str | None) -> None:
    """Check that the command will see nothing of a certfs that this user cannot take away. PrivilegeError."""
    summary = None if mountpoint is not None else read_hosts()
    hosts = summary.targets if summary else ()
    table = procfs.mounts()
    for place in hosts if mountpoint is None else (mounting.canonical(mountpoint),):
        top = procfs.top_at(table, place)
        if top is not None and top.is_certfs:
            raise PrivilegeError(
                f"the certfs at {place} is not yours to take away, and the command would see it",
                advice="run this as its user, usually root; "
                "or the command alone, without an option to stay in one file system",
            )


# --- root


def _flush() -> tuple[str, ...]:
    """Have every instance bring its plain copies up to date; say which are not."""
    states = ((each, state_file.read_state(each)) for each in state_file.instances())
    directories = [directory for directory, state in states if state is not None]
    if not directories:  # of what is mounted nothing is noted any more
        return (STALE_UNKNOWN,)
    replies = [ask(directory, "flush", timeouts.ANSWER) for directory in directories]
    return tuple(
        line for reply in replies for line in ((STALE_UNKNOWN,) if reply is None else reply.stale)
    )


def _leave_certfs() -> None:
    """Move this process to a mount namespace in which nothing of certfs is mounted.

    The hidden mounts go as well: a copy of one would keep the server of a restart alive.
    """
    working_directory = os.getcwd()
    try:
        mount_syscalls.leave_namespace()
    except PermissionError as error:
        raise PrivilegeError(
            f"cannot make a mount namespace for the command: {error.strerror}",
            advice="run it with CAP_SYS_ADMIN, outside of what forbids unshare(2)",
        ) from error
    devices = {entry.device for entry in procfs.mounts() if procfs.is_ours(entry)}
    errors = mount_table.detach(devices, mount_syscalls.umount).errors
    if errors:
        raise MountpointError(
            f"cannot detach {errors[0].filename} for the command: {errors[0].strerror}",
            advice="certfs status says what is mounted there",
        )
    with suppress(OSError):  # it may have been one that only the mount showed
        os.chdir(working_directory)


def _become(command: tuple[str, ...]) -> NoReturn:
    for number in _IGNORED_BY_PYTHON:
        signal.signal(number, signal.SIG_DFL)
    os.execvp(command[0], command)


# --- an ordinary user


def _unmounted(directory: str, state: State | None, command: tuple[str, ...], warn: Warn) -> int:
    if state is None:
        raise DeadlineError(
            f"how it was mounted is not written down any more in {directory}",
            advice="unmount it and mount it again",
        )
    _, stale = unmount(directory)
    warn(stale)
    (store,), (target,) = state.stores, state.targets
    if store != target:
        stand_in.link(store, target)
    try:
        return _run(command)
    finally:
        mounting.launch(
            mounting.MountRequest(
                mode=state.mode,
                places=(mounting.Place(name="", store=store, target=target),),
                config_file=state.config_file,
                allow_other=state.allow_other,
                log=state.log,
            )
        )


def _run(command: tuple[str, ...]) -> int:
    with subprocess.Popen(command) as process:

        def hand_on(number: int, frame: object) -> None:
            del frame
            process.send_signal(number)

        for number in _FROM_TERMINAL:
            signal.signal(number, signal.SIG_IGN)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, hand_on)
        with waiting():
            return process.wait()
