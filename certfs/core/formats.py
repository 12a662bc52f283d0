"""The certificates of a bundle in other forms than PEM: a Java trust store, and the file names of an OpenSSL CApath.

Owns both forms. Values in, values out: where they are written, and in which order, is for the caller to know.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.serialization import NoEncryption
from cryptography.hazmat.primitives.serialization.pkcs12 import (
    PKCS12Certificate,
    serialize_java_truststore,
)

from certfs.core.der import DerError, encode_element, read_element, read_elements
from certfs.core.fields import read_fields
from certfs.core.name import canonical_name
from certfs.core.pem import PemBlock, decode_body, find_blocks, render

_LABELS = frozenset(("CERTIFICATE", "X509 CERTIFICATE"))


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A certificate that a form cannot hold: its SHA-256 (lowercase hexadecimal) and the reason."""

    sha256: str
    reason: str


def certificates_of(bundle: bytes) -> Iterator[bytes]:
    """Yield the DER of every certificate in the text of a bundle, each once, in order."""
    seen = set()
    for block in find_blocks(bundle):
        if isinstance(block, PemBlock) and block.label in _LABELS:
            der = decode_body(bundle[block.body_start : block.body_end])
            if der and der not in seen:
                seen.add(der)
                yield der


def java_truststore(certificates: Iterable[bytes]) -> tuple[bytes, tuple[LeftOut, ...]]:
    """Return a PKCS #12 file (RFC 7292) of trusted certificates, and those that it does not hold.

    It has no password and no MAC: nothing in it is secret, and without them the same certificates give the same bytes.
    An entry's alias is the SHA-256 of its certificate. Left out is what cryptography cannot parse; Java's parser, which
    is no more lenient, would refuse the whole file for it. Where no certificate is left there is no file: no bytes.
    """
    entries, left_out = [], []
    for der in certificates:
        sha256 = hashlib.sha256(der).hexdigest()
        try:
            certificate = x509.load_der_x509_certificate(der)
        except ValueError as e:
            left_out.append(LeftOut(sha256, f"cannot be parsed: {e}"))
        else:
            entries.append(PKCS12Certificate(certificate, sha256.encode()))
    if not entries:
        return b"", tuple(left_out)
    with_mac = serialize_java_truststore(entries, NoEncryption())
    version, content, *_mac = read_elements(with_mac, read_element(with_mac, 0, len(with_mac)))
    return encode_element(0x30, with_mac[version.start : content.end]), tuple(left_out)


def hash_directory(certificates: Sequence[bytes]) -> tuple[dict[str, bytes], tuple[LeftOut, ...]]:
    """Return the files of an OpenSSL CApath (openssl-rehash(1)), PEM by name, and what it does not hold.

    A name is the subject's hash and a number. Of certificates with the same subject the first of the bundle has the
    number 0, which is the one that OpenSSL tries first.
    """
    files, left_out = {}, []
    numbers = Counter[str]()
    for der in certificates:
        try:
            subject = subject_hash(der)
        except DerError as e:
            left_out.append(LeftOut(hashlib.sha256(der).hexdigest(), str(e)))
            continue
        files[f"{subject}.{numbers[subject]}"] = render(der)
        numbers[subject] += 1
    return files, tuple(left_out)


def subject_hash(der: bytes) -> str:
    """Return what ``openssl x509 -subject_hash`` prints of a certificate; DerError where it has no readable subject.

    SHA-1 of the canonical subject without its outer header, of which OpenSSL takes four bytes, least significant first
    (X509_NAME_hash_ex in crypto/x509/x509_cmp.c).
    """
    subject = canonical_name(der, read_fields(der).subject)
    digest = hashlib.sha1(subject, usedforsecurity=False).digest()
    return digest[3::-1].hex()
