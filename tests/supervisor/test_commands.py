"""The parts of the supervisor that need no mount: the loop, the connected commands, the first outcome, the janitor."""

from __future__ import annotations

import contextlib
import os
import re
import time
from pathlib import Path

import pytest

from certfs.protocol import codec, control
from certfs.protocol.control import Reply
from certfs.protocol.messages import Failure
from certfs.protocol.specs import MountSpec, SupervisorSpec
from certfs.supervisor.commands import MOST_CLIENTS, Commands
from certfs.supervisor.event_loop import EventLoop
from certfs.supervisor.history import History
from tests.support.installed import PACKAGE

MOUNT = MountSpec(mode="standalone", trees=(), runtime="/run/certfs/x")


def test_the_first_outcome_is_told_once() -> None:
    """A command that waits gets one report, and later outcomes are nobody's business."""
    receiving, sending = os.pipe()
    history = History(SupervisorSpec(mount=MOUNT, report_fd=sending))
    history.report(Failure(6, "no", "yes"))
    history.report(None)
    with os.fdopen(receiving, "rb") as stream:
        assert codec.from_json(Failure, stream.read()) == Failure(6, "no", "yes")


def test_the_loop_knows_when_it_was_held_up() -> None:
    """A deadline that passed while the process itself did not run is announced before it is acted upon (I15)."""
    loop, happened = EventLoop(), list[str]()
    loop.at("beat", time.monotonic() - 5, lambda: happened.append("expired"))

    def held_up() -> None:
        happened.append("held up")
        loop.at("beat", time.monotonic() + 60, lambda: None)

    loop.at("other", time.monotonic() - 5, lambda: happened.append("other"))
    loop.step(held_up)
    assert happened == ["held up", "other"]


def test_more_commands_than_are_heard_at_once_wait(tmp_path: Path) -> None:
    """A command too many is neither refused nor forgotten: it is heard when another has gone (I18)."""
    loop = EventLoop()
    flushed: list[int] = []
    logged: list[str] = []

    def flush() -> Reply:
        flushed.append(1)
        return Reply()

    def steps_until(count: int) -> None:
        loop.after("too late", 10, lambda: pytest.fail(f"{len(flushed)} of {count}"))
        while len(flushed) < count:
            loop.step(lambda: None)
        loop.cancel("too late")

    commands = Commands(loop, {"flush": flush}, restart=lambda: None, log=logged.append)
    commands.listen(str(tmp_path))
    with contextlib.ExitStack() as connections:
        for number in range(MOST_CLIENTS + 2):
            connection = control.connect(str(tmp_path))
            assert connection is not None
            if number == 0:
                first = connection
            connections.enter_context(connection).send(b"flush")
            steps_until(min(number + 1, MOST_CLIENTS))
        # The two that wait keep nobody busy: the next thing to happen is the deadline.
        loop.after("nothing", 0.05, lambda: None)
        loop.step(lambda: None)
        assert len(flushed) == MOST_CLIENTS
        first.close()
        steps_until(MOST_CLIENTS + 1)
    while commands._connected:
        loop.step(lambda: None)
    commands._listener.close()
    who = rf'uid={os.getuid()} login=\w+ pid={os.getpid()} command="[^"]+"'
    line = f"detached: a command is to see the plain directories: {who}"
    assert all(re.fullmatch(line, each) for each in logged)
    assert len(logged) == len(flushed)


def test_a_second_restart_is_refused_while_one_is_under_way(tmp_path: Path) -> None:
    """Whoever asks second is told so, also when the first one has gone away."""
    loop, asked = EventLoop(), list[str]()
    commands = Commands(loop, {}, restart=lambda: asked.append("restart"), log=lambda _: None)
    commands.listen(str(tmp_path))
    first, second = (control.connect(str(tmp_path)) for _ in range(2))
    assert first is not None
    assert second is not None
    first.send(b"restart")
    while not asked:
        loop.step(lambda: None)
    first.close()
    second.send(b"restart")
    loop.after("too late", 10, lambda: pytest.fail("no answer"))
    second.settimeout(0)
    packet = b""
    while not packet:
        loop.step(lambda: None)
        with contextlib.suppress(BlockingIOError):
            packet = second.recv(4096)
    failure = codec.from_json(Reply, packet).failure
    assert failure is not None
    assert "under way" in failure.message
    commands.restarted(None)
    assert commands.restart_began is None
    second.close()
    while commands._connected:
        loop.step(lambda: None)
    commands._listener.close()


def test_the_janitors_script_keeps_out_of_the_way() -> None:
    """It is small, and for root it runs no program from the caller's PATH."""
    script = (PACKAGE / "supervisor/janitor.sh").read_text()
    assert re.search(r'"\$user" = 0 \]; then\n    PATH=/usr/sbin:/usr/bin:/sbin:/bin\n', script)
