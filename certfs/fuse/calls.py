"""Where a system call on the store is made: in a thread, and the event loop waits for it only a moment.

Owns the threads that make the handlers' calls. The loop hands a call over and waits for the answer itself, because a
call on a local filesystem is answered from memory: that costs 15 to 60 us, where a hop to a thread and back through
the loop costs 80 to 200 us. A call that is not back after a moment is left to its thread, and the loop goes on serving
everybody else: a store that is slow, frozen or gone delays those who ask it and nobody else.

Calls that only read are made on the loop itself, because a local filesystem answers them from memory and neither a
freeze nor a full journal keeps them waiting; once one of them was slow, they are handed over as well.
"""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar, TypeVarTuple, cast

import trio

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_MOMENT_SECONDS = 0.002
_WARY_SECONDS = 1.0
"""For how long after a slow call the loop makes none itself, and waits for none."""
_PROVEN_SECONDS = 0.05
"""For how long a change that came back at once vouches for the next ones."""
_SLOW_SECONDS = 0.02
"""A call on the loop that took longer was slow, and did not just wait for a busy processor."""
_IDLE_WORKERS = 8
"""So many threads stay when they have nothing to do."""


class _Call:
    """One call, made by a worker and waited for by the loop."""

    __slots__ = ("_done", "_error", "_function", "_leave", "_result")

    def __init__(self, function: Callable[[], object]) -> None:
        self._function = function
        self._done = threading.Lock()
        self._done.acquire()
        self._result: object = None
        self._error: BaseException | None = None
        self._leave: Callable[[], None] | None = None

    def make(self) -> None:
        """Make the call; in the worker."""
        try:
            self._result = self._function()
        except BaseException as e:  # noqa: BLE001 - raised again where the call came from
            self._error = e
        self._done.release()
        if self._leave is not None:
            self._leave()

    def is_done(self, seconds: float) -> bool:
        """Wait at most so long; whether the call is done."""
        return self._done.acquire(timeout=seconds)

    async def wait(self) -> None:
        """Wait until the call is done without keeping the loop waiting."""
        token = trio.lowlevel.current_trio_token()
        finished = trio.Event()

        def leave() -> None:
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(finished.set)

        # The worker looks at this after it is done, and we look for that after it is set: one of us sees the other.
        self._leave = leave
        if not self._done.acquire(blocking=False):
            with trio.CancelScope(shield=True):
                await finished.wait()

    def result(self) -> object:
        """Return what the call returned, or raise what it raised."""
        if self._error is not None:
            raise self._error
        return self._result


class _Worker:
    """A thread that makes one call at a time."""

    __slots__ = ("_call", "_wake")

    def __init__(self) -> None:
        self._call: _Call | None = None
        self._wake = threading.Lock()
        self._wake.acquire()
        threading.Thread(target=self._work, name="store call", daemon=True).start()

    def _work(self) -> None:
        while True:
            self._wake.acquire()
            call, self._call = self._call, None
            if call is None:
                return
            call.make()

    def start(self, call: _Call | None) -> None:
        """Let the thread make ``call``; None ends it."""
        self._call = call
        self._wake.release()


class Calls:
    """Makes calls on the store for the handlers; ``left`` counts those that the loop did not wait for."""

    def __init__(self) -> None:
        self._idle: list[_Worker] = []
        self._wary_until = 0.0
        self._stuck_until = 0.0
        self._proven_until = 0.0
        self.left = 0

    async def read(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """Return what ``function`` returns, which reads and hardly ever has to wait for it."""
        if time.monotonic() < self._wary_until:
            return await self.hand_over(function, *args)
        return self._make(function, *args)

    async def change(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """Return what ``function`` returns, which changes something and may have to wait for a journal or a freeze.

        A change that came back within the moment shows that neither is in the way; those right after it are made on
        the loop, so that a program that makes many does not pay for each.
        """
        now = time.monotonic()
        if self._wary_until <= now < self._proven_until:
            return self._make(function, *args)
        return await self.hand_over(function, *args)

    def _make(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        started = time.monotonic()
        try:
            return function(*args)
        finally:
            if time.monotonic() - started > _SLOW_SECONDS:
                self._wary_until = time.monotonic() + _WARY_SECONDS

    async def hand_over(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """Return what ``function`` returns, waiting for it a moment before others get their turn."""
        call = _Call(lambda: function(*args))
        worker = self._start(call)
        started = time.monotonic()
        if call.is_done(0 if started < self._stuck_until else _MOMENT_SECONDS):
            self._proven_until = time.monotonic() + _PROVEN_SECONDS
        else:
            self.left += 1
            await call.wait()
            if time.monotonic() - started > _SLOW_SECONDS:
                self._stuck_until = self._wary_until = time.monotonic() + _WARY_SECONDS
        self._free(worker)
        return cast("T", call.result())

    async def away(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """Return what ``function`` returns, which waits by its nature (fsync)."""
        call = _Call(lambda: function(*args))
        worker = self._start(call)
        self.left += 1
        await call.wait()
        self._free(worker)
        return cast("T", call.result())

    def _start(self, call: _Call) -> _Worker:
        worker = self._idle.pop() if self._idle else _Worker()
        worker.start(call)
        return worker

    def _free(self, worker: _Worker) -> None:
        if len(self._idle) < _IDLE_WORKERS:
            self._idle.append(worker)
        else:
            worker.start(None)

    def close(self) -> None:
        """End the threads that have nothing to do."""
        while self._idle:
            self._idle.pop().start(None)
