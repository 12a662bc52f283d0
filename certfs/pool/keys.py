"""The pool's keys in the engine, and the form of their values.

Owns the names below ``/certfs/v1/POOL/``, what may stand there, and the limits. A value is made of the certificates
that ``certfs.core`` parses, re-encoded: bytes of a file never leave a host, so no private key can. Values in, values
out; what another host has written is judged here before anything believes it.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Final, NewType

import msgspec

from certfs.core.bundle import is_source_name
from certfs.core.certificate import Certificate, parse_source
from certfs.errors import CertfsError
from certfs.pool.wire import Number

Digest = NewType("Digest", str)
"""SHA-256 over the re-encoded certificates of a name, in hexadecimal: what two hosts compare."""

MOST_NAME_BYTES: Final = 200
MOST_VALUE_BYTES: Final = 256 << 10
"""Of one name. etcd refuses a request over 1.5 MiB."""
MOST_TRANSACTION_BYTES: Final = 1 << 20
MOST_TRANSACTION_NAMES: Final = 60
"""etcd refuses more than 128 operations in a transaction; others than those on names are in it too."""
MOST_REFUSED: Final = 32
"""Names that a host tells the others that it does not believe."""
FORMAT: Final = 1

_POOL: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class PoolError(CertfsError):
    """The pool cannot do what was asked: it is not configured, or a value in the engine is none of certfs."""

    exit_code = 50


class MemberTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``members/UUID``: a host that was admitted, and whether it may publish directories."""

    publisher: bool
    admitted: float
    """Seconds since the epoch, by the clock of the host that admitted it; for people."""


class DirectoryHead(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``dirs/certs/@``: the generation that counts. Every publication writes it, so that no flip can lose a change."""

    generation: Annotated[str, msgspec.Meta(pattern=r"^[0-9]{16}(-[0-9a-f]{8})?$")]


class PoolTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``pool``: which form the keys have."""

    format: int


_Shown = Annotated[str, msgspec.Meta(pattern=r"^[^\x00-\x1f]*\Z", max_length=300)]
"""What another host has people read: within a line."""


class Status(msgspec.Struct, frozen=True):
    """``status/UUID``, kept alive by its host's lease: up to which revision its bundles show the pool."""

    applied: Number
    host: _Shown = ""
    state: _Shown = "in sync"
    drift: Number = 0
    refused: Annotated[tuple[_Shown, ...], msgspec.Meta(max_length=MOST_REFUSED)] = ()
    """Names of ``certs`` that this host does not believe, some of them where they are many."""


class AuditEntry(msgspec.Struct, frozen=True):
    """``audit/UUID/SEQ``: what one transaction changed, by name; None for a removal."""

    at: float
    changes: dict[str, str | None]


@dataclass(frozen=True, slots=True)
class Value:
    """What a name has in the pool: certificates in canonical PEM."""

    pem: bytes
    digest: Digest


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one pool."""

    pool: str

    def __post_init__(self) -> None:
        if not _POOL.fullmatch(self.pool):
            raise PoolError(
                f"{self.pool!r} is no name of a pool",
                advice="use small letters, digits and hyphens, 63 at most",
            )

    @property
    def prefix(self) -> bytes:
        """What every key begins with."""
        return f"/certfs/v1/{self.pool}/".encode()

    @property
    def watched(self) -> tuple[bytes, bytes]:
        """The range (its end excluded) that members follow: directories, hosts, members and the pool itself."""
        return self.prefix + b"dirs/", self.prefix + b"pool\0"

    @property
    def format_key(self) -> bytes:
        """Which form the keys have."""
        return self.prefix + b"pool"

    @property
    def head(self) -> bytes:
        """The generation of ``certs`` that counts."""
        return self.prefix + b"dirs/certs/@"

    @property
    def directories(self) -> bytes:
        """What publishers may write."""
        return self.prefix + b"dirs/"

    def generation(self, generation: str) -> bytes:
        """Return what the keys of one generation begin with."""
        return self.prefix + f"dirs/certs/{generation}/".encode()

    def name(self, generation: str, name: bytes) -> bytes:
        """Return the key of one name."""
        return self.generation(generation) + name

    def approval(self, name: bytes) -> bytes:
        """Return the key of what was approved of one name."""
        return self.prefix + b"dirs/certs-approvals/" + name

    def member(self, uuid: str) -> bytes:
        """Return the key of a membership."""
        return self.prefix + f"members/{uuid}".encode()

    def host(self, uuid: str) -> bytes:
        """Return the key that the host alone writes."""
        return self.prefix + f"hosts/{uuid}".encode()

    @property
    def audit_trail(self) -> bytes:
        """What the keys of all transactions of all hosts begin with."""
        return self.prefix + b"audit/"

    def audit(self, uuid: str, sequence: int | None = None) -> bytes:
        """Return the key of one transaction of a host; without ``sequence`` what they all begin with."""
        stem = f"audit/{uuid}/" if sequence is None else f"audit/{uuid}/{sequence:016d}"
        return self.prefix + stem.encode()

    def status(self, uuid: str) -> bytes:
        """Return the key that is gone when the host is."""
        return self.prefix + f"status/{uuid}".encode()

    def user(self, uuid: str) -> str:
        """Return the name of the engine's user, and of its role, for a host."""
        return f"certfs-{self.pool}-{uuid}"


def range_end(prefix: bytes) -> bytes:
    """Return the end of the range of all keys that begin with ``prefix``, which does not end in 0xff."""
    return prefix[:-1] + bytes((prefix[-1] + 1,))


def is_uuid(text: str) -> bool:
    """Whether ``text`` is a UUID in its canonical form: it becomes a file's name and a user's."""
    return _UUID.fullmatch(text) is not None


def name_defect(name: bytes) -> str:
    """Return why a name cannot be in the pool, empty if it can: what an engine says becomes a file's name."""
    if len(name) > MOST_NAME_BYTES:
        return f"its name has more than {MOST_NAME_BYTES} bytes"
    if not is_source_name(name) or name.startswith(b".") or b"/" in name:
        return "its name does not end in .pem, or begins with a dot"
    if not name.isascii() or not name.decode("ascii").isprintable():
        return "its name has other characters than printable ASCII"
    return ""


def encode(certificates: Iterable[Certificate]) -> Value | None:
    """Return the value of a name with these certificates, None for none."""
    pem = b"".join(one.pem for one in certificates)
    return Value(pem, digest_of(pem)) if pem else None


def decode(raw: bytes) -> Value | None:
    """Return the value of what the engine has; None where that is not exactly what `encode` makes."""
    if len(raw) > MOST_VALUE_BYTES:
        return None
    value = encode(parse_source(raw).certificates)
    return value if value is not None and value.pem == raw else None


def digest_of(pem: bytes) -> Digest:
    """Return the digest of re-encoded certificates."""
    return Digest(hashlib.sha256(pem).hexdigest())
