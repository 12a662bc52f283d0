"""Replacing a host's server certificate: by one that an admin brings, or by a new self-signed one.

Owns what is written in the place of ``xapi-ssl.pem`` and with which owner and mode. Does not make
stunnel reload: until it does, it goes on with the certificate that it has read.
"""

import os
import stat
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from certfs.identity.describe import text_of_name
from certfs.identity.generate import generate_server_certificate
from certfs.identity.hostpem import HostPem
from certfs.identity.paths import (
    KEY_MODE,
    SERVER_PEM,
    HostPaths,
    file_errors,
    host_directory,
    status_of,
)
from certfs.identity.subject import host_names
from certfs.identity.validate import (
    Document,
    iso,
    validate_chain,
    validate_private_key,
    validate_server_certificate,
)
from certfs.store.atomic import write_atomic

RELOAD_HINT = (
    "stunnel goes on with the old certificate until it reloads: "
    "systemctl reload-or-restart stunnel@xapi (or kill -HUP to your stunnel)"
)
_SOON = timedelta(days=30)
_OWNER_AND_GROUP = stat.S_IRWXU | stat.S_IRWXG


@dataclass(frozen=True, slots=True)
class Replacement:
    """What was, or with a dry run would be, put in the place of ``path``."""

    path: Path
    certificate: x509.Certificate
    warnings: tuple[str, ...] = ()
    """Sentences about what the platform accepts and clients may not."""


def install_server_certificate(
    paths: HostPaths,
    *,
    certificate: Document,
    private_key: Document,
    chain: Document | None = None,
    dry_run: bool = False,
) -> Replacement:
    """Check what an admin brings and make it the host's server certificate.

    Raises a :class:`~certfs.identity.errors.CertificateError` that says which check failed, or an
    error about the file to be replaced; either way nothing is changed.
    """
    key = validate_private_key(private_key)
    leaf = validate_server_certificate(certificate, key)
    others = validate_chain(chain) if chain is not None else ()
    warnings = _warnings(leaf, others)
    # A chain file often begins with the host's own certificate ("fullchain"): once is enough.
    pem = HostPem.of(key, (leaf, *(other for other in others if other != leaf)))
    return _replace(paths, pem, warnings=warnings, dry_run=dry_run)


def reset_server_certificate(paths: HostPaths, *, dry_run: bool = False) -> Replacement:
    """Make a new key and self-signed certificate the host's server certificate."""
    return _replace(paths, generate_server_certificate(host_names()), warnings=(), dry_run=dry_run)


def write_host_pem(directory: int, name: bytes, pem: HostPem, *, like: bytes | None = None) -> None:
    """Write a file with a host's key atomically, with owner, group and mode of the file before it.

    ``like`` names another file to take them from. What its mode gives to others than owner and
    group is not taken. Raises ``OSError``.
    """
    try:
        status = status_of(like if like is not None else name, within=directory)
    except FileNotFoundError:
        write_atomic(directory, name, pem.render(), mode=KEY_MODE)
        return
    mode = status.st_mode & _OWNER_AND_GROUP
    owner = (status.st_uid, status.st_gid)
    write_atomic(directory, name, pem.render(), mode=mode, owner=owner)


def _replace(
    paths: HostPaths, pem: HostPem, *, warnings: tuple[str, ...], dry_run: bool
) -> Replacement:
    path = paths.xensource / os.fsdecode(SERVER_PEM)
    with host_directory(paths.xensource) as xensource, file_errors(path):
        if not dry_run:
            write_host_pem(xensource, SERVER_PEM, pem)
    return Replacement(path, pem.leaf, warnings)


def _warnings(leaf: x509.Certificate, others: tuple[x509.Certificate, ...]) -> tuple[str, ...]:
    """Say what the platform accepts and a client will not."""
    now = datetime.now(UTC)
    warnings = []
    end = leaf.not_valid_after_utc
    if end - now < _SOON:
        warnings.append(f"the certificate expires within 30 days, at {iso(end)}")
    if others and not any(_issued(other, leaf) for other in others):
        warnings.append("no certificate of the chain issued the host's certificate")
    warnings += [
        f"a certificate of the chain, {text_of_name(other.subject)}, is not valid now"
        for other in others
        if not other.not_valid_before_utc <= now <= other.not_valid_after_utc
    ]
    return tuple(warnings)


def _issued(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True
