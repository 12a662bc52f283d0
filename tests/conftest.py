"""Fixtures that every test can use."""

from __future__ import annotations

import functools
import os
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from xdist.remote import Producer
from xdist.scheduler.loadscope import LoadScopeScheduling

from tests.support import installed, mounts
from tests.support.counted import settings_of_children
from tests.support.host import Host, serving_host
from tests.support.peer import Peer
from tests.support.tree import Tree

# No time limit for an example: the machine is shared. `--hypothesis-profile` chooses the other profile.
settings.register_profile("certfs", deadline=None, print_blob=True)
settings.register_profile("nightly", settings.get_profile("certfs"), max_examples=3_000)
settings.load_profile("certfs")

_CONFIG = "COVERAGE_PROCESS_CONFIG"
_ROOT = Path(__file__).parents[1]


def pytest_sessionstart() -> None:
    """Run nothing with another certfs than the one to be tested; remove what interrupted sessions left mounted."""
    wrong = list(installed.wrong())
    if wrong:
        raise pytest.UsageError("; ".join(wrong))
    mounts.sweep_stale_mounts()


class ModulesThatShare(LoadScopeScheduling):  # type: ignore[misc] # xdist has no types for it
    """Gives xdist's workers one test at a time, but all tests of a module that share a fixture to one of them.

    The fixture is made once then, and the module is begun early, the one with the most tests first. (With pytest 9.2
    the mark `xdist_group` of pytest-xdist 3.8 does nothing: it sets an attribute that pytest no longer reads.)
    """

    def _split_scope(self, nodeid: str) -> str:
        module = nodeid.partition("::")[0]
        return module if shares_a_fixture(module) else nodeid


@functools.cache
def shares_a_fixture(module: str) -> bool:
    """Whether a module has a fixture for all its tests."""
    return 'fixture(scope="module")' in (_ROOT / module).read_text(encoding="utf-8")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Say which worker gets which test."""
    return ModulesThatShare(config, log)


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


@pytest.fixture(scope="session", autouse=True)
def coverage_settings() -> dict[str, str]:
    """Take what makes other processes count their lines out of the environment, and give it."""
    names = [name for name in os.environ if name.startswith("COVERAGE_")]
    settings = {name: os.environ.pop(name) for name in names}
    if _CONFIG in settings:
        settings[_CONFIG] = settings_of_children(settings[_CONFIG], str(_ROOT / "certfs"))
    return settings


@pytest.fixture(scope="module", autouse=True)
def coverage_of_children(
    request: pytest.FixtureRequest, coverage_settings: dict[str, str]
) -> Iterator[None]:
    """Count lines in the processes that tests start only for modules marked `counted`.

    It costs each Python process 100 ms of processor time, and so doubles what a mount costs.
    """
    with pytest.MonkeyPatch.context() as environment:
        if request.node.get_closest_marker("counted"):
            for name, value in coverage_settings.items():
                environment.setenv(name, value)
        yield


@pytest.fixture(scope="module", autouse=True)
def coverage_of_modules(request: pytest.FixtureRequest) -> Iterator[None]:
    """Count no lines for modules marked `uncounted`, which measure work: counting more than doubles what that takes."""
    tracer = sys.gettrace()
    is_uncounted = request.node.get_closest_marker("uncounted") is not None
    if is_uncounted:
        sys.settrace(None)
    yield
    if is_uncounted:
        sys.settrace(tracer)


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
