"""What can be said of a private key: of which kind it is, and whether a certificate is its own.

Owns what telling the kind before loading takes (RFC 8017, appendix A.1.2; RFC 5208,
section 5): libraries load keys that the platform refuses, and refuse some without saying why, such
as multi-prime and short RSA keys. Must never return or raise anything of a key's content but its
size.
"""

from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from certfs.core.der import (
    OBJECT_IDENTIFIER,
    SEQUENCE,
    DerError,
    Element,
    content_of,
    read_element,
    read_first,
)
from certfs.identity.hostpem import HostPem

_INTEGER = 0x02
_OCTETS = 0x04

_RSA_ENCRYPTION = bytes.fromhex("2a864886f70d010101")
_ALGORITHMS = {
    bytes.fromhex("2a864886f70d01010a"): "RSASSA-PSS",
    bytes.fromhex("2a8648ce3d0201"): "EC",
    bytes.fromhex("2b6570"): "Ed25519",
    bytes.fromhex("2b6571"): "Ed448",
    bytes.fromhex("2a8648ce380401"): "DSA",
}
_LABELS = {"EC PRIVATE KEY": "EC", "DSA PRIVATE KEY": "DSA"}


@dataclass(frozen=True, slots=True)
class RsaKeyShape:
    """An RSA key from outside: its modulus's length, and whether it has more than two primes."""

    bits: int
    is_multi_prime: bool


def is_pair(pem: HostPem) -> bool:
    """Tell whether key and certificate load and belong together, so that stunnel starts."""
    try:
        key = load_pem_private_key(pem.key, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return False
    return belongs(key, pem.leaf)


def belongs(key: PrivateKeyTypes, certificate: x509.Certificate) -> bool:
    """Tell whether a certificate was made for this key."""
    try:
        return bool(key.public_key() == certificate.public_key())
    except (ValueError, UnsupportedAlgorithm):
        return False


def read_shape(der: bytes, *, label: str) -> RsaKeyShape | str | None:
    """Tell an RSA key's shape, the name of another algorithm, or None for what cannot be told.

    ``label`` is the PEM label; unlabelled forms do not occur in PEM (RFC 7468).
    """
    if label not in {"PRIVATE KEY", "RSA PRIVATE KEY"}:
        return _LABELS.get(label)
    try:
        whole = read_element(der, 0, len(der))
        if label == "RSA PRIVATE KEY":
            return _rsa_shape(der, whole)
        _, algorithm = _first(der, whole, _INTEGER, SEQUENCE)
        (oid,) = _first(der, algorithm, OBJECT_IDENTIFIER)
        number = content_of(der, oid)
        if number != _RSA_ENCRYPTION:
            return _ALGORITHMS.get(number, f"of the algorithm {number.hex()}")
        *_, key = _first(der, whole, _INTEGER, SEQUENCE, _OCTETS)
        return _rsa_shape(der, read_element(der, key.content, key.content_end))
    except DerError:
        return None


def _rsa_shape(der: bytes, key: Element) -> RsaKeyShape:
    version, modulus = (
        int.from_bytes(content_of(der, number), "big")
        for number in _first(der, key, _INTEGER, _INTEGER)
    )
    # Version 1 is "multi", and nothing else differs before the end of the sequence.
    return RsaKeyShape(modulus.bit_length(), version > 0)


def _first(der: bytes, parent: Element, *tags: int) -> list[Element]:
    """Return the first elements inside ``parent``, one for each of the ``tags``; DerError where they have others."""
    found = read_first(der, parent, len(tags))
    if any(one.tag != tag for one, tag in zip(found, tags, strict=True)):
        raise DerError("another element was expected")
    return found
