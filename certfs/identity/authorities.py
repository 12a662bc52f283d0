"""The CA certificates that an admin has installed: the files of ``certs``.

Owns installing, removing and listing them as the platform's ``pool-install-ca-certificate`` and its
sisters do. Nothing is sent to other hosts here.
"""

import contextlib
import errno
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from certfs.core.certificate import Severity, SourceContent, parse_source
from certfs.errors import CertfsError, from_os_error
from certfs.identity.bundles import update_plain_bundle
from certfs.identity.errors import (
    CertificateAlreadyExistsError,
    CertificateCorruptError,
    CertificateDoesNotExistError,
    CertificateLibraryCorruptError,
)
from certfs.identity.hostpem import HostPemDefect, parse_certificates
from certfs.identity.paths import (
    CERTS,
    PUBLIC_MODE,
    SOURCE_DIRECTORY_MODE,
    HostPaths,
    file_errors,
    is_present,
    open_directory,
    read_file,
)
from certfs.identity.trusted import Trusted, trusted_through
from certfs.identity.validate import Document, validate_name
from certfs.store.atomic import create_exclusive

_HASH_LINK = re.compile(r"[0-9a-f]{8}\.r?[0-9]+")
_REHASH_SECONDS = 60


@dataclass(frozen=True, slots=True)
class AuthorityChange:
    """A file of ``certs`` that came or went; ``changed`` is False if there was nothing to do.

    ``trusted`` is through which bundles its certificates are trusted afterwards; nothing after a dry run.
    """

    path: Path
    certificates: tuple[x509.Certificate, ...]
    changed: bool
    warnings: tuple[str, ...] = ()
    trusted: tuple[Trusted, ...] = ()


def install_authority(
    paths: HostPaths, document: Document, *, name: str, dry_run: bool = False
) -> AuthorityChange:
    """Check the certificates in ``document`` and install them as ``certs/NAME``.

    What is written is the certificates and nothing else of the document.
    """
    validate_name(name)
    content = parse_source(document.data)
    defects = [remark for remark in content.remarks if remark.severity > Severity.NOTE]
    if defects:
        where = f", line {defects[0].line}" if defects[0].line else ""
        raise CertificateCorruptError(
            f"{document.path}{where}: {defects[0].reason}",
            advice="give a file of certificates in PEM form; openssl x509 -in FILE converts one",
        )
    if not content.certificates:
        raise CertificateCorruptError(
            f"{document.path} holds no certificate",
            advice="give a file of certificates in PEM form; openssl x509 -in FILE converts one",
        )
    data = b"".join(certificate.pem for certificate in content.certificates)
    certificates = parse_certificates(data)
    if isinstance(certificates, HostPemDefect):
        # The core is as lenient as OpenSSL, which is more than what shows certificates to people.
        raise CertificateCorruptError(
            f"{document.path}: {certificates.reason}", advice="have the certificate made anew"
        )
    path = paths.certs / name
    with _library(paths, create=not dry_run) as certs:
        if certs is not None and is_present(os.fsencode(name), within=certs):
            raise _already_exists(path)
        if certs is not None and not dry_run:
            with file_errors(path):
                try:
                    create_exclusive(certs, os.fsencode(name), data, mode=PUBLIC_MODE)
                except FileExistsError:
                    raise _already_exists(path) from None
    if dry_run:
        return AuthorityChange(path, certificates, changed=True)
    warnings = _after_change(paths)
    trusted = trusted_through(paths, content.certificates)
    return AuthorityChange(path, certificates, changed=True, warnings=warnings, trusted=trusted)


def uninstall_authority(
    paths: HostPaths, name: str, *, force: bool = False, dry_run: bool = False
) -> AuthorityChange:
    """Remove ``certs/NAME``; with ``force`` it may be missing."""
    validate_name(name)
    path = paths.certs / name
    with _library(paths, create=False) as certs:
        if certs is None or not is_present(os.fsencode(name), within=certs):
            if force:
                return AuthorityChange(path, (), changed=False)
            raise CertificateDoesNotExistError(
                f"{path} does not exist",
                advice="pool-certificate-list shows what is installed; --force ignores this",
            )
        content = _content(certs, os.fsencode(name))
        certificates = _shown(content)
        if dry_run:
            return AuthorityChange(path, certificates, changed=True)
        _remove(certs, path)
    warnings = _after_change(paths)
    trusted = trusted_through(paths, content.certificates)
    return AuthorityChange(path, certificates, changed=True, warnings=warnings, trusted=trusted)


@contextlib.contextmanager
def _library(paths: HostPaths, *, create: bool) -> Iterator[int | None]:
    """Open ``certs``; None if it is missing and not to be made."""
    with contextlib.ExitStack() as stack:
        try:
            mode = SOURCE_DIRECTORY_MODE if create else None
            certs = stack.enter_context(open_directory(paths.certs, create_mode=mode))
        except FileNotFoundError:
            if create:
                raise CertificateLibraryCorruptError(
                    f"{paths.stunnel} does not exist",
                    advice="check the path; for a store or a mount, name it with --store",
                ) from None
            certs = None
        except OSError as error:
            raise _unusable(paths.certs, error) from error
        yield certs


def _unusable(path: Path, error: OSError) -> CertfsError:
    if error.errno == errno.ENOTDIR:
        return CertificateLibraryCorruptError(
            f"{path}: {error.strerror}", advice="move it away; certfs repair makes the directory"
        )
    return from_os_error(str(path), error)


def _already_exists(path: Path) -> CertificateAlreadyExistsError:
    return CertificateAlreadyExistsError(
        f"{path} exists already",
        advice="choose another name with --name, or remove it with pool-uninstall-ca-certificate",
    )


def _content(certs: int, name: bytes) -> SourceContent:
    """Return what can be read of a file that is about to go."""
    with contextlib.suppress(OSError):
        return parse_source(read_file(name, within=certs))
    return SourceContent()


def _shown(content: SourceContent) -> tuple[x509.Certificate, ...]:
    """Return the certificates of a file that can be shown to people."""
    certificates = parse_certificates(b"".join(one.pem for one in content.certificates))
    return certificates if isinstance(certificates, tuple) else ()


def _remove(certs: int, path: Path) -> None:
    try:
        os.unlink(path.name, dir_fd=certs)
        os.fsync(certs)
    except OSError as error:
        if not path.is_dir():
            raise _unusable(path, error) from error
        # The platform's name for what it cannot remove.
        raise CertificateCorruptError(
            f"{path} cannot be removed: it is a directory", advice=f"rm -r {path} removes it"
        ) from error


def _after_change(paths: HostPaths) -> tuple[str, ...]:
    """Bring along what follows from ``certs``; say what could not be brought along."""
    update_plain_bundle(paths, CERTS)
    with open_directory(paths.certs) as certs:
        if not any(_HASH_LINK.fullmatch(name) for name in os.listdir(certs)):
            # Nobody looks certificates up by hash here, and names of our own would only be in the
            # way.
            return ()
        try:
            subprocess.run(
                # By descriptor: the path may lead to another directory by now.
                ["openssl", "rehash", f"/proc/self/fd/{certs}"],
                pass_fds=(certs,),
                check=True,
                capture_output=True,
                stdin=subprocess.DEVNULL,
                timeout=_REHASH_SECONDS,
            )
        except (OSError, subprocess.SubprocessError):
            return (f"the hash links in {paths.certs} are out of date: run openssl rehash on it",)
    return ()
