"""Asking file systems that may not answer, for a bounded time, and for all who want to know at once.

Owns the two ways in which many askers cost no more than one: a call that is not back in time is left to its thread, and
none of its kind is made until it is (`PatientCall`); and who asks while an answer is under way shares the next one
(`Shared`). And the clock for such waits, which stands while this process does not run (`Waited`).
"""

import os
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import trio

PATIENCE_SECONDS: Final = 0.4
"""Less than what an open of a bundle waits for all of it together (`certfs.fuse.patience`)."""

STEP_SECONDS: Final = 0.05
"""How long a step of a wait is; also what one counts that took longer."""

MOST_SECONDS: Final = 5.0
"""How long a call is waited for in all, where threads of this process wait for a processor."""

T = TypeVar("T")


def is_thread_runnable() -> bool:
    """Whether a thread of this process but the asking one has, or waits for, a processor: it waits for no store."""
    own = str(threading.get_native_id())
    for thread in os.listdir("/proc/self/task"):
        with suppress(OSError):
            if thread != own and _state(thread) == b"R":
                return True
    return False


def _state(thread: str) -> bytes:
    with open(f"/proc/self/task/{thread}/stat", "rb", buffering=0) as file:
        # After the name, which may hold anything (proc_pid_stat(5)).
        return file.read(4096).rpartition(b")")[2].strip()[:1]


class Waited:
    """How long somebody has waited in steps of `STEP_SECONDS`.

    On a busy machine, or after it stood still, a step takes longer: the thread that is waited for had no processor
    either then, and that says nothing of its file system. So a step counts for no more than it was to take. One ``for
    threads`` does not count at all where a thread of this process is seen to have, or to wait for, a processor at its
    end; who takes these steps bounds all of them together by another one.
    """

    def __init__(self, *, for_threads: bool = False) -> None:
        self.seconds = 0.0
        self._for_threads = for_threads
        self._last = time.monotonic()

    def step(self) -> float:
        """Count the step that ends now; return the seconds of all."""
        now = time.monotonic()
        if not (self._for_threads and is_thread_runnable()):
            self.seconds += min(now - self._last, STEP_SECONDS)
        self._last = now
        return self.seconds

    def restart(self) -> None:
        """Begin anew."""
        self.seconds, self._last = 0.0, time.monotonic()


class PatientCall:
    """One blocking call at a time, waited for `PATIENCE_SECONDS` in which no thread of this process could go on."""

    def __init__(self) -> None:
        self._limiter = trio.CapacityLimiter(1)
        self._returned: threading.Event | None = None

    @property
    def is_silent(self) -> bool:
        """Whether a call was given up that is not back yet."""
        return self._returned is not None and not self._returned.is_set()

    async def run(self, call: Callable[[], T]) -> T:
        """Return what ``call`` returns; TimeoutError if it takes longer, or the one before is not back."""
        if self.is_silent:
            raise TimeoutError
        returned = self._returned = threading.Event()

        def run() -> T:
            try:
                return call()
            finally:
                returned.set()

        async def end(scope: trio.CancelScope) -> None:
            waited, total = Waited(for_threads=True), Waited()
            while (  # noqa: ASYNC110 - it counts steps
                waited.step() < PATIENCE_SECONDS
                and total.step() < MOST_SECONDS
                and not returned.is_set()
            ):
                await trio.sleep(STEP_SECONDS)
            if not returned.is_set():
                scope.cancel()

        with trio.CancelScope() as scope:
            trio.lowlevel.spawn_system_task(end, scope)
            return await trio.to_thread.run_sync(run, abandon_on_cancel=True, limiter=self._limiter)
        raise TimeoutError


@dataclass(slots=True, eq=False)
class _Turn(Generic[T]):
    answer: list[T]


class Shared(Generic[T]):
    """Work that is done once for all who ask for it before it begins."""

    def __init__(self) -> None:
        self._lock = trio.Lock()
        self._next: _Turn[T] | None = None

    async def run(self, work: Callable[[], Awaitable[T]]) -> T:
        """Return what ``work`` returned to whoever began it; it began after this call."""
        turn = self._next = self._next or _Turn([])
        async with self._lock:
            if self._next is turn:
                self._next = None
            if not turn.answer:
                turn.answer.append(await work())
        return turn.answer[0]
