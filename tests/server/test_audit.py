"""The log: one form for every line, and no text in it that can imitate another (I20)."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from certfs.core.text import quoted
from certfs.linux import console, trust_log
from certfs.linux.trust_log import TrustLog
from certfs.server import audit

LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ (DEBUG|INFO|WARNING|ERROR|CRITICAL) [^\n]*")
QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
HOSTILE = 'x.pem" uid=0 login=0 pid=1 command="rm'


@given(text=st.text() | st.binary())
@example(text=HOSTILE)
@example(text="\\")
@example(text='\\"')
@example(text="a\nb\x1b[2J\u2028")
def test_nothing_ends_a_quotation_but_its_end(text: str | bytes) -> None:
    """Whatever a name is, its quotation is one printable word in quotation marks."""
    assert QUOTED.fullmatch(quoted(text))
    assert quoted(text).isprintable()


@pytest.fixture
def restored() -> Iterator[None]:
    """Give the logging package back what it had."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("journal", [False, True])
def test_every_line_of_a_server_has_the_one_form(
    capsys: pytest.CaptureFixture[str], *, journal: bool
) -> None:
    """A record of several lines, such as a traceback, is as many lines of the form, and nothing raw is in them."""
    audit.start_log(None, journal=journal)
    logging.getLogger("certfs").warning("a %s\nb", "\x1b[2J\u2028x\r")
    try:
        raise ValueError("inner\nline")  # noqa: TRY301
    except ValueError:
        logging.getLogger("certfs").exception("failed")
    text = capsys.readouterr().err
    lines = text.removesuffix("\n").split("\n")
    assert len(lines) > 4
    form = re.compile(r"<[0-7]>[^\n]*") if journal else LINE
    assert [line for line in lines if not form.fullmatch(line)] == []
    assert text.replace("\n", "").isprintable()


def test_a_supervisor_writes_the_same_form(capfd: pytest.CaptureFixture[str]) -> None:
    """Lines of a process without the logging package look like those of the server."""
    console.log("error", "/mnt/a\nb\x1b: gone", journal=False)
    assert LINE.fullmatch(capfd.readouterr().err.removesuffix("\n"))
    console.log("warning", "x", journal=True)
    assert capfd.readouterr().err == "<4>x\n"


def test_nobody_fills_the_log_of_trust_for_others(tmp_path: Path) -> None:
    """However much one user changes, the lines of another and of root stay (I18, I20)."""
    log = TrustLog(str(tmp_path / "log"))
    log.write(0, ["root's line"])
    log.write(1000, ["a neighbour's line"])
    log.write(None, ["the store's line"])
    for _ in range(5):
        log.write(1001, ["x" * 100] * (trust_log.BYTES // 100))
    read = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert read["log.trust-0"] == "root's line\n"
    assert read["log.trust-1000"] == "a neighbour's line\n"
    assert read["log.trust-store"] == "the store's line\n"
    assert sum(map(len, read.values())) < 5 * trust_log.BYTES


def test_many_users_have_bounded_logs_of_trust(tmp_path: Path) -> None:
    """There are not more files than users have a share, also after a restart, and root keeps its own (I18)."""
    for first in (1000, 2000):
        log = TrustLog(str(tmp_path / "log"))
        for user in range(first, first + trust_log.MOST_USERS + 5):
            log.write(user, ["x"])
        log.write(0, ["root"])
    names = {path.name for path in tmp_path.iterdir()}
    assert len(names) <= trust_log.MOST_USERS + 2
    assert {"log.trust-0", "log.trust-others"} <= names
