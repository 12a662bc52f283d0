"""Publishing what changed here: one transaction, or a new generation and a flip to it.

Owns the requests and what becomes of one whose outcome is not known. Must not know why a name is published.
"""

import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from certfs.core.text import printable
from certfs.pool import wire
from certfs.pool.engine import Engine
from certfs.pool.keys import (
    MOST_TRANSACTION_BYTES,
    MOST_TRANSACTION_NAMES,
    AuditEntry,
    DirectoryHead,
    Keys,
    PoolError,
    Value,
    name_defect,
    range_end,
)
from certfs.pool.view import View

MOST_AUDITS: Final = 1000
"""Audit entries of one host; the engine keeps no more."""
_FIRST: Final = "0" * 16

Changes = Mapping[bytes, Value | None]


@dataclass(frozen=True, slots=True)
class Publication:
    """What a host publishes as one: ``changes`` by name (None for a removal), of the pool as ``view`` has it.

    ``sequence`` is the number of its audit entry.
    """

    keys: Keys
    uuid: str
    sequence: int
    view: View
    changes: Changes

    @property
    def is_small(self) -> bool:
        """Whether one transaction carries it."""
        size = sum(
            len(name) + len(each.pem if each else b"") for name, each in self.changes.items()
        )
        return len(self.changes) <= MOST_TRANSACTION_NAMES and size <= MOST_TRANSACTION_BYTES


async def publish(engine: Engine, one: Publication) -> int | None:
    """Publish all changes at one revision and return it; None if another publication came first.

    EngineUnreachableError: it may have happened; `committed` tells. PoolError, EngineRefusedError: nothing was done, as
    the engine, or a host that follows it, would not take so much.
    """
    added = [value.pem for value in one.changes.values() if value is not None]
    one.view.check_room(len(added), sum(map(len, added)))
    return await engine.transact(_direct(one)) if one.is_small else await _flip(engine, one)


async def committed(
    engine: Engine, keys: Keys, uuid: str, sequence: int
) -> tuple[AuditEntry, int] | None:
    """Return what the transaction with this number changed and its revision, None if it did not happen yet.

    PoolError where the engine has something else in its place.
    """
    found = await engine.get(keys.audit(uuid, sequence))
    if found is None:
        return None
    entry = wire.decoded(found.value, AuditEntry, strict=True)
    if entry is None or any(map(name_defect, map(str.encode, entry.changes))):
        raise PoolError(
            f"{printable(found.key)}: what the engine has of this host's publication is none of certfs",
            advice="find out who wrote it, and remove it from the engine",
        )
    return entry, found.mod_revision


def _direct(one: Publication) -> wire.Transaction:
    keys, view = one.keys, one.view
    generation = view.generation or _FIRST
    compares = [
        wire.Compare(
            key=keys.name(generation, name), target="MOD", mod_revision=view.mod_revision(name)
        )
        for name in one.changes
    ]
    head = view.head
    if head is None:
        compares.append(wire.Compare(key=keys.head, target="MOD", mod_revision=0))
    else:
        # Its value: two hosts may publish different names at a time, but not into a generation that was left.
        compares.append(wire.Compare(key=keys.head, target="VALUE", value=head.value))
    operations = [
        _put(keys.name(generation, name), value.pem)
        if value is not None
        else _delete(keys.name(generation, name))
        for name, value in one.changes.items()
    ]
    return _with_audit(one, _audit(one), generation, compares, operations)


async def _flip(engine: Engine, one: Publication) -> int | None:
    """Write everything into a generation of its own, then make that the one that counts."""
    keys, view = one.keys, one.view
    head = view.head
    # No other attempt writes there, not even one of this host that is still on its way.
    generation = f"{view.revision:016d}-{secrets.token_hex(4)}"
    after: dict[bytes, Value | None] = {**view.certs().values, **one.changes}
    start = keys.generation(generation)
    values = [(name, value) for name, value in after.items() if value is not None]
    view.check_room(len(values), sum(len(value.pem) for _, value in values))
    audit = _audit(one)
    for batch in _batches(values):
        operations = tuple(_put(keys.name(generation, name), value.pem) for name, value in batch)
        await engine.transact(wire.Transaction(compare=(), success=operations))
    # Every publication writes the head: its revision says that nothing was published meanwhile.
    compare = wire.Compare(
        key=keys.head, target="MOD", mod_revision=head.mod_revision if head else 0
    )
    removals = [
        _delete(keys.directories + b"certs/", start),
        _delete(range_end(start), keys.head),
    ]
    return await engine.transact(_with_audit(one, audit, generation, [compare], removals))


def _audit(one: Publication) -> bytes:
    """Return the audit entry; PoolError where it is larger than the engine takes with the rest of the transaction."""
    changes: dict[str, str | None] = {
        name.decode("ascii"): value.digest if value else None for name, value in one.changes.items()
    }
    entry = msgspec.json.encode(AuditEntry(time.time(), changes))
    if len(entry) > MOST_TRANSACTION_BYTES:
        raise PoolError(
            f"{len(changes)} names changed at once are more than the engine takes as one",
            advice="take some of them away, and bring them back when the others are published",
        )
    return entry


def _with_audit(
    one: Publication,
    entry: bytes,
    generation: str,
    compares: list[wire.Compare],
    operations: list[wire.Operation],
) -> wire.Transaction:
    keys, sequence = one.keys, one.sequence
    audit = keys.audit(one.uuid, sequence)
    compares.append(wire.Compare(key=audit, target="CREATE", create_revision=0))
    operations += [
        _put(keys.head, msgspec.json.encode(DirectoryHead(generation))),
        _put(audit, entry),
    ]
    if sequence > MOST_AUDITS:
        operations.append(_delete(keys.audit(one.uuid, sequence - MOST_AUDITS)))
    return wire.Transaction(compare=tuple(compares), success=tuple(operations))


def _batches(values: Iterable[tuple[bytes, Value]]) -> Iterator[list[tuple[bytes, Value]]]:
    batch: list[tuple[bytes, Value]] = []
    size = 0
    for name, value in values:
        if batch and (
            len(batch) == MOST_TRANSACTION_NAMES or size + len(value.pem) > MOST_TRANSACTION_BYTES
        ):
            yield batch
            batch, size = [], 0
        batch.append((name, value))
        size += len(value.pem) + len(name)
    if batch:
        yield batch


def _put(key: bytes, value: bytes) -> wire.Operation:
    return wire.Operation(request_put=wire.Put(key=key, value=value))


def _delete(key: bytes, end: bytes = b"") -> wire.Operation:
    return wire.Operation(request_delete_range=wire.Delete(key=key, range_end=end))
