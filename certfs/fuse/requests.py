"""The requests that are being handled: for whom, since when, and whether they wait for the store.

Owns the number by which the supervisor's side tells a server that hangs from one whose store is slow (promise I15): the
age of the oldest request that does not wait for the store. A request that waits for the store may take for ever, and
nobody is to be ended for that.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

ROOT_USER = 0

_WEIGHED = 64 << 10


class Request:
    """One request: the user who asks, and what it waits for."""

    __slots__ = ("since", "user", "waits_for_store", "weight")

    def __init__(self, user: int) -> None:
        self.user = user
        self.since = time.monotonic()
        self.waits_for_store = 0
        self.weight = 1


_current: ContextVar[Request | None] = ContextVar("request", default=None)


def current_user() -> int:
    """Return the user whose request this task handles; root for our own work."""
    request = _current.get()
    return ROOT_USER if request is None else request.user


def current_weight() -> int:
    """Return how much of a share the request takes while it waits."""
    request = _current.get()
    return 1 if request is None else request.weight


def is_for(user: int, size: int = 0) -> None:
    """Say whose request this task handles, where the kernel does not: who opened a file reads and closes it.

    ``size`` is how many bytes came with it, which are kept while it waits.
    """
    request = _current.get()
    if request is not None:
        request.user = user
        request.weight = 1 + size // _WEIGHED


@contextmanager
def waiting_for_store() -> Iterator[None]:
    """Do something that takes as long as the store does."""
    request = _current.get()
    if request is None:
        yield
        return
    request.waits_for_store += 1
    try:
        yield
    finally:
        request.waits_for_store -= 1
        request.since = time.monotonic()


class Requests:
    """All requests that are being handled."""

    def __init__(self) -> None:
        self._handled: set[Request] = set()

    def __len__(self) -> int:
        return len(self._handled)

    def begin(self, user: int) -> Request:
        """Take note that this task handles a request from now on."""
        request = Request(user)
        self._handled.add(request)
        _current.set(request)
        return request

    def end(self, request: Request) -> None:
        """Take note that it was answered."""
        self._handled.discard(request)

    def oldest(self) -> float:
        """Return for how many seconds the oldest request has been handled that does not wait for the store."""
        begun = [each.since for each in self._handled if not each.waits_for_store]
        return time.monotonic() - min(begun) if begun else 0.0
