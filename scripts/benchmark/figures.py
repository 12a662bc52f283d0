"""What a figure is: its target, its result, and how the two compare.

Owns the table of targets, so that every row has one place where its bound is stated.
"""

from __future__ import annotations

import enum
import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path

GROSS = 3.0
"""A result this many times beyond what it should be is a regression; anything less may be the machine."""

_RECORDED = Path(__file__).resolve().parents[2] / "docs" / "performance" / "bench.json"
"""The last full run: a row that has never reached its target is a regression only beside what it was then."""


class Bound(enum.Enum):
    """Which side of the target is the good one."""

    AT_MOST = "≤"
    AT_LEAST = "≥"


@dataclass(frozen=True, slots=True)
class Target:
    """One row of the table: ``key`` for programs, ``figure`` for people, and the bound on the result."""

    key: str
    figure: str
    bound: Bound
    value: float
    unit: str = ""
    reason: str = ""
    """Why it is missed where it is, as far as that was measured; Markdown, for a cell of the table."""

    def shown(self, value: float) -> str:
        """Return a value in this row's unit."""
        digits = 0 if value >= 100 else 1 if value >= 10 else 3 if value < 0.1 else 2  # noqa: PLR2004
        return f"{value:.{digits}f}{self.unit}"


def _most(key: str, figure: str, value: float, unit: str = "", reason: str = "") -> Target:
    return Target(key, figure, Bound.AT_MOST, value, unit, reason)


def _least(key: str, figure: str, value: float, unit: str = "", reason: str = "") -> Target:
    return Target(key, figure, Bound.AT_LEAST, value, unit, reason)


_WAKE_UPS = (
    "a request and its answer wake two processes, which takes 15 to 80 µs depending on the processors, and a Python "
    "handler 4 to 8 µs of it"
)
_AFTER_A_PAUSE = (
    "eleven or twelve requests, each slow after a pause: on a quieter day finding the directory 0.4 ms, CREATE 0.3, "
    "WRITE 0.15, RELEASE and the open of the bundle 1.1; in a loop all of it took 1.2 ms"
)
_CONNECTION = (
    "four requests, 0.07 ms in a loop and 0.4 ms at worst, of a connection's 50 ms: less than 1 %, which is less than "
    "the connections spread by"
)

TARGETS = (
    _most(
        "requests-open",
        "requests between entry and return of an open of a settled bundle",
        1,
        reason="LOOKUP, OPEN: with a name that is kept a `stat` may be stale ([ADR 17](adr/0017-way-to-a-bundle.md))",
    ),
    _most(
        "read-64",
        "open + read + close of a bundle of 64, vs bindfs",
        0.5,
        reason=f"LOOKUP and OPEN, of which the LOOKUP is half (see *Tried*); {_WAKE_UPS}",
    ),
    _most(
        "read-1000",
        "open + read + close of a bundle of 1,000, vs bindfs",
        0.2,
        reason="the same two requests, beside a longer reading",
    ),
    _least("pread", "pread of 4 KiB on an open bundle, throughput vs ext4", 0.95),
    _least(
        "change-64", "copy in + whole read at 64, vs regeneration", 80, " x", reason=_AFTER_A_PAUSE
    ),
    _least(
        "change-1000",
        "copy in + whole read at 1,000, vs regeneration",
        800,
        " x",
        reason=f"the goal is 1.2 ms here; {_AFTER_A_PAUSE}",
    ),
    _least(
        "change-10000",
        "copy in + whole read at 10,000, vs regeneration",
        500,
        " x",
        reason="nearly all of it is reading 11 MB, a READ for each MiB",
    ),
    _least(
        "path-unit-64",
        "copy in to right bundle at 64, vs a systemd path unit",
        80,
        " x",
        reason=_AFTER_A_PAUSE,
    ),
    _least(
        "path-unit-1000",
        "copy in to right bundle at 1,000, vs a systemd path unit",
        800,
        " x",
        reason=_AFTER_A_PAUSE,
    ),
    _least(
        "told-64",
        "copy in to told reader at 64, vs a systemd path unit",
        1,
        " x",
    ),
    _least(
        "told-1000",
        "copy in to told reader at 1,000, vs a systemd path unit",
        10,
        " x",
        reason="90 ms, whatever the size: the plain copy is on the disk before the signal (I21)",
    ),
    _most(
        "announced-64",
        "reading at 64 while a change is announced, vs not",
        2.0,
    ),
    _most(
        "growth",
        "copy in + first 4 KiB, the largest directory vs 64",
        3.0,
    ),
    _most(
        "stat",
        "stat of a passed-through file, vs bindfs",
        1.0,
        reason=f"LOOKUP, and GETATTR of a directory not asked for in 50 ms (I13); {_WAKE_UPS}, where C takes 1",
    ),
    _most(
        "open",
        "open + close of a passed-through file, vs bindfs",
        1.2,
        reason="LOOKUP, OPEN and a RELEASE that the next request waits behind; three system calls in the server for a "
        "file that was not open before",
    ),
    _most(
        "create",
        "create + write + close + unlink, vs bindfs",
        2.0,
        reason="LOOKUP, CREATE, GETXATTR, WRITE and UNLINK wait for Python, RELEASE and FORGET come between",
    ),
    _most(
        "client",
        "a stunnel client's connection at 64, vs ext4",
        1.03,
        reason=_CONNECTION,
    ),
    _most(
        "clients-200",
        "200 stunnel clients at once, vs ext4",
        1.1,
        reason=_CONNECTION,
    ),
    _most(
        "mount-64",
        "mount to served, 64 certificates",
        0.3,
        " s",
        reason="three Python processes one after the other: importing trio, pyfuse3 and cryptography is most of it",
    ),
    _most(
        "mount-10000",
        "mount to served, 10,000 certificates",
        1.5,
        " s",
        reason="84 µs for each certificate, of which cryptography's names and the ten system calls are half",
    ),
    _most(
        "memory-64",
        "resident memory at 64",
        55,
        " MiB",
        reason="three processes, pages that they share counted for each: 37 MiB in proportion",
    ),
    _most(
        "memory-slope",
        "resident memory, each further certificate",
        2.5,
        " KiB",
        reason="its canonical PEM is 1.1 KiB; the rest is its stamp, fingerprint, key and places",
    ),
    _most("idle-wakeups", "idle: wake-ups of all processes", 1.0, " /s"),
    _most("idle-cpu", "idle: processor time", 0.1, " %"),
)


class Mode(enum.Enum):
    """Where client and servers run while a row is measured."""

    PINNED = "one processor"
    FREE = "the scheduler's choice"


@dataclass(frozen=True, slots=True)
class Result:
    """What the runs gave for one target in one mode."""

    target: Target
    mode: Mode
    values: tuple[float, ...]
    details: dict[str, float] = field(default_factory=dict)
    """The figures behind it: for each the median of the runs, in seconds or counts."""
    recorded: float | None = None
    """What the last full run gave, where there is one."""

    @property
    def value(self) -> float:
        """The median of the runs."""
        return statistics.median(self.values)

    @property
    def best(self) -> float:
        """The best run: noise only ever makes a result worse."""
        return min(self.values) if self.target.bound is Bound.AT_MOST else max(self.values)

    @property
    def meets(self) -> bool:
        """Whether the target is reached."""
        return self._reaches(self.target.value, self.value)

    @property
    def is_gross(self) -> bool:
        """Whether noise cannot explain this: each run worse by `GROSS` than the target and than what was."""
        known = {self.target.value, self.recorded or self.target.value}
        if self.target.bound is Bound.AT_MOST:
            return self.best > max(known) * GROSS
        return self.best < min(known) / GROSS

    def _reaches(self, bound: float, value: float) -> bool:
        return value <= bound if self.target.bound is Bound.AT_MOST else value >= bound


class Results:
    """All results, in the order of the table."""

    def __init__(self, recorded: Path = _RECORDED) -> None:
        self.mode = Mode.FREE
        """The mode of what is added next."""
        self._values: dict[tuple[str, Mode], list[float]] = {}
        self._details: dict[tuple[str, Mode], dict[str, list[float]]] = {}
        rows = json.loads(recorded.read_text())["rows"] if recorded.exists() else []
        self._recorded: dict[tuple[str, str | None], float] = {
            (row["key"], row.get("mode")): row["result"] for row in rows
        }
        self.requests: dict[str, list[str]] = {}
        """For each call the requests that it makes."""
        self.notes: dict[str, str] = {}
        """Why something was not measured."""
        self._points: dict[str, dict[int, list[float]]] = {}

    def add(self, key: str, value: float, **details: float) -> None:
        """Enter what one run gave for a row; KeyError for an unknown key."""
        if key not in {target.key for target in TARGETS}:
            raise KeyError(key)
        self._values.setdefault((key, self.mode), []).append(value)
        kept = self._details.setdefault((key, self.mode), {})
        for name, detail in details.items():
            kept.setdefault(name, []).append(detail)

    def point(self, curve: str, certificates: int, value: float) -> None:
        """Enter a point of a curve; only what the scheduler's choice gave is drawn."""
        if self.mode is Mode.FREE:
            self._points.setdefault(curve, {}).setdefault(certificates, []).append(value)

    def count(self, call: str, requests: list[str]) -> None:
        """Enter which requests a call makes."""
        self.requests[call] = requests

    def note(self, what: str, why: str) -> None:
        """Say why something was not measured."""
        self.notes[what] = why

    @property
    def series(self) -> dict[str, dict[int, float]]:
        """What is plotted: for each curve the value at each number of certificates."""
        return {
            curve: {count: statistics.median(values) for count, values in points.items()}
            for curve, points in self._points.items()
        }

    @property
    def rows(self) -> list[Result]:
        """Every result that there is, in the order of the table, for each row one mode after the other."""
        return [
            self._result(target, mode)
            for target in TARGETS
            for mode in Mode
            if (target.key, mode) in self._values
        ]

    def _result(self, target: Target, mode: Mode) -> Result:
        key = (target.key, mode)
        details = self._details[key].items()
        return Result(
            target,
            mode,
            tuple(self._values[key]),
            {name: statistics.median(values) for name, values in details},
            self._recorded.get((target.key, mode.value), self._recorded.get((target.key, None))),
        )

    @property
    def missing(self) -> list[str]:
        """The keys of rows without a result."""
        measured = {key for key, _ in self._values}
        return [target.key for target in TARGETS if target.key not in measured]
