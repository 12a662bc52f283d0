"""The CA certificates that an admin has installed: the files of ``certs``, or those for one purpose.

Owns installing and removing them as the platform's ``pool-install-ca-certificate`` and its sisters do. Nothing is sent
to other hosts here.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from certfs.core.certificate import Severity, parse_source
from certfs.errors import StoreError
from certfs.identity.bundles import update_bundles_of
from certfs.identity.certificate_library import Library
from certfs.identity.describe import Description, describe
from certfs.identity.errors import (
    CertificateAlreadyExistsError,
    CertificateCorruptError,
    CertificateDoesNotExistError,
    CertificateNameInvalidError,
)
from certfs.identity.paths import SOURCE_DIRECTORY_MODE, HostPaths, host_directory
from certfs.identity.trusted import Trusted, trusted_through
from certfs.identity.validate import ANOTHER_NAME, Document, advice_for, iso, validate_name

_PURPOSE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True)
class Purpose:
    """What certificates of the newer layout are trusted for; ``pinned`` ones as they are, others as CAs."""

    name: str
    pinned: bool = False


@dataclass(frozen=True, slots=True)
class AuthorityChange:
    """A file of CA certificates that came or went; ``changed`` is False if there was nothing to do.

    ``trusted`` is through which bundles its certificates are trusted afterwards; nothing after a dry run.
    """

    path: Path
    certificates: tuple[Description, ...]
    changed: bool
    warnings: tuple[str, ...] = ()
    trusted: tuple[Trusted, ...] = ()


def library(paths: HostPaths, purpose: Purpose | None = None) -> Library:
    """Return the directory of the certificates for everything, or for one purpose."""
    options = ""
    if purpose is None:
        directory = paths.certs
    else:
        if _PURPOSE.fullmatch(purpose.name) is None or purpose.name.endswith(".bk"):
            raise CertificateNameInvalidError(
                f"{purpose.name!r} is not the name of a purpose",
                advice="use letters, digits, '.', '_' and '-', such as general",
            )
        prefix = "pinned" if purpose.pinned else "ca"
        directory = paths.trusted_certs / f"{prefix}-{purpose.name}"
        options = f" --purpose {purpose.name}" + " --pinned" * purpose.pinned
    return Library(
        paths,
        directory,
        already_exists=CertificateAlreadyExistsError,
        does_not_exist=CertificateDoesNotExistError,
        corrupt=CertificateCorruptError,
        uninstall=f"pool-uninstall-ca-certificate{options}",
        listing="pool-certificate-list",
    )


def install_authority(
    paths: HostPaths,
    document: Document,
    *,
    name: str,
    purpose: Purpose | None = None,
    dry_run: bool = False,
) -> AuthorityChange:
    """Check the certificates in ``document`` and install them under ``name``.

    What is written is the certificates and nothing else of the document.
    """
    validate_name(name, hint=ANOTHER_NAME)
    place = library(paths, purpose)
    content = parse_source(document.data)
    defects = [remark for remark in content.remarks if remark.severity > Severity.NOTE]
    if defects:
        where = f", line {defects[0].line}" if defects[0].line else ""
        raise CertificateCorruptError(
            f"{document.path}{where}: {defects[0].reason}", advice=advice_for(document)
        )
    if not content.certificates:
        raise CertificateCorruptError(
            f"{document.path} holds no certificate", advice=advice_for(document)
        )
    data = b"".join(certificate.pem for certificate in content.certificates)
    certificates = tuple(describe(certificate.der) for certificate in content.certificates)
    if purpose is not None:
        _need_trusted_certs(paths, dry_run=dry_run)
    place.add(name, data, dry_run=dry_run)
    path = place.directory / name
    warnings = tuple(_doubts(certificates, pinned=purpose is not None and purpose.pinned))
    if dry_run:
        return AuthorityChange(path, certificates, changed=True, warnings=warnings)
    update_bundles_of(paths, place.directory)
    warnings += place.rehash(always=False)
    trusted = trusted_through(paths, content.certificates)
    return AuthorityChange(path, certificates, changed=True, warnings=warnings, trusted=trusted)


def uninstall_authority(
    paths: HostPaths,
    name: str,
    *,
    purpose: Purpose | None = None,
    force: bool = False,
    dry_run: bool = False,
) -> AuthorityChange:
    """Remove the file ``name``; with ``force`` it may be missing."""
    validate_name(name)
    place = library(paths, purpose)
    path = place.directory / name
    data = place.take(name, force=force, dry_run=dry_run)
    if data is None:
        return AuthorityChange(path, (), changed=False)
    content = parse_source(data)
    certificates = tuple(describe(certificate.der) for certificate in content.certificates)
    if dry_run:
        return AuthorityChange(path, certificates, changed=True)
    update_bundles_of(paths, place.directory)
    warnings = place.rehash(always=False)
    trusted = trusted_through(paths, content.certificates)
    return AuthorityChange(path, certificates, changed=True, warnings=warnings, trusted=trusted)


def _need_trusted_certs(paths: HostPaths, *, dry_run: bool) -> None:
    """Refuse a purpose where the platform has none; a store gets the directory."""
    directory = paths.trusted_certs
    if paths.root is None and not directory.is_dir():
        raise StoreError(
            f"{directory} does not exist: the XAPI of this host knows no purposes",
            advice="leave out --purpose, which installs for everything",
        )
    if not dry_run:
        with host_directory(directory, create_mode=SOURCE_DIRECTORY_MODE):
            pass


def _doubts(certificates: Iterable[Description], *, pinned: bool) -> Iterable[str]:
    """Yield what the platform accepts and an admin may not have meant."""
    now = datetime.now(UTC)
    for certificate in certificates:
        title, end, begin = certificate.title, certificate.not_after, certificate.not_before
        if end is None or begin is None:
            yield f"{title} has a validity that cannot be read"
        elif end < now:
            yield f"{title} expired at {iso(end)}: nothing is accepted because of it"
        elif begin > now:
            yield f"{title} is not valid before {iso(begin)}, and it is {iso(now)}"
        if not pinned and certificate.vouches is False:
            yield f"{title} is not a CA: it vouches for no other certificate"
