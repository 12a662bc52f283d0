"""The rows about readers that are told (promise I21): how soon, and what it costs those who read meanwhile.

Owns a reader that keeps what it has read and is told by a signal: this process. What it is compared with is told by a
systemd path unit, in the same run (`scripts.benchmark.pathunit`).
"""

from __future__ import annotations

import os
import signal
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

from inotify_simple import INotify, flags

from certfs.server.announcing import INTERVAL_SECONDS
from scripts.benchmark.bundles import read_whole
from scripts.benchmark.figures import Results
from scripts.benchmark.grounds import Ground, Grounds
from scripts.benchmark.pem import Pem
from scripts.benchmark.timing import wait_until

_SIGNAL = signal.SIGUSR1
_PATIENCE = 60.0
_BESIDE_SECONDS = 0.06
"""For so long after a change a bundle is read: as an announcer lives."""
_CONFIGURATION = """
[[notify]]
bundles = ["stunnel/xapi-pool-ca-bundle.pem"]
pid_file = "{pid_file}"
process = "{process}"
signal = "USR1"
delay = 0
max_delay = 0
min_interval = 0
"""


class Told:
    """A mount that tells this process of each change, and when it was told last."""

    def __init__(self, ground: Ground, pems: Iterator[Pem]) -> None:
        self._ground = ground
        self._pems = pems
        self._times: list[float] = []
        signal.signal(_SIGNAL, lambda *_: self._times.append(time.perf_counter()))
        base = ground.store.root.parent
        pid_file, configuration = base / "pid", base / "certfs.toml"
        pid_file.write_text(str(os.getpid()))
        process = Path("/proc/self/comm").read_text().rstrip("\n")
        configuration.write_text(_CONFIGURATION.format(pid_file=pid_file, process=process))
        ground.mount("--config", configuration)
        wait_until(lambda: any(base.glob("run/notify-*")), seconds=_PATIENCE, what="the notifier")

    def change(self) -> float:
        """Copy a certificate in and wait for the signal; return the seconds since the end of the copy."""
        pem = next(self._pems)
        tree = self._ground.certfs
        copy = tree.sources / f"0000-{pem.name}"
        self._times.clear()
        copy.write_bytes(pem.text)
        started = time.perf_counter()
        self._wait()
        if not read_whole(tree.bundle).startswith(pem.text):
            raise AssertionError(f"{tree.bundle} is not what its reader was told of")
        taken = self._times[0] - started
        self._times.clear()
        copy.unlink()
        self._wait()
        return taken

    def _wait(self) -> None:
        deadline = time.monotonic() + _PATIENCE
        while not self._times:
            if time.monotonic() > deadline:
                raise TimeoutError("the reader was not told")
            time.sleep(0.001)  # a signal ends the sleep (PEP 475: and it is begun again)


def measure_announcing(grounds: Grounds, results: Results, rounds: int) -> None:
    """Measure reading a bundle while its change is announced to watchers, against reading it after one that is not."""
    ground = grounds[64]
    pems = iter(grounds.template)
    beside: list[float] = []
    alone: list[float] = []
    with INotify() as watch:
        watch.add_watch(str(ground.certfs.bundle.parent), flags.MOVED_TO)
        for _ in range(rounds):
            # What was changed before is announced by then, and the interval over: the next change is announced at once.
            time.sleep(2 * INTERVAL_SECONDS + 1)
            watch.read(timeout=0)
            pem = next(pems)
            copy = ground.certfs.sources / f"0000-{pem.name}"
            copy.write_bytes(pem.text)
            beside += _readings(ground.certfs.bundle)
            if not watch.read(timeout=1000):
                raise AssertionError("the change was not announced while it was read")
            copy.unlink()
            alone += _readings(ground.certfs.bundle)
            if watch.read(timeout=0):
                raise AssertionError("the second change was announced before its time")
    # Not the mean: what else runs on this machine has moments of its own.
    medians = {"announced": statistics.median(beside), "not": statistics.median(alone)}
    results.add("announced-64", medians["announced"] / medians["not"], **medians)


def _readings(bundle: Path) -> list[float]:
    """Return the seconds of each whole reading, while an announcer would be alive."""
    started = before = time.perf_counter()
    times = []
    while before < started + _BESIDE_SECONDS:
        read_whole(bundle)
        now = time.perf_counter()
        times.append(now - before)
        before = now
    return times
