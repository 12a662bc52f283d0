"""A call on the store that takes long delays those who ask for it and nobody else (I15, I18)."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import trio

from certfs.fuse.calls import Calls
from tests.support.mounts import wait_until

LOCAL, ELSEWHERE = True, False


class Disk:
    """Answers with the thread that asked it; frozen, it answers when it thaws."""

    def __init__(self) -> None:
        self._thawed = threading.Event()
        self._thawed.set()

    def freeze(self) -> None:
        """Answer nobody."""
        self._thawed.clear()

    def thaw(self) -> None:
        """Answer again."""
        self._thawed.set()

    def ask(self) -> int:
        """Give the thread that makes this call."""
        assert self._thawed.wait(30)
        return threading.get_ident()


def fail() -> None:
    """Fail as a disk does."""
    raise OSError(5, "Input/output error")


@pytest.fixture
def calls() -> Iterator[Calls]:
    """Give what makes the calls; its threads end with it."""
    made = Calls()
    yield made
    made.close()


async def test_a_quick_read_is_made_on_the_loop(calls: Calls) -> None:
    """A hop to a thread would cost as much as the request."""
    here = threading.get_ident()
    assert [await calls.look(LOCAL, Disk().ask) for _ in range(100)] == [here] * 100
    assert calls.left == 0


async def test_a_change_is_made_in_a_thread(calls: Calls) -> None:
    """A full journal or a frozen filesystem keeps it waiting, and must not keep the loop."""
    assert await calls.change(Disk().ask) != threading.get_ident()


async def test_every_change_is_made_in_a_thread(calls: Calls) -> None:
    """I15: that the ones before were quick says nothing: the store may have been frozen since."""
    here = threading.get_ident()
    assert here not in [await calls.change(Disk().ask) for _ in range(100)]


async def test_what_is_not_on_a_local_store_is_looked_at_in_a_thread(calls: Calls) -> None:
    """I15: a network or another FUSE server may never answer."""
    assert await calls.look(ELSEWHERE, Disk().ask) != threading.get_ident()


@pytest.mark.parametrize("method", ["change", "away"])
async def test_a_frozen_store_delays_only_those_who_ask(calls: Calls, method: str) -> None:
    """I15: while a hundred calls wait for it, the loop goes on, and each gets its answer."""
    disk = Disk()
    disk.freeze()
    answers: list[int] = []

    async def ask() -> None:
        answers.append(await getattr(calls, method)(disk.ask))

    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(ask)
        longest = 0.0
        for _ in range(50):
            started = time.monotonic()
            await trio.sleep(0.001)
            longest = max(longest, time.monotonic() - started)
        assert answers == []
        disk.thaw()
    assert len(answers) == 100
    assert longest < 5


def test_threads_that_have_nothing_to_do_are_few(calls: Calls) -> None:
    """I18: a burst of slow calls leaves a handful of threads, and closing leaves none."""
    disk = Disk()
    disk.freeze()
    before = threading.active_count()

    async def burst() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(60):
                nursery.start_soon(calls.change, disk.ask)
            await trio.sleep(0.3)
            disk.thaw()

    trio.run(burst)
    wait_until(lambda: threading.active_count() <= before + 8, what="the end of most threads")
    calls.close()
    wait_until(lambda: threading.active_count() <= before, what="the end of all threads")


@pytest.mark.parametrize("method", ["change", "away"])
async def test_an_error_is_the_caller_s(calls: Calls, method: str) -> None:
    """The guard turns it into an errno, wherever it happened."""
    with pytest.raises(OSError, match="Input/output"):
        await getattr(calls, method)(fail)
    with pytest.raises(OSError, match="Input/output"):
        await calls.look(LOCAL, fail)


async def test_a_call_that_was_begun_is_waited_for(calls: Calls) -> None:
    """I11: a cancelled request does not leave a change half known: the descriptor stays until it is made."""
    disk = Disk()
    disk.freeze()
    finished = False

    async def ask() -> None:
        nonlocal finished
        await calls.change(disk.ask)
        finished = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.sleep(0.05)
        nursery.cancel_scope.cancel()
        disk.thaw()
    assert finished
