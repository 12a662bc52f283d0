"""Where a system call on the store is made: on the event loop or in a thread.

Owns the threads that make the handlers' calls. The loop itself makes only what needs no waiting: looking at an inode or
a name that the kernel has in memory, on a local file system (``certfs.store.cached``). Everything else is made by a
worker: whatever changes something may wait for a journal, a freeze or a lease, and whatever another file system answers
may wait for ever.

The loop hands a call over and waits for the answer itself for a moment, because a call on a local file system is back
in 15 to 60 us, where a way back through the loop costs 80 to 200 us. A call that is not back by then is left to its
thread, and while there is such a call none is waited for: a store that is slow, frozen or gone delays those who ask it.
"""

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar, TypeVarTuple, cast

import trio

from certfs.fuse.requests import current_user, current_weight, waiting_for_store
from certfs.fuse.slots import Slots

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_MOMENT_SECONDS = 0.002
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
    """Makes calls on the store for the handlers.

    ``left`` counts the calls that the loop did not wait for, ``overdue`` those of them that are not back and do not
    take long by their nature.
    """

    def __init__(self, slots: Slots | None = None) -> None:
        self._slots = slots or Slots()
        self._idle: list[_Worker] = []
        self._unwanted: list[int] = []
        self.left = 0
        self.overdue = 0

    async def look(self, local: bool, function: Callable[[*Ts], T], *args: *Ts) -> T:  # noqa: FBT001
        """Return what ``function`` returns, which looks at an inode that is in memory; ``local``: on a local store."""
        return function(*args) if local else await self.change(function, *args)

    async def change(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """Return what ``function`` returns, which may wait; the loop waits a moment before others get their turn."""
        user = current_user()
        if not self._slots.try_enter(user):
            with waiting_for_store():
                await self._slots.enter(user, current_weight())
        try:
            call = _Call(lambda: function(*args))
            worker = self._start(call)
            if not call.is_done(0 if self.overdue else _MOMENT_SECONDS):
                self.left += 1
                self.overdue += 1
                try:
                    with waiting_for_store():
                        await call.wait()
                finally:
                    self.overdue -= 1
            self._free(worker)
        finally:
            self._slots.leave(user)
        return cast("T", call.result())

    async def away(self, function: Callable[[*Ts], T], *args: *Ts) -> T:
        """Return what ``function`` returns, which waits by its nature (fsync)."""
        user = current_user()
        with waiting_for_store():
            await self._slots.enter(user, current_weight())
            try:
                call = _Call(lambda: function(*args))
                worker = self._start(call)
                self.left += 1
                await call.wait()
                self._free(worker)
            finally:
                self._slots.leave(user)
        return cast("T", call.result())

    def let_go(self, fd: int, *, local: bool) -> None:
        """Close a descriptor that nobody needs any more, and do not wait for it.

        The last one of a file without a name frees its blocks, which waits for a journal or a freeze.
        """
        if local and os.stat(fd).st_nlink:
            os.close(fd)
            return
        self._unwanted.append(fd)
        if len(self._unwanted) == 1:
            try:
                trio.lowlevel.spawn_system_task(self._close_unwanted)
            except RuntimeError:
                # There is no loop any more, or not yet.
                _close_all(self._unwanted)
                self._unwanted = []

    async def _close_unwanted(self) -> None:
        unwanted, self._unwanted = self._unwanted, []
        await self.away(_close_all, unwanted)

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


def _close_all(descriptors: list[int]) -> None:
    for fd in descriptors:
        os.close(fd)
