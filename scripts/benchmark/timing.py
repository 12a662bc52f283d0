"""Measuring side by side: every subject in turn, over and over, and the median of each.

A machine that others use too is slower at one moment than at the next; subjects that take turns suffer alike.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

Operation = Callable[[], float]
"""Does something once and returns how many seconds the part that counts took."""


_PROCESSORS = os.sched_getaffinity(0)
"""Those that a run may use."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How long to measure: at least ``rounds`` rounds, and more until ``seconds`` are over.

    In each round a subject is measured ``batch`` times in a row, the ``slow`` one once. With ``warm`` each is run once
    before, so that everything is in memory.
    """

    seconds: float
    rounds: int = 3
    batch: int = 1
    slow: str = ""
    warm: bool = True


def alternate(subjects: Mapping[str, Operation], plan: Plan) -> dict[str, float]:
    """Return the median seconds of each subject."""
    times: dict[str, list[float]] = {name: [] for name in subjects}
    order = list(subjects)
    for operation in subjects.values() if plan.warm else ():
        operation()
    deadline = time.perf_counter() + plan.seconds
    done = 0
    with _without_collector():
        while done < plan.rounds or time.perf_counter() < deadline:
            for name in order:
                operation = subjects[name]
                batch = 1 if name == plan.slow else plan.batch
                times[name].extend(operation() for _ in range(batch))
            # Whoever comes after the slowest one must not always be the same.
            order.reverse()
            done += 1
    return {name: statistics.median(values) for name, values in times.items()}


def place(pids: Iterable[int], *, together: bool) -> None:
    """Keep this process and those, with all their threads, on one processor, or leave them to the scheduler.

    Where the scheduler puts a client and its server decides by a factor of four what a request takes, for all servers
    alike, and stays so for a while. Processes that are started later are where their parent is.
    """
    processors = {min(_PROCESSORS)} if together else _PROCESSORS
    for pid in (os.getpid(), *pids):
        with suppress(FileNotFoundError):
            for task in os.listdir(f"/proc/{pid}/task"):
                with suppress(ProcessLookupError):
                    os.sched_setaffinity(int(task), processors)


@contextmanager
def _without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def wait_until(reached: Callable[[], bool], *, seconds: float, what: str) -> None:
    """Poll until ``reached`` says yes; TimeoutError after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} was not reached in {seconds:.0f} s")
        time.sleep(0.005)
