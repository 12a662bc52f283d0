"""A certificate in words and numbers that a person or a program can read.

Owns what is said of a certificate, and the one form of each thing in every text, log and JSON: fingerprints in bare
lower-case hexadecimal, serial numbers as openssl prints them. Must not know how it is laid out on a screen.
"""

import hashlib
from dataclasses import dataclass, field
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, load_der_public_key

from certfs.core import details
from certfs.core.der import DerError, Element, content_of, read_element, read_first
from certfs.core.fields import read_dates, read_fields
from certfs.core.name import dotted, name_text
from certfs.identity.validate import algorithm_name


@dataclass(frozen=True, slots=True)
class Description:
    """What can be said of one certificate; times are in UTC, ``key`` is kind and size. None is what cannot be read.

    ``vouches`` if OpenSSL lets it vouch for other certificates, which a CA may, and a self-issued one of version 1.
    """

    subject: str
    issuer: str
    serial_number: str
    not_before: datetime | None
    not_after: datetime | None
    key: str | None
    signature: str | None
    names: tuple[str, ...] | None
    is_ca: bool | None
    vouches: bool | None
    sha256: str
    sha1: str
    der: bytes = field(repr=False)

    @property
    def title(self) -> str:
        """Its subject, or that it has none."""
        return self.subject or "a certificate without a subject"


def describe(der: bytes) -> Description:
    """Describe a certificate that OpenSSL loads, or one of `certfs.identity.hostpem`."""
    fields = read_fields(der)
    not_before, not_after = read_dates(der, fields)
    return Description(
        subject=name_text(der, fields.subject),
        issuer=name_text(der, fields.issuer),
        serial_number=_serial_number(content_of(der, fields.serial_number)),
        not_before=not_before,
        not_after=not_after,
        key=_key(der, fields.public_key),
        signature=_algorithm(der, fields.outer_signature),
        names=details.alternative_names(der, fields),
        is_ca=details.is_ca(der, fields),
        vouches=details.is_authority(der, fields),
        sha256=hashlib.sha256(der).hexdigest(),
        sha1=hashlib.sha1(der, usedforsecurity=False).hexdigest(),
        der=der,
    )


def describe_loaded(certificate: x509.Certificate) -> Description:
    """Describe a certificate that was parsed strictly."""
    return describe(certificate.public_bytes(Encoding.DER))


def text_of_name(name: x509.Name) -> str:
    """Return a distinguished name as RFC 4514 writes it."""
    der = name.public_bytes()
    return name_text(der, read_element(der, 0, len(der)))


def with_colons(digest: str) -> str:
    """Return a fingerprint as the platform and openssl print it: upper-case pairs with colons."""
    return bytes.fromhex(digest).hex(":").upper()


def _serial_number(octets: bytes) -> str:
    """Return a serial number as openssl prints it: pairs of upper-case digits, also the first."""
    number = int.from_bytes(octets, signed=True)
    digits = f"{abs(number):X}"
    return ("-" if number < 0 else "") + "0" * (len(digits) % 2) + digits


def _key(der: bytes, public_key: Element) -> str | None:
    try:
        key = load_der_public_key(der[public_key.start : public_key.end])
    except (UnsupportedAlgorithm, ValueError, TypeError):
        return _algorithm(der, public_key, depth=2)
    if isinstance(key, rsa.RSAPublicKey):
        return f"RSA {key.key_size}"
    if isinstance(key, ec.EllipticCurvePublicKey):
        return f"EC {key.curve.name}"
    return type(key).__name__.removesuffix("PublicKey").lstrip("_")


def _algorithm(der: bytes, element: Element, *, depth: int = 1) -> str | None:
    """Return the name of the algorithm whose identifier is the first thing in an element, so many levels down."""
    try:
        for _ in range(depth):
            (element,) = read_first(der, element, 1)
        return algorithm_name(dotted(content_of(der, element)))
    except DerError:
        return None
