"""The rows about what an admin would build today: a systemd path unit that runs the regeneration after each change.

Owns booting a systemd with such units, and the time from the end of the copy until the right bundle is there, which is
the earliest moment at which such a unit could tell a reader.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from scripts.benchmark.bundles import REGENERATION, Live, read_whole
from scripts.benchmark.figures import Results
from scripts.benchmark.grounds import Grounds
from scripts.benchmark.pem import Pem
from scripts.benchmark.telling import Told
from scripts.benchmark.timing import Operation, Plan, alternate
from tests.support import machine

_COUNTS = (64, 1000)
_PATIENCE = 60.0
_MISSED_SECONDS = 5.0
"""A change that the path unit has not followed after so long it has missed."""
_UNITS = {
    "bundle-{count}.path": """
[Unit]
DefaultDependencies=no
[Path]
PathModified=/etc/bundles/{count}/certs-pool
""",
    "bundle-{count}.service": """
[Unit]
DefaultDependencies=no
StartLimitIntervalSec=0
[Service]
Type=oneshot
ExecStart=/bin/sh /etc/bundles/regenerate /etc/bundles/{count}/certs-pool /etc/bundles/{count}/bundle.pem
""",
}


@contextlib.contextmanager
def path_units(grounds: Grounds, results: Results) -> Iterator[machine.Machine | None]:
    """Boot a machine with a path unit for each size; None where that is impossible, with the reason as a note."""
    if reason := machine.why_not():
        results.note("path-unit", f"not measured: {reason}")
        yield None
        return
    with machine.directory_of_a_machine() as directory:
        bundles = directory / "etc" / "bundles"
        bundles.mkdir()
        (bundles / "regenerate").write_text(REGENERATION)
        all_units = "[Unit]\nDefaultDependencies=no\nRequires="
        for count in _COUNTS:
            shutil.copytree(grounds[count].plain.sources, bundles / str(count) / "certs-pool")
            for name, text in _UNITS.items():
                unit = directory / "units" / name.format(count=count)
                unit.write_text(text.format(count=count))
            all_units += f"bundle-{count}.path "
        (directory / "units" / "bundles.target").write_text(all_units + "\n")
        with machine.booted(directory, "bundles.target") as booted:
            yield booted


def measure_path_units(grounds: Grounds, results: Results, seconds: float, rounds: int) -> None:
    """Measure copying a certificate in and reading the right bundle, against the path unit."""
    booted = grounds.machine
    if booted is None:
        return
    pems = iter(grounds.template)
    for count in _COUNTS:
        live = Live(grounds[count], pems)
        followed = _Followed(booted.directory / "etc" / "bundles" / str(count), pems)
        subjects: dict[str, Operation] = {
            "certfs": partial(live.change, read_whole),
            "path unit": followed.change,
        }
        plan = Plan(seconds, rounds=rounds, batch=4, slow="path unit", warm=False)
        medians = alternate(subjects, plan)
        results.add(f"path-unit-{count}", medians["path unit"] / medians["certfs"], **medians)
        # By itself: a second server that has just been at work slows the first one down.
        with grounds.another(count) as ground:
            told = alternate({"told": Told(ground, pems).change}, Plan(seconds / 2))["told"]
        unit = medians["path unit"]
        results.add(f"told-{count}", unit / told, told=told, **{"path unit": unit})
        if followed.missed:
            results.note(f"path-unit-{count}", f"the path unit missed {followed.missed} changes")


class _Followed:
    """A bundle that a path unit makes anew.

    systemd looks away while the script runs: a change in that time is missed until the next one (systemd.path(5)).
    """

    def __init__(self, directory: Path, pems: Iterator[Pem]) -> None:
        self._sources = directory / "certs-pool"
        self._bundle = directory / "bundle.pem"
        self._pems = pems
        self.missed = 0

    def change(self) -> float:
        """Copy a certificate in and read the bundle until it has it; return the seconds since the end of the copy."""
        pem = next(self._pems)
        copy = self._sources / f"0000-{pem.name}"
        copy.write_bytes(pem.text)
        started = time.perf_counter()
        self._wait_for(pem, there=True)
        taken = time.perf_counter() - started
        copy.unlink()
        self._wait_for(pem, there=False)
        return taken

    def _wait_for(self, pem: Pem, *, there: bool) -> None:
        """Wait until the bundle has a certificate or has it no more."""
        begun = time.monotonic()
        missed = begun + _MISSED_SECONDS
        while (pem.text in self._content()) is not there:
            if time.monotonic() > begun + _PATIENCE:
                raise TimeoutError(f"{self._bundle} is not right after {_PATIENCE:.0f} s")
            if time.monotonic() > missed:
                self.missed += 1
                missed += _MISSED_SECONDS
                os.utime(self._sources)  # another change
            time.sleep(0.001)

    def _content(self) -> bytes:
        with contextlib.suppress(FileNotFoundError):
            return self._bundle.read_bytes()
        return b""
