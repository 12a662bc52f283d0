"""The supervisor's loop (I14)."""

from __future__ import annotations

import subprocess
import sys

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
