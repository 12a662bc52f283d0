"""What can be said of a private key: of which kind it is, and whether a certificate is its own.

Owns the little DER that telling the kind before loading takes (RFC 8017, appendix A.1.2; RFC 5208,
section 5): libraries load keys that the platform refuses, and refuse some without saying why, such
as multi-prime and short RSA keys. Must never return or raise anything of a key's content but its
size.
"""

from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from certfs.identity.hostpem import HostPem

_SEQUENCE = 0x30
_INTEGER = 0x02
_OCTETS = 0x04
_OID = 0x06
_LONG_FORM = 0x80
_MAX_LENGTH_BYTES = 4

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


@dataclass(frozen=True, slots=True)
class _Element:
    """A DER element: its ``tag``, its ``content`` and the ``rest`` after it."""

    tag: int
    content: bytes
    rest: bytes


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
    if label == "RSA PRIVATE KEY":
        return _rsa_shape(der)
    if label != "PRIVATE KEY":
        return _LABELS.get(label)
    info = _inside(der, _SEQUENCE)
    version = _take(info, _INTEGER)
    algorithm = _take(version.rest, _SEQUENCE) if version else None
    oid = _take(algorithm.content, _OID) if algorithm else None
    if algorithm is None or oid is None:
        return None
    if oid.content != _RSA_ENCRYPTION:
        return _ALGORITHMS.get(oid.content, f"of the algorithm {oid.content.hex()}")
    key = _take(algorithm.rest, _OCTETS)
    return _rsa_shape(key.content) if key else None


def _rsa_shape(der: bytes) -> RsaKeyShape | None:
    version = _take(_inside(der, _SEQUENCE), _INTEGER)
    modulus = _take(version.rest, _INTEGER) if version else None
    if version is None or modulus is None:
        return None
    # Version 1 is "multi", and nothing else differs before the end of the sequence.
    return RsaKeyShape(
        int.from_bytes(modulus.content, "big").bit_length(),
        int.from_bytes(version.content, "big") > 0,
    )


def _inside(der: bytes, tag: int) -> bytes:
    element = _take(der, tag)
    return element.content if element else b""


def _take(data: bytes, tag: int) -> _Element | None:
    """Return the first element of ``data`` if it has this tag and is whole."""
    if len(data) < 2 or data[0] != tag:  # noqa: PLR2004 - a tag and a length
        return None
    length, start = data[1], 2
    if length & _LONG_FORM:
        count = length & ~_LONG_FORM
        if not 0 < count <= _MAX_LENGTH_BYTES:
            return None
        start += count
        length = int.from_bytes(data[2:start], "big")
    end = start + length
    return _Element(tag, data[start:end], data[end:]) if end <= len(data) else None
