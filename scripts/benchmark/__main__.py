"""The command behind scripts/bench: all rows in one run, a table, JSON, and plots."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from scripts.benchmark import plots
from scripts.benchmark.bundles import measure_changes, measure_growth, measure_reading
from scripts.benchmark.connections import measure_connections
from scripts.benchmark.figures import GROSS, Results
from scripts.benchmark.grounds import Grounds, grounds
from scripts.benchmark.lifetime import measure_idleness, measure_memory, measure_mounting
from scripts.benchmark.passthrough import measure_passthrough


@dataclass(frozen=True, slots=True)
class Effort:
    """How much a run does: sizes of the directories, and seconds or rounds for each kind of row.

    ``attempts`` is how often a row may be measured before it counts as gross: CI fails on no noise.
    """

    counts: tuple[int, ...]
    seconds: float
    regeneration_rounds: int
    mount_rounds: int
    crowds: int
    idle_seconds: float
    attempts: int


FULL = Effort((64, 1000, 10_000, 100_000), 6.0, 3, 5, 3, 60.0, 1)
QUICK = Effort((64, 1000, 10_000), 1.0, 1, 2, 1, 15.0, 3)


def main() -> int:
    """Run; return 0, or 1 if a row is a gross regression, or 2 if the run could not be completed."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measure certfs beside ext4, bindfs and a regeneration script, in one run.",
        epilog=f"Exit status: 0, or 1 if a row is worse by a factor of {GROSS:.0f} than its target and than recorded.",
    )
    parser.add_argument("--quick", action="store_true", help="a minute instead of several, for CI")
    parser.add_argument(
        "--json", type=Path, default=Path("build/bench.json"), metavar="FILE", help="%(default)s"
    )
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw the curves, as SVG")
    parser.add_argument(
        "--directory", type=Path, help="where to work, on a disk (default: /var/tmp)"
    )
    parser.add_argument("--only", metavar="GROUP", choices=GROUPS, help="one group of rows only")
    arguments = parser.parse_args()
    # Whoever ends this run shall get its end: everything is taken down on the way out.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    effort = QUICK if arguments.quick else FULL
    results = Results()
    started = time.monotonic()
    try:
        with grounds(arguments.directory) as made:
            measure(made, results, effort, arguments.only)
    except KeyboardInterrupt:
        print("bench: interrupted; everything is taken down", file=sys.stderr)
        return 130
    report = describe(results, quick=arguments.quick, seconds=time.monotonic() - started)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    if arguments.plots:
        plots.draw(results, arguments.plots)
    print(table(results))
    gross = [row.target.key for row in results.rows if row.is_gross]
    if gross:
        print(f"bench: gross regressions: {', '.join(gross)}")
    return 1 if gross else 0


Measurement = Callable[[Grounds, Results, Effort], None]

GROUPS: dict[str, Measurement] = {
    "mounting": lambda made, results, effort: measure_mounting(made, results, effort.mount_rounds),
    "memory": lambda made, results, _: measure_memory(made, results),
    "reading": lambda made, results, effort: measure_reading(made, results, effort.seconds),
    "passthrough": lambda made, results, effort: measure_passthrough(made, results, effort.seconds),
    "connections": lambda made, results, effort: measure_connections(
        made, results, effort.seconds * 3, effort.crowds
    ),
    "changes": lambda made, results, effort: measure_changes(
        made, results, effort.seconds, effort.regeneration_rounds
    ),
    "growth": lambda made, results, effort: measure_growth(made, results, effort.seconds),
    "idle": lambda made, results, effort: measure_idleness(made, results, effort.idle_seconds),
}


def measure(made: Grounds, results: Results, effort: Effort, only: str | None) -> None:
    """Prepare the grounds and measure every group, or ``only`` one."""
    progress("certificates")
    for count in effort.counts:
        ground = made.make(count)
        if count <= 10_000 and only in {None, "changes"}:  # noqa: PLR2004 - what a script can still do
            made.make_plain(ground)
    progress("first mounts")
    for count in effort.counts:
        made[count].first_mount = made[count].mount()
    for count in (64, 1000):
        made.mount_bindfs(made[count])
    for name, group in GROUPS.items():
        if only in {None, name}:
            measure_group(name, partial(group, made, results, effort), results, effort.attempts)


def measure_group(name: str, group: Callable[[], None], results: Results, attempts: int) -> None:
    """Measure a group; again, up to ``attempts`` times, as long as one of its rows is gross: noise does not last."""
    known = {row.target.key for row in results.rows}
    for _ in range(attempts):
        progress(name)
        group()
        if not any(row.is_gross for row in results.rows if row.target.key not in known):
            return


def progress(what: str) -> None:
    """Say what is being done, to a person who waits."""
    print(f"bench: {time.strftime('%H:%M:%S')} {what} ...", file=sys.stderr, flush=True)


def describe(results: Results, *, quick: bool, seconds: float) -> dict[str, object]:
    """Return the report as JSON has it."""
    return {
        "at": datetime.now(tz=UTC).isoformat(timespec="seconds"),
        "quick": quick,
        "seconds": round(seconds),
        "machine": {
            "kernel": platform.release(),
            "python": platform.python_version(),
            "processors": os.cpu_count(),
            "load": os.getloadavg(),
        },
        "missing": results.missing,
        "rows": [
            {
                "key": row.target.key,
                "figure": row.target.figure,
                "bound": "at most" if row.target.bound.value == "≤" else "at least",
                "target": row.target.value,
                "unit": row.target.unit.strip(),
                "result": _rounded(row.value),
                "ok": row.meets,
                "gross": row.is_gross,
                "details": {name: _rounded(value) for name, value in row.details.items()},
            }
            for row in results.rows
        ],
        "series": {
            curve: {str(count): _rounded(value) for count, value in sorted(points.items())}
            for curve, points in results.series.items()
        },
    }


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def table(results: Results) -> str:
    """Return the table for people."""
    lines = [f"{'figure':<58} {'target':>10} {'result':>10}"]
    for row in results.rows:
        target = f"{row.target.bound.value} {row.target.value:g}{row.target.unit}"
        verdict = "ok" if row.meets else "miss"
        lines.append(
            f"{row.target.figure:<58} {target:>10} {row.target.shown(row.value):>10}  {verdict}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
