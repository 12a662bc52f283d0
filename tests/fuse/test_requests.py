"""I15, I18: what a request experiences, and how long an answer waits."""

from __future__ import annotations

import logging
import time

import pytest
import trio

from certfs.fuse.patience import Patience
from certfs.fuse.requests import Requests, current_user, is_for, waiting_for_store


async def test_a_request_that_waits_for_another_is_seen() -> None:
    """I15: the age grows while the loop runs, and is nothing once it was answered."""
    requests = Requests()
    assert requests.oldest() == 0
    request = requests.begin(7)
    await trio.sleep(0.05)
    assert requests.oldest() >= 0.05
    requests.end(request)
    assert requests.oldest() == 0


async def test_a_request_that_waits_for_the_store_is_not() -> None:
    """I15: a slow store is no hang; and when it has answered, the time counts from then."""
    requests = Requests()
    request = requests.begin(7)
    with waiting_for_store():
        await trio.sleep(0.05)
        assert requests.oldest() == 0
        answered = time.monotonic()
    assert requests.oldest() <= time.monotonic() - answered
    requests.end(request)


async def test_a_request_is_for_who_opened_the_file() -> None:
    """Reads and writes carry no caller: they count for the user of the handle."""
    requests = Requests()
    request = requests.begin(0)
    is_for(7)
    assert current_user() == 7
    requests.end(request)


async def test_an_answer_waits_for_what_comes_in_time() -> None:
    """I1: what can be looked at is looked at."""
    patience = Patience(5)
    done = []

    async def work() -> None:
        await trio.sleep(0.01)
        done.append(True)

    assert await patience.wait_for("key", "name", work)
    assert done == [True]
    assert patience.overdue() == frozenset()


async def test_an_answer_waits_as_long_as_something_goes_on() -> None:
    """I1: what takes longer than the patience and makes progress is waited for to its end."""
    steps = 0

    async def work() -> None:
        nonlocal steps
        for _ in range(6):
            await trio.sleep(0.1)
            steps += 1

    assert await Patience(0.3).wait_for("key", "bundle.pem", work, progress=lambda: steps)
    assert steps == 6


async def test_an_answer_does_not_wait_for_what_never_ends(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """I18: who may write sources may give us any amount to read, and keeps no reader waiting beyond a bound."""
    steps = 0

    async def work() -> None:
        nonlocal steps
        with trio.move_on_after(30):
            while True:
                steps += 1
                await trio.sleep(0.01)

    patience = Patience(0.2, most=0.5)
    started = time.monotonic()
    assert not await patience.wait_for("key", "bundle.pem", work, progress=lambda: steps)
    assert time.monotonic() - started < 10
    assert patience.overdue() == {"key"}
    assert "its sources are not read yet" in caplog.text


async def test_an_answer_waits_while_the_process_stands_still() -> None:
    """I1: the time in which this process did not run at all is no patience spent."""

    async def work() -> None:
        time.sleep(0.5)  # noqa: ASYNC251 - nothing of this process is to run
        await trio.sleep(0.05)

    assert await Patience(0.3).wait_for("key", "bundle.pem", work)


async def test_an_answer_does_not_wait_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    """I18: it waits once, then not at all until the store answers; the log says both, once."""
    patience = Patience(0.05)
    store = trio.Event()
    begun = 0

    async def work() -> None:
        nonlocal begun
        begun += 1
        await store.wait()

    with caplog.at_level(logging.INFO):
        assert not await patience.wait_for("key", "bundle.pem", work)
        started = time.monotonic()
        for _ in range(100):
            assert not await patience.wait_for("key", "bundle.pem", work)
        assert time.monotonic() - started < 1
        assert begun == 1
        assert patience.overdue() == {"key"}
        store.set()
        await trio.testing.wait_all_tasks_blocked()
        assert await patience.wait_for("key", "bundle.pem", work)
    assert [record.levelno for record in caplog.records] == [logging.WARNING, logging.INFO]


async def test_a_bug_in_what_is_waited_for_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """I16: it is logged, and the last known content counts."""

    async def work() -> None:
        raise ValueError("a bug")

    assert await Patience(5).wait_for("key", "bundle.pem", work)
    assert "bundle.pem" in caplog.text
