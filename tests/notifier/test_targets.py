"""What is run to tell a reader: no program that others could exchange, and the very words that are configured (I21)."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from certfs.notifier.targets import NotRunning, RefusedError, Systemd, check_command, run_of
from certfs.procfs import command_of
from certfs.protocol.notify_spec import NotifySpec
from tests.support.mounts import need_root, wait_until

SYSTEMD = Systemd(252, bus="/dev/null")


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """Give a program of our own in a directory of our own."""
    made = tmp_path / "own" / "program"
    made.parent.mkdir()
    made.write_text("#!/bin/sh\n", encoding="ascii")
    made.chmod(0o755)
    return made


def test_a_program_behind_links_of_our_own_is_run(program: Path) -> None:
    """Links are common: /bin, /usr/bin/java, and relative ones."""
    (program.parent / "absolute").symlink_to(program)
    (program.parent / "relative").symlink_to("../own/./absolute")
    check_command(f"{program.parent}/relative")


def test_a_link_that_others_could_exchange_is_refused(program: Path, tmp_path: Path) -> None:
    """The directory of a link decides what is run as much as that of the program."""
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "link").symlink_to(program)
    shared.chmod(0o777)
    with pytest.raises(RefusedError, match=f"others may write to {shared}"):
        check_command(str(shared / "link"))
    (program.parent / "second").symlink_to(shared / "link")
    with pytest.raises(RefusedError, match=f"others may write to {shared}"):
        check_command(str(program.parent / "second"))


def test_a_link_of_another_user_is_refused(program: Path, tmp_path: Path) -> None:
    """In a directory such as /tmp its owner could turn it."""
    need_root()
    shared = tmp_path / "sticky"
    shared.mkdir()
    shared.chmod(0o1777)
    (shared / "link").symlink_to(program)
    os.lchown(shared / "link", 65534, 65534)
    with pytest.raises(RefusedError, match=f"{shared}/link belongs to another user"):
        check_command(str(shared / "link"))


def test_links_in_a_circle_and_missing_programs_are_refused(program: Path) -> None:
    """The reason names the path."""
    circle, missing = program.parent / "circle", program.parent / "missing"
    circle.symlink_to(circle)
    with pytest.raises(RefusedError, match=str(circle)):
        check_command(str(circle))
    with pytest.raises(RefusedError, match=f"{missing}: No such file"):
        check_command(str(missing))
    with pytest.raises(RefusedError, match="is not a program"):
        check_command(str(program.parent))
    with pytest.raises(RefusedError, match=f"{program}/more: Not a directory"):
        check_command(f"{program}/more")


def test_systemd_gets_a_dollar_as_two(program: Path) -> None:
    """It would put a variable in its place: a command has the same arguments with systemd and without."""
    spec = NotifySpec(command=(str(program), "$HOME", "100%", "a$"))
    run = run_of(spec, {}, SYSTEMD, unit_name="unit")
    assert run is not None
    assert run.command[-3:] == ("$$HOME", "100%", "a$$")
    run = run_of(spec, {}, Systemd(), unit_name="unit")
    assert run is not None
    assert run.command == spec.command


@pytest.mark.parametrize("content", ["12 34", "-5", "1", "0", "9999999999", "4294967297", "x"])
def test_what_is_no_number_of_a_process_is_refused(tmp_path: Path, content: str) -> None:
    """The reason names the pid file; no number is ever cut to one that fits."""
    pid_file = tmp_path / "pid"
    pid_file.write_text(f"{content}\n", encoding="ascii")
    with pytest.raises(RefusedError, match=f"{pid_file} does not hold the number of a process"):
        run_of(NotifySpec(pid_file=str(pid_file), process="x"), {}, SYSTEMD, unit_name="unit")


def test_the_first_line_of_a_pid_file_is_the_number(tmp_path: Path) -> None:
    """Some programs write more into it (postmaster.pid, sendmail.pid), and some pad it (Postfix)."""
    sleeper = subprocess.Popen(["sleep", "300"])
    wait_until(lambda: command_of(sleeper.pid) == b"sleep", what="the name of a program")
    pid_file = tmp_path / "pid"
    pid_file.write_text(f"   {sleeper.pid}\n{'/var/lib ' * 1000}\n", encoding="ascii")
    spec = NotifySpec(pid_file=str(pid_file), process="sleep", signal="TERM")
    assert run_of(spec, {}, SYSTEMD, unit_name="unit") is None
    assert sleeper.wait(timeout=60) == -15
    with pytest.raises(NotRunning):
        run_of(spec, {}, SYSTEMD, unit_name="unit")
