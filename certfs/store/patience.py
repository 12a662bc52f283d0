"""Asking file systems that may not answer, for a bounded time, and for all who want to know at once.

Owns the two ways in which many askers cost no more than one: a call that is not back in time is left to its thread, and
none of its kind is made until it is (`PatientCall`); and who asks while an answer is under way shares the next one
(`Shared`).
"""

import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import trio

PATIENCE_SECONDS: Final = 0.4
"""Less than what an open of a bundle waits for all of it together (`certfs.fuse.patience`)."""

T = TypeVar("T")


class PatientCall:
    """One blocking call at a time, each waited for `PATIENCE_SECONDS`."""

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

        with trio.move_on_after(PATIENCE_SECONDS):
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
