"""The rows about the processes themselves: how soon they serve, what they keep, what they do when nothing happens."""

from __future__ import annotations

import contextlib
import os
import re
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from scripts.benchmark.figures import Results
from scripts.benchmark.grounds import Ground, Grounds
from scripts.benchmark.timing import Plan, alternate

_SMALL, _LARGE = 64, 10000
_THREADS_REST_SECONDS = 12.0
"""trio's threads wait ten seconds for something to do before they end."""
_SWITCHES = re.compile(r"^(?:non)?voluntary_ctxt_switches:\t(\d+)$", re.MULTILINE)
_RESIDENT = re.compile(r"^VmRSS:\s+(\d+) kB$", re.MULTILINE)


def measure_mounting(grounds: Grounds, results: Results, rounds: int) -> None:
    """Measure the mount command in stores that were mounted before."""
    subjects = {str(count): partial(_remount, grounds[count]) for count in (_SMALL, _LARGE)}
    medians = alternate(subjects, Plan(0, rounds=rounds, warm=False))
    for count in grounds.counts:
        again = medians.get(str(count)) or _remount(grounds[count])
        results.point("mount", count, again)
        if count in {_SMALL, _LARGE}:
            results.add(f"mount-{count}", again, again=again, first=grounds[count].first_mount)


def _remount(ground: Ground) -> float:
    ground.settle()
    ground.unmount()
    return ground.mount()


def measure_memory(grounds: Grounds, results: Results) -> None:
    """Measure what the processes keep resident once they have served their bundle."""
    resident = {}
    for count in grounds.counts:
        ground = grounds[count]
        ground.settle()
        ground.certfs.bundle.read_bytes()
        resident[count] = _resident_kib(ground.pids)
        results.point("memory", count, resident[count])
    results.add("memory-64", resident[_SMALL] / 1024)
    slopes = {
        f"to-{count}": (resident[count] - resident[_SMALL]) / (count - _SMALL)
        for count in grounds.counts
        if count >= _LARGE
    }
    results.add("memory-slope", max(slopes.values()), **slopes)


def _resident_kib(pids: list[int]) -> int:
    return sum(
        int(size)
        for pid in pids
        for size in _RESIDENT.findall(Path(f"/proc/{pid}/status").read_text())
    )


def measure_idleness(grounds: Grounds, results: Results, seconds: float) -> None:
    """Measure how often the processes of one mount run, and for how long, while nobody asks them for anything."""
    ground = grounds[_SMALL]
    ground.settle()
    time.sleep(_THREADS_REST_SECONDS)
    pids = ground.pids
    before = _activity(pids)
    time.sleep(seconds)
    after = _activity(pids)
    done = sum(
        (after[thread] - before.get(thread, _Activity()) for thread in after), start=_Activity()
    )
    results.add(
        "idle-wakeups",
        (done.voluntary + done.involuntary) / seconds,
        seconds=seconds,
        voluntary=done.voluntary,
        involuntary=done.involuntary,
    )
    busy = done.nanoseconds / 1e9
    results.add("idle-cpu", busy / seconds * 100, seconds=seconds, busy=busy)


@dataclass(frozen=True, slots=True)
class _Activity:
    """What threads have done: context switches of both kinds, and time on a processor.

    The voluntary switches are their own doing; the involuntary ones come with a busy machine.
    """

    voluntary: int = 0
    involuntary: int = 0
    nanoseconds: int = 0

    def __add__(self, other: _Activity) -> _Activity:
        """Return what both have done."""
        return _Activity(
            self.voluntary + other.voluntary,
            self.involuntary + other.involuntary,
            self.nanoseconds + other.nanoseconds,
        )

    def __sub__(self, earlier: _Activity) -> _Activity:
        """Return what was done since ``earlier``."""
        return _Activity(
            self.voluntary - earlier.voluntary,
            self.involuntary - earlier.involuntary,
            self.nanoseconds - earlier.nanoseconds,
        )


def _activity(pids: list[int]) -> dict[str, _Activity]:
    """Return what every thread of these processes has done so far."""
    threads = {}
    for pid in pids:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(FileNotFoundError):
                task = Path(f"/proc/{pid}/task/{thread}")
                voluntary, involuntary = _SWITCHES.findall((task / "status").read_text())
                nanoseconds = (task / "schedstat").read_text().split()[0]
                threads[thread] = _Activity(int(voluntary), int(involuntary), int(nanoseconds))
    return threads
