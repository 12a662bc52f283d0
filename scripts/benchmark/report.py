"""What is written down of a run: JSON with its history, the table for people, and what docs/performance.md shows."""

from __future__ import annotations

import json
import os
import platform
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scripts.benchmark.figures import Mode, Results

Report = dict[str, Any]

_KEPT = 50
"""Reports whose results stay in the history."""
_OF_TIMES = {"", "x", "s"}
"""Units of rows that are made of times; a ratio has none."""
_BEGIN, _END = "<!-- begin: scripts/bench --document -->", "<!-- end -->"


def describe(results: Results, *, quick: bool, seconds: float) -> Report:
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
        "notes": results.notes,
        "requests": results.requests,
        "rows": [
            {
                "key": row.target.key,
                "mode": row.mode.value,
                "figure": row.target.figure,
                "bound": "at most" if row.target.bound.value == "≤" else "at least",
                "target": row.target.value,
                "unit": row.target.unit.strip(),
                "result": _rounded(row.value),
                "runs": [_rounded(value) for value in row.values],
                "ok": row.meets,
                "gross": row.is_gross,
                "reason": "" if row.meets else row.target.reason,
                "details": {name: _rounded(value) for name, value in row.details.items()},
            }
            for row in results.rows
        ],
        "series": {
            curve: {str(count): _rounded(value) for count, value in sorted(points.items())}
            for curve, points in results.series.items()
        },
    }


def read(file: Path) -> Report:
    """Return the report that a file holds; ValueError, which names the file, where it holds something else."""
    try:
        report = json.loads(file.read_text())
    except ValueError as e:
        raise ValueError(f"{file} is no report of scripts/bench: {e}") from None
    if not isinstance(report, dict) or not {"at", "machine", "rows"} <= report.keys():
        raise ValueError(f"{file} is no report of scripts/bench")
    return report


def history(file: Path) -> list[Report]:
    """Return the results of the reports that the file holds, the newest first: none where there is no file."""
    if not file.exists():
        return []
    before = read(file)
    return [_summary(before), *before.get("history", [])][:_KEPT]


def keep(report: Report, file: Path, history: list[Report]) -> None:
    """Write the report, with what came before."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({**report, "history": history}, indent=1) + "\n")


def _summary(report: Report) -> Report:
    """Return what is kept of an old report: when, where, and the result of each row."""
    rows = {f"{row['key']} ({row.get('mode', '')})": row["result"] for row in report["rows"]}
    return {name: report[name] for name in ("at", "quick", "machine")} | {"results": rows}


def goals(report: Report) -> str:
    """Return every row with its goal, in both modes, and whether the goal is met."""
    heads = [f"{mode.value} (of {_runs(report)})" for mode in Mode]
    lines = [f"{'figure':<64} {'goal':>10}  {heads[0]:<34} {heads[1]}"]
    for key, rows in _by_key(report).items():
        del key
        first = next(iter(rows.values()))
        cells = [_cell(rows.get(mode.value)) for mode in Mode]
        lines.append(f"{first['figure']:<64} {_goal(first):>10}  {cells[0]:<34} {cells[1]}")
    lines += [f"note: {what}: {why}" for what, why in report["notes"].items()]
    return "\n".join(lines)


def document(report: Report, page: Path) -> None:
    """Put the tables of a report between the marks of the page."""
    before, _, rest = page.read_text().partition(_BEGIN)
    _, _, after = rest.partition(_END)
    if not after:
        raise ValueError(f"{page} lacks the lines {_BEGIN} and {_END}")
    page.write_text(f"{before}{_BEGIN}\n\n{_markdown(report)}\n{_END}{after}")


def _markdown(report: Report) -> str:
    machine = report["machine"]
    loads = ", ".join(f"{load:.1f}" for load in machine["load"])
    versions = f"Linux {machine['kernel']}, Python {machine['python']}"
    lines = [
        f"{report['at'][:10]}, {versions}, {machine['processors']} processors.",
        f"Load averages at the end: {loads}.",
        f"Each figure is the median of {_runs(report)} {'short ' * report['quick']}runs, with its spread in brackets.",
        "",
        f"| figure | goal | {' | '.join(mode.value for mode in Mode)} | medians | why it misses |",
        "|---|---|---|---|---|---|",
    ]
    for rows in _by_key(report).values():
        first = next(iter(rows.values()))
        cells = [_cell(rows.get(mode.value)).replace("miss", "**miss**") for mode in Mode]
        details = rows.get(Mode.FREE.value, first)["details"]
        in_time = first["unit"] in _OF_TIMES
        shown = ", ".join(
            f"{name} {_seconds(value) if in_time else f'{value:g}'}"
            for name, value in details.items()
        )
        reason = next((row["reason"] for row in rows.values() if row.get("reason")), "")
        lines.append(
            f"| {first['figure']} | {_goal(first)} | {' | '.join(cells)} | {shown} | {reason} |"
        )
    lines += ["", "| call, after a second of rest | requests |", "|---|---|"]
    for call, requests in report["requests"].items():
        counts = Counter(requests)
        shown = ", ".join(f"{n} {kind}" if n > 1 else kind for kind, n in counts.items())
        lines.append(f"| {call} | {len(requests)}: {shown or 'none'} |")
    lines += [f"\nNote: {what}: {why}." for what, why in report["notes"].items()]
    return "\n".join(lines) + "\n"


def _by_key(report: Report) -> dict[str, dict[str, Report]]:
    """Return the rows of each figure, by mode."""
    found: dict[str, dict[str, Report]] = {}
    for row in report["rows"]:
        found.setdefault(row["key"], {})[row["mode"]] = row
    return found


def _runs(report: Report) -> int:
    return max((len(row["runs"]) for row in report["rows"]), default=0)


def _goal(row: Report) -> str:
    sign = "≤" if row["bound"] == "at most" else "≥"
    return f"{sign} {row['target']:g} {row['unit']}".rstrip()


def _cell(row: Report | None) -> str:
    if row is None:
        return "-"
    spread = f" ({min(row['runs']):.3g} to {max(row['runs']):.3g})" if len(row["runs"]) > 1 else ""
    return f"{row['result']:.3g}{spread} {'met' if row['ok'] else 'miss'}"


def _seconds(value: float) -> str:
    """Show a time."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value * 1e6:.3g} µs"


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
