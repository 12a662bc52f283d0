"""Whether a certificate that names itself as its issuer was signed with its own key.

Owns the check and the bound on its cost. A copy of an authority's certificate with a damaged byte loads like the good
one and has its name and dates: found first, it would hide the good one. It cannot simply be left out, because one that
the key of before has signed (RFC 4210, key rollover) looks the same.
"""

import enum
from collections.abc import Callable

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

from certfs.core.der import content_of, read_element, read_first
from certfs.core.fields import Fields

_LARGEST_RSA_KEY = 8192
_LARGEST_RSA_EXPONENT = 1 << 32
_LARGEST_KEY_FIELD = 1200
"""Bytes: an RSA key of 8,192 bits has 1,062."""
_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)

_RSA_HASHES: dict[str, Callable[[], hashes.HashAlgorithm]] = {
    "2a864886f70d010105": hashes.SHA1,
    "2a864886f70d01010e": hashes.SHA224,
    "2a864886f70d01010b": hashes.SHA256,
    "2a864886f70d01010c": hashes.SHA384,
    "2a864886f70d01010d": hashes.SHA512,
}
_ECDSA_HASHES: dict[str, Callable[[], hashes.HashAlgorithm]] = {
    "2a8648ce3d0401": hashes.SHA1,
    "2a8648ce3d040301": hashes.SHA224,
    "2a8648ce3d040302": hashes.SHA256,
    "2a8648ce3d040303": hashes.SHA384,
    "2a8648ce3d040304": hashes.SHA512,
}


class OwnSignature(enum.IntEnum):
    """What became of the check; among certificates of one subject and one date the lower ones come first."""

    FITS = 0
    UNKNOWN = 1
    """The key is too large to be used here, or the key or the algorithm is not known."""
    BROKEN = 2


def check_own_signature(der: bytes, fields: Fields) -> OwnSignature:
    """Verify the certificate ``der`` with its own key; takes 0.5 ms at most, whatever the key is."""
    key_field = der[fields.public_key.start : fields.public_key.end]
    if len(key_field) > _LARGEST_KEY_FIELD:
        return OwnSignature.UNKNOWN
    to_be_signed, _algorithm, bits = read_first(der, read_element(der, 0, len(der)), 3)
    algorithm = content_of(der, read_first(der, fields.outer_signature, 1)[0]).hex()
    signature = content_of(der, bits)[1:]
    try:
        return _verify(key_field, algorithm, signature, der[to_be_signed.start : to_be_signed.end])
    except InvalidSignature:
        return OwnSignature.BROKEN
    except Exception:  # noqa: BLE001 - a key that is damaged or not known raises many kinds
        return OwnSignature.UNKNOWN


def _verify(key_field: bytes, algorithm: str, signature: bytes, signed: bytes) -> OwnSignature:
    key = load_der_public_key(key_field)
    if isinstance(key, rsa.RSAPublicKey) and algorithm in _RSA_HASHES:
        if key.key_size > _LARGEST_RSA_KEY or key.public_numbers().e > _LARGEST_RSA_EXPONENT:
            return OwnSignature.UNKNOWN
        key.verify(signature, signed, padding.PKCS1v15(), _RSA_HASHES[algorithm]())
    elif isinstance(key, ec.EllipticCurvePublicKey) and algorithm in _ECDSA_HASHES:
        if not isinstance(key.curve, _CURVES):
            return OwnSignature.UNKNOWN
        key.verify(signature, signed, ec.ECDSA(_ECDSA_HASHES[algorithm]()))
    elif isinstance(key, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey):
        key.verify(signature, signed)
    else:
        return OwnSignature.UNKNOWN
    return OwnSignature.FITS
