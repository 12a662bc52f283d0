"""The revocation lists that an admin has installed: the files of ``crls``, which stunnel looks into by hash.

Owns checking, installing, removing and judging them as the platform does (``ocaml/xapi/certificates.ml`` in
xapi-project/xen-api). A list that has expired makes OpenSSL refuse every certificate of its issuer.
"""

import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509

from certfs.core.pem import PemBlock, decode_body, find_blocks
from certfs.identity.certificate_library import HASH_LINK, Library
from certfs.identity.describe import text_of_name
from certfs.identity.errors import (
    CrlAlreadyExistsError,
    CrlCorruptError,
    CrlDoesNotExistError,
    CrlNameInvalidError,
)
from certfs.identity.finding import Finding, Severity
from certfs.identity.paths import HostPaths, command, names_if_any, read_file
from certfs.identity.validate import ANOTHER_NAME, Document, iso, validate_name

_LABEL = "X509 CRL"
_SOON = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Crl:
    """A revocation list: who issued it, from when to when it counts, how many certificates it revokes."""

    issuer: str
    last_update: datetime
    next_update: datetime | None
    revoked: int


@dataclass(frozen=True, slots=True)
class CrlFile:
    """A file of ``crls``: its list, or what is wrong with it."""

    path: Path
    crl: Crl | None
    defect: str = ""


@dataclass(frozen=True, slots=True)
class CrlChange:
    """A list that came or went; ``changed`` is False if there was nothing to do."""

    path: Path
    crl: Crl | None
    changed: bool
    warnings: tuple[str, ...] = ()


def library(paths: HostPaths) -> Library:
    """Return the directory of the lists."""
    return Library(
        paths,
        paths.crls,
        already_exists=CrlAlreadyExistsError,
        does_not_exist=CrlDoesNotExistError,
        corrupt=CrlCorruptError,
        uninstall="pool-uninstall-crl",
        listing="pool-crl-list",
    )


def install_crl(
    paths: HostPaths, document: Document, *, name: str, dry_run: bool = False
) -> CrlChange:
    """Check the one list in ``document`` and install it under ``name``, with its link by hash."""
    validate_name(name, error=CrlNameInvalidError, hint=ANOTHER_NAME)
    found = _only_list(document.data)
    if isinstance(found, str):
        raise CrlCorruptError(f"{document.path} {found}", advice=_advice(document))
    block, crl = found
    place = library(paths)
    place.add(name, document.data[block.start : block.end].strip() + b"\n", dry_run=dry_run)
    now = datetime.now(UTC)
    others = [file.crl for file in installed_crls(paths) if file.crl and file.path.name != name]
    warnings = tuple(_doubts(crl, others, now=now))
    if not dry_run:
        warnings += place.rehash(always=True)
    return CrlChange(place.directory / name, crl, changed=True, warnings=warnings)


def uninstall_crl(
    paths: HostPaths, name: str, *, force: bool = False, dry_run: bool = False
) -> CrlChange:
    """Remove the list ``name`` and its link; with ``force`` it may be missing."""
    validate_name(name, error=CrlNameInvalidError)
    place = library(paths)
    data = place.take(name, force=force, dry_run=dry_run)
    if data is None:
        return CrlChange(place.directory / name, None, changed=False)
    found = _only_list(data)
    warnings = () if dry_run else place.rehash(always=True)
    crl = None if isinstance(found, str) else found[1]
    return CrlChange(place.directory / name, crl, changed=True, warnings=warnings)


def installed_crls(paths: HostPaths) -> Iterator[CrlFile]:
    """Yield every file of ``crls`` but its links by hash."""
    for name in names_if_any(paths.crls):
        path = paths.crls / name
        if HASH_LINK.fullmatch(name) or name.startswith(".") or path.is_dir():
            continue
        try:
            found = _only_list(read_file(path))
        except OSError as error:
            yield CrlFile(path, None, f"cannot be read: {error.strerror}")
            continue
        yield CrlFile(path, None, found) if isinstance(found, str) else CrlFile(path, found[1])


def judge_crls(paths: HostPaths, *, now: datetime) -> Iterator[Finding]:
    """Yield what is wrong with the installed lists."""
    files = tuple(installed_crls(paths))
    for file in files:
        uninstall = command(paths, f"pool-uninstall-crl {shlex.quote(file.path.name)}")
        renew = f"install the CA's current list, then {uninstall}"
        crl = file.crl
        if crl is None:
            yield Finding(
                Severity.WARNING, "CRL_BROKEN", file.path, f"revokes nothing: {file.defect}", renew
            )
            continue
        is_needed = not _has_current([other.crl for other in files if other.crl], crl, now=now)
        if crl.next_update is not None and crl.next_update < now:
            severity = Severity.CRITICAL if is_needed else Severity.WARNING
            mend = renew if is_needed else uninstall
            yield Finding(
                severity, "CRL_EXPIRED", file.path, _expired(crl, is_needed=is_needed), mend
            )
        elif crl.next_update is not None and crl.next_update - now < _SOON:
            what = f"expires at {iso(crl.next_update)} (the list of {crl.issuer})"
            yield Finding(Severity.WARNING, "CRL_EXPIRING", file.path, what, renew)


def _has_current(lists: Iterable[Crl], crl: Crl, *, now: datetime) -> bool:
    """Tell whether one of the lists is of the same issuer and counts now: OpenSSL takes that one (x509_vfy.c)."""
    return any(
        other.issuer == crl.issuer
        and other.last_update <= now
        and (other.next_update is None or now <= other.next_update)
        for other in lists
    )


def _expired(crl: Crl, *, is_needed: bool) -> str:
    means = (
        f"every certificate of {crl.issuer} is refused"
        if is_needed
        else f"a current list of {crl.issuer} counts"
    )
    return f"expired at {iso(crl.next_update)}: {means}" if crl.next_update else means


def _doubts(crl: Crl, others: Iterable[Crl], *, now: datetime) -> Iterator[str]:
    is_needed = not _has_current(others, crl, now=now)
    if crl.next_update is not None and crl.next_update < now:
        yield f"the list {_expired(crl, is_needed=is_needed)}"
    elif crl.last_update > now:
        yield f"the list counts from {iso(crl.last_update)}, and it is {iso(now)}"


def _only_list(data: bytes) -> tuple[PemBlock, Crl] | str:
    """Return the one list in a file, or a part of a sentence about why there is not one."""
    blocks = [
        block
        for block in find_blocks(data)
        if isinstance(block, PemBlock) and block.label == _LABEL
    ]
    if not blocks:
        return "holds no revocation list in PEM form"
    if len(blocks) > 1:
        return f"holds {len(blocks)} revocation lists, and OpenSSL reads one of each file"
    der = decode_body(data[blocks[0].body_start : blocks[0].body_end])
    try:
        crl = x509.load_der_x509_crl(der or b"")
        described = Crl(
            text_of_name(crl.issuer), crl.last_update_utc, crl.next_update_utc, len(crl)
        )
    except (ValueError, TypeError):
        return f"holds a revocation list that cannot be read, at line {blocks[0].line}"
    return blocks[0], described


def _advice(document: Document) -> str:
    data, file = document.data, shlex.quote(str(document.path))
    if b"-----BEGIN CERTIFICATE-----" in data:
        return f"certificates are installed with: certfs pool-install-ca-certificate {file}"
    if data[:1] == b"\x30":
        made = shlex.quote(f"{document.path}.pem")
        return f"it may be DER: openssl crl -inform DER -in {file} -out {made}"
    return "give a file with one list in PEM form (BEGIN X509 CRL)"
