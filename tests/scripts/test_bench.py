"""scripts/bench: it runs, has every row, judges fairly, and leaves nothing behind."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts.benchmark import plots
from scripts.benchmark.figures import TARGETS, Bound, Result, Results, Target
from scripts.benchmark.pem import Template
from scripts.benchmark.timing import Plan, alternate
from tests.support import mounts, pki

_ROOT = Path(__file__).resolve().parents[2]


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


def _quick_run(directory: Path) -> tuple[dict[str, Any], set[str]]:
    """Run it, check that its exit status says what its report does, and return the report and the plots' names."""
    report = directory.with_name(f"{directory.name}.json")
    pictures = directory.with_name(f"{directory.name}.plots")
    try:
        result = subprocess.run(
            [
                _ROOT / "scripts" / "bench",
                *("--quick", "--directory", directory, "--json", report, "--plots", pictures),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=560,
            check=False,
        )
        print(result.stdout)
        assert result.returncode in {0, 1}, result.stdout + result.stderr
        found: dict[str, Any] = json.loads(report.read_text())
        assert result.returncode == bool(_gross(found))
        return found, {picture.name for picture in pictures.iterdir()}
    finally:
        report.unlink(missing_ok=True)
        shutil.rmtree(pictures, ignore_errors=True)


def _gross(report: dict[str, Any]) -> set[str]:
    return {row["key"] for row in report["rows"] if row["gross"]}


@pytest.mark.mount
@pytest.mark.slow
@pytest.mark.stunnel
@pytest.mark.timeout(1200)
def test_a_quick_run_has_every_row_and_leaves_nothing(directory: Path) -> None:
    """The JSON holds a result for each target, none of them gross twice; no process and no file stays."""
    found, drawn = _quick_run(directory)
    assert [row["key"] for row in found["rows"]] == [target.key for target in TARGETS]
    assert drawn == {f"{plot.name}.svg" for plot in plots.PLOTS}
    assert list(directory.iterdir()) == []
    assert _processes_in(directory) == []
    if gross := _gross(found):
        # Where the scheduler puts client and server lasts for a run, and other tests run beside this one.
        again, _ = _quick_run(directory)
        assert not gross & _gross(again)


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
    result = Result(Target("key", "figure", bound, 2.0), value)
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
    result = Result(Target("key", "figure", bound, 2.0), value, recorded=recorded)
    assert not result.meets
    assert result.is_gross == gross


def test_of_a_row_that_is_measured_again_the_better_result_counts() -> None:
    """Noise only ever makes a result worse."""
    results = Results()
    for value in (2.0, 1.0, 3.0):
        results.add("stat", value)
        results.add("change-64", value)
    assert [row.value for row in results.rows] == [3.0, 1.0]


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
