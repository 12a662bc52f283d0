"""What a figure is: its target, its result, and how the two compare.

Owns the table of targets, so that every row has one place where its bound is stated.
"""

from __future__ import annotations

import enum
import json
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

    def shown(self, value: float) -> str:
        """Return a value in this row's unit."""
        digits = 0 if value >= 100 else 1 if value >= 10 else 3 if value < 0.1 else 2  # noqa: PLR2004
        return f"{value:.{digits}f}{self.unit}"


def _most(key: str, figure: str, value: float, unit: str = "") -> Target:
    return Target(key, figure, Bound.AT_MOST, value, unit)


def _least(key: str, figure: str, value: float, unit: str = "") -> Target:
    return Target(key, figure, Bound.AT_LEAST, value, unit)


TARGETS = (
    _most("read-64", "open + read + close of a bundle of 64, vs bindfs", 0.8),
    _most("read-1000", "open + read + close of a bundle of 1,000, vs bindfs", 0.5),
    _least("pread", "pread of 4 KiB on an open bundle, throughput vs ext4", 0.95),
    _least("change-64", "copy in + whole read at 64, vs regeneration", 80, " x"),
    _least("change-1000", "copy in + whole read at 1,000, vs regeneration", 800, " x"),
    _least("change-10000", "copy in + whole read at 10,000, vs regeneration", 500, " x"),
    _most("growth", "copy in + first 4 KiB, the largest directory vs 64", 3.0),
    _most("stat", "stat of a passed-through file, vs bindfs", 1.2),
    _most("open", "open + close of a passed-through file, vs bindfs", 2.0),
    _most("create", "create + write + close + unlink, vs bindfs", 2.5),
    _most("client", "a stunnel client's connection at 64, vs ext4", 1.03),
    _most("clients-200", "200 stunnel clients at once, vs ext4", 1.1),
    _most("mount-64", "mount to served, 64 certificates", 0.6, " s"),
    _most("mount-10000", "mount to served, 10,000 certificates", 3.0, " s"),
    _most("memory-64", "resident memory at 64", 60, " MiB"),
    _most("memory-slope", "resident memory, each further certificate", 4, " KiB"),
    _most("idle-wakeups", "idle: wake-ups of all processes", 1.0, " /s"),
    _most("idle-cpu", "idle: processor time", 0.1, " %"),
)


@dataclass(frozen=True, slots=True)
class Result:
    """What was measured for one target; ``details`` are the figures behind it (medians in seconds, counts)."""

    target: Target
    value: float
    details: dict[str, float] = field(default_factory=dict)
    recorded: float | None = None
    """What the last full run gave, where there is one."""

    @property
    def meets(self) -> bool:
        """Whether the target is reached."""
        if self.target.bound is Bound.AT_MOST:
            return self.value <= self.target.value
        return self.value >= self.target.value

    @property
    def is_gross(self) -> bool:
        """Whether this is beyond what noise can explain: worse than the target and than what was, by `GROSS`."""
        known = {self.target.value, self.recorded or self.target.value}
        if self.target.bound is Bound.AT_MOST:
            return self.value > max(known) * GROSS
        return self.value < min(known) / GROSS

    def better(self, other: Result | None) -> Result:
        """Return the better one of two results of the same row."""
        if other is None:
            return self
        least, most = sorted((self, other), key=lambda result: result.value)
        return least if self.target.bound is Bound.AT_MOST else most


class Results:
    """All results of a run, in the order of the table."""

    def __init__(self, recorded: Path = _RECORDED) -> None:
        self._by_key: dict[str, Result] = {}
        rows = json.loads(recorded.read_text())["rows"] if recorded.exists() else []
        self._recorded: dict[str, float] = {row["key"]: row["result"] for row in rows}
        self.series: dict[str, dict[int, float]] = {}
        """What is plotted: for each curve the value at each number of certificates."""

    def add(self, key: str, value: float, **details: float) -> None:
        """Enter the result of a row, the better one if it was measured again; KeyError for an unknown key."""
        target = next((target for target in TARGETS if target.key == key), None)
        if target is None:
            raise KeyError(key)
        result = Result(target, value, details, self._recorded.get(key))
        self._by_key[key] = result.better(self._by_key.get(key))

    def point(self, curve: str, certificates: int, value: float) -> None:
        """Enter a point of a curve."""
        self.series.setdefault(curve, {})[certificates] = value

    @property
    def rows(self) -> list[Result]:
        """Every result that there is, in the order of the table."""
        return [self._by_key[target.key] for target in TARGETS if target.key in self._by_key]

    @property
    def missing(self) -> list[str]:
        """The keys of rows without a result."""
        return [target.key for target in TARGETS if target.key not in self._by_key]
