"""Ending a command that waits for a file system which does not answer.

Any user can mount one that never does, and a process that waits for it cannot always be killed: once such a file system
has taken a request, the caller waits for the answer (request_wait_answer() in fs/fuse/dev.c of the kernel). So the
command is a child process, and its parent looks whether it gets on: it uses processor time, or waits for who reads its
output. A thread of the child then lets go of its output, which somebody may read to the end. What waits for something
else, such as a person, says so (`certfs.linux.waiting`).
"""

import ctypes
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from typing import Final, NoReturn

from certfs.linux.processes import leave, let_go_of_streams

_TICK_SECONDS: Final = 0.25
_END_SECONDS: Final = 1.0
"""For a command that has said how it ended to be gone."""
_HANDED_ON: Final = frozenset(
    (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
)
_AWAITED: Final = _HANDED_ON | {signal.SIGCHLD}
_PR_SET_PDEATHSIG: Final = 1

End = Callable[[int], NoReturn]


def watched(seconds: float, give_up: Callable[[], int]) -> End:
    """Go on in a child process and return what ends it with an exit code.

    The parent ends as its child does; with what ``give_up`` returns, once that has stood still for so many seconds. A
    child that becomes another program is waited for, however long that takes.
    """
    result, said = os.pipe()
    heard, word = os.pipe()
    parent, mask = os.getpid(), signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED)
    child = os.fork()
    if child == 0:
        os.close(result)
        os.close(word)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        threading.Thread(target=_let_go, args=(heard, said), daemon=True).start()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

        def end(code: int) -> NoReturn:
            # A thread that waits for a file system may keep this process from ending.
            let_go_of_streams()
            os.write(said, bytes((code,)))
            leave(code)

        return end
    os.close(said)
    os.close(heard)
    code = _Watch(child, result, seconds).outcome()
    if code is None:
        code = give_up()
        os.close(word)
        select.select([result], [], [], _END_SECONDS)
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.kill(parent, -code)
    os._exit(code)


def _let_go(heard: int, said: int) -> None:
    """Wait for the parent's word that it has given up, and let nobody wait for this process."""
    os.read(heard, 1)
    let_go_of_streams()
    os.write(said, b"\0")


class _Watch:
    """The parent's look at a ``child``; from ``result`` its exit code is read, nothing where it is another program."""

    def __init__(self, child: int, result: int, seconds: float) -> None:
        self._child = child
        self._result = result
        self._seconds = seconds
        # CPUCLOCK_SCHED of a process, as clock_getcpuclockid(3) gives it.
        self._clock = ~child << 3 | 2
        self._is_stopped = False

    def outcome(self) -> int | None:
        """Wait for the child's end; return its exit code (negative: the signal), None if it stands still."""
        used, still = 0.0, 0
        # Counted, not measured: a process that was stopped has not waited.
        while still < self._seconds / _TICK_SECONDS:
            is_tick = self._wait(_TICK_SECONDS)
            code = self._ended()
            if code is not None:
                return code
            if select.select([self._result], [], [], 0)[0]:
                return self._last()
            if not is_tick:
                continue
            now = time.clock_gettime(self._clock)
            stands = now == used and not self._is_stopped and _takes_output()
            used, still = now, still + 1 if stands else 0
        return None

    def _wait(self, seconds: float) -> bool:
        """Wait; whether nothing happened. Hand on a signal that was sent to this process (a terminal's is for both)."""
        found = signal.sigtimedwait(_AWAITED, seconds)
        if found is not None and found.si_signo != signal.SIGCHLD and found.si_code <= 0:
            os.kill(self._child, found.si_signo)
        return found is None

    def _ended(self) -> int | None:
        found, status = os.waitpid(self._child, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
        if not found:
            return None
        if os.WIFSTOPPED(status) or os.WIFCONTINUED(status):
            self._is_stopped = os.WIFSTOPPED(status)
            return None
        return os.waitstatus_to_exitcode(status)

    def _last(self) -> int:
        """Wait for the end of a child that has said how it ends, for a moment, or has become another program."""
        said = os.read(self._result, 1)
        deadline = time.monotonic() + _END_SECONDS
        while (code := self._ended()) is None and (not said or time.monotonic() < deadline):
            self._wait(_TICK_SECONDS)
        return said[0] if code is None else code


def _takes_output() -> bool:
    """Whether what the command says is read: a pager that is full stops it as well."""
    poll = select.poll()
    for stream in (1, 2):
        poll.register(stream, select.POLLOUT)
    return len(poll.poll(0)) == 2  # noqa: PLR2004 - both
