"""A host's own entry in the pool: its certificates, and the proof that it has their keys.

Owns making the entry from the host's PEM files and judging those of others. Values in, values out. A private key is
used here for signatures and never leaves this module.
"""

import base64
import hashlib
from dataclasses import dataclass
from typing import Final

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import NameOID

from certfs.core.certificate import parse_source
from certfs.core.loading import is_ordinary
from certfs.core.pem import PemBlock, find_blocks
from certfs.pool.keys import Value, encode
from certfs.pool.wire import decoded

_PURPOSE: Final = b"certfs host entry 1"
_MOST_BYTES: Final = 64 << 10

Keys = tuple[str, ...]
"""SHA-256 of public keys (SubjectPublicKeyInfo), in hexadecimal."""


class HostEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``hosts/UUID``: the certificate in use and the next one, empty if there is none.

    ``proof`` and ``next_proof`` are signatures with their keys, ``old_proof`` one with the key that was in use before,
    whose public part is ``old_key``; all over what `_message` says.
    """

    certificate: str
    proof: bytes
    next: str = ""
    next_proof: bytes = b""
    old_key: bytes = b""
    old_proof: bytes = b""


@dataclass(frozen=True, slots=True)
class Believed:
    """What an entry that holds means: files of ``certs-pool``, and the keys to believe the next entry by."""

    names: dict[bytes, Value]
    keys: Keys


class _Pair:
    """A certificate and its key, as in a host PEM."""

    def __init__(self, pem: bytes) -> None:
        certificates = parse_source(pem).certificates
        keys = [
            pem[block.start : block.end]
            for block in find_blocks(pem)
            if isinstance(block, PemBlock) and block.label.endswith("PRIVATE KEY")
        ]
        if not certificates or len(keys) != 1:
            raise ValueError("not one private key and its certificate")
        self.text = certificates[0].pem.decode("ascii")
        try:
            key = serialization.load_pem_private_key(keys[0], None)
        except (TypeError, UnsupportedAlgorithm) as error:  # it is encrypted, or of an unknown kind
            raise ValueError(str(error)) from None
        if not isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
            raise ValueError("a private key that is neither RSA nor EC")  # noqa: TRY004 - of what is in the file
        self._key = key

    def sign(self, message: bytes) -> bytes:
        if isinstance(self._key, rsa.RSAPrivateKey):
            return self._key.sign(message, padding.PKCS1v15(), hashes.SHA256())
        return self._key.sign(message, ec.ECDSA(hashes.SHA256()))

    @property
    def public(self) -> bytes:
        return self._key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )


def make_entry(pool: str, uuid: str, current: bytes, upcoming: bytes, before: bytes) -> HostEntry:
    """Return the entry of a host with these host PEMs; ``upcoming`` and ``before`` are empty where there is none.

    ValueError where ``current`` is no host PEM; the others are left out then.
    """
    own = _Pair(current)
    following, old = _pair_or_none(upcoming), _pair_or_none(before)
    message = _message(pool, uuid, own.text, following.text if following else "")
    return HostEntry(
        own.text,
        own.sign(message),
        following.text if following else "",
        following.sign(message) if following else b"",
        old.public if old else b"",
        old.sign(message) if old else b"",
    )


def judge(  # noqa: PLR0911 - one for each reason
    pool: str, uuid: str, raw: bytes, known: Keys
) -> Believed | str:
    """Return what an entry means, or why it is not believed. ``known`` are the keys of the last entry believed.

    Whether the host is a member is to be known before.
    """
    if len(raw) > _MOST_BYTES:
        return "its entry is too large"
    entry = decoded(raw, HostEntry, strict=True)
    if entry is None:
        return "its entry is none of certfs"
    message = _message(pool, uuid, entry.certificate, entry.next)
    names = {}
    keys = []
    for text, proof, suffix in (
        (entry.certificate, entry.proof, ""),
        (entry.next, entry.next_proof, ".new"),
    ):
        if suffix and not text:
            continue
        found = _certificate(text)
        if isinstance(found, str):
            return found
        value, certificate = found
        defect = _defect(uuid, certificate)
        if defect:
            return defect
        if not _verifies(certificate.public_key(), proof, message):
            return "it has not proven that it has the key of its certificate"
        names[f"{uuid}{suffix}.pem".encode()] = value
        keys.append(_key_digest(_spki(certificate)))
    old = _key_digest(entry.old_key)
    if known and keys[0] not in known and not (old in known and _endorses(entry, message)):
        return "its new key is not signed with the old one"
    return Believed(names, tuple(keys))


def _message(pool: str, uuid: str, certificate: str, upcoming: str) -> bytes:
    parts = [pool.encode(), uuid.encode()]
    parts += [hashlib.sha256(text.encode()).digest() for text in (certificate, upcoming)]
    return b"\0".join([_PURPOSE, *map(base64.b64encode, parts)])


def _pair_or_none(pem: bytes) -> _Pair | None:
    try:
        return _Pair(pem) if pem else None
    except ValueError:
        return None


def _certificate(text: str) -> tuple[Value, x509.Certificate] | str:
    raw = text.encode()
    certificates = parse_source(raw).certificates
    value = encode(certificates)
    if len(certificates) != 1 or value is None or value.pem != raw:
        return "its entry has not one certificate in canonical PEM where it should"
    # Another host chose every byte of it, and what bindings raise at an odd one is of many kinds.
    if not is_ordinary(certificates[0].der):
        return "its certificate cannot be read"
    return value, x509.load_pem_x509_certificate(raw)


def _defect(uuid: str, certificate: x509.Certificate) -> str:
    try:
        names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        constraints = [
            extension.value
            for extension in certificate.extensions
            if isinstance(extension.value, x509.BasicConstraints)
        ]
    except ValueError:
        return "its certificate cannot be read"
    if [name.value for name in names] != [uuid]:
        return "the subject of its certificate is not its UUID"
    if any(one.ca for one in constraints):
        return "its certificate is one of a CA"
    return ""


def _verifies(key: object, signature: bytes, message: bytes) -> bool:
    try:
        if isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, message, padding.PKCS1v15(), hashes.SHA256())
        elif isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
        else:
            return False
    except InvalidSignature:
        return False
    return True


def _endorses(entry: HostEntry, message: bytes) -> bool:
    try:
        key = serialization.load_der_public_key(entry.old_key)
    except (ValueError, UnsupportedAlgorithm):
        return False
    return _verifies(key, entry.old_proof, message)


def _spki(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _key_digest(spki: bytes) -> str:
    return hashlib.sha256(spki).hexdigest()
