"""Approvals: what a person has signed of the pool's ``certs``, which neither engine nor publisher can change then.

Owns what is signed and what follows from it. An approval names the pool, the file, its content (or that it is removed)
and a number that is higher than any before it for that file: an older one does not count again. What it is worth on a
host begins with what that host has seen: a host that joins believes the newest that it is shown.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import msgspec

from certfs.pool.keys import Value
from certfs.pool.ssh_signature import Signers
from certfs.pool.view import Remote
from certfs.pool.wire import decoded

_MOST_BYTES: Final = 32 << 10


class ApprovalTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``dirs/certs-approvals/NAME``: the last approval of a file; ``digest`` is None for its removal."""

    number: int
    digest: str | None
    signature: str


class Approved(msgspec.Struct, frozen=True):
    """What was approved last of a file, as a host remembers it."""

    number: int
    digest: str | None


def statement(pool: str, name: bytes, approved: Approved) -> bytes:
    """Return what is signed: text, so that a person can read what they sign."""
    content = f"content sha256:{approved.digest}" if approved.digest else "removed"
    return (
        f"certfs approval 1\npool {pool}\nfile certs/{name.decode('ascii')}\n"
        f"number {approved.number}\n{content}\n"
    ).encode()


@dataclass(frozen=True, slots=True)
class Approvals:
    """The rule of one host: what of its ``pool`` counts only if one of the ``signers`` has approved it."""

    pool: str
    signers: Signers
    _checked: dict[tuple[bytes, bytes], Approved | str]
    """Records that were looked at, by name and content: a signature is not checked again at each change."""

    @classmethod
    def of(cls, pool: str, signers: Signers) -> "Approvals":
        """Return the rule."""
        return cls(pool, signers, {})

    def judge(
        self,
        remote: Remote,
        records: Mapping[bytes, bytes],
        known: Mapping[str, Approved],
        base: frozenset[bytes],
    ) -> tuple[Remote, dict[str, Approved]]:
        """Return what of ``remote`` is approved, the rest refused with its reason, and what to remember.

        ``records`` are the pool's approvals by name, ``known`` what was remembered before, ``base`` the names that were
        agreed, some of them perhaps before approvals were asked for.
        """
        checked = {(name, raw): self._check(name, raw) for name, raw in records.items()}
        self._checked.clear()
        self._checked.update(checked)
        remembered = dict(known)
        values: dict[bytes, Value] = {}
        refused = dict(remote.refused)
        every = (
            remote.values.keys() | records.keys() | base | {name.encode("ascii") for name in known}
        )
        for name in sorted(every - refused.keys()):
            found = checked.get((name, records[name])) if name in records else None
            before = known.get(name.decode("ascii", "replace"))
            approved, reason = _newest(before, found)
            if approved is not None:
                remembered[name.decode("ascii")] = approved
            value = remote.values.get(name)
            if approved is not None and approved.digest == (value.digest if value else None):
                if value is not None:
                    values[name] = value
            elif value is not None:
                refused[name] = reason or "it is not what was approved"
            elif approved is not None or name in base:
                refused[name] = (reason if found else "") or "its removal is not approved"
        return replace(remote, values=values, refused=refused), remembered

    def _check(self, name: bytes, raw: bytes) -> Approved | str:
        found = self._checked.get((name, raw))
        if found is not None:
            return found
        table = approval_of(raw)
        if table is None or not name.isascii():
            return "its approval is none of certfs"
        approved = Approved(table.number, table.digest)
        message = statement(self.pool, name, approved)
        defect = self.signers.verify(table.signature.encode(), message)
        return f"its approval does not count: {defect}" if defect else approved


def approval_of(raw: bytes) -> ApprovalTable | None:
    """Return the approval in a key, None where it is none of certfs."""
    return decoded(raw, ApprovalTable, strict=True) if len(raw) <= _MOST_BYTES else None


def _newest(before: Approved | None, found: Approved | str | None) -> tuple[Approved | None, str]:
    """Return which of two approvals counts, and why not the one that was ``found``."""
    if not isinstance(found, Approved):
        return before, found or ("" if before else "it is not approved")
    if before is None or found.number > before.number or found == before:
        return found, ""
    return before, f"its approval is older than number {before.number}, which this host has seen"
