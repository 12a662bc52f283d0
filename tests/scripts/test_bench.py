"""scripts/bench: it runs, has every row, judges fairly, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts.benchmark import plots, report
from scripts.benchmark.figures import TARGETS, Bound, Mode, Result, Results, Target
from scripts.benchmark.pem import Template
from scripts.benchmark.timing import Plan, alternate
from tests.support import installed, mounts, pki

_ROOT = Path(__file__).resolve().parents[2]
_BENCH: list[str | Path] = [_ROOT / "scripts" / "bench"]
if installed.prefix():  # where the script would set up the checkout's
    _BENCH = [sys.executable, "-m", "scripts.benchmark"]


@pytest.fixture
def directory() -> Iterator[Path]:
    """A place to measure in; nothing may be left in it."""
    mounts.need_fuse()
    mounts.need_program("bindfs", "stunnel")
    base = mounts.scratch_directory()
    try:
        yield base
    finally:
        shutil.rmtree(base, ignore_errors=True)


def _processes_in(directory: Path) -> list[str]:
    """Give the command lines of certfs processes whose runtime directory is below this one."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if f"CERTFS_RUNTIME_DIR={directory}/".encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text())
        except OSError:
            continue
    return found


def _run(directory: Path, *options: str) -> tuple[dict[str, Any], set[str]]:
    """Run it, check that its exit status says what its report does, and return the report and the plots' names."""
    written = directory.with_name(f"{directory.name}.json")
    pictures = directory.with_name(f"{directory.name}.plots")
    where: list[str | Path] = ["--directory", directory, "--json", written, "--plots", pictures]
    try:
        result = subprocess.run(
            [*_BENCH, "--quick", *where, *options],
            cwd=_ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=1800,
            check=False,
        )
        print(result.stdout)
        assert result.returncode in {0, 1}, result.stdout + result.stderr
        found: dict[str, Any] = json.loads(written.read_text())
        assert result.returncode == any(row["gross"] for row in found["rows"])
        return found, {picture.name for picture in pictures.iterdir()}
    finally:
        written.unlink(missing_ok=True)
        shutil.rmtree(pictures, ignore_errors=True)


def _nothing_is_left(directory: Path) -> bool:
    return not list(directory.iterdir()) and not _processes_in(directory)


@pytest.mark.mount
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_one_group_is_measured_in_both_modes_and_leaves_nothing(directory: Path) -> None:
    """Its rows have a result on one processor and by the scheduler's choice; no process and no file stays."""
    found, _ = _run(directory, "--only", "passthrough")
    measured = [(row["key"], row["mode"]) for row in found["rows"]]
    keys = ("stat", "open", "create")
    assert measured == [(key, mode.value) for key in keys for mode in Mode]
    assert _nothing_is_left(directory)


@pytest.mark.mount
@pytest.mark.slow
@pytest.mark.stunnel
@pytest.mark.timeout(3600)
@pytest.mark.skipif(
    "CERTFS_TEST_BENCH" not in os.environ, reason="takes minutes; scripts/nightly runs it"
)
def test_a_quick_run_has_every_row_and_leaves_nothing(directory: Path) -> None:
    """The JSON holds a result for each target that can be measured here; no process and no file stays."""
    found, drawn = _run(directory)
    measured = {row["key"] for row in found["rows"]}
    reasons = {target.key for target in TARGETS if target.key.startswith(tuple(found["notes"]))}
    assert {target.key for target in TARGETS} == measured | reasons
    assert drawn == {f"{plot.name}.svg" for plot in plots.PLOTS}
    assert _nothing_is_left(directory)


@pytest.mark.mount
@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_takes_everything_down(directory: Path, number: signal.Signals) -> None:
    """Ctrl-C, or a kill, while mounts are up: they, their processes and their files go."""
    running = subprocess.Popen(
        [sys.executable, "-m", "scripts.benchmark", "--quick", "--directory", directory],
        cwd=_ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # Tests that run in the background were started with Ctrl-C ignored, which is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - no threads here
    )
    try:
        mounts.wait_until(
            lambda: any(str(directory) in point for point in mounts.mountpoints()),
            seconds=60,
            what="the first mount of the run",
        )
        running.send_signal(number)
        output, _ = running.communicate(timeout=60)
    finally:
        running.kill()
        running.wait()
    assert running.returncode == 130, output
    assert not any(str(directory) in point for point in mounts.mountpoints())
    assert _processes_in(directory) == []
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize(
    "bound,value,meets,gross",
    [
        (Bound.AT_MOST, 2.0, True, False),
        (Bound.AT_MOST, 2.1, False, False),
        (Bound.AT_MOST, 6.1, False, True),
        (Bound.AT_LEAST, 2.0, True, False),
        (Bound.AT_LEAST, 1.9, False, False),
        (Bound.AT_LEAST, 0.6, False, True),
    ],
)
def test_a_row_is_judged_by_its_bound(
    bound: Bound, value: float, *, meets: bool, gross: bool
) -> None:
    """At the target is fine, beyond it a miss, beyond three times it a regression."""
    result = Result(Target("key", "figure", bound, 2.0), Mode.FREE, (value,))
    assert (result.meets, result.is_gross) == (meets, gross)


@pytest.mark.parametrize(
    "bound,value,gross",
    [
        (Bound.AT_MOST, 11.9, False),
        (Bound.AT_MOST, 12.1, True),
        (Bound.AT_LEAST, 0.4, False),
        (Bound.AT_LEAST, 0.3, True),
    ],
)
def test_a_row_that_never_met_its_target_is_judged_by_what_it_was(
    bound: Bound, value: float, *, gross: bool
) -> None:
    """A miss that is known is no regression; three times worse than that is one."""
    recorded = 4.0 if bound is Bound.AT_MOST else 1.0
    result = Result(Target("key", "figure", bound, 2.0), Mode.FREE, (value,), recorded=recorded)
    assert not result.meets
    assert result.is_gross == gross


def test_a_row_is_the_median_of_its_runs_in_each_mode() -> None:
    """One run that the machine held up changes nothing, and only the best one tells of a regression."""
    results = Results(Path("/nonexistent"))
    for value in (1.0, 9.0, 1.1):
        for mode in Mode:
            results.mode = mode
            results.add("stat", value, certfs=value)
    pinned, free = results.rows
    assert (pinned.mode, free.mode) == (Mode.PINNED, Mode.FREE)
    assert (free.value, free.best, free.is_gross) == (1.1, 1.0, False)
    assert free.details == {"certfs": 1.1}


def test_a_report_keeps_its_history(tmp_path: Path) -> None:
    """What a file of results said before is in it after the next run, the newest first."""
    file = tmp_path / "bench.json"
    for value in (1.0, 2.0, 3.0):
        results = Results(file)
        results.add("stat", value)
        report.keep(report.describe(results, quick=True, seconds=1), file, report.history(file))
    kept = json.loads(file.read_text())
    assert kept["rows"][0]["result"] == 3.0
    name = f"stat ({Mode.FREE.value})"
    assert [old["results"][name] for old in kept["history"]] == [2.0, 1.0]


def test_goals_are_shown_met_or_missed() -> None:
    """Each row is shown with its goal, in both modes, and what was not measured with the reason."""
    results = Results(Path("/nonexistent"))
    results.add("stat", 0.5)
    results.add("open", 5.0)
    results.note("path-unit", "there is no systemd")
    shown = report.goals(report.describe(results, quick=True, seconds=1))
    assert re.search(r"^stat of .* ≤ 1 .*0.5 met$", shown, re.MULTILINE)
    assert re.search(r"^open .* ≤ 1.2 .*5 miss$", shown, re.MULTILINE)
    assert "note: path-unit: there is no systemd" in shown


def test_the_tables_of_a_run_replace_those_of_the_one_before(tmp_path: Path) -> None:
    """`--document` changes what is between the marks of the page, and nothing else."""
    page = tmp_path / "performance.md"
    page.write_text("before\n<!-- begin: scripts/bench --document -->\nold\n<!-- end -->\nafter\n")
    results = Results(Path("/nonexistent"))
    results.add("stat", 0.5, certfs=2e-6)
    results.add("open", 5.0)
    results.count("open of a bundle", ["LOOKUP", "OPEN"])
    report.document(report.describe(results, quick=False, seconds=1), page)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert (
        "| stat of a passed-through file, vs bindfs | ≤ 1 | - | 0.5 met | certfs 2 µs |  |" in text
    )
    (reason,) = (target.reason for target in TARGETS if target.key == "open")
    assert f"| ≤ 1.2 | - | 5 **miss** |  | {reason} |" in text
    assert "| open of a bundle | 2: LOOKUP, OPEN |" in text


@pytest.mark.parametrize("text", ["", "no report\n", "{}", "[1]"])
def test_a_file_that_is_no_report_is_refused_before_anything_is_measured(
    tmp_path: Path, text: str
) -> None:
    """It may be the user's own: it stays as it is, and half an hour of measuring is not lost at its end."""
    file = tmp_path / "mine.json"
    file.write_text(text)
    for options in (["--goals"], ["--quick", "--only", "passthrough"]):
        result = subprocess.run(
            [sys.executable, "-m", "scripts.benchmark", *options, "--json", file],
            cwd=_ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert result.returncode == 2, result.stderr
        assert f"{file} is no report of scripts/bench" in result.stderr
        assert "bench: " in result.stderr
        assert "Traceback" not in result.stderr
    assert file.read_text() == text


def test_every_row_that_misses_its_goal_has_a_reason() -> None:
    """docs/performance.md is not to show a missed goal without the measured reason beside it."""
    recorded = report.read(_ROOT / "docs" / "performance" / "bench.json")
    reasons = {target.key: target.reason for target in TARGETS}
    missed = {row["key"] for row in recorded["rows"] if not row["ok"]}
    assert missed
    assert not {key for key in missed if not reasons[key]}


def test_a_row_outside_of_the_table_is_refused() -> None:
    """No figure without a target."""
    with pytest.raises(KeyError):
        Results().add("speed", 1.0)


def test_subjects_take_turns() -> None:
    """Every subject is measured in every round, the slow one once, and nobody always comes last."""
    calls: list[str] = []

    def subject(name: str) -> float:
        calls.append(name)
        return float(len(name))

    medians = alternate(
        {"a": lambda: subject("a"), "bb": lambda: subject("bb")},
        Plan(0, rounds=2, batch=3, slow="bb", warm=False),
    )
    assert "".join(calls) == "aaabbbbaaa"
    assert medians == {"a": 1.0, "bb": 2.0}


def test_made_certificates_are_certificates_and_all_different() -> None:
    """What the stores are filled with is read as one certificate each, as large as a real one."""
    template = Template()
    pems = [pem for pem, _ in zip(template, range(50), strict=False)]
    prints = {fingerprint for pem in pems for fingerprint in pki.certificates_in(pem.text)}
    assert len(prints) == len({pem.name for pem in pems}) == 50
    assert {len(pem.text) for pem in pems} == {len(template.identity.pem)}
