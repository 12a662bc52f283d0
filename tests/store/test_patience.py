"""Waiting for file systems that may not answer, on a machine that has other things to do (I1)."""

from __future__ import annotations

import hashlib
import threading
import time
from pathlib import Path

import pytest
import trio

from certfs.store.link_probe import LinkProbe
from certfs.store.patience import MOST_SECONDS, PATIENCE_SECONDS, STEP_SECONDS, PatientCall, Waited


async def test_an_answer_is_waited_for_while_this_process_stands_still() -> None:
    """I1: a process that had no processor for longer than the patience takes nothing for silent because of that."""
    answered = threading.Event()

    async def stand_still() -> None:
        time.sleep(2 * PATIENCE_SECONDS)  # noqa: ASYNC251 - nothing of this process is to run
        trio.lowlevel.current_trio_token().run_sync_soon(answered.set)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stand_still)
        assert await PatientCall().run(lambda: answered.wait(30))


def compute(seconds: float) -> bool:
    """Keep a processor busy without Python's lock, as a call does that is answered from memory, and never wait."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        hashlib.pbkdf2_hmac("sha256", b"certfs", b"certfs", 20_000)
    return True


async def test_a_call_that_waits_for_a_processor_alone_is_waited_for() -> None:
    """I1: on a busy machine a thread that could go on says nothing of its file system; one that sleeps does."""
    assert await PatientCall().run(lambda: compute(3 * PATIENCE_SECONDS))
    with pytest.raises(TimeoutError):
        await PatientCall().run(lambda: time.sleep(3 * PATIENCE_SECONDS))


async def test_what_computes_for_ever_is_not_waited_for_for_ever() -> None:
    """I18: other threads of this process may be busy all the time."""
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        await PatientCall().run(lambda: compute(2 * MOST_SECONDS))
    assert time.monotonic() - started >= MOST_SECONDS


def test_a_link_is_waited_for_while_its_thread_waits_for_a_processor_alone(
    directory: int, tmp_path: Path
) -> None:
    """I1: a link's target on a busy machine is not taken for one that does not answer."""
    (tmp_path / "a.pem").symlink_to("place/a.pem")
    probe = LinkProbe()
    answers = probe.ask(directory, [b"a.pem"], lambda _fd, _name: compute(0.8), patience=0.2)
    assert (answers, probe.silent) == ({b"a.pem": True}, set())


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
