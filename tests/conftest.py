"""Fixtures that every test can use."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator

import pytest

from tests.support import mounts
from tests.support.host import Host, serving_host
from tests.support.peer import Peer
from tests.support.tree import Tree


def pytest_sessionstart() -> None:
    """Remove what interrupted sessions left mounted."""
    mounts.sweep_stale_mounts()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what tests have measured and printed."""
    printed = [
        (report.nodeid, report.capstdout)
        for report in terminalreporter.getreports("passed")
        if report.when == "call" and report.capstdout
    ]
    if printed:
        terminalreporter.section("figures")
    for name, text in printed:
        terminalreporter.write_line(name)
        terminalreporter.write_line(textwrap.indent(text.rstrip(), "    "))


@pytest.fixture(autouse=True)
def coverage_of_children(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Count lines in other processes for quick tests only.

    The slow ones are about load and time, and go through the same lines again, many times more slowly when counted.
    """
    if request.node.get_closest_marker("slow"):
        for name in [name for name in os.environ if name.startswith("COVERAGE_")]:
            monkeypatch.delenv(name)


@pytest.fixture
def certfs_mount() -> Iterator[mounts.CertfsMount]:
    """Give a fresh store, mounted with the real command; checked when the test ends."""
    with mounts.mounted() as mount:
        yield mount


@pytest.fixture
def plain_directory() -> Iterator[Tree]:
    """Give the same as a fresh store, without a mount."""
    with mounts.plain() as tree:
        yield tree


@pytest.fixture
def dom0() -> Iterator[Host]:
    """Give a host on which certfs serves its directories, with two sources in its pool."""
    with serving_host() as made:
        yield made


@pytest.fixture(scope="session")
def other_process() -> Iterator[Peer]:
    """Give another process, which opens and reads files when it is told to."""
    with Peer() as peer:
        yield peer
