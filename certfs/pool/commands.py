"""What commands ask of a pool: how it is, that something is published, and to wait until every host has it.

Owns the waiting. The process of this host is asked by its control socket, the pool by the engine.
"""

from dataclasses import asdict, dataclass

import msgspec
import trio

from certfs.errors import CertfsError
from certfs.pool.engine import Engine
from certfs.pool.keys import PoolError, Status, range_end
from certfs.pool.local import Answer, ControlSocket, Request, Told
from certfs.pool.membership import JoinFile, StateDirectory
from certfs.pool.process import Member, Report
from certfs.pool.view import View

_ASK_SECONDS = 10.0
_POLL_SECONDS = 0.05


class BehindError(CertfsError):
    """Hosts of the pool have not acknowledged the last change in time; it reaches them when they can be reached."""

    exit_code = 53


@dataclass(frozen=True, slots=True)
class HostState:
    """A member: ``applied`` is what it has acknowledged, None while it is not connected; else it may be ``behind``."""

    uuid: str
    publisher: bool
    applied: int | None
    state: str
    behind: bool


@dataclass(frozen=True, slots=True)
class PoolState:
    """The pool at one revision: ``changed`` is when it was changed last."""

    revision: int
    changed: int
    hosts: tuple[HostState, ...]


def answer_of(member: Member) -> Answer:
    """Return what the process of a member says of itself."""
    return Answer(asdict(member.report), member.is_pending)


async def ask(state: StateDirectory, told: Told | None = None) -> Answer:
    """Ask this host's process; with ``told`` have it carried out first."""
    raw = await ControlSocket(state.path).ask(Request(told), _ASK_SECONDS)
    return msgspec.json.decode(raw, type=Answer)


async def carry_out(state: StateDirectory, told: Told, seconds: float) -> Report:
    """Have the process carry something out, and return how it is then; BehindError where that takes too long."""
    answer = await ask(state, told)
    with trio.move_on_after(seconds):
        while answer.pending:
            await trio.sleep(_POLL_SECONDS)
            answer = await ask(state)
    report = msgspec.convert(answer.report, Report)
    if answer.pending:
        raise BehindError(
            f"this host is {report.state}: {report.reason}",
            advice="it is done when the engine is back",
        )
    return report


async def published_everywhere(
    state: StateDirectory, membership: JoinFile, name: str, seconds: float
) -> PoolState:
    """Wait until what has happened to a name of ``certs`` on this host has reached every live member.

    PoolError where this host does not publish it; BehindError names those that have not acknowledged it in time.
    """
    deadline = trio.current_time() + seconds
    report = await carry_out(state, Told(flush=True), seconds)
    if name in report.drift.get("certs", ()) or report.held:
        raise PoolError(
            f"{name} is as it is on this host only",
            advice="it was not published: is this host a publisher? certfs pool status",
        )
    return await wait_for_all(membership, max(deadline - trio.current_time(), 0))


async def pool_state(membership: JoinFile) -> PoolState:
    """Return how every member is, by what the engine has; linearizable."""
    async with Engine(membership.access) as engine:
        start, end = membership.keys.watched
        view = View(membership.keys, await engine.snapshot(start, end))
        prefix = membership.keys.status("")
        found = await engine.snapshot(prefix, range_end(prefix))
    told = {one.key.removeprefix(prefix).decode(): _status(one.value) for one in found.keys}
    changed = view.last_change
    hosts = []
    for uuid, table in sorted(view.members().items()):
        status = told.get(uuid)
        applied = status.applied if status else None
        hosts.append(
            HostState(
                uuid,
                table.publisher,
                applied,
                status.state if status else "not connected",
                applied is None or applied < changed,
            )
        )
    return PoolState(view.revision, changed, tuple(hosts))


async def wait_for_all(membership: JoinFile, seconds: float) -> PoolState:
    """Wait until every live member has acknowledged what the pool has now; BehindError names those that have not."""
    found = await pool_state(membership)
    wanted = found.changed
    deadline = trio.current_time() + seconds
    while True:
        behind = [h.uuid for h in found.hosts if h.applied is not None and h.applied < wanted]
        if not behind:
            return found
        if trio.current_time() > deadline:
            raise BehindError(
                f"{len(behind)} hosts have not acknowledged revision {wanted}: {', '.join(behind)}",
                advice="certfs pool status shows how they are",
            )
        await trio.sleep(_POLL_SECONDS)
        found = await pool_state(membership)


def _status(raw: bytes) -> Status | None:
    try:
        return msgspec.json.decode(raw, type=Status)
    except (msgspec.DecodeError, ValueError):
        return None
