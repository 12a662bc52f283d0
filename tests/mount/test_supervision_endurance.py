"""Crashes and restarts under load, one after the other, with the figures of I14 and I17."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from certfs.linux.processes import ProcessId
from tests.support import load, mounts, pki
from tests.support.host import POOL, Host

pytestmark = [pytest.mark.mount, pytest.mark.namespace, pytest.mark.slow]

ROUNDS = int(os.environ.get("CERTFS_TEST_RENEWALS", "4"))
"""Crashes, and restarts, under load; the nightly run makes 100 of each."""
OUTLIERS = max(1, ROUNDS // 20)
"""So many may take longer than promised: this machine also runs the load and other tests."""


def _ordinary() -> None:
    os.setpriority(os.PRIO_PROCESS, 0, 0)


@pytest.fixture
def pool_of_16(dom0: Host) -> Host:
    """Give a host with 16 sources in its pool."""
    for number in range(len(POOL), 16):
        (dom0.tree.certs_pool / f"{number}.pem").write_bytes(pki.issue(f"host {number}").pem)
    return dom0


class Workers:
    """Readers and writers on a host."""

    def __init__(self, made: Host, *, readers: int, writers: int) -> None:
        kinds = ["read"] * readers + ["write"] * writers
        self._processes = [
            subprocess.Popen(
                [*made.entering(), sys.executable, Path(load.__file__), kind, "/etc"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                preexec_fn=_ordinary,  # noqa: PLW1509  a process without threads
            )
            for kind in kinds
        ]
        for process in self._processes:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"

    def finish(self) -> list[dict[str, Any]]:
        """Tell them to stop and return what they noted."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
            process.stdin = None
        return [json.loads(process.communicate(timeout=30)[0]) for process in self._processes]

    def end(self) -> None:
        """Kill those that are left."""
        for process in self._processes:
            process.kill()
            for stream in (process.stdin, process.stdout):
                if stream:
                    stream.close()
            process.wait()


@contextlib.contextmanager
def workers(made: Host, *, readers: int, writers: int) -> Iterator[Workers]:
    """Run readers and writers; end them in any case."""
    busy = Workers(made, readers=readers, writers=writers)
    try:
        yield busy
    finally:
        busy.end()


def show(what: str, seconds: list[float]) -> None:
    """Print median and worst."""
    print(f"{what}: median {statistics.median(seconds):.3f} s, worst {max(seconds):.3f} s")


@dataclass(slots=True)
class Crash:
    """One SIGKILL, and when it was overcome, in seconds after it."""

    plain: float
    dead: float
    """The process has ended: one that waits for a disk, in fsync(2) for a caller, ends only after that."""
    live: float


def crash(made: Host) -> Crash:
    """Kill the server and watch."""
    server = ProcessId.of(made.server())
    began = time.monotonic()
    server.kill()
    plain = dead = 0.0
    while not (plain and dead):
        assert time.monotonic() - began < 20
        if not plain and not made.in_view():
            plain = time.monotonic() - began
        if not dead and _has_ended(server):
            dead = time.monotonic() - began
        time.sleep(0.001)  # a busy loop would take the processor from those who are measured
    return Crash(plain, dead, made.live_again(began, not_pid=server.pid))


def _has_ended(process: ProcessId) -> bool:
    """Whether a process has ended with all its threads: a pidfd would say so, and is newer than the oldest kernel."""
    if process.alive():
        return False
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return len(os.listdir(f"/proc/{process.pid}/task")) <= 1
    return True


@pytest.fixture
def urgent() -> Iterator[None]:
    """Let the test measure others, not how long it waits for a processor itself."""
    mounts.need_root()
    before = os.getpriority(os.PRIO_PROCESS, 0)
    os.setpriority(os.PRIO_PROCESS, 0, -15)
    yield
    os.setpriority(os.PRIO_PROCESS, 0, before)


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("urgent")
def test_crashes_under_readers_and_writers(pool_of_16: Host) -> None:
    """Each time: plain within 100 ms, live within 2 s, nothing torn, no acknowledged change lost (I14, I12)."""
    with workers(pool_of_16, readers=2, writers=2) as busy:
        crashes = [crash(pool_of_16) for _ in range(ROUNDS)]
        notes = busy.finish()
    print(f"after SIGKILL, {ROUNDS} times:")
    show("  plain directories", [each.plain for each in crashes])
    show("  (the process has ended)", [each.dead for each in crashes])
    show("  live mount", [each.live for each in crashes])
    acknowledged = sum(note.get("acknowledged", 0) for note in notes)
    written = sum(note["rounds"] for note in notes if "lost" in note)
    lost = sum(note.get("lost", 0) for note in notes)
    print(f"  acknowledged changes lost: {lost} ({acknowledged} files, {written} writes)")
    print(f"  longest trouble of one program: {max(note['longest'] for note in notes):.3f} s")
    plain = sorted(each.plain for each in crashes)
    assert plain[-1 - OUTLIERS] < 0.1
    assert plain[-1] < 1.0
    live = sorted(each.live for each in crashes)
    assert live[-1 - OUTLIERS] < 2.0
    assert live[-1] < 5.0
    assert lost == 0
    assert acknowledged > 0
    assert [torn for note in notes for torn in note.get("torn", ())] == []


@pytest.mark.timeout(600)
def test_restarts_under_readers(pool_of_16: Host) -> None:
    """Restarts under 8 readers: no failed open, read or listing, nothing torn, open files stay readable (I17)."""
    took = []
    with workers(pool_of_16, readers=8, writers=0) as busy:
        for _ in range(ROUNDS):
            began = time.monotonic()
            pool_of_16.certfs("restart")
            took.append(time.monotonic() - began)
        notes = busy.finish()
    show(f"certfs restart under 8 readers, {ROUNDS} times", took)
    reads = sum(note["rounds"] for note in notes)
    failed = sum(sum(note["errors"].values()) for note in notes)
    print(f"failed opens: {failed} of {reads}")
    assert failed == 0
    assert [torn for note in notes for torn in note["torn"]] == []
    assert sum(note["held_failures"] for note in notes) == 0
    assert len(pool_of_16.state()["devices"]) <= 2
