"""Which of a host's bundles a certificate is trusted through, and by which of their files.

Owns looking into the bundles as their readers see them, so that what a command says of trust is what there is. A
certificate with the same name and key counts too: it vouches for whatever the other one has signed.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from certfs.core.certificate import Certificate, parse_source
from certfs.identity.bundles import bundle_places, certificates_in_bundle
from certfs.identity.paths import BundlePlace, HostPaths, names_of, read_file


@dataclass(frozen=True, slots=True)
class Trusted:
    """A bundle that a certificate is trusted through, because of ``files`` in its source directory.

    ``is_same`` is False if those hold another certificate with its name and key. Without files the bundle keeps what
    its source directory has not: that directory is being replaced, or nothing follows it.
    """

    sha256: str
    bundle: Path
    source: Path
    files: tuple[Path, ...]
    is_same: bool = True


def trusted_through(paths: HostPaths, certificates: Iterable[Certificate]) -> tuple[Trusted, ...]:
    """Return every bundle through which one of ``certificates`` is trusted now."""
    wanted = tuple(certificates)
    return tuple(
        found for place in bundle_places(paths) for found in _through_bundle(place, wanted)
    )


def _through_bundle(place: BundlePlace, wanted: tuple[Certificate, ...]) -> Iterator[Trusted]:
    held = certificates_in_bundle(place.bundle)
    for certificate in wanted:
        for is_same in (True, False):
            if any(_matches(one, certificate, is_same=is_same) for one in held):
                files = tuple(_files(place, certificate, is_same=is_same))
                sha256 = certificate.fingerprint.hex()
                yield Trusted(sha256, place.bundle, place.source, files, is_same)
                break


def _files(place: BundlePlace, wanted: Certificate, *, is_same: bool) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        for name in names_of(place.source):
            if not os.fsencode(name).endswith(place.suffixes):
                continue
            with contextlib.suppress(OSError):
                held = parse_source(read_file(place.source / name)).certificates
                if any(_matches(one, wanted, is_same=is_same) for one in held):
                    yield place.source / name


def _matches(one: Certificate, wanted: Certificate, *, is_same: bool) -> bool:
    if is_same:
        return one.fingerprint == wanted.fingerprint
    if one.subject_key != wanted.subject_key:
        return False
    key = _public_key(one)
    return key is not None and key == _public_key(wanted)


def _public_key(certificate: Certificate) -> bytes | None:
    """Return a certificate's key; None where the library cannot read it."""
    with contextlib.suppress(ValueError, TypeError, UnsupportedAlgorithm):
        key = x509.load_pem_x509_certificate(certificate.pem).public_key()
        return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return None
