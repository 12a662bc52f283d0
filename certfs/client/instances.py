"""What commands can do with an instance that runs: find it, ask its supervisor, or end it where there is none.

Owns the client's side of the control socket and the way an instance without supervisor is ended. A command that runs
with the plain directories in view is `certfs.client.detached`'s.
"""

import contextlib
import os
import socket
import time
from dataclasses import replace
from typing import Final

from certfs import procfs
from certfs.client.cleanup import end_leftovers
from certfs.client.mount import canonical, failure_error
from certfs.errors import (
    CertfsError,
    ConfigError,
    DeadlineError,
    FuseError,
    MountpointError,
    NotMountedError,
    PrivilegeError,
    StoreError,
)
from certfs.linux.installation import interpreter
from certfs.protocol import control, state_file, timeouts
from certfs.protocol.control import Reply, Verb
from certfs.protocol.messages import STALE_UNKNOWN
from certfs.protocol.owned_mounts import devices_of

_SAID: Final = frozenset(kind.exit_code for kind in (ConfigError, StoreError, FuseError))
"""Failures of a server that say themselves what to do about them."""


def find(mountpoint: str | None) -> str:
    """Return the directory of the instance at ``mountpoint`` (None: Dom0's); NotMountedError if there is none.

    PrivilegeError where another user has made it.
    """
    base = state_file.runtime_directory()
    if mountpoint is None:
        if os.geteuid() != 0 and state_file.OVERRIDE not in os.environ:
            raise PrivilegeError(
                "only root can manage the host's own directories",
                advice="become root, or name a mountpoint of your own",
            )
        directory, where = f"{base}/dom0", "the host's own directories"
    else:
        where = canonical(mountpoint)
        directory = f"{base}/{state_file.instance_name('standalone', where)}"
        if not os.path.isdir(directory):
            directory = _mounted_at(where) or directory
    for path in (base, directory):
        state_file.check_own(path)
    if state_file.read_state(directory) is None and not devices_of(directory, None):
        raise _not_found(where)
    return directory


def _not_found(where: str) -> NotMountedError | PrivilegeError:
    top = procfs.top_at(procfs.mounts(), where)
    if top is None or not top.is_certfs:
        return NotMountedError(
            f"certfs is not mounted at {where}", advice="certfs status lists what is"
        )
    user = os.geteuid()
    if top.owner != user:
        owner = "root" if top.owner == 0 else f"the user {top.owner}"
        mend = f"umount -l {where}" if user == 0 else ""
        return PrivilegeError(
            f"the certfs at {where} is mounted by {owner}",
            advice=f"run this as that user, or end it with: {mend}"
            if mend
            else "run this as that user",
        )
    by_hand = "umount -l" if user == 0 else "fusermount3 -u -z"
    return NotMountedError(
        f"a certfs is mounted at {where}, but its runtime directory is gone or elsewhere",
        advice=f"end it with: {by_hand} {where}",
    )


def _mounted_at(target: str) -> str | None:
    """Return the instance that has this among its places now: the host's, or one whose place was renamed."""
    for directory in state_file.instances():
        state = state_file.read_state(directory)
        if state and target in state.targets:
            return directory
    return None


def every() -> tuple[str, ...]:
    """Return the directories of all instances of this user that are mounted, or left something mounted."""
    return tuple(
        directory
        for directory in state_file.instances()
        if state_file.read_state(directory) or devices_of(directory, None)
    )


def is_of_this_unit(directory: str) -> bool:
    """Whether an instance belongs to the systemd service that this process is in, or every process of it has died."""
    state = state_file.read_state(directory)
    living = [process for process in (state.processes if state else ()) if process.alive()]
    unit = procfs.unit_of(os.getpid())
    return all(procfs.unit_of(process.pid) == unit for process in living)


def outdated(directory: str) -> bool:
    """Whether a process of the instance was started from another installation than the one that is current now."""
    state = state_file.read_state(directory)
    for process in state.processes if state else ():
        if process.alive():
            program, *_ = procfs.arguments_of(process.pid) or (b"",)
            if program and os.fsdecode(program) != interpreter():
                return True
    return False


def unmount(directory: str) -> tuple[str, tuple[str, ...]]:
    """End an instance; return what is to be said about it, and which plain copies are stale."""
    state = state_file.read_state(directory)
    where = " and ".join(state.targets) if state else directory
    reply = ask(directory, "unmount", timeouts.ANSWER)
    if reply is None:
        lock = state_file.take_lock(
            directory
        )  # a supervisor that its server starts meanwhile finds it taken
        served = state is not None and state.server is not None and state.server.alive()
        errors = end_leftovers(directory)
        if lock is not None:
            os.close(lock)
        if errors:
            raise MountpointError(
                f"cannot detach {errors[0].filename}: {errors[0].strerror}",
                advice=f"detach it as root: umount -l {errors[0].filename}",
            )
        said = f"unmounted {where}; its supervisor was dead or did not answer"
        return said, (STALE_UNKNOWN,) if served else ()
    said = f"unmounted {where}"
    if reply.covered:
        said += f"; something else is mounted over {' and '.join(reply.covered)}:"
        said += " what is beneath goes as soon as that is unmounted"
    elif reply.lingering is not None:
        said += (
            f"; process {reply.lingering} serves files that are still open until they are closed"
        )
    return said, reply.stale


def restart(directory: str) -> None:
    """Replace the server of an instance; returns when the new one serves."""
    reply = ask(directory, "restart", timeouts.RESTART)
    if reply is not None and reply.failure and reply.failure.exit_code not in _SAID:
        raise DeadlineError(
            f"{reply.failure.message}; the old server goes on", advice=f"see: {_log_of(directory)}"
        )
    expect(reply, directory)


def _log_of(directory: str) -> str:
    """Return where an instance's log is read."""
    state = state_file.read_state(directory)
    return state.log if state is not None and state.log else "journalctl -u certfs"


def remount(directory: str, *, set_flags: int, clear_flags: int) -> None:
    """Have an instance mounted with other flags of mount(2), by a restart; the store's own cannot be cleared (I19).

    Files that are open stay on the mount that they were opened on.
    """
    before = state_file.read_flags(directory)
    asked = (before.asked | set_flags) & ~clear_flags
    state_file.write_flags(directory, replace(before, asked=asked))
    try:
        restart(directory)
    except CertfsError:
        state_file.write_flags(directory, before)
        raise


def _connect(directory: str) -> socket.socket | None:
    """Return a connection to the supervisor; None if it is dead and none comes in its place."""
    deadline = time.monotonic() + timeouts.CONNECT
    while True:
        connection = control.connect(directory)
        if connection or time.monotonic() > deadline:
            return connection
        state = state_file.read_state(directory)
        if state is None or not any(process.alive() for process in state.processes):
            return None
        time.sleep(0.02)  # it is becoming another program, or the server has started its successor


def ask(directory: str, verb: Verb, seconds: float) -> Reply | None:
    """Ask the supervisor; None if there is none, or no answer in time."""
    deadline = time.monotonic() + seconds
    while connection := _connect(directory):
        with connection, contextlib.suppress(ConnectionError):
            return control.request(
                connection,
                verb,
                deadline - time.monotonic(),
                is_stopped=lambda: _is_stopped(directory),
            )
        if time.monotonic() > deadline:
            break
    return None


def store_of(directory: str) -> dict[bytes, int]:
    """Return descriptors of the directories beneath a mount, by name; the caller closes them.

    A standalone mount has one, with an empty name. CertfsError where the supervisor does not answer.
    """
    reply = expect(ask(directory, "store", timeouts.ANSWER), directory)
    return dict(zip(map(os.fsencode, reply.trees), reply.descriptors, strict=True))


def _is_stopped(directory: str) -> bool:
    state = state_file.read_state(directory)
    return state is not None and state.supervisor.stopped()


def expect(reply: Reply | None, directory: str) -> Reply:
    """Return a reply of an instance that came and is no failure; CertfsError otherwise."""
    if reply is None:
        state = state_file.read_state(directory)
        end = f"end it with {state.command('unmount')}, then " if state is not None else ""
        raise DeadlineError(
            "the supervisor does not answer",
            advice=f"{end}mount it again; see: {_log_of(directory)}",
        )
    if reply.failure:
        raise failure_error(reply.failure)
    return reply
