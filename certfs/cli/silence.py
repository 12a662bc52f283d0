"""Ending a command that waits for a file system which does not answer.

Any user can mount one that never does, and a call that waits for it ends with its process only (fuse.rst of the
kernel). So a thread looks whether the command gets on: it uses processor time, or waits for who reads its output.
"""

import select
import threading
import time
from collections.abc import Callable
from typing import Final

_TICK_SECONDS: Final = 0.25


def watch(seconds: float, give_up: Callable[[], None]) -> Callable[[], None]:
    """Call ``give_up``, in a thread, once the calling thread has stood still for so long; return what ends that."""
    ended = threading.Event()
    clock = time.pthread_getcpuclockid(threading.get_ident())
    threading.Thread(target=_look, args=(clock, seconds, ended, give_up), daemon=True).start()
    return ended.set


def _look(clock: int, seconds: float, ended: threading.Event, give_up: Callable[[], None]) -> None:
    used, still = 0.0, 0
    # Counted, not measured: a process that was stopped has not waited.
    while still < seconds / _TICK_SECONDS:
        if ended.wait(_TICK_SECONDS):
            return
        now = time.clock_gettime(clock)
        still = still + 1 if now == used and _takes_output() else 0
        used = now
    give_up()


def _takes_output() -> bool:
    """Whether what the command says is read: a pager that is full stops it as well."""
    poll = select.poll()
    for stream in (1, 2):
        poll.register(stream, select.POLLOUT)
    return len(poll.poll(0)) == 2  # noqa: PLR2004 - both
