"""The supervisor's loop (I14)."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from certfs.supervisor import event_loop
from certfs.supervisor.event_loop import EventLoop

_PROGRAM = """
import os, signal, sys
from certfs.supervisor.event_loop import EventLoop

ending = (signal.SIGTERM, signal.SIGINT)
loop = EventLoop()
loop.on_signals((*ending, signal.SIGCHLD), print)
for number in (signal.SIGTERM, signal.SIGCHLD):
    os.kill(os.getpid(), number)
signal.pthread_sigmask(signal.SIG_BLOCK, ending)
os.kill(os.getpid(), signal.SIGINT)
loop.raise_again()
program = "import signal; print(sorted(signal.sigpending()))"
os.execv(sys.executable, [sys.executable, "-c", program])
"""


def test_a_signal_that_was_noted_is_not_lost_with_the_program() -> None:
    """What arrived before a supervisor becomes another program, and was not dispatched, reaches that one (I14, I17)."""
    ran = subprocess.run(
        [sys.executable, "-c", _PROGRAM], check=True, capture_output=True, text=True, timeout=60
    )
    assert ran.stdout == "[<Signals.SIGINT: 2>, <Signals.SIGTERM: 15>]\n"


@pytest.mark.parametrize("where", ["asleep", "in a callback"])
def test_a_loop_that_was_held_up_says_so_before_a_deadline_counts(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who was stopped itself, wherever that was, takes nobody else for silent (I15)."""
    monkeypatch.setattr(event_loop, "_LATE_SECONDS", 0.1)
    readable, writable = os.pipe()
    loop = EventLoop()
    happened: list[str] = []

    def held_up() -> None:
        happened.append("held up")
        loop.after("beat", 60, lambda: happened.append("silent"))

    loop.after("beat", 0.05, lambda: happened.append("silent"))
    if where == "in a callback":
        os.write(writable, b"x")
        loop.watch(readable, lambda: time.sleep(0.4))
    else:
        time.sleep(0.4)
    loop.step(held_up)
    assert set(happened) == {"held up"}
    os.close(readable)
    os.close(writable)


def test_a_deadline_that_is_met_counts() -> None:
    """A loop that wakes up in time does what is due, and has not been held up."""
    loop = EventLoop()
    happened: list[str] = []
    loop.after("beat", 0.01, lambda: happened.append("silent"))
    loop.step(lambda: happened.append("held up"))
    assert happened == ["silent"]
