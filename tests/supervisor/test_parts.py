"""The parts of the supervisor that need no mount: policy, the loop, the commands that are connected."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import pytest

from certfs.protocol import control
from certfs.protocol.launch_spec import Order
from certfs.protocol.link import Failure, Mount
from certfs.supervisor.backoff import HEALTHY_SECONDS, LONGEST_SECONDS, LONGEST_WHEN_KILLED, Strikes
from certfs.supervisor.clients import MOST_CLIENTS, Client, Clients
from certfs.supervisor.event_loop import Reactor
from certfs.supervisor.outcome import Outcome, outcome_from_json

MOUNT = Mount(
    mode="standalone",
    trees=(),
    runtime="/run/certfs/x",
    config_file=None,
    allow_other=False,
    journal=False,
)


def strikes(count: int, *, served: float = 1.0) -> Strikes:
    """Return what ``count`` deaths in a row come to."""
    result = Strikes()
    for _ in range(count):
        result = result.after(served)
    return result


def test_the_first_deaths_are_answered_at_once() -> None:
    """Five deaths in a row cost no delay; then it doubles up to a minute (I14)."""
    delays = [strikes(count).delay(killed=False) for count in range(1, 20)]
    assert delays[:8] == [0, 0, 0, 0, 0, 1, 2, 4]
    assert delays[-1] == LONGEST_SECONDS


def test_a_kill_from_outside_is_no_defect() -> None:
    """However often the server is killed with SIGKILL, it is back within 2 s (I14)."""
    assert strikes(100).delay(killed=True) == LONGEST_WHEN_KILLED < 1


def test_a_healthy_server_ends_a_row_of_deaths() -> None:
    """A server that served for a minute starts the count anew."""
    assert strikes(10).after(HEALTHY_SECONDS).delay(killed=False) == 0


def test_the_first_outcome_is_told_once() -> None:
    """A command that waits gets one report, and later outcomes are nobody's business."""
    receiving, sending = os.pipe()
    outcome = Outcome(Order(mount=MOUNT, report_fd=sending))
    outcome.tell(Failure(6, "no", "yes"))
    outcome.tell(None)
    with os.fdopen(receiving, "rb") as stream:
        assert outcome_from_json(stream.read()) == Failure(6, "no", "yes")


def test_the_loop_knows_when_it_was_held_up() -> None:
    """A deadline that passed while the process itself did not run is announced before it is acted upon (I15)."""
    reactor, happened = Reactor(), list[str]()
    reactor.at("beat", time.monotonic() - 5, lambda: happened.append("expired"))

    def held_up() -> None:
        happened.append("held up")
        reactor.at("beat", time.monotonic() + 60, lambda: None)

    reactor.at("other", time.monotonic() - 5, lambda: happened.append("other"))
    reactor.step(held_up)
    assert happened == ["held up", "other"]


def test_more_commands_than_are_heard_at_once_wait(tmp_path: Path) -> None:
    """A command too many is neither refused nor forgotten: it is heard when another has gone (I18)."""
    reactor = Reactor()
    heard: list[Client] = []
    gone: list[Client] = []

    def steps_until(clients: list[Client], count: int) -> None:
        reactor.after("too late", 10, lambda: pytest.fail(f"{len(clients)} of {count}"))
        while len(clients) < count:
            reactor.step(lambda: None)
        reactor.cancel("too late")

    clients = Clients(
        str(tmp_path), reactor, asked=lambda client, _: heard.append(client), left=gone.append
    )
    with contextlib.ExitStack() as commands:
        for number in range(MOST_CLIENTS + 2):
            connection = control.connect(str(tmp_path))
            assert connection is not None
            if number == 0:
                first = connection
            commands.enter_context(connection).send(b"flush")
            steps_until(heard, min(number + 1, MOST_CLIENTS))
        # The two that wait keep nobody busy: the next thing to happen is the deadline.
        reactor.after("nothing", 0.05, lambda: None)
        reactor.step(lambda: None)
        assert len(heard) == MOST_CLIENTS
        first.close()
        steps_until(heard, MOST_CLIENTS + 1)
    steps_until(gone, MOST_CLIENTS + 2)
    clients._listener.close()
