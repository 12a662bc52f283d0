"""How long an answer waits for something that may never come.

Owns the bounds: after a moment in which nothing went on, or after `MOST_SECONDS` in which something did, the last known
is answered, and at once as long as what was waited for is not done. What was begun goes on in the background.
"""

import logging
from collections.abc import Awaitable, Callable, Hashable
from typing import TypeVarTuple

import trio

from certfs.fuse.requests import waiting_for_store
from certfs.store.patience import STEP_SECONDS, Waited

log = logging.getLogger(__name__)

Ts = TypeVarTuple("Ts")

SECONDS = 0.6
"""How long an answer waits; with all else that it takes a bundle is opened within a second (promise I18)."""
MOST_SECONDS = 10.0
"""How long it waits in all, where what is waited for goes on: who writes sources may give us any amount to read."""
WHILE_OVERDUE_SECONDS = 0.05
"""How long for what the same store is asked while it owes another answer: a path has several steps."""


class Patience:
    """What is waited for, by key."""

    def __init__(self, seconds: float = SECONDS, *, most: float = MOST_SECONDS) -> None:
        self._seconds = seconds
        self._most = most
        self._overdue: dict[Hashable, int] = {}

    def overdue(self) -> frozenset[Hashable]:
        """Return the keys of what is not done in time."""
        return frozenset(self._overdue)

    async def wait_for(
        self,
        key: Hashable,
        name: str,
        work: Callable[[*Ts], Awaitable[None]],
        *args: *Ts,
        step: bool = False,
        progress: Callable[[], int] = lambda: 0,
    ) -> bool:
        """Do ``work`` and wait for it; False if it is not done, now or since earlier.

        ``name`` is for the log; ``step`` says that it is one of several that the same store is asked for. As long as
        ``progress`` returns another number each time, it is waited for, up to ``most`` seconds.
        """
        if key in self._overdue:
            return False
        done = trio.Event()
        is_late = False

        async def run() -> None:
            try:
                await work(*args)
            except Exception:
                log.exception("%s: what is to be looked at before an answer failed", name)
            finally:
                done.set()
                if is_late:
                    self._is_done(key, name)

        trio.lowlevel.spawn_system_task(run)
        seconds = WHILE_OVERDUE_SECONDS if step and self._overdue else self._seconds
        waited, total, reached = Waited(for_threads=True), Waited(), progress()
        with waiting_for_store():
            while waited.step() < seconds and total.step() < self._most and not done.is_set():
                with trio.move_on_after(min(seconds, STEP_SECONDS)):
                    await done.wait()
                if reached != progress():
                    reached = progress()
                    waited.restart()
        if done.is_set():
            return True
        is_late = True
        self._overdue[key] = self._overdue.get(key, 0) + 1
        if self._overdue[key] == 1:
            goes_on = waited.seconds < seconds
            why = "its sources are not read yet" if goes_on else "the store does not answer"
            log.warning("%s: %s; the last known content is served until then", name, why)
        return False

    def _is_done(self, key: Hashable, name: str) -> None:
        self._overdue[key] -= 1
        if not self._overdue[key]:
            del self._overdue[key]
            log.info("%s: the store answers again", name)
