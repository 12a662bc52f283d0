"""Requests and answers of etcd's JSON gateway (v3), as typed values.

Owns their form: etcd ignores fields that it does not know, so a misspelt ``mod_revision`` would compare with 0. Here
such a field cannot be written. Bytes are base64, int64 are strings in answers, and fields that are zero are absent (the
JSON mapping of proto3).
"""

from typing import Annotated, Literal, TypeVar

import msgspec

T = TypeVar("T")

Number = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""What etcd counts: revisions, keys, leases."""


def decoded(raw: bytes, kind: type[T], *, strict: bool = False) -> T | None:
    """Return what JSON means, None where it is none of this kind: another host, or an engine, wrote every byte of it.

    With ``strict`` no string counts as a number: etcd writes them so, certfs does not.
    """
    try:
        return msgspec.json.decode(raw, type=kind, strict=strict)
    except (msgspec.DecodeError, ValueError, RecursionError):  # too deeply nested
        return None


class _Request(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A default is left out, so it has to be what etcd takes an absent field for."""


class _Answer(msgspec.Struct, frozen=True, kw_only=True):
    pass


class Header(_Answer, frozen=True):
    """Which cluster answered, and at which revision."""

    cluster_id: Annotated[int, msgspec.Meta(ge=0)] = 0
    revision: Number = 0


class KeyValue(_Answer, frozen=True):
    """A key as it is, or as it was before it was deleted."""

    key: bytes
    mod_revision: Number
    value: bytes = b""


class Range(_Request, frozen=True):
    """Read keys; linearizable unless ``serializable``. ``range_end`` is excluded."""

    key: bytes
    range_end: bytes = b""
    limit: int = 0
    revision: int = 0
    serializable: bool = False
    count_only: bool = False


class RangeAnswer(_Answer, frozen=True):
    """The keys in order; ``more`` if the limit cut them off."""

    header: Header = Header()
    kvs: tuple[KeyValue, ...] = ()
    more: bool = False
    count: Number = 0


class Put(_Request, frozen=True):
    """Write a key; it goes with its ``lease`` if that is not 0."""

    key: bytes
    value: bytes
    lease: int = 0


class Delete(_Request, frozen=True):
    """Delete a key, or a range."""

    key: bytes
    range_end: bytes = b""


class Operation(_Request, frozen=True):
    """One operation of a transaction: exactly one field is given."""

    request_put: Put | None = None
    request_delete_range: Delete | None = None


class Compare(_Request, frozen=True):
    """What has to be true. A revision of 0 means that there is no such key."""

    key: bytes
    target: Literal["MOD", "CREATE", "VALUE"]
    result: Literal["EQUAL"] = "EQUAL"
    mod_revision: int | None = None
    create_revision: int | None = None
    value: bytes | None = None


class Transaction(_Request, frozen=True):
    """All of ``success`` at one revision if all of ``compare`` holds, otherwise nothing."""

    compare: tuple[Compare, ...]
    success: tuple[Operation, ...]


class TransactionAnswer(_Answer, frozen=True):
    """Whether the comparisons held."""

    header: Header = Header()
    succeeded: bool = False


class Plain(_Answer, frozen=True):
    """An answer of which only the header counts."""

    header: Header = Header()


class Grant(_Request, frozen=True):
    """Ask for a lease of so many seconds."""

    TTL: int


class LeaseId(_Request, frozen=True):
    """Keep a lease, or end it."""

    ID: int


class Granted(_Answer, frozen=True):
    """A lease; ``TTL`` 0 where it has expired."""

    ID: Number = 0
    TTL: int = 0


class KeptAlive(_Answer, frozen=True):
    """An answer of the stream of keep-alives."""

    result: Granted = Granted()


class WatchRange(_Request, frozen=True):
    """What to watch, from a revision on; with ``fragment`` a revision may come in several answers."""

    key: bytes
    range_end: bytes
    start_revision: int
    fragment: bool = False


class Watch(_Request, frozen=True):
    """Begin a watch."""

    create_request: WatchRange


class Event(_Answer, frozen=True):
    """A change of a key; ``type`` is absent for a put."""

    kv: KeyValue
    type: Literal["PUT", "DELETE"] = "PUT"


class Watched(_Answer, frozen=True):
    """Events of one or several revisions; ``fragment`` if the rest of the last one follows."""

    header: Header = Header()
    created: bool = False
    canceled: bool = False
    cancel_reason: str = ""
    compact_revision: Number = 0
    fragment: bool = False
    events: tuple[Event, ...] = ()


class WatchLine(_Answer, frozen=True):
    """A line of the stream of a watch."""

    result: Watched = Watched()
    error: msgspec.Raw = msgspec.Raw(b"")


class Failure(_Answer, frozen=True):
    """What went wrong; ``code`` is gRPC's."""

    code: int = 0
    message: str = ""
    error: str = ""


class Authenticate(_Request, frozen=True):
    """Ask for a token."""

    name: str
    password: str


class Token(_Answer, frozen=True):
    """A token, which expires; it goes into a header."""

    token: Annotated[str, msgspec.Meta(pattern=r"^[!-~]*\Z", max_length=8192)] = ""


class UserAdd(_Request, frozen=True):
    """Make a user."""

    name: str
    password: str


class UserName(_Request, frozen=True):
    """Name a user."""

    name: str


class RoleName(_Request, frozen=True):
    """Make a role."""

    name: str


class RoleOf(_Request, frozen=True):
    """Delete a role."""

    role: str


class UserRole(_Request, frozen=True):
    """Give a user a role."""

    user: str
    role: str


class Permission(_Request, frozen=True):
    """A right on a key, or on a range."""

    permType: Literal["READ", "WRITE", "READWRITE"]  # noqa: N815 - etcd's name
    key: bytes
    range_end: bytes = b""


class RoleGrant(_Request, frozen=True):
    """Give a role a right."""

    name: str
    perm: Permission


class Nothing(_Request, frozen=True):
    """An empty request."""
