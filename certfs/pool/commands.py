"""What commands ask of a pool: how it is, that something is published, and to wait until every host has it.

Owns the waiting. The process of this host is asked by its control socket, the pool by the engine.
"""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec
import trio

from certfs.core.text import counted, printable
from certfs.errors import CertfsError
from certfs.pool import wire
from certfs.pool.approvals import ApprovalTable, Approved, approval_of
from certfs.pool.directory import SourceDirectory
from certfs.pool.engine import Engine, reached
from certfs.pool.keys import (
    MOST_TRANSACTION_NAMES,
    AuditEntry,
    Digest,
    Keys,
    PoolError,
    Status,
    Value,
    is_uuid,
    name_defect,
    range_end,
)
from certfs.pool.local import Answer, ControlSocket, Request, Told
from certfs.pool.membership import JoinFile, StateDirectory
from certfs.pool.process import CERTS, Member, Report
from certfs.pool.store import Store
from certfs.pool.view import View, member_of
from certfs.safe_open import closing

_ASK_SECONDS = 10.0
_POLL_SECONDS = 0.05
_LATEST = 253402300800.0
"""The year 10000: what is later has no form as a time (RFC 3339)."""


class BehindError(CertfsError):
    """Hosts of the pool have not acknowledged the last change in time; it reaches them when they can be reached."""

    exit_code = 53


@dataclass(frozen=True, slots=True)
class HostState:
    """A member: ``applied`` is what it has acknowledged, None while it is not connected; else it may be ``behind``.

    ``refused`` are names that it does not believe, some of them where they are many.
    """

    uuid: str
    publisher: bool
    applied: int | None
    state: str
    behind: bool
    refused: tuple[str, ...] = ()


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


async def check_publishing(state: StateDirectory, membership: JoinFile) -> None:
    """Find out whether what changes on this host would be published; PoolError, and what an engine may answer."""
    await ask(state)
    async with reached(membership.access) as engine:
        found = await engine.get(membership.keys.member(membership.uuid))
    table = member_of(found) if found else None
    if table is None or not table.publisher:
        raise PoolError(
            "this host may not publish, so no other host would follow; nothing was changed",
            advice="run it on a publisher (certfs pool status), or without --wait for this host alone",
        )


async def published_everywhere(
    state: StateDirectory, membership: JoinFile, path: Path, seconds: float
) -> PoolState:
    """Wait until what has happened to a file of ``certs`` on this host has reached every live member.

    PoolError where this host does not publish it, the file is in another store than the pool's, or hosts do not believe
    it; BehindError names those that have not acknowledged it in time.
    """
    deadline = trio.current_time() + seconds
    report = await carry_out(state, Told(flush=True), seconds)
    name = path.name
    if _bytes(path) != _bytes(Path(report.mountpoint, *map(os.fsdecode, CERTS), name)):
        raise PoolError(
            f"{path} is not in the directories of the pool, which are those of {report.mountpoint}",
            advice=f"no other host follows; use --store {report.mountpoint}, or none for the host's own",
        )
    if name in report.drift.get("certs", ()) or report.held:
        raise PoolError(
            f"{name} is as it is on this host only",
            advice="it was not published: is this host a publisher? certfs pool status",
        )
    found = await wait_for_all(membership, max(deadline - trio.current_time(), 0))
    refusing = [host.uuid for host in found.hosts if name in host.refused]
    if refusing:
        raise PoolError(
            f"{name} is not believed by {counted(len(refusing), 'host')}: {', '.join(refusing)}",
            advice=f"certfs pool approve {name} --key KEY, where they ask for approvals",
        )
    return found


@dataclass(frozen=True, slots=True)
class ToApprove:
    """A file of ``certs`` that is to be approved: what this host and the pool have of it; ``value`` None for nothing.

    ``revision`` is when its approval was changed last.
    """

    name: str
    value: Value | None
    approval: Approved
    revision: int


async def to_approve(
    state: StateDirectory, membership: JoinFile, names: Sequence[str]
) -> list[ToApprove]:
    """Return what there is to be approved of these names, or of all that were changed since they were approved.

    PoolError where this host and the pool differ (who approves looks at what this host has), and for the removal of
    what was never approved and no host has.
    """
    report = await carry_out(state, Told(flush=True), _ASK_SECONDS)
    async with reached(membership.access) as engine:
        start, end = membership.keys.watched
        view = View(membership.keys, await engine.snapshot(start, end))
    there, records = view.certs().values, view.approvals()
    seen = state.approved()
    here = await local(report.mountpoint)
    hosts = (await pool_state(membership)).hosts
    refused = {os.fsencode(name) for host in hosts for name in host.refused}
    # Each once: etcd refuses a transaction that writes a key twice.
    wanted = [*map(os.fsencode, dict.fromkeys(names))] or sorted(
        {*there, *here, *records, *refused}
    )
    found = []
    for name in wanted:
        shown = printable(os.fsdecode(name))
        defect = name_defect(name)
        if defect and names:
            raise PoolError(f"{shown} cannot be in a pool: {defect}", advice="give it another name")
        value = there.get(name)
        digest = value.digest if value else None
        if here.get(name) != digest:
            if names:
                raise PoolError(
                    f"{shown}: the pool has something else than this host",
                    advice="approve it on a host that has it; certfs pool status tells of both",
                )
            continue
        last = approval_of(records[name]) if name in records else None
        if names and digest is None and name not in records.keys() | refused:
            raise PoolError(
                f"{shown}: neither this host nor the pool has it", advice="see certfs pool status"
            )
        if not names and (defect or (last and last.digest == digest)):
            continue
        # Also above what this host has seen: an engine that hides it would make the new one count for nothing.
        numbers = (each.number for each in (last, seen.get(name.decode("ascii"))) if each)
        approval = Approved(max(numbers, default=0) + 1, digest)
        found.append(ToApprove(name.decode("ascii"), value, approval, view.approval_revision(name)))
    return found


async def approve(membership: JoinFile, signed: Sequence[tuple[ToApprove, str]]) -> None:
    """Write approvals with their signatures into the pool; PoolError where one was changed meanwhile."""
    async with reached(membership.access) as engine:
        for start in range(0, len(signed), MOST_TRANSACTION_NAMES):
            batch = signed[start : start + MOST_TRANSACTION_NAMES]
            keys = [membership.keys.approval(each.name.encode("ascii")) for each, _ in batch]
            tables = [
                ApprovalTable(each.approval.number, each.approval.digest, signature)
                for each, signature in batch
            ]
            done = await engine.transact(
                wire.Transaction(
                    compare=tuple(
                        wire.Compare(key=key, target="MOD", mod_revision=each.revision)
                        for key, (each, _) in zip(keys, batch, strict=True)
                    ),
                    success=tuple(
                        wire.Operation(
                            request_put=wire.Put(key=key, value=msgspec.json.encode(table))
                        )
                        for key, table in zip(keys, tables, strict=True)
                    ),
                )
            )
            if done is None:
                raise PoolError("another approval came first", advice="run the command again")


async def local(mountpoint: str) -> dict[bytes, Digest]:
    """Return what this host has in ``certs``, by the names."""
    with closing(os.open(mountpoint, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as root:
        found = await trio.to_thread.run_sync(SourceDirectory(Store({b"": root}), CERTS).scan)
    return found.content or {}


def _bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


async def pool_state(membership: JoinFile) -> PoolState:
    """Return how every member is, by what the engine has; linearizable."""
    async with reached(membership.access) as engine:
        return await _state(engine, membership.keys)


async def _state(engine: Engine, keys: Keys) -> PoolState:
    view = View(keys, await engine.snapshot(*keys.watched))
    prefix = keys.status("")
    found = await engine.snapshot(prefix, range_end(prefix))
    told = {
        one.key.removeprefix(prefix).decode(errors="replace"): wire.decoded(
            one.value, Status, strict=True
        )
        for one in found.keys
    }
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
                status.refused if status else (),
            )
        )
    return PoolState(view.revision, changed, tuple(hosts))


@dataclass(frozen=True, slots=True)
class Audited:
    """What a publication of a host changed, as the host has written it: ``at`` in seconds since the epoch."""

    revision: int
    uuid: str
    at: float
    changes: dict[str, str | None]


async def audit_trail(membership: JoinFile) -> list[Audited]:
    """Return what every host has published, as far as the engine keeps it, in the order of the revisions."""
    keys = membership.keys
    async with reached(membership.access) as engine:
        prefix = keys.audit_trail
        found = await engine.snapshot(prefix, range_end(prefix))
    trail = []
    for one in sorted(found.keys, key=lambda each: each.mod_revision):
        uuid = one.key.removeprefix(prefix).decode(errors="replace").partition("/")[0]
        entry = wire.decoded(one.value, AuditEntry, strict=True)
        # Who has a host's password can write there what it likes.
        if entry is not None and is_uuid(uuid) and 0 <= entry.at < _LATEST:
            changes = {
                printable(name): printable(digest) if digest else None
                for name, digest in entry.changes.items()
            }
            trail.append(Audited(one.mod_revision, uuid, entry.at, changes))
    return trail


async def wait_for_all(membership: JoinFile, seconds: float) -> PoolState:
    """Wait until every live member has acknowledged what the pool has now; BehindError names those that have not."""
    deadline = trio.current_time() + seconds
    async with reached(membership.access) as engine:
        found = await _state(engine, membership.keys)
        wanted = found.changed
        while True:
            behind = [h.uuid for h in found.hosts if h.applied is not None and h.applied < wanted]
            if not behind:
                return found
            if trio.current_time() > deadline:
                raise BehindError(
                    f"revision {wanted} was not acknowledged by {counted(len(behind), 'host')}: {', '.join(behind)}",
                    advice="certfs pool status shows how they are",
                )
            await trio.sleep(_POLL_SECONDS)
            found = await _state(engine, membership.keys)
