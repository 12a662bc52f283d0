"""Processes as values that cannot be mistaken for another: start, watch, signal.

Owns start times; does without pidfds, which the kernels of hosts do not have (Linux 4.19). Only the standard library,
and little of it: the supervisor imports this.
"""

import os
import select
import signal
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, NoReturn, Self

from certfs.linux.installation import ISOLATED, interpreter
from certfs.procfs import Stat, stat_of

_NOTHING_RUN: Final = 127
_PIPE_BYTES: Final = 65536
_PAUSE_SECONDS: Final = 0.001
_URGENT_NICE: Final = -10


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process, also after its number was given to another one."""

    pid: int
    started: int
    """Clock ticks after boot (field 22 of /proc/PID/stat, proc(5))."""

    @classmethod
    def of(cls, pid: int) -> Self:
        """Return the identity of the process that has ``pid`` now; ProcessLookupError if there is none."""
        state, started, _ = _status(pid)
        if state in "ZX":
            raise ProcessLookupError(pid)
        return cls(pid, started)

    def alive(self) -> bool:
        """Whether the process still runs (a zombie does not)."""
        try:
            return ProcessId.of(self.pid) == self
        except ProcessLookupError:
            return False

    def stopped(self) -> bool:
        """Whether it is stopped, by a signal such as SIGSTOP or by a debugger."""
        with suppress(ProcessLookupError):
            state, started, _ = _status(self.pid)
            return state in "Tt" and started == self.started
        return False

    def kill(self) -> None:
        """Send SIGKILL; nothing if the process has ended."""
        self._send(signal.SIGKILL)

    def stop(self) -> None:
        """Send SIGSTOP: it does nothing more; nothing if it has ended."""
        self._send(signal.SIGSTOP)

    def _send(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            if self.alive():
                os.kill(self.pid, number)

    def kill_session(self) -> None:
        """Like `kill`, for it and what it started; it must have been started by `start`."""
        with suppress(ProcessLookupError):
            if self.alive():
                os.killpg(self.pid, signal.SIGKILL)

    def ends_within(self, seconds: float) -> bool:
        """Wait until the process has ended, or for so long; whether it has."""
        deadline = time.monotonic() + seconds
        while self.alive():
            if time.monotonic() > deadline:
                return False
            time.sleep(_PAUSE_SECONDS)
        return True

    def exit_code(self, seconds: float) -> int | None:
        """Return how a process that ends, and that nobody has waited for yet, does (negative: the signal).

        None if that is not known after so many seconds: another process waits for it, or a thread of it is not done.
        """
        deadline = time.monotonic() + seconds
        while True:
            with suppress(ProcessLookupError):
                state, started, status = _status(self.pid)
                if state in "ZX" and started == self.started:
                    return os.waitstatus_to_exitcode(status)
            if time.monotonic() > deadline:
                return None
            time.sleep(_PAUSE_SECONDS)


def _status(pid: int) -> Stat:
    """Return what the kernel says of a process; ProcessLookupError if there is none, or it may not be seen."""
    found = stat_of(pid)
    if found is None:
        raise ProcessLookupError(pid)
    return found


def urgent(pid: int) -> None:
    """Let a process run before ordinary ones, where this process may do that; its children inherit it.

    The toolstack waits for these processes, and on a busy machine it decides how long a path stays at ENOTCONN: also
    the end of a killed server takes processor time (15 ms, and measured 380 ms at a load of 18 without this).
    """
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, _URGENT_NICE)


def python(module: str, *arguments: str) -> tuple[str, ...]:
    """Return the command that runs ``module`` of the installation that is current now."""
    return (interpreter(), ISOLATED, "-m", module, *arguments)


def start(
    command: Collection[str],
    *,
    keep: Collection[int],
    stdin: int | None = None,
    output: int | None = None,
    environment: dict[str, str] | None = None,
) -> int:
    """Start ``command`` in a session of its own and return its pid.

    It gets the descriptors of ``keep`` under their numbers, ``stdin`` (else /dev/null) as standard input, ``output``
    (else what this process has) as standard output and error, and ``environment`` besides the one of this process. A
    command that cannot be run ends with status 127.
    """
    pid = os.fork()
    if pid == 0:
        os.environ.update(environment or {})
        _become(tuple(command), keep=keep, stdin=stdin, output=output)
    return pid


def leave(status: int) -> NoReturn:
    """End this process, after whoever calls this has flushed what is to be written.

    The interpreter is not taken apart first: with all its modules that takes 60 ms of processor time in a server, which
    an unmount waits for, and 15 ms in a command or a supervisor (docs/performance.md). So nothing may rely on atexit.
    """
    os._exit(status)


def wait(pid: int, seconds: float) -> int | None:
    """Wait for the child ``pid`` and return its exit code (negative: the signal); after ``seconds`` kill it: None."""
    deadline = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            return None
        time.sleep(_PAUSE_SECONDS)


def reap(pid: int) -> bool:
    """Collect a child that has ended; whether there is nothing left to collect."""
    try:
        found, _ = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return True
    return found != 0


def reap_strangers(own: Collection[int]) -> None:
    """Collect ended children that nobody waits for any more; the first process of a container inherits all others'."""
    with suppress(ChildProcessError):
        while found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if found.si_pid in own:
                return
            os.waitpid(found.si_pid, 0)


def manner(exit_code: int | None) -> str:
    """Say how a process ended that was not asked to."""
    if exit_code is None:
        return "died"
    if exit_code < 0:
        return f"was killed by {_signal_name(-exit_code)}"
    return f"ended unasked with status {exit_code}"


def _signal_name(number: int) -> str:
    with suppress(ValueError):  # most of those for real time have no name
        return signal.Signals(number).name
    return f"signal {number}"


def _become(
    command: tuple[str, ...], *, keep: Collection[int], stdin: int | None, output: int | None
) -> NoReturn:
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        source = os.open(os.devnull, os.O_RDONLY) if stdin is None else stdin
        os.dup2(source, 0, inheritable=True)
        if output is not None:
            os.dup2(output, 1, inheritable=True)
            os.dup2(output, 2, inheritable=True)
        for fd in keep:
            os.set_inheritable(fd, True)
        os.execvp(command[0], command)
    except OSError as error:
        os.write(2, f"certfs: cannot run {command[0]}: {error}\n".encode(errors="replace"))
    finally:
        os._exit(_NOTHING_RUN)


def in_child(action: Callable[[], object], seconds: float) -> OSError | None:
    """Run ``action`` in a forked process for at most ``seconds``; return the OSError it raised, None if all went well.

    This is how a process that must never be stuck does something that waits for a file system. A child that does not
    come back is killed and reported as TimeoutError.
    """
    receiving, sending = os.pipe()
    try:
        pid = os.fork()
        if pid == 0:
            _act(action, sending)
        status = wait(pid, seconds)
        if status is None:
            return TimeoutError("no answer in time")
        os.set_blocking(receiving, False)
        report = _all_of(receiving)
    finally:
        os.close(receiving)
        os.close(sending)
    if status == _NOTHING_RUN:
        os.write(2, report)
        return OSError("the helper process failed")
    if report:
        code, _, name = os.fsdecode(report).partition(" ")
        return OSError(int(code), os.strerror(int(code)), name or None)
    return None if status == 0 else OSError("the helper process failed")


def output_of_child(produce: Callable[[], bytes], seconds: float, *, limit: int) -> bytes | None:
    """Return what ``produce`` returns in a forked process; None if it raises, takes too long or returns too much.

    The child is killed then, and not waited for: it ends when the file system that it is in answers.
    """
    receiving, sending = os.pipe()
    pid = os.fork()
    if pid == 0:
        _produce(produce, sending)
    os.close(sending)
    deadline = time.monotonic() + seconds
    pieces: list[bytes] = []
    complete = False
    with open(receiving, "rb", buffering=0) as stream:
        while select.select([stream], [], [], max(deadline - time.monotonic(), 0))[0]:
            piece = stream.read(_PIPE_BYTES)
            complete = not piece
            if complete or sum(map(len, pieces)) > limit:
                break
            pieces.append(piece)
    if complete:
        return b"".join(pieces) if wait(pid, _PAUSE_SECONDS * 1000) == 0 else None
    os.kill(pid, signal.SIGKILL)
    return None


def let_go_of_streams() -> None:
    """Let go of standard input, output and error: who reads them to their end is not to wait for a process that hangs.

    Once a file system has taken a request, its caller cannot be killed before it answers (fs/fuse/dev.c of the kernel).
    """
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for stream in range(3):
        os.dup2(null, stream)


def _produce(produce: Callable[[], bytes], sending: int) -> NoReturn:
    status = _NOTHING_RUN
    try:
        let_go_of_streams()
        with open(sending, "wb", buffering=0) as stream:
            left = memoryview(produce())
            while left:
                left = left[stream.write(left) :]
        status = 0
    except OSError:
        pass
    finally:
        os._exit(status)


def _act(action: Callable[[], object], sending: int) -> NoReturn:
    status = 0
    try:
        let_go_of_streams()
        action()
    except OSError as error:
        os.write(
            sending, f"{error.errno or 5} {error.filename or ''}".encode(errors="surrogateescape")
        )
    except BaseException as error:  # noqa: BLE001  a forked child reports whatever happened and ends here
        os.write(sending, f"certfs: {error!r}\n".encode(errors="replace"))
        status = _NOTHING_RUN
    finally:
        os._exit(status)


def _all_of(fd: int) -> bytes:
    try:
        return os.read(fd, 65536)
    except BlockingIOError:
        return b""
