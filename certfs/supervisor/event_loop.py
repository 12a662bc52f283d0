"""Waiting for several things at once, without an event loop library: descriptors, points in time, signals.

Owns the supervisor's only place to sleep. Callbacks run one after the other, to their end.
"""

import os
import select
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

READABLE: Final = select.POLLIN
TABLE_CHANGED: Final = select.POLLPRI | select.POLLERR
"""What /proc/self/mountinfo reports after a change of the mount table (proc(5))."""
_LATE_SECONDS: Final = 1.0

Callback = Callable[[], None]


class EventLoop:
    """Descriptors and deadlines with what is to be done about them."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._callbacks: dict[int, Callback] = {}
        self._deadlines: dict[str, tuple[float, Callback]] = {}
        self._noted = -1
        """The read end of the wakeup pipe: numbers of signals that were not dispatched yet."""

    def watch(self, fd: int, callback: Callback, events: int = READABLE) -> None:
        """Call ``callback`` whenever one of ``events`` is there on ``fd``."""
        self._callbacks[fd] = callback
        self._poll.register(fd, events)

    def forget(self, fd: int) -> None:
        """Watch ``fd`` no more; to be called before it is closed. Nothing if it is not watched."""
        if self._callbacks.pop(fd, None):
            self._poll.unregister(fd)

    def at(self, name: str, deadline: float, callback: Callback) -> None:
        """Call ``callback`` once at ``deadline`` (time.monotonic), instead of what ``name`` stood for before."""
        self._deadlines[name] = (deadline, callback)

    def after(self, name: str, seconds: float, callback: Callback) -> None:
        """Like `at`, so many seconds from now."""
        self.at(name, time.monotonic() + seconds, callback)

    def clear(self) -> None:
        """Forget everything, also what the step that is under way has found."""
        self._callbacks.clear()
        self._deadlines.clear()

    def cancel(self, name: str) -> None:
        """Forget the deadline ``name``, if there is one."""
        self._deadlines.pop(name, None)

    def on_signals(
        self, numbers: tuple[signal.Signals, ...], callback: Callable[[int], None]
    ) -> None:
        """Call ``callback`` with the number of each signal that arrives, as any other callback."""
        receiving, sending = os.pipe()
        for end in (receiving, sending):
            os.set_blocking(end, False)
        for number in numbers:
            signal.signal(number, _noted)
        signal.set_wakeup_fd(sending, warn_on_full_buffer=False)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)  # see `specs.execute`

        def dispatch() -> None:
            for number in os.read(receiving, 512):
                callback(number)

        self._noted = receiving
        self.watch(receiving, dispatch)

    def raise_again(self) -> None:
        """Send this process once more each signal that has arrived and was not dispatched: it becomes another program.

        They should be blocked, so that they wait for that (they are kept by execve(2)).
        """
        with suppress(BlockingIOError):
            for number in os.read(self._noted, 512):
                os.kill(os.getpid(), number)

    def step(self, held_up: Callback) -> None:
        """Sleep until something is to be done, and do it.

        ``held_up`` is called first when this process itself came back late: one that was stopped, or whose machine was
        suspended, must not conclude from its own absence that somebody else is silent.
        """
        due = self._due()
        limit = None if due is None else max(due - time.monotonic(), 0) * 1000 + 1
        ready = self._poll.poll(limit)
        woken = time.monotonic()
        if due is not None and woken > due + _LATE_SECONDS:
            held_up()
        for fd, _ in ready:
            callback = self._callbacks.get(fd)
            if callback:
                callback()
        # It may also have been stopped in a callback, or one took its time. What counts is one look at the clock.
        now, due = time.monotonic(), self._due(after=woken)
        if due is not None and now > due + _LATE_SECONDS:
            held_up()
        self._expire(now)

    def _due(self, *, after: float = 0.0) -> float | None:
        deadlines = (deadline for deadline, _ in self._deadlines.values() if deadline > after)
        return min(deadlines, default=None)

    def _expire(self, now: float) -> None:
        for name, (deadline, callback) in list(self._deadlines.items()):
            if deadline <= now and self._deadlines.get(name) == (deadline, callback):
                del self._deadlines[name]
                callback()


def _noted(number: int, frame: object) -> None:
    """Do nothing: the wakeup descriptor carries the signal into the loop."""
    del number, frame
