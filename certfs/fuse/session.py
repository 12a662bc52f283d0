"""How the tasks of pyfuse3's session wait for the next request.

Owns a stand-in for the parts of trio that pyfuse3's session loop uses; pyfuse3 has its name for them replaced, as its
own ``pyfuse3.asyncio`` does. With trio's lock a request costs three system calls and two rounds of the scheduler
before it is read; here a task that answered looks whether the next request is there already, and sleeps only if not
(measured in ``docs/performance.md``).

Concurrency: at most one task sleeps on the descriptor, the others are parked behind it. Between a task's look at the
descriptor and its read of the request there is no await, so nobody else can take it away.
"""

import select
from types import ModuleType

import pyfuse3
import trio

_REQUESTS_IN_A_ROW = 16
"""So many requests are answered before other tasks get their turn."""


class _Gate:
    """Where tasks wait for a request."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._registered = -1
        self._parked = trio.lowlevel.ParkingLot()
        self._sleeping = False
        self._closed = False
        self._row = 0

    def _is_readable(self, fd: int) -> bool:
        if self._registered != fd:
            self._poll.register(fd, select.POLLIN)
            self._registered = fd
        return bool(self._poll.poll(0))

    async def wait_readable(self, fd: int) -> None:
        """Return when there is a request to be read."""
        self._row += 1
        if self._row >= _REQUESTS_IN_A_ROW:
            self._row = 0
            await trio.lowlevel.checkpoint()
        if self._is_readable(fd):
            return
        while True:
            while self._sleeping:
                await self._parked.park()
            if self._closed:
                raise trio.ClosedResourceError
            await self._sleep(fd)
            if self._is_readable(fd):
                return

    async def _sleep(self, fd: int) -> None:
        self._sleeping = True
        self._row = 0
        try:
            await trio.lowlevel.wait_readable(fd)
        except trio.ClosedResourceError:
            self._closed = True
            self._parked.unpark_all()
            raise
        finally:
            self._sleeping = False
            # Should this task's request take long, somebody else has to listen.
            self._parked.unpark()


class _NoLock:
    """In the place of the lock around the wait: the gate lets one task through at a time."""

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, *_: object) -> None:
        pass


class _StandIn(ModuleType):
    def __init__(self, original: ModuleType, **replaced: object) -> None:
        super().__init__(original.__name__)
        self.__dict__.update(original.__dict__)
        self.__dict__.update(replaced)


def install() -> None:
    """Let pyfuse3 use these; before ``pyfuse3.main``."""
    gate = _Gate()
    lowlevel = _StandIn(trio.lowlevel, wait_readable=gate.wait_readable)
    pyfuse3.trio = _StandIn(trio, lowlevel=lowlevel, Lock=_NoLock)  # type: ignore[attr-defined]
