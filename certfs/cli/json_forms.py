"""What each command answers with ``--json``: a type for each answer, from which its JSON Schema is made.

Owns the keys and the form of each kind of value: times are UTC (RFC 3339), fingerprints bare lower-case hexadecimal,
paths of files absolute. A key keeps its meaning for good; new ones may come. ``FORMS`` has the answer of every command;
``certfs/cli/schemas`` holds what ``schema`` gives for it, and a test keeps the two together.
"""

import json
import os
from datetime import UTC, datetime
from types import UnionType
from typing import Annotated, Any, Final, Literal, get_args

import click
import msgspec

from certfs.client.query import Status
from certfs.core.text import printable
from certfs.moment import FORM
from certfs.protocol.summary import Summary

Time = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$",
        description="UTC, RFC 3339, to the second",
    ),
]
Sha256 = Annotated[
    str, msgspec.Meta(pattern="^[0-9a-f]{64}$", description="SHA-256 of the certificate's DER")
]
Sha1 = Annotated[
    str, msgspec.Meta(pattern="^[0-9a-f]{40}$", description="SHA-1 of the certificate's DER")
]
File = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^(/|-$)",
        description="an absolute path, what is not printable escaped; - for standard input",
    ),
]
SerialNumber = Annotated[
    str,
    msgspec.Meta(
        pattern="^-?([0-9A-F]{2})+$",
        description="pairs of hexadecimal digits, as openssl prints it",
    ),
]
Severity = Literal["note", "warning", "critical"]
SEVERITIES: Final[tuple[Severity, ...]] = ("note", "warning", "critical")
"""By how bad it is."""


class Form(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An object that a command answers with."""


class Error(Form, frozen=True):
    """Instead of any answer: what is wrong, and what to do. ``error`` is a stable name for programs."""

    error: str
    exit_code: int
    message: str
    advice: str


class Certificate(Form, frozen=True):
    """What can be said of one certificate; names are RFC 4514, ``names`` the alternative ones by their type.

    OpenSSL loads certificates in which a part is broken; what cannot be read of one is null.
    """

    subject: str
    issuer: str
    serial_number: SerialNumber
    not_before: Time | None
    not_after: Time | None
    key: str | None
    signature: str | None
    names: tuple[str, ...] | None
    is_ca: bool | None
    sha256: Sha256
    sha1: Sha1


class Shown(Form, frozen=True):
    """``certfs certificate-show``."""

    path: File
    certificates: tuple[Certificate, ...]


class ServerCertificate(Form, frozen=True):
    """``certfs host-get-server-certificate``."""

    path: File
    certificate: Certificate
    pem: str


class Replaced(Form, frozen=True):
    """A host's certificate that was replaced. ``next`` says what is left to do, or is empty."""

    path: File
    changed: bool
    certificate: Certificate
    warnings: tuple[str, ...]
    next: str


class Refreshed(Form, frozen=True):
    """``certfs host-refresh-server-certificate``: how far the refresh is."""

    stage: Literal["idle", "prepared", "switched"]
    changed: bool
    certificate: Certificate | None
    warnings: tuple[str, ...]
    next: str


class TrustedThrough(Form, frozen=True):
    """A bundle that has a certificate, or another one with its name and key (``is_same`` is false)."""

    sha256: Sha256
    bundle: File
    source: File
    files: tuple[File, ...]
    is_same: bool


class AuthorityChanged(Form, frozen=True):
    """A file of CA certificates that came or went; ``trusted`` is through what they are trusted afterwards."""

    path: File
    changed: bool
    certificates: tuple[Certificate, ...]
    trusted: tuple[TrustedThrough, ...]
    warnings: tuple[str, ...]


class InstalledFile(Form, frozen=True):
    """A file with certificates; ``defect`` is what is wrong with it, or empty."""

    type: Literal["host", "host_internal", "ca", "pool", "pinned"]
    purpose: str | None
    name: str
    path: File
    defect: str
    certificates: tuple[Certificate, ...]


class InstalledFiles(Form, frozen=True):
    """``certfs pool-certificate-list``."""

    certificates: tuple[InstalledFile, ...]


ListSeverity = Literal["note", "warning", "defect"]


class Crl(Form, frozen=True):
    """A revocation list; ``next_update`` is when it expires, ``revoked`` how many certificates are in it."""

    issuer: str
    last_update: Time
    next_update: Time | None
    revoked: Annotated[int, msgspec.Meta(ge=0)]


class CrlChanged(Form, frozen=True):
    """A revocation list that came or went."""

    path: File
    changed: bool
    crl: Crl | None
    warnings: tuple[str, ...]


class CrlFile(Form, frozen=True):
    """A file with a revocation list; ``defect`` is what is wrong with it, or empty."""

    path: File
    defect: str
    crl: Crl | None


class CrlFiles(Form, frozen=True):
    """``certfs pool-crl-list``."""

    crls: tuple[CrlFile, ...]


class ListItem(Form, frozen=True):
    """An entry of ``certfs list``: a certificate of a source, or something that was left out of it."""

    bundle: File
    source: File
    line: Annotated[int, msgspec.Meta(ge=0)]
    subject: str | None
    issuer: str | None
    sha256: Sha256 | None
    not_before: Time | None
    not_after: Time | None
    days_left: int | None
    included: bool
    severity: ListSeverity
    reason: str | None
    duplicate_of: File | None


class Finding(Form, frozen=True, kw_only=False):
    """Something that is not as it should be: ``name`` is for programs, ``mend`` is what to do, or empty."""

    severity: Severity
    name: str
    file: File
    what: str
    mend: str


CheckStatus = Literal["ok", "warning", "critical"]
CheckCode = Literal[0, 1, 2]
EXIT_CODES: Final[tuple[CheckCode, ...]] = (0, 1, 2)
"""By how bad the worst finding is."""


class Checked(Form, frozen=True):
    """``certfs check``."""

    status: CheckStatus
    exit_code: CheckCode
    findings: tuple[Finding, ...]


class Mended(Finding, frozen=True):
    """A finding, with what ``certfs repair`` does about it, or nothing."""

    remedy: str


class Repaired(Form, frozen=True):
    """``certfs repair``: what was mended (with a dry run: would be), and what is left to the admin."""

    dry_run: bool
    mended: tuple[Mended, ...]
    left: tuple[Mended, ...]


ExportFormat = Literal["pem", "pkcs12", "hash-directory"]


class LeftOut(Form, frozen=True):
    """A certificate that the form of an export cannot hold."""

    sha256: Sha256
    reason: str


class Exported(Form, frozen=True):
    """``certfs export``; ``changed`` is false where the output held the same already."""

    bundle: File
    output: File
    format: ExportFormat
    certificates: Annotated[int, msgspec.Meta(ge=0)]
    changed: bool
    left_out: tuple[LeftOut, ...]


class PoolHost(Form, frozen=True):
    """A host as XAPI's database has it; ``sha256`` is its pool certificate's, null where that is not recorded."""

    uuid: str
    name: str
    live: bool
    sha256: Sha256 | None


class Pool(Form, frozen=True):
    """A pool as XAPI's database has it; ``release`` is the coordinator's XAPI."""

    coordinator: str
    release: tuple[int, int] | None
    hosts: tuple[PoolHost, ...]


class Objection(Form, frozen=True):
    """Why not to synchronise now; one that does not ``refuse`` is only said."""

    code: str
    sentence: str
    refuses: bool


class Synchronised(Form, frozen=True):
    """``certfs pool-certificate-sync``; ``covers`` says what the release's sync covers."""

    synchronised: bool
    covers: str
    pool: Pool
    objections: tuple[Objection, ...]


class PoolMember(Form, frozen=True):
    """A member of a pool without XAPI.

    ``applied`` is the revision that its bundles show, null while it is not connected; else it may be ``behind``.
    ``refused`` are names of ``stunnel/certs`` that it does not believe, some of them where they are many.
    """

    uuid: str
    publisher: bool
    applied: int | None
    state: str
    behind: bool
    refused: tuple[str, ...]


class PoolSynchronised(Form, frozen=True):
    """``certfs pool sync``, which ``certfs pool-certificate-sync`` is without XAPI; ``changed`` is the last change."""

    pool: str
    uuid: str
    revision: int
    changed: int
    hosts: tuple[PoolMember, ...]


class PoolStatus(PoolSynchronised, frozen=True):
    """``certfs pool status``: the pool, and how this host is in it.

    By directory: ``held`` is why nothing is published, ``drift`` are names that differ from the pool and stay here,
    ``only_here`` those of them that the pool has not, each with the reason why it cannot be in a pool, empty where it
    can; ``refused`` are names of the pool that are not believed, each with the reason. ``set_aside`` are files that
    the pool overruled; they stay there until somebody removes them.
    """

    mountpoint: str
    state: str
    reason: str
    disconnected_since: Time | None
    endpoint: str
    applied: int
    held: dict[str, str]
    drift: dict[str, tuple[str, ...]]
    only_here: dict[str, dict[str, str]]
    set_aside: tuple[File, ...]
    refused: dict[str, dict[str, str]]


class PoolAuditEntry(Form, frozen=True):
    """What one publication of a host changed in ``stunnel/certs``, by the clock of that host.

    ``changes`` has for each name the SHA-256 of its certificates in canonical PEM, null where it was removed.
    """

    at: Time
    uuid: str
    revision: int
    changes: dict[str, str | None]


class PoolAudit(Form, frozen=True):
    """``certfs pool audit``: in the order in which the pool took them."""

    pool: str
    entries: tuple[PoolAuditEntry, ...]


FORMS: Final[dict[str, Any]] = {
    "certificate-show": Shown,
    "check": Checked,
    "export": Exported,
    "host-get-server-certificate": ServerCertificate,
    "host-refresh-server-certificate": Refreshed,
    "host-server-certificate-install": Replaced,
    "list": tuple[ListItem, ...],
    "pool-audit": PoolAudit,
    "pool-certificate-list": InstalledFiles,
    "pool-certificate-sync": Synchronised | PoolSynchronised,
    "pool-crl-list": CrlFiles,
    "pool-install-ca-certificate": AuthorityChanged,
    "pool-install-crl": CrlChanged,
    "pool-status": PoolStatus,
    "pool-sync": PoolSynchronised,
    "pool-uninstall-ca-certificate": AuthorityChanged,
    "pool-uninstall-crl": CrlChanged,
    "repair": Repaired,
    "reset-server-certificate": Replaced,
    "status": Status,
    "error": Error,
    "summary": Summary,
}
"""The answer of every command that has ``--json``, and of any of them that fails; and the file ``summary.json``.

What ``certfs pool status`` answers is called pool-status. A union is of what a command answers with XAPI and without.
"""


def answer(form: object) -> None:
    """Write an answer to standard output."""
    click.echo(json.dumps(msgspec.to_builtins(form), indent=2))


def seconds_of(moment: str) -> float:
    """Return the seconds since the epoch of a time as answers have it; ValueError if it is none."""
    return datetime.strptime(moment, FORM).replace(tzinfo=UTC).timestamp()


def file_form(path: os.PathLike[str] | str) -> str:
    """Return how a program is told of a file."""
    return printable(os.fsencode(path))


def schema(name: str) -> dict[str, Any]:
    """Return the JSON Schema of a command's answer."""
    form = FORMS[name]
    # msgspec makes no schema of a union of objects without a tag.
    forms = get_args(form) if isinstance(form, UnionType) else (form,)
    made, parts = msgspec.json.schema_components(forms)
    whole = {"anyOf": list(made)} if len(made) > 1 else made[0]
    dialect = "https://json-schema.org/draft/2020-12/schema"
    return {"$schema": dialect, **_open({**whole, **({"$defs": parts} if parts else {})})}


def _open(schema: Any) -> Any:  # noqa: ANN401 - any part of a schema
    """Return a schema without its promise that no key will ever be added."""
    if isinstance(schema, dict):
        return {key: _open(value) for key, value in schema.items() if key != "additionalProperties"}
    return [_open(one) for one in schema] if isinstance(schema, list | tuple) else schema
