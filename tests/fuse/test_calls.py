"""A call on the store that takes long delays those who ask for it and nobody else (I15, I18)."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from unittest.mock import patch

import pytest
import trio

from certfs.fuse.calls import Calls
from tests.support.mounts import wait_until


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


def slow() -> int:
    """Answer like a disk that has to be waited for."""
    time.sleep(0.03)
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
    assert [await calls.read(Disk().ask) for _ in range(100)] == [here] * 100
    assert calls.left == 0


async def test_a_change_is_made_in_a_thread(calls: Calls) -> None:
    """A full journal or a frozen filesystem keeps it waiting, and must not keep the loop."""
    assert await calls.change(Disk().ask) != threading.get_ident()


async def test_a_change_that_came_back_vouches_for_those_right_after_it(calls: Calls) -> None:
    """A program that makes many pays for the thread now and then, and not for a moment after a slow one."""
    here = threading.get_ident()
    with (
        patch("certfs.fuse.calls._PROVEN_SECONDS", 30.0),
        patch("certfs.fuse.calls._MOMENT_SECONDS", 10.0),
    ):
        await calls.change(Disk().ask)
        assert await calls.change(Disk().ask) == here
        assert await calls.change(slow) == here
        assert await calls.change(Disk().ask) != here


async def test_reads_leave_the_loop_once_one_was_slow(calls: Calls) -> None:
    """And come back when the store has been quick for a while."""
    here = threading.get_ident()
    assert await calls.read(slow) == here
    assert await calls.read(slow) != here
    deadline = time.monotonic() + 10
    while await calls.read(Disk().ask) != here:
        assert time.monotonic() < deadline
        await trio.sleep(0.05)


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


@pytest.mark.parametrize("method", ["read", "change", "away"])
async def test_an_error_is_the_caller_s(calls: Calls, method: str) -> None:
    """The guard turns it into an errno, wherever it happened."""
    with pytest.raises(OSError, match="Input/output"):
        await getattr(calls, method)(fail)


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
