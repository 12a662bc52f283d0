"""The command behind scripts/bench: which rows there are, and in which order they are measured."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from scripts.benchmark import plots, report
from scripts.benchmark.bundles import measure_changes, measure_growth, measure_reading
from scripts.benchmark.connections import measure_connections
from scripts.benchmark.figures import GROSS, Mode, Results
from scripts.benchmark.grounds import Grounds, grounds
from scripts.benchmark.lifetime import measure_idleness, measure_memory, measure_mounting
from scripts.benchmark.passthrough import measure_passthrough
from scripts.benchmark.pathunit import measure_path_units, path_units
from scripts.benchmark.requests import measure_requests
from scripts.benchmark.telling import measure_announcing
from scripts.benchmark.timing import place


@dataclass(frozen=True, slots=True)
class Effort:
    """How much a run does: sizes of the directories, and seconds or rounds for each kind of row.

    Everything is measured ``runs`` times in each mode, one after the other, so that each run sees all moods of the
    machine.
    """

    counts: tuple[int, ...]
    runs: int
    seconds: float
    regeneration_rounds: int
    mount_rounds: int
    crowds: int
    idle_seconds: float


FULL = Effort((64, 1000, 10_000, 100_000), 3, 4.0, 2, 3, 2, 60.0)
QUICK = Effort((64, 1000, 10_000), 1, 0.5, 1, 1, 1, 10.0)


def main() -> int:
    """Run; return 0, or 1 if a row is a gross regression, or 2 if the run could not be completed."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measure certfs beside ext4, bindfs, a regeneration script and a systemd path unit that runs it.",
        epilog=f"Exit status: 0, or 1 if a row is worse by a factor of {GROSS:.0f} than its target and than recorded, "
        "2 where a report cannot be read.",
    )
    parser.add_argument(
        "--quick", action="store_true", help="one short run instead of three, for CI"
    )
    parser.add_argument("--runs", type=int, metavar="N", help="how often everything is measured")
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="the report, which keeps its history (build/bench.json)",
    )
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw the curves, as SVG")
    parser.add_argument(
        "--document", action="store_true", help="write all that docs/performance.md has of a run"
    )
    parser.add_argument(
        "--goals",
        action="store_true",
        help="show the rows of a report with their goals, and measure nothing",
    )
    parser.add_argument(
        "--directory", type=Path, help="where to work, on a disk (default: /var/tmp)"
    )
    parser.add_argument(
        "--only", metavar="GROUP", choices=GROUPS, action="append", help="one group of rows only"
    )
    arguments = parser.parse_args()
    recorded = DOCUMENTED / "bench.json" if arguments.document else Path("build/bench.json")
    report_file: Path = arguments.json or recorded
    try:
        if arguments.goals:
            print(report.goals(report.read(report_file)))
            return 0
        # Before half an hour of measuring, not after it.
        history = report.history(report_file)
    except (OSError, ValueError) as e:
        print(f"bench: {e}", file=sys.stderr)
        return 2
    # A run that is ended takes everything down on the way out.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    effort = QUICK if arguments.quick else FULL
    if arguments.runs:
        effort = replace(effort, runs=arguments.runs)
    results = Results()
    started = time.monotonic()
    try:
        with grounds(arguments.directory) as made:
            measure(made, results, effort, arguments.only or list(GROUPS))
    except KeyboardInterrupt:
        print("bench: interrupted; everything is taken down", file=sys.stderr)
        return 130
    found = report.describe(results, quick=arguments.quick, seconds=time.monotonic() - started)
    report.keep(found, report_file, history)
    if arguments.plots or arguments.document:
        plots.draw(results, arguments.plots or DOCUMENTED)
    if arguments.document:
        report.document(found, DOCUMENTED.with_suffix(".md"))
    print(report.goals(found))
    gross = [f"{row.target.key} ({row.mode.value})" for row in results.rows if row.is_gross]
    if gross:
        print(f"bench: gross regressions: {', '.join(gross)}")
    return 1 if gross else 0


DOCUMENTED = Path(__file__).resolve().parents[2] / "docs" / "performance"


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that are measured together: the directories that this needs, and in which modes it says something."""

    measure: Callable[[Grounds, Results, Effort], None]
    needs: Callable[[int], bool]
    modes: tuple[Mode, ...] = tuple(Mode)


def _up_to(largest: int) -> Callable[[int], bool]:
    return lambda count: count <= largest


GROUPS = {
    "requests": Group(
        lambda made, results, _: measure_requests(results, made.base), _up_to(0), (Mode.FREE,)
    ),
    "mounting": Group(
        lambda made, results, effort: measure_mounting(made, results, effort.mount_rounds),
        _up_to(100_000),
    ),
    # How large a process is, and how often it wakes, is the same on any processor.
    "memory": Group(
        lambda made, results, _: measure_memory(made, results), _up_to(100_000), (Mode.FREE,)
    ),
    "reading": Group(
        lambda made, results, effort: measure_reading(made, results, effort.seconds), _up_to(1000)
    ),
    "passthrough": Group(
        lambda made, results, effort: measure_passthrough(made, results, effort.seconds),
        _up_to(64),
    ),
    "connections": Group(
        lambda made, results, effort: measure_connections(
            made, results, effort.seconds * 3, effort.crowds
        ),
        _up_to(64),
    ),
    "changes": Group(
        lambda made, results, effort: measure_changes(
            made, results, effort.seconds, effort.regeneration_rounds
        ),
        _up_to(10_000),
    ),
    "pathunit": Group(
        lambda made, results, effort: measure_path_units(
            made, results, effort.seconds, effort.regeneration_rounds
        ),
        _up_to(1000),
    ),
    "announced": Group(
        lambda made, results, effort: measure_announcing(made, results, effort.mount_rounds),
        _up_to(64),
    ),
    "growth": Group(
        lambda made, results, effort: measure_growth(made, results, effort.seconds),
        _up_to(100_000),
    ),
    "idle": Group(
        lambda made, results, effort: measure_idleness(made, results, effort.idle_seconds),
        _up_to(64),
        (Mode.FREE,),
    ),
}
"""The order in which they are measured."""


def measure(made: Grounds, results: Results, effort: Effort, chosen: Sequence[str]) -> None:
    """Prepare the grounds and measure the chosen groups, run after run and mode after mode."""
    groups = {name: group for name, group in GROUPS.items() if name in chosen}
    counts = [n for n in effort.counts if any(group.needs(n) for group in groups.values())]
    progress("certificates")
    for count in counts:
        ground = made.make(count)
        if count <= 10_000 and groups.keys() & {"changes", "pathunit"}:  # noqa: PLR2004 - what a script can do
            made.make_plain(ground)
    progress("first mounts")
    for count in counts:
        made[count].first_mount = made[count].mount()
        if count <= 1000:  # noqa: PLR2004 - the larger ones are not compared with bindfs
            made.mount_bindfs(made[count])
    if "pathunit" in groups:
        progress("a systemd with path units")
        made.boot(path_units(made, results))
    try:
        for run in range(effort.runs):
            # Whatever comes first in a run must not always be the same mode.
            for mode in list(Mode)[:: -1 if run % 2 else 1]:
                results.mode = mode
                for name, group in groups.items():
                    if mode in group.modes:
                        progress(f"{name}, {mode.value}, run {run + 1} of {effort.runs}")
                        place(made.pids, together=mode is Mode.PINNED)
                        group.measure(made, results, effort)
    finally:
        place(made.pids, together=False)


def progress(what: str) -> None:
    """Say what is being done, to a person who waits."""
    print(f"bench: {time.strftime('%H:%M:%S')} {what} ...", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
