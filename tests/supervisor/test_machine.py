"""What a supervisor does next: the table of phases and events, and how long it waits (I14, I15, I17)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from certfs.protocol import timeouts
from certfs.protocol.messages import Failure
from certfs.supervisor import machine
from certfs.supervisor.machine import Phase, State, Strikes, step

FAILURE = Failure(3, "broken")
STATES = {
    Phase.STARTING: State(phase=Phase.STARTING, next=1, last=1, next_asked=True),
    Phase.SERVING: State(phase=Phase.SERVING, current=1, last=1),
    Phase.REPLACING: State(
        phase=Phase.REPLACING, current=1, next=2, last=2, asked=True, next_asked=True
    ),
    Phase.PLAIN: State(phase=Phase.PLAIN, next=2, last=2),
    Phase.BACKOFF: State(phase=Phase.BACKOFF, last=2),
    Phase.COVERED: State(phase=Phase.COVERED, last=2, covered=True, one_place=True),
    Phase.ENDED: State(phase=Phase.ENDED, last=2),
}
CURRENT, NEXT = "current", "next"
TABLE = [
    (Phase.STARTING, machine.Loaded, NEXT, Phase.STARTING, [machine.Mount]),
    (Phase.STARTING, machine.Answers, NEXT, Phase.STARTING, [machine.Look]),
    (Phase.STARTING, machine.Failed, NEXT, Phase.ENDED, [machine.Finish, machine.Report]),
    (Phase.STARTING, machine.Gone, NEXT, Phase.ENDED, [machine.Finish, machine.Report]),
    (Phase.STARTING, machine.Unmounted, "", Phase.ENDED, [machine.Finish, machine.Report]),
    (Phase.SERVING, machine.Gone, CURRENT, Phase.BACKOFF, [machine.Lose]),
    (Phase.SERVING, machine.Silent, CURRENT, Phase.BACKOFF, [machine.Lose]),
    (Phase.SERVING, machine.Restart, "", Phase.REPLACING, [machine.Start]),
    (Phase.SERVING, machine.Unmounted, "", Phase.ENDED, [machine.Finish]),
    (Phase.REPLACING, machine.Loaded, NEXT, Phase.REPLACING, [machine.Mount]),
    (Phase.REPLACING, machine.Answers, NEXT, Phase.REPLACING, [machine.Flush, machine.Look]),
    (
        Phase.REPLACING,
        machine.Failed,
        NEXT,
        Phase.SERVING,
        [machine.Kill, machine.Look, machine.Note, machine.Answer],
    ),
    (Phase.REPLACING, machine.Gone, CURRENT, Phase.PLAIN, [machine.Lose]),
    (Phase.REPLACING, machine.Silent, CURRENT, Phase.PLAIN, [machine.Lose]),
    (Phase.PLAIN, machine.Loaded, NEXT, Phase.PLAIN, [machine.Mount]),
    (
        Phase.PLAIN,
        machine.Failed,
        NEXT,
        Phase.PLAIN,
        [machine.Kill, machine.Look, machine.Note, machine.Start],
    ),
    (Phase.PLAIN, machine.Restart, "", Phase.PLAIN, []),
    (Phase.PLAIN, machine.Unmounted, "", Phase.ENDED, [machine.Finish]),
    (Phase.BACKOFF, machine.Unmounted, "", Phase.BACKOFF, []),
    (Phase.BACKOFF, machine.Retry, "", Phase.PLAIN, [machine.Start]),
    (Phase.BACKOFF, machine.Restart, "", Phase.PLAIN, [machine.Start]),
    (Phase.COVERED, machine.Restart, "", Phase.COVERED, [machine.Answer]),
    (Phase.COVERED, machine.Retry, "", Phase.COVERED, []),
    (Phase.ENDED, machine.Restart, "", Phase.ENDED, []),
    (Phase.ENDED, machine.End, "", Phase.ENDED, []),
    *((phase, machine.End, "", Phase.ENDED, [machine.Finish]) for phase in Phase if phase != "ended"),
]  # fmt: skip


def event_for(kind: type[machine.Event], whose: str, state: State) -> machine.Event:
    """Return an event of this kind that concerns one of the servers of ``state``."""
    if not whose:
        return kind()  # type: ignore[call-arg]
    server = getattr(state, whose)
    return machine.Failed(server, FAILURE) if kind is machine.Failed else kind(server)  # type: ignore[call-arg]


@pytest.mark.parametrize("before,kind,whose,after,actions", TABLE)
def test_the_table(
    before: Phase,
    kind: type[machine.Event],
    whose: str,
    after: Phase,
    actions: list[type[machine.Action]],
) -> None:
    """Each line of the table in the module leads to its phase, by its actions."""
    state = STATES[before]
    found, done = step(state, event_for(kind, whose, state))
    assert found.phase == after
    assert [type(action) for action in done] == actions


@pytest.mark.parametrize("phase", Phase)
def test_what_a_server_of_the_past_says_is_ignored(phase: Phase) -> None:
    """A message of a server that was let go changes nothing, whatever arrives late."""
    state = STATES[phase]
    for event in (
        machine.Loaded(99),
        machine.Answers(99),
        machine.Gone(99),
        machine.Silent(99),
        machine.Failed(99, FAILURE),
    ):
        assert step(state, event) == (state, ())


def shown(state: State) -> tuple[State, tuple[machine.Action, ...]]:
    """Let the next server answer and come into view."""
    assert state.next is not None
    state, _ = step(state, machine.Answers(state.next))
    return step(state, machine.Shown())


def test_a_restart_retires_the_old_server_after_the_new_one_is_in_view() -> None:
    """Between the two there is always one that serves; then the supervisor renews itself (I17)."""
    state, actions = shown(STATES[Phase.REPLACING])
    assert (state.phase, state.current, state.next) == (Phase.SERVING, 2, None)
    assert actions == (machine.Retire(1), machine.Look(), machine.Activate(2), machine.Renew())


def test_where_there_is_one_place_the_old_mount_goes_before_its_server_is_let_go() -> None:
    """A supervisor that dies in the middle leaves one of the two servers with a mount, or a descriptor to wait for."""
    state = replace(STATES[Phase.REPLACING], one_place=True)
    state, actions = step(state, machine.Loaded(2))
    assert (state.phase, state.current) == (Phase.PLAIN, None)
    assert actions == (
        machine.Flush(1), machine.Record(), machine.Look(), machine.Retire(1), machine.Mount(2),
    )  # fmt: skip
    state, actions = shown(state)
    assert actions == (machine.Activate(2), machine.Renew())


def test_a_restart_asked_for_after_a_death_reads_the_configuration() -> None:
    """The server that follows a death serves with the old configuration: another one follows it (I17)."""
    state, _ = step(STATES[Phase.PLAIN], machine.Restart())
    state, actions = shown(state)
    assert state.phase is Phase.REPLACING
    assert machine.Start(3, standby=True, asked=True) in actions
    _, actions = shown(state)
    assert actions[-1] == machine.Renew()


def test_an_unmount_of_the_only_place_while_the_next_server_starts_ends_it() -> None:
    """An ordinary user's mount that is there already and then unmounted is not made again (I17)."""
    state = replace(STATES[Phase.PLAIN], one_place=True)
    state, actions = step(state, machine.Gone(2, unmounted=True))
    assert (state.phase, actions) == (Phase.ENDED, (machine.Finish(),))


def test_nothing_starts_beneath_another_mount_and_everything_when_it_goes() -> None:
    """An ordinary user's server has one place (I14)."""
    state = State(phase=Phase.BACKOFF, one_place=True, covered=True, last=1)
    state, actions = step(state, machine.Lost(killed=True, served_seconds=1))
    assert (state.phase, actions) == (Phase.COVERED, ())
    state, actions = step(state, machine.Room(covered=False))
    assert (state.phase, actions) == (Phase.PLAIN, (machine.Start(2, standby=False, asked=False),))


def after(deaths: str, *, served: float = 1.0) -> Strikes:
    """Return the strikes after deaths: ``k`` a kill from outside, ``d`` a defect."""
    strikes = Strikes()
    for each in deaths:
        strikes = strikes.after(served, killed=each == "k")
    return strikes


def test_the_first_deaths_are_answered_at_once() -> None:
    """Five deaths in a row cost no delay; then it doubles up to 5 s: so old plain files may become (I14, I15)."""
    delays = [after("d" * count).delay(killed=False) for count in range(1, 20)]
    assert delays[:9] == [0, 0, 0, 0, 0, 1, 2, 4, 5]
    assert max(delays) == timeouts.LONGEST_DELAY == 5


def test_a_kill_from_outside_never_counts() -> None:
    """However often the server is killed, it is back within 0.25 s, and a hang after that is answered at once (I15)."""
    assert after("k" * 1000).delay(killed=True) == timeouts.LONGEST_DELAY_KILLED == 0.25
    assert after("k" * 30 + "d").delay(killed=False) == 0
    assert after("d" * 10 + "k").delay(killed=True) <= 0.25


def test_a_healthy_server_ends_a_row_of_deaths() -> None:
    """A server that served for a minute starts the count anew."""
    assert after("d" * 10).after(timeouts.HEALTHY, killed=False).delay(killed=False) == 0
