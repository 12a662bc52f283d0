"""When a reader is told: a pure state for each order, and the events that change it.

An *order* is one thing to run (reload a unit, signal a process, run a command) and what it is about, its *content*: a
hash of one or several bundles. Owns delays, the interval between runs, retries, and what has to survive a crash so that
the reader is told at least once of the last content (promise I21). Times are seconds of a monotonic clock.

======== ============================== ================================================
state    meaning                        leaves it by
======== ============================== ================================================
settled  told of what there is          `seen` something else: waiting
waiting  something untold, run is due   `begun`: running; `seen` what was told: settled
running  a run is under way             `ended` well: settled, or waiting if more was seen
                                        meanwhile; `ended` badly: waiting, with a back-off
======== ============================== ================================================

The record is written when the process first starts, and before and after each run. So after a crash in the middle of
one the reader is told again, also if the content is by then what it was before: the reader may have seen what was in
between.
"""

from dataclasses import dataclass, replace
from typing import Final

FIRST_RETRY_SECONDS: Final = 1.0
LONGEST_RETRY_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How patient an order is, in seconds."""

    delay: float = 0.5
    """A run waits until nothing has changed for so long ..."""
    max_delay: float = 5.0
    """... but under constant change no longer than this."""
    min_interval: float = 10.0
    """Between the beginnings of two runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What survives the process: the content told last, whether a run may have begun since, and when one began last."""

    told: str
    dirty: bool = False
    failures: int = 0
    last_run: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where an order stands."""

    told: str
    wanted: str
    dirty: bool = False
    failures: int = 0
    running: str | None = None
    first_change: float | None = None
    """When the first change came that no run has begun for."""
    last_change: float | None = None
    last_run: float | None = None
    retry_at: float | None = None

    @property
    def record(self) -> Record:
        """What is to be kept."""
        return Record(
            told=self.told, dirty=self.dirty, failures=self.failures, last_run=self.last_run
        )

    @property
    def is_settled(self) -> bool:
        """Whether the reader was told of what there is."""
        return self.running is None and not self.is_waiting

    @property
    def is_waiting(self) -> bool:
        """Whether a run is owed."""
        return self.running is None and (self.dirty or self.wanted != self.told)


def resumed(record: Record | None, content: str, now: float) -> Progress:
    """Return where an order stands when the process starts; without a record what there is counts as told."""
    if record is None:
        return Progress(told=content, wanted=content)
    ran = record.last_run
    started = Progress(
        told=record.told,
        wanted=content,
        dirty=record.dirty,
        failures=record.failures,
        last_run=ran if ran is not None and ran <= now else None,  # later: of another boot
    )
    return replace(started, first_change=now, last_change=now) if started.is_waiting else started


def seen(progress: Progress, content: str, now: float) -> Progress:
    """Take note of the content that there is now."""
    if content == progress.wanted:
        return progress
    is_undone = content == progress.told and not progress.dirty
    if is_undone:
        return replace(
            progress, wanted=content, failures=0, first_change=None, last_change=None, retry_at=None
        )
    first = progress.first_change
    return replace(
        progress,
        wanted=content,
        failures=0,
        first_change=now if first is None else first,
        last_change=now,
        # A new content is a new order: what failed before says nothing about it.
        retry_at=None,
    )


def due(progress: Progress, timing: Timing) -> float | None:
    """Return when the next run may begin, None if none is owed."""
    if not progress.is_waiting:
        return None
    times = []
    if progress.first_change is not None and progress.last_change is not None:
        quiet = progress.last_change + timing.delay
        times.append(min(quiet, progress.first_change + timing.max_delay))
    if progress.last_run is not None:
        times.append(progress.last_run + timing.min_interval)
    if progress.retry_at is not None:
        times.append(progress.retry_at)
    return max(times, default=0.0)


def begun(progress: Progress, now: float) -> Progress:
    """Take note that a run begins; what this returns must be recorded before it does."""
    return replace(
        progress,
        running=progress.wanted,
        dirty=True,
        last_run=now,
        first_change=None,
        last_change=None,
        retry_at=None,
    )


def ended(progress: Progress, now: float, *, well: bool) -> Progress:
    """Take note that the run is over."""
    told = progress.running
    if told is None:
        return progress
    if well:
        return replace(progress, told=told, running=None, dirty=False, failures=0, retry_at=None)
    failures = progress.failures + 1
    wait = min(FIRST_RETRY_SECONDS * 2.0 ** min(failures - 1, 16), LONGEST_RETRY_SECONDS)
    is_superseded = progress.wanted != told
    return replace(
        progress,
        running=None,
        failures=failures,
        retry_at=None if is_superseded else now + wait,
    )
