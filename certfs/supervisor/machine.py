"""What a supervisor does next: (State, Event) → (State, Actions). Pure: no process, no mount, no clock.

Servers are known by number. At most two matter: ``current``, whose mount is in view, and ``next``, which was started to
take its place. The phases, and where each event leads (a dash: nothing happens):

=========== =================== =================== ==================== =================== ========= ========
event       STARTING            SERVING             REPLACING            PLAIN               BACKOFF   COVERED
=========== =================== =================== ==================== =================== ========= ========
servers     next                current             current, next        next                none      none
in view     plain               current             current              plain               plain     plain
----------- ------------------- ------------------- -------------------- ------------------- --------- --------
Loaded      mount it            -                   mount it [1]_        mount it            -         -
Answers     show it             -                   show it              show it             -         -
Shown       SERVING             -                   SERVING, retire old  SERVING             -         -
Failed      ENDED, say why      -                   SERVING, kill it     again [2]_          -         -
Gone        as Failed           BACKOFF [3]_        next: as Failed      as Failed           -         -
                                                    current: PLAIN [3]_
Silent      -                   kill it, BACKOFF    kill it, PLAIN       -                   -         -
Lost        -                   -                   -                    -                   again     -
Restart     REPLACING later     REPLACING           (refused as busy)    REPLACING later     PLAIN     refused
Unmounted   ENDED, say why      ENDED               ENDED                ENDED               -         -
Room        -                   -                   -                    -                   -         PLAIN
Retry       -                   -                   -                    -                   PLAIN     -
End         ENDED in every phase
=========== =================== =================== ==================== =================== ========= ========

.. [1] Where two servers cannot be mounted at once (an ordinary user's), ``current`` is retired first, which is PLAIN.
.. [2] PLAIN at once or BACKOFF for some seconds (`Strikes`); COVERED while something is mounted over the place of a
   server that can be mounted nowhere else.
.. [3] ENDED if the server said before that it was unmounted; so for ``next`` where its place was the only one.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final, Self

from certfs.protocol import timeouts
from certfs.protocol.messages import Failure

FREE_STRIKES: Final = 5
"""So many deaths in a row are answered at once."""

NO_ROOM: Final = Failure(6, "something is mounted over it", "unmount that first")
ENDED_EARLY: Final = Failure(9, "the new server did not start", "its log says why")
UNMOUNTED: Final = Failure(9, "it was unmounted before it served")
TOO_SLOW: Final = Failure(9, f"the server was not ready after {timeouts.START:.0f} s")


class Phase(StrEnum):
    """See the table above."""

    STARTING = "starting"
    SERVING = "serving"
    REPLACING = "replacing"
    PLAIN = "plain"
    BACKOFF = "backoff"
    COVERED = "covered"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Strikes:
    """Deaths in a row, and how many of them were not kills from outside."""

    deaths: int = 0
    defects: int = 0

    def after(self, served_seconds: float, *, killed: bool) -> Self:
        """Return the strikes after one more death, of a server that had served for ``served_seconds``."""
        before = type(self)() if served_seconds >= timeouts.HEALTHY else self
        return type(self)(before.deaths + 1, before.defects + (not killed))

    def delay(self, *, killed: bool) -> float:
        """Return the seconds to wait before the next start (I15)."""
        if killed:
            return timeouts.LONGEST_DELAY_KILLED if self.deaths > FREE_STRIKES else 0.0
        beyond = self.defects - FREE_STRIKES
        return min(2.0 ** min(beyond - 1, 10), timeouts.LONGEST_DELAY) if beyond > 0 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """All that decides what is done next."""

    phase: Phase = Phase.STARTING
    current: int | None = None
    next: int | None = None
    showing: bool = False
    """``next`` answers, and is to be seen."""
    next_asked: bool = False
    """``next`` was started because somebody asked, with the configuration of now."""
    asked: bool = False
    """A restart was asked for, and is not answered yet."""
    covered: bool = False
    """There is no room for a server: something is mounted over the place."""
    one_place: bool = False
    """Servers mount on the mountpoint itself, one after the other (an ordinary user's)."""
    strikes: Strikes = Strikes()
    last: int = 0
    """The number of the last server."""

    @property
    def seen(self) -> int | None:
        """The server whose mount is to be in view; None for plain files."""
        return self.next if self.showing else self.current

    @property
    def servers(self) -> tuple[int, ...]:
        """The servers whose mounts are to stay."""
        return tuple(each for each in (self.current, self.next) if each is not None)


@dataclass(frozen=True, slots=True)
class Bare:
    """An event or an action of which its kind says all."""


@dataclass(frozen=True, slots=True)
class OfServer:
    """An event or an action that is about one server, known by its number."""

    server: int


# --- events


class Begin(Bare):
    """Somebody wants this mount."""


@dataclass(frozen=True, slots=True)
class Adopted:
    """A server was there before this supervisor."""

    server: int
    mounted: bool


class Loaded(OfServer):
    """A server can serve as soon as it gets a descriptor."""


class Answers(OfServer):
    """A server serves."""


class Shown(Bare):
    """What was to be shown is in view."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A server that was to come into view cannot."""

    server: int
    failure: Failure
    killed: bool = False


@dataclass(frozen=True, slots=True)
class Gone:
    """A server has ended; ``unmounted``: it said that its mount had gone."""

    server: int
    unmounted: bool = False


class Silent(OfServer):
    """The current server hangs."""


@dataclass(frozen=True, slots=True)
class Lost:
    """Plain files are in view, and how the server died is known."""

    killed: bool
    served_seconds: float


class Restart(Bare):
    """A command asks for a new server."""


class Unmounted(Bare):
    """Somebody has unmounted what was in view, or what was about to be."""


@dataclass(frozen=True, slots=True)
class Room:
    """Whether something covers the place of the only server has changed."""

    covered: bool


class Retry(Bare):
    """The time of a back-off is over."""


class End(Bare):
    """A command or a signal asks for the end."""


Event = (
    Begin | Adopted | Loaded | Answers | Shown | Failed | Gone | Silent | Lost | Restart | Unmounted
    | Room | Retry | End
)  # fmt: skip


# --- actions


@dataclass(frozen=True, slots=True)
class Start:
    """Start a server; ``standby`` beside another one, ``asked`` to read the configuration anew."""

    server: int
    standby: bool
    asked: bool


class Mount(OfServer):
    """Mount, and hand the descriptor to the server."""


class Flush(OfServer):
    """Have a server bring the plain copies up to date, and the kernel what names lead to."""


class Record(Bare):
    """Write down which server is in charge, before the mount of another one goes."""


class Look(Bare):
    """Bring what is to be seen into view, now. It is done after every event anyway."""


class Retire(OfServer):
    """Let a server serve what is open, and no more."""


class Kill(OfServer):
    """End a server that is not to come into view."""


@dataclass(frozen=True, slots=True)
class Lose:
    """End what is left of the server that was in view, and note how it died."""

    server: int
    hung: bool


class Activate(OfServer):
    """A server is in charge from now on."""


@dataclass(frozen=True, slots=True)
class Note:
    """Note that a server did not start."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class Wait:
    """Let so much time pass before `Retry`."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Answer:
    """Tell whoever asked for the restart."""

    failure: Failure | None


class Renew(Bare):
    """Tell whoever asked for the restart that it is done, and become a supervisor of the code of now."""


@dataclass(frozen=True, slots=True)
class Report:
    """Tell whoever waits for the first outcome."""

    failure: Failure | None


@dataclass(frozen=True, slots=True)
class Finish:
    """Take everything out of view and end."""

    exit_code: int = 0


Action = (
    Start | Mount | Flush | Record | Look | Retire | Kill | Lose | Activate | Note | Wait | Answer | Renew | Report
    | Finish
)  # fmt: skip
Step = tuple[State, tuple[Action, ...]]


def step(state: State, event: Event) -> Step:  # noqa: C901, PLR0911, PLR0912  the table, line by line
    """Return what follows from an event."""
    if state.phase is Phase.ENDED:
        return state, ()
    match event:
        case Begin():
            return _start(state, Phase.STARTING, asked=True)
        case Adopted(server, mounted):
            if mounted:
                return replace(state, phase=Phase.SERVING, current=server, last=server), ()
            return replace(state, phase=Phase.PLAIN, next=server, last=server), ()
        case Loaded(server) if server == state.next and not state.showing:
            return _mount(state, server)
        case Answers(server) if server == state.next and not state.showing:
            flush = () if state.current is None else (Flush(state.current),)
            return replace(state, showing=True), (*flush, Look())
        case Shown() if state.showing and state.next is not None:
            return _shown(state, state.next)
        case Failed(server, failure, killed) if server == state.next:
            return _failed(state, server, failure, killed=killed)
        case Gone(server, unmounted=True) if server == state.next and _only_mount(state):
            return _unmounted(state)
        case Gone(server) if server == state.next:
            return _failed(state, server, ENDED_EARLY, killed=False)
        case Gone(server, unmounted=True) if server == state.current:
            return _finish(state)
        case Gone(server) | Silent(server) if server == state.current:
            phase = Phase.BACKOFF if state.next is None else Phase.PLAIN
            lost = replace(state, phase=phase, current=None)
            return lost, (Lose(server, hung=isinstance(event, Silent)),)
        case Lost(killed, served) if state.phase is Phase.BACKOFF:
            return _again(state, state.strikes.after(served, killed=killed), killed=killed)
        case Restart():
            return _restart(state)
        case Unmounted() if state.servers:
            return _unmounted(state)
        case Room(covered):
            state = replace(state, covered=covered)
            if state.phase is Phase.COVERED and not covered:
                return _start(state, Phase.PLAIN, asked=state.asked)
        case Retry() if state.phase is Phase.BACKOFF:
            return _start(state, Phase.PLAIN, asked=state.asked)
        case End():
            return _finish(state)
    return state, ()


def _start(state: State, phase: Phase, *, asked: bool) -> Step:
    number = state.last + 1
    started = replace(state, phase=phase, next=number, last=number, next_asked=asked)
    return started, (Start(number, standby=state.current is not None, asked=asked),)


def _mount(state: State, server: int) -> Step:
    if not state.one_place:
        return state, (Mount(server),)
    if state.covered:
        return _failed(state, server, NO_ROOM, killed=False)
    if state.current is None:
        return state, (Mount(server),)
    # The mount goes before its server is let go: until then another supervisor can still take over either of the two.
    # That of a server whose mount has gone must not take this for an unmount, hence the record.
    before = state.current
    plain = replace(state, phase=Phase.PLAIN, current=None)
    return plain, (Flush(before), Record(), Look(), Retire(before), Mount(server))


def _shown(state: State, server: int) -> Step:
    retired = () if state.current is None else (Retire(state.current), Look())
    served = replace(state, phase=Phase.SERVING, current=server, next=None, showing=False)
    actions: tuple[Action, ...] = (*retired, Activate(server))
    if state.phase is Phase.STARTING:
        actions += (Report(None),)
    if not state.asked:
        return served, actions
    if state.next_asked:
        return replace(served, asked=False), (*actions, Renew())
    replaced, more = _start(served, Phase.REPLACING, asked=True)
    return replaced, (*actions, *more)


def _failed(state: State, server: int, failure: Failure, *, killed: bool) -> Step:
    if state.phase is Phase.STARTING:
        ended, actions = _finish(state, failure.exit_code)
        return ended, (*actions, Report(failure))
    without = replace(state, next=None, showing=False, asked=False)
    actions = (Kill(server), Look(), Note(failure))
    if state.asked:
        actions += (Answer(failure),)
    if state.current is not None:
        return replace(without, phase=Phase.SERVING), actions
    again, more = _again(without, state.strikes.after(0.0, killed=killed), killed=killed)
    return again, (*actions, *more)


def _again(state: State, strikes: Strikes, *, killed: bool) -> Step:
    state = replace(state, strikes=strikes)
    if state.covered:
        return replace(state, phase=Phase.COVERED), ()
    delay = strikes.delay(killed=killed)
    if delay:
        return replace(state, phase=Phase.BACKOFF), (Wait(delay),)
    return _start(state, Phase.PLAIN, asked=False)


def _restart(state: State) -> Step:
    if state.covered:
        return state, (Answer(NO_ROOM),)
    asked = replace(state, asked=True)
    if state.phase is Phase.SERVING:
        return _start(asked, Phase.REPLACING, asked=True)
    if state.phase in {Phase.BACKOFF, Phase.COVERED}:
        return _start(asked, Phase.PLAIN, asked=True)
    return asked, ()


def _only_mount(state: State) -> bool:
    """Whether ``next`` is mounted on the mountpoint itself, and nothing else is."""
    return state.one_place and state.current is None


def _unmounted(state: State) -> Step:
    if state.phase is Phase.STARTING:
        return _failed(state, state.last, UNMOUNTED, killed=False)
    return _finish(state)


def _finish(state: State, exit_code: int = 0) -> Step:
    return replace(state, phase=Phase.ENDED), (Finish(exit_code),)
