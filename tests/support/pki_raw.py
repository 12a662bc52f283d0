"""Certificates put together from raw fields: with keys of any size, and with every deviation from DER.

Owns what cryptography's builder refuses to write. The signatures fit none of them unless they are made to; a reader of
trusted certificates never looks. Must not import certfs.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.support import pki

RSA = bytes.fromhex("06092a864886f70d010101")
DSA = bytes.fromhex("06072a8648ce380401")
SHA256_RSA = bytes.fromhex("300d06092a864886f70d01010b0500")
SHA256_DSA = bytes.fromhex("300b0609608648016503040302")
SHA256_ECDSA = bytes.fromhex("300a06082a8648ce3d040302")
COMMON_NAME = bytes.fromhex("0603550403")
UTF8, PRINTABLE, T61, IA5, BMP, UNIVERSAL = 0x0C, 0x13, 0x14, 0x16, 0x1E, 0x1C


def element(tag: int, *content: bytes) -> bytes:
    """Encode an element of DER."""
    joined = b"".join(content)
    if len(joined) < 0x80:
        return bytes((tag, len(joined))) + joined
    octets = len(joined).to_bytes((len(joined).bit_length() + 7) // 8)
    return bytes((tag, 0x80 | len(octets))) + octets + joined


def sequence(*content: bytes) -> bytes:
    """Encode a SEQUENCE."""
    return element(0x30, *content)


def integer(number: int) -> bytes:
    """Encode an INTEGER."""
    return element(0x02, number.to_bytes(number.bit_length() // 8 + 1))


def attribute(value: bytes, kind: int = UTF8, identifier: bytes = COMMON_NAME) -> bytes:
    """Encode an AttributeTypeAndValue."""
    return sequence(identifier, element(kind, value))


def name(*attributes: bytes) -> bytes:
    """Encode a Name with each attribute in an RDN of its own."""
    return sequence(*(element(0x31, each) for each in attributes))


def _number(bits: int, seed: int) -> int:
    return random.Random(seed).getrandbits(bits - 1) | 1 << (bits - 1) | 1  # noqa: S311 - no secret


def rsa_key(bits: int, exponent: int = 65537, seed: int = 1) -> bytes:
    """Encode an RSA key of that size; its factors are not known to anybody."""
    numbers = sequence(integer(_number(bits, seed)), integer(exponent))
    return sequence(sequence(RSA, b"\x05\x00"), element(0x03, b"\0", numbers))


def dsa_key(bits: int, seed: int = 1) -> bytes:
    """Encode a DSA key of that size."""
    p, q = _number(bits, seed), _number(256, seed + 1)
    parameters = sequence(integer(p), integer(q), integer(2))
    return sequence(sequence(DSA, parameters), element(0x03, b"\0", integer(p // 3)))


def ec_key() -> bytes:
    """Encode the tests' P-256 key."""
    return (
        pki.ec_key()
        .public_key()
        .public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


def certificate(  # noqa: PLR0913 - each is a field of a certificate
    subject: bytes,
    *,
    issuer: bytes | None = None,
    key: bytes | None = None,
    version: bytes = b"\xa0\x03\x02\x01\x02",
    serial: bytes = b"\x02\x01\x05",
    dates: bytes | None = None,
    extensions: Sequence[bytes] = (),
    algorithm: bytes = SHA256_ECDSA,
    outer_algorithm: bytes | None = None,
    signature: bytes | None = None,
) -> bytes:
    """Put a certificate together; signed with the tests' P-256 key if there is no ``signature``."""
    validity = dates or sequence(element(0x17, b"240101000000Z"), element(0x17, b"440101000000Z"))
    key_field = key if key is not None else ec_key()
    parts = [version, serial, algorithm, issuer or subject, validity, subject, key_field]
    if extensions:
        parts.append(element(0xA3, sequence(*extensions)))
    signed = sequence(*parts)
    if signature is None:
        signature = pki.ec_key().sign(signed, ec.ECDSA(hashes.SHA256()))
    return sequence(signed, outer_algorithm or algorithm, element(0x03, b"\0", signature))


def large_dsa(subject: str, number: int) -> bytes:
    """Make one whose own signature would cost 11 ms to verify; each number gives another one."""
    signature = sequence(integer(_number(255, 5)), integer(_number(250, number + 7)))
    subject_name = name(attribute(subject.encode()))
    return certificate(subject_name, key=dsa_key(10_000), algorithm=SHA256_DSA, signature=signature)


def large_rsa(subject: str, number: int, *, bits: int = 16_384, exponent: int = 65537) -> bytes:
    """Make one with an RSA key of that size; each number gives another one."""
    signature = b"\0" + _number(bits - 8, number + 7).to_bytes(bits // 8 - 1)
    subject_name = name(attribute(subject.encode()))
    return certificate(
        subject_name, key=rsa_key(bits, exponent), algorithm=SHA256_RSA, signature=signature
    )
