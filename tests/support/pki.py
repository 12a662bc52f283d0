"""Certificates for the tests, made in microseconds from a small pool of keys.

Owns how test certificates are issued and how the tests read a bundle. Must
not import certfs: the reader here is the tests' second opinion on it.
"""

from __future__ import annotations

import base64
import datetime as dt
import functools
import hashlib
import re
import subprocess
import uuid
from collections.abc import Collection
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

NOW = dt.datetime.now(tz=dt.UTC).replace(microsecond=0)
DAY = dt.timedelta(days=1)

_CANONICAL_BLOCK = re.compile(
    rb"-----BEGIN CERTIFICATE-----\n((?:[A-Za-z0-9+/=]{1,64}\n)+)-----END CERTIFICATE-----\n"
)


class NotCanonicalError(ValueError):
    """A bundle holds something that is not a canonical CERTIFICATE block."""


@functools.cache
def ec_key(number: int = 0) -> ec.EllipticCurvePrivateKey:
    """Give the P-256 key of that number, made once for each process."""
    del number
    return ec.generate_private_key(ec.SECP256R1())


@functools.cache
def rsa_key(number: int = 0) -> rsa.RSAPrivateKey:
    """Give the RSA 2048 key of that number, made once for each process (0.1 s)."""
    del number
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@dataclass(frozen=True, slots=True)
class Identity:
    """A certificate and the private key that belongs to it."""

    certificate: x509.Certificate
    key: Key

    @property
    def pem(self) -> bytes:
        """The certificate as canonical PEM."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def der(self) -> bytes:
        """The certificate as DER."""
        return self.certificate.public_bytes(serialization.Encoding.DER)

    @property
    def key_pem(self) -> bytes:
        """The private key as unencrypted PKCS #8 PEM."""
        return self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )

    @property
    def host_pem(self) -> bytes:
        """Private key, then certificate: what the platform keeps in /etc/xensource."""
        return self.key_pem + self.pem

    @property
    def sha256(self) -> str:
        """The SHA-256 of the DER in lower-case hex."""
        return hashlib.sha256(self.der).hexdigest()


def name(common_name: str, *, serial_number: str | None = None) -> x509.Name:
    """Make a distinguished name; `serial_number` is the attribute that XAPI stamps."""
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    if serial_number is not None:
        attributes.append(x509.NameAttribute(NameOID.SERIAL_NUMBER, serial_number))
    return x509.Name(attributes)


def issue(  # noqa: PLR0913 - each argument is one field of a certificate
    subject: str | x509.Name = "certfs test",
    *,
    issuer: Identity | None = None,
    key: Key | None = None,
    ca: bool = False,
    extensions: bool = True,
    host_names: tuple[str, ...] = (),
    not_before: dt.datetime | None = None,
    not_after: dt.datetime | None = None,
) -> Identity:
    """Issue one certificate, self-signed when there is no `issuer`.

    `key` defaults to a shared P-256 key. `extensions=False` leaves out every
    extension, key identifiers too, as XAPI's pool certificates do.
    """
    subject_name = name(subject) if isinstance(subject, str) else subject
    private = key if key is not None else ec_key()
    begin = not_before if not_before is not None else NOW - DAY
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject_name)
        .issuer_name(issuer.certificate.subject if issuer else subject_name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(not_after if not_after is not None else begin + 3650 * DAY)
    )
    if extensions:
        signer_key = issuer.key if issuer else private
        builder = builder.add_extension(
            x509.BasicConstraints(ca=ca, path_length=None), critical=True
        )
        builder = builder.add_extension(
            x509.SubjectKeyIdentifier.from_public_key(private.public_key()), critical=False
        )
        builder = builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer_key.public_key()),
            critical=False,
        )
    if host_names:
        names = x509.SubjectAlternativeName([x509.DNSName(host) for host in host_names])
        builder = builder.add_extension(names, critical=False)
    signing = issuer.key if issuer else private
    return Identity(certificate=builder.sign(signing, hashes.SHA256()), key=private)


def with_extension(
    extension: x509.ExtensionType, subject: str = "extended", *, critical: bool = False
) -> Identity:
    """Issue a self-signed certificate with this one extension."""
    subject_name = name(subject)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject_name)
        .issuer_name(subject_name)
        .public_key(ec_key().public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + 3650 * DAY)
        .add_extension(extension, critical=critical)
    )
    return Identity(certificate=builder.sign(ec_key(), hashes.SHA256()), key=ec_key())


def authority(
    common_name: str | x509.Name = "certfs test CA", *, key: Key | None = None
) -> Identity:
    """Issue a self-signed CA certificate."""
    return issue(common_name, ca=True, key=key)


def pool_certificate(
    host: uuid.UUID | None = None,
    *,
    key: Key | None = None,
    not_before: dt.datetime | None = None,
) -> Identity:
    """Issue what XAPI generates as `xapi-pool-tls.pem`.

    Subject and issuer are CN = host UUID and a serialNumber stamp, with no
    extensions. The key is RSA 2048 as there; pass an EC one where many
    certificates are needed and nobody looks at the key.
    """
    host_uuid = host if host is not None else uuid.uuid4()
    stamp = (not_before if not_before is not None else NOW).strftime("%Y%m%d%H%M%S")
    return issue(
        name(str(host_uuid), serial_number=stamp),
        key=key if key is not None else rsa_key(),
        extensions=False,
        not_before=not_before,
    )


def many(count: int, *, prefix: str = "host") -> list[Identity]:
    """Issue `count` different small self-signed certificates (about 0.1 ms each)."""
    return [issue(f"{prefix} {number}", ca=True) for number in range(count)]


def crowd(count: int) -> list[bytes]:
    """Make the PEMs of very many different certificates, by changing the digits of one name.

    Each parses and has a subject of its own. The signatures fit none of them, which a reader
    of trusted certificates never looks at. A microsecond each.
    """
    digits = b"0000000"
    template = issue(f"crowd {digits.decode()}", ca=True).der
    parts = template.split(digits)
    pems = []
    for number in range(count):
        der = (b"%07d" % number).join(parts)
        encoded = base64.b64encode(der)
        lines = [encoded[at : at + 64] for at in range(0, len(encoded), 64)]
        pems.append(
            b"-----BEGIN CERTIFICATE-----\n%b\n-----END CERTIFICATE-----\n" % b"\n".join(lines)
        )
    return pems


def certificates_in(pem: bytes) -> list[str]:
    """Read a bundle naively: the SHA-256 of each certificate, in order.

    Anything between the canonical blocks, or a block that a strict base64
    reader refuses, raises NotCanonicalError: a bundle has none (I4).
    """
    prints = []
    position = 0
    for block in _CANONICAL_BLOCK.finditer(pem):
        if block.start() != position:
            raise NotCanonicalError(f"stray bytes before offset {block.start()} of a bundle")
        der = base64.b64decode(block.group(1).replace(b"\n", b""), validate=True)
        prints.append(hashlib.sha256(der).hexdigest())
        position = block.end()
    if position != len(pem):
        raise NotCanonicalError(f"stray bytes after offset {position} of a bundle")
    return prints


def blocks_of(pem: bytes, prints: Collection[str]) -> bytes:
    """Give those blocks of a bundle whose certificates have these SHA-256."""
    blocks = [block.group() for block in _CANONICAL_BLOCK.finditer(pem)]
    named = zip(blocks, certificates_in(pem), strict=True)
    return b"".join(block for block, fingerprint in named if fingerprint in prints)


def certificates_openssl_reads(path: str) -> list[str]:
    """Give the SHA-256 of each certificate that the `openssl` program finds in a file."""
    packed = subprocess.run(
        ["openssl", "crl2pkcs7", "-nocrl", "-certfile", path, "-outform", "DER"],
        check=True,
        capture_output=True,
        timeout=60,
    ).stdout
    listed = subprocess.run(
        ["openssl", "pkcs7", "-inform", "DER", "-print_certs"],
        input=packed,
        check=True,
        capture_output=True,
        timeout=60,
    ).stdout
    return [
        hashlib.sha256(base64.b64decode(block.replace(b"\n", b""))).hexdigest()
        for block in re.findall(
            rb"-----BEGIN CERTIFICATE-----\n(.*?)-----END CERTIFICATE-----", listed, re.DOTALL
        )
    ]


def certificates_gnutls_reads(path: str) -> list[str]:
    """Give the SHA-256 of each certificate that GnuTLS's `certtool` finds in a file."""
    with open(path, "rb") as bundle:
        listed = subprocess.run(
            ["certtool", "--certificate-info"],
            stdin=bundle,
            check=True,
            capture_output=True,
            timeout=60,
        ).stdout
    return [
        found.decode()
        for found in re.findall(rb"Fingerprint:.*?sha256:([0-9a-f]{64})", listed, re.DOTALL)
    ]
