"""A certificate in words and numbers that a person or a program can read.

Owns what is said of a certificate, and the one form of each thing in every text, log and JSON: fingerprints in bare
lower-case hexadecimal, serial numbers as openssl prints them. Must not know how it is laid out on a screen.
"""

from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from certfs.core.text import printable
from certfs.identity.validate import signature_name

_NO_EXTENSION = (
    x509.ExtensionNotFound,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
    ValueError,
)
"""What is raised where an extension is missing, or one of all that there are cannot be parsed."""
_ATTRIBUTES = {NameOID.SERIAL_NUMBER: "serialNumber", NameOID.EMAIL_ADDRESS: "emailAddress"}


@dataclass(frozen=True, slots=True)
class Description:
    """What can be said of one certificate; times are in UTC, ``key`` is kind and size."""

    subject: str
    issuer: str
    serial_number: str
    not_before: datetime
    not_after: datetime
    key: str
    signature: str
    names: tuple[str, ...]
    is_ca: bool
    sha256: str
    sha1: str


def describe(certificate: x509.Certificate) -> Description:
    """Describe a certificate; extensions that cannot be parsed are left out."""
    return Description(
        subject=name_text(certificate.subject),
        issuer=name_text(certificate.issuer),
        serial_number=_serial_number(certificate.serial_number),
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        key=_key(certificate),
        signature=signature_name(certificate),
        names=_names(certificate),
        is_ca=_is_ca(certificate),
        sha256=fingerprint(certificate),
        sha1=certificate.fingerprint(hashes.SHA1()).hex(),  # noqa: S303 - the platform shows it too
    )


def name_text(name: x509.Name) -> str:
    """Return a distinguished name as RFC 4514 writes it."""
    return printable(name.rfc4514_string(_ATTRIBUTES))


def fingerprint(certificate: x509.Certificate) -> str:
    """Return the SHA-256 of a certificate in bare lower-case hexadecimal."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def with_colons(digest: str) -> str:
    """Return a fingerprint as the platform and openssl print it: upper-case pairs with colons."""
    return bytes.fromhex(digest).hex(":").upper()


def _serial_number(number: int) -> str:
    """Return a serial number as openssl prints it: pairs of upper-case digits, also the first."""
    digits = f"{abs(number):X}"
    return ("-" if number < 0 else "") + "0" * (len(digits) % 2) + digits


def _key(certificate: x509.Certificate) -> str:
    try:
        key = certificate.public_key()
    except (UnsupportedAlgorithm, ValueError):
        return certificate.public_key_algorithm_oid.dotted_string
    if isinstance(key, rsa.RSAPublicKey):
        return f"RSA {key.key_size}"
    if isinstance(key, ec.EllipticCurvePublicKey):
        return f"EC {key.curve.name}"
    return type(key).__name__.removesuffix("PublicKey").lstrip("_")


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except _NO_EXTENSION:
        return ()
    names = extension.value
    found = (
        *(f"DNS:{name}" for name in names.get_values_for_type(x509.DNSName)),
        *(f"IP:{address}" for address in names.get_values_for_type(x509.IPAddress)),
        *(f"email:{name}" for name in names.get_values_for_type(x509.RFC822Name)),
        *(f"URI:{name}" for name in names.get_values_for_type(x509.UniformResourceIdentifier)),
    )
    return tuple(printable(name) for name in found)


def is_authority(certificate: x509.Certificate) -> bool:
    """Tell whether OpenSSL lets a certificate vouch for others: a CA, or a self-issued one of version 1."""
    if certificate.version is x509.Version.v1:
        return certificate.subject == certificate.issuer
    return _is_ca(certificate)


def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    except _NO_EXTENSION:
        return False
    return extension.value.ca
