"""What commands can do with an instance that runs: find it, ask its supervisor, or end it where there is none.

Owns the client's side of the control socket and the way an instance without supervisor is ended.
"""

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from typing import Final

from certfs.daemon import control, runtime
from certfs.daemon.control import Reply, Verb
from certfs.daemon.launch import canonical, failure_error
from certfs.daemon.leftovers import end_leftovers
from certfs.errors import DeadlineError, MountpointError, NotMountedError, PrivilegeError

ANSWER_SECONDS: Final = 20.0
RESTART_SECONDS: Final = 130.0
CONNECT_SECONDS: Final = 5.0


def find(mountpoint: str | None) -> str:
    """Return the directory of the instance at ``mountpoint`` (None: Dom0's); NotMountedError if there is none."""
    base = runtime.runtime_directory()
    if mountpoint is None:
        if os.geteuid() != 0 and runtime.OVERRIDE not in os.environ:
            raise PrivilegeError(
                "only root can manage the host's own directories",
                advice="become root, or name the mountpoint",
            )
        directory, where = f"{base}/dom0", "the host's own directories"
    else:
        where = canonical(mountpoint)
        directory = f"{base}/{runtime.instance_name('standalone', where)}"
        if not os.path.isdir(directory):
            directory = _dom0_with(base, where) or directory
    if runtime.read_state(directory) is None:
        raise NotMountedError(
            f"certfs is not mounted at {where}", advice="certfs status lists what is"
        )
    return directory


def _dom0_with(base: str, target: str) -> str | None:
    state = runtime.read_state(f"{base}/dom0")
    return f"{base}/dom0" if state and target in state.targets else None


def unmount(mountpoint: str | None) -> str:
    """End the instance at ``mountpoint`` and return what is to be said about it."""
    directory = find(mountpoint)
    state = runtime.read_state(directory)
    where = " and ".join(state.targets) if state else mountpoint
    reply = _ask(directory, "unmount", ANSWER_SECONDS)
    if reply is None:
        errors = end_leftovers(directory)
        if errors:
            raise MountpointError(
                f"cannot detach {errors[0].filename}: {errors[0].strerror}",
                advice=f"detach it as root: umount -l {errors[0].filename}",
            )
        return f"unmounted {where}; its supervisor was dead or did not answer"
    if reply.covered:
        return (
            f"unmounted {where}; something else is mounted over {' and '.join(reply.covered)}:"
            " what is beneath goes as soon as that is unmounted"
        )
    if reply.lingering is None:
        return f"unmounted {where}"
    return (
        f"unmounted {where}; process {reply.lingering} serves files that are still open"
        " until they are closed"
    )


def restart(mountpoint: str | None) -> None:
    """Replace the server of the instance at ``mountpoint``; returns when the new one serves."""
    _expect(_ask(find(mountpoint), "restart", RESTART_SECONDS))


@contextlib.contextmanager
def detached(mountpoint: str | None) -> Iterator[None]:
    """Keep the plain directories in view for the time of the context; then wait until the mount is back."""
    directory = find(mountpoint)
    with contextlib.ExitStack() as connection:
        _expect(_ask(directory, "detach", ANSWER_SECONDS, keep=connection))
        yield
    _await_attached(directory)


def _await_attached(directory: str) -> None:
    deadline = time.monotonic() + CONNECT_SECONDS
    while time.monotonic() < deadline:
        state = runtime.read_state(directory)
        if state is None or state.phase != "detached" or not state.supervisor.alive():
            return
        time.sleep(0.01)


def _connect(directory: str) -> socket.socket | None:
    """Return a connection to the supervisor; None if it is dead and none comes in its place."""
    deadline = time.monotonic() + CONNECT_SECONDS
    while True:
        connection = control.connect(directory)
        if connection or time.monotonic() > deadline:
            return connection
        state = runtime.read_state(directory)
        processes = (state.supervisor, state.server) if state else ()
        if not any(process and process.alive() for process in processes):
            return None
        time.sleep(0.02)  # it is becoming another program, or the server has started its successor


def _ask(
    directory: str, verb: Verb, seconds: float, *, keep: contextlib.ExitStack | None = None
) -> Reply | None:
    """Ask the supervisor; None if there is none, or no answer in time. ``keep`` holds the connection afterwards."""
    deadline = time.monotonic() + seconds
    while connection := _connect(directory):
        with contextlib.ExitStack() as stack:
            stack.enter_context(connection)
            with contextlib.suppress(ConnectionError):
                reply = control.request(
                    connection,
                    verb,
                    deadline - time.monotonic(),
                    is_stopped=lambda: _is_stopped(directory),
                )
                if keep is not None:
                    keep.push(stack.pop_all())
                return reply
        if time.monotonic() > deadline:
            break
    return None


def _is_stopped(directory: str) -> bool:
    state = runtime.read_state(directory)
    return state is not None and state.supervisor.stopped()


def _expect(reply: Reply | None) -> None:
    if reply is None:
        raise DeadlineError(
            "the supervisor does not answer",
            advice="certfs unmount and certfs mount replace it; certfs status names its log",
        )
    if reply.failure:
        raise failure_error(reply.failure)
