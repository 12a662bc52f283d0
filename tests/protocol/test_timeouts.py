"""The limits of time that stand elsewhere, too, are those of `certfs.protocol.timeouts` (I14, I15)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from certfs.protocol import timeouts
from tests.support.installed import PACKAGE

ROOT = Path(__file__).parents[2]
JANITOR = PACKAGE / "supervisor/janitor.sh"
UNIT = PACKAGE / "cli/units/service.in"
OPERATIONS = ROOT / "docs/operations.md"
PROMISES = ROOT / "docs/promises.md"
PATIENCE_STEP = 0.1
"""Between two looks of the janitor at servers that are stopped, in seconds."""


def number(path: Path, pattern: str) -> float:
    """Return the number in the group of a pattern that is in a file exactly once."""
    (found,) = re.findall(pattern, path.read_text(), re.MULTILINE)
    return float(found)


@pytest.mark.parametrize(
    "path,pattern,expected",
    [
        (JANITOR, r"^    sleep (\S+)\n    sweep dead", timeouts.JANITOR),
        (JANITOR, r"^rounds=0 patience=(\d+)", timeouts.HANG / PATIENCE_STEP),
        (OPERATIONS, r"the server hangs \| callers wait for (\S+) s", timeouts.HANG),
        (OPERATIONS, r"(\S+) s after the last sign of life", timeouts.SILENCE),
        (OPERATIONS, r"a delay that doubles up to (\S+) s", timeouts.LONGEST_DELAY),
        (OPERATIONS, r"after (\S+) s without an answer its server", 3 * timeouts.FLUSH),
        (OPERATIONS, r"`certfs unmount` ends them after (\S+) s", timeouts.STOPPED),
        (OPERATIONS, r"server is stopped \| callers wait for (\S+) s", timeouts.HANG),
        (OPERATIONS, r"certfs looks for it every (\S+) s", timeouts.BEAT),
        (OPERATIONS, r"thousands of sources, (\S+) minutes at most", timeouts.START / 60),
        (PROMISES, r"stops answering for (\S+) s", timeouts.HANG),
        (PROMISES, r"delayed by more than (\S+) s, any", timeouts.LONGEST_DELAY_KILLED),
        (PROMISES, r"any other by no more than (\S+) s", timeouts.LONGEST_DELAY),
    ],
)
def test_a_copy_is_the_limit_itself(path: Path, pattern: str, expected: float) -> None:
    """Who changes a limit changes the script and the documentation with it."""
    assert number(path, pattern) == expected


def test_the_unit_waits_longer_than_certfs_itself() -> None:
    """The unit's limits kill nothing that certfs would have ended, or mounted, by itself."""
    assert number(UNIT, r"^TimeoutStartSec=(\d+)") > timeouts.RESTART
    assert number(UNIT, r"^TimeoutStopSec=(\d+)") > timeouts.ANSWER
    assert number(UNIT, r"^RestartSec=(\d+)ms") / 1000 <= timeouts.LONGEST_DELAY_KILLED
