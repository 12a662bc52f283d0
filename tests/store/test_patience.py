"""Waiting for file systems that may not answer, on a machine that has other things to do (I1)."""

from __future__ import annotations

import threading
import time

import pytest
import trio

from certfs.store.patience import PATIENCE_SECONDS, STEP_SECONDS, PatientCall, Waited


async def test_an_answer_is_waited_for_while_this_process_stands_still() -> None:
    """I1: a process that had no processor for longer than the patience takes nothing for silent because of that."""
    answered = threading.Event()

    async def stand_still() -> None:
        time.sleep(2 * PATIENCE_SECONDS)  # noqa: ASYNC251 - nothing of this process is to run
        trio.lowlevel.current_trio_token().run_sync_soon(answered.set)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stand_still)
        assert await PatientCall().run(lambda: answered.wait(30))


async def test_what_does_not_answer_is_left_alone() -> None:
    """I18: it is waited for once, and not again before it is back."""
    returning = threading.Event()
    call = PatientCall()
    with pytest.raises(TimeoutError):
        await call.run(returning.wait)
    with pytest.raises(TimeoutError):
        await call.run(lambda: True)
    returning.set()
    with trio.fail_after(30):
        while call.is_silent:  # noqa: ASYNC110 - a thread tells of it
            await trio.sleep(0.01)
    assert await call.run(lambda: True)


def test_a_long_step_counts_for_one() -> None:
    """A wait is measured in steps, however long each of them took."""
    waited = Waited()
    time.sleep(3 * STEP_SECONDS)
    assert waited.step() == STEP_SECONDS
    waited.restart()
    assert waited.step() < STEP_SECONDS
