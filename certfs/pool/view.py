"""What the pool has at one revision, made of a snapshot and the changes since.

Owns the keys as they are then and what they mean: which generation counts, which values are believed. Pure.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from certfs.pool.engine import Change, Snapshot, check_size
from certfs.pool.hosts import Believed, judge
from certfs.pool.hosts import Keys as PublicKeys
from certfs.pool.keys import (
    DirectoryHead,
    Keys,
    MemberTable,
    PoolError,
    Value,
    decode,
    is_uuid,
    name_defect,
)
from certfs.pool.wire import KeyValue, decoded


@dataclass(frozen=True, slots=True)
class Remote:
    """A directory as the pool has it: ``values`` by name, and of names that are ``refused`` why."""

    values: dict[bytes, Value]
    refused: Mapping[bytes, str]


class View:
    """The keys that members follow, at ``revision`` of ``cluster``."""

    def __init__(self, keys: Keys, snapshot: Snapshot) -> None:
        self._keys = keys
        self.cluster = snapshot.cluster
        self.revision = snapshot.revision
        self._all: dict[bytes, KeyValue] = {one.key: one for one in snapshot.keys}
        self._size = sum(len(one.value) for one in snapshot.keys)
        self._decoded: dict[bytes, Value | None] = {}
        self._judged: dict[str, tuple[bytes, PublicKeys, Believed | str]] = {}
        """What was found of each host's entry, by which keys; its signatures are not verified again at each change."""

    def after(self, change: Change) -> "View":
        """Return the next revision; this one stays, for a step that has begun with it.

        EngineRefusedError where the pool is too large to be followed.
        """
        view = View(self._keys, Snapshot(self.cluster, change.revision, ()))
        view._all, view._size = dict(self._all), self._size
        view._decoded, view._judged = dict(self._decoded), self._judged
        for key, value in change.keys.items():
            before = view._all.pop(key, None)
            view._size -= len(before.value) if before else 0
            view._decoded.pop(key, None)
            if value is not None:
                view._all[key] = value
                view._size += len(value.value)
        check_size(len(view._all), view._size)
        return view

    def check_room(self, keys: int, size: int) -> None:
        """Raise EngineRefusedError where with so many keys and bytes more the pool could not be followed."""
        check_size(len(self._all) + keys, self._size + size)

    @property
    def last_change(self) -> int:
        """The revision of the newest key that is there."""
        return max((one.mod_revision for one in self._all.values()), default=0)

    def member(self, uuid: str) -> MemberTable | None:
        """Return a host's membership, None if it is no member."""
        found = self._all.get(self._keys.member(uuid))
        return None if found is None else member_of(found)

    def members(self) -> dict[str, MemberTable]:
        """Return all members."""
        prefix = self._keys.member("")
        found = {
            key.removeprefix(prefix).decode(errors="replace"): member_of(value)
            for key, value in self._all.items()
            if key.startswith(prefix)
        }
        return {uuid: table for uuid, table in found.items() if table is not None and is_uuid(uuid)}

    @property
    def head(self) -> KeyValue | None:
        """The key that names the generation of ``certs``."""
        return self._all.get(self._keys.head)

    @property
    def generation(self) -> str | None:
        """The generation of ``certs`` that counts, None before the first publication.

        PoolError where it cannot be told: a directory that is not understood is not empty.
        """
        head = self.head
        if head is None:
            return None
        table = decoded(head.value, DirectoryHead, strict=True)
        if table is None:
            raise lost_head(self._keys)
        return table.generation

    def mod_revision(self, name: bytes) -> int:
        """Return when a name of ``certs`` was changed last, 0 where it is not there."""
        generation = self.generation
        found = self._all.get(self._keys.name(generation, name)) if generation else None
        return found.mod_revision if found else 0

    def host_entry(self, uuid: str) -> bytes:
        """Return a host's own entry, empty where there is none."""
        found = self._all.get(self._keys.host(uuid))
        return found.value if found else b""

    def certs(self) -> Remote:
        """Return the directory ``certs``."""
        generation = self.generation
        if generation is None:
            return Remote({}, {})
        prefix = self._keys.generation(generation)
        values: dict[bytes, Value] = {}
        refused: dict[bytes, str] = {}
        for key, found in self._all.items():
            if not key.startswith(prefix):
                continue
            name = key.removeprefix(prefix)
            if key not in self._decoded:
                self._decoded[key] = decode(found.value)
            value = self._decoded[key]
            defect = name_defect(name)
            if defect or value is None:
                refused[name] = defect or "its value is not what certfs publishes"
            else:
                values[name] = value
        return Remote(values, refused)

    def approvals(self) -> dict[bytes, bytes]:
        """Return what stands in the pool of approvals, by name; nothing of it is checked."""
        prefix = self._keys.approval(b"")
        return {
            key.removeprefix(prefix): found.value
            for key, found in self._all.items()
            if key.startswith(prefix)
        }

    def approval_revision(self, name: bytes) -> int:
        """Return when the approval of a name was changed last, 0 where there is none."""
        found = self._all.get(self._keys.approval(name))
        return found.mod_revision if found else 0

    def certs_pool(
        self, own: str, known: Mapping[str, PublicKeys]
    ) -> tuple[Remote, dict[str, PublicKeys]]:
        """Return the directory ``certs-pool`` without the host ``own``, and the keys to believe next by host."""
        values: dict[bytes, Value] = {}
        refused: dict[bytes, str] = {}
        keys: dict[str, PublicKeys] = {}
        for uuid in self.members():
            raw = self.host_entry(uuid)
            if uuid == own or not raw:
                continue
            before = known.get(uuid, ())
            judged = self._judge(uuid, raw, before)
            if isinstance(judged, str):
                refused[f"{uuid}.pem".encode()] = refused[f"{uuid}.new.pem".encode()] = judged
                keys[uuid] = before
            else:
                values |= judged.names
                keys[uuid] = judged.keys
        return Remote(values, refused), keys

    def _judge(self, uuid: str, raw: bytes, known: PublicKeys) -> Believed | str:
        last = self._judged.get(uuid)
        if last is None or last[:2] != (raw, known):
            last = raw, known, judge(self._keys.pool, uuid, raw, known)
            self._judged[uuid] = last
        return last[2]


def lost_head(keys: Keys) -> PoolError:
    """Return the error of a pool of which it cannot be told what it has."""
    return PoolError(
        f"{keys.head.decode()}: it is not there any more, or is none of this release of certfs",
        advice="stunnel/certs stays as it is; certfs pool audit names who published last",
    )


def member_of(found: KeyValue) -> MemberTable | None:
    """Return the membership in a key, None where it is none of certfs."""
    return decoded(found.value, MemberTable, strict=True)
