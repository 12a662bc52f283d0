"""A host PEM: one private key and at least one certificate in one file.

It is the form that stunnel's ``cert =`` wants.

Owns reading and writing that form. Values in, values out; must not know where the bytes came from.
A private key never appears in a ``repr``, an error or a log line: what is said of it is its label
and its line.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.utils import CryptographyDeprecationWarning

from certfs.core.certificate import CERTIFICATE_LABELS
from certfs.core.pem import PemBlock, PemDefect, decode_body, find_blocks, render

PRIVATE_KEY_SUFFIX = "PRIVATE KEY"
"""What the label of every kind of private key ends with (RFC 7468, section 10 and 11; OpenSSL's
own).
"""


@dataclass(frozen=True, slots=True)
class HostPem:
    """A host's identity: the private key's PEM, and its certificates, the host's own first."""

    key: bytes = field(repr=False)
    certificates: tuple[x509.Certificate, ...]

    @classmethod
    def of(cls, key: RSAPrivateKey, certificates: Sequence[x509.Certificate]) -> "HostPem":
        """Make one from a loaded key, which becomes unencrypted PKCS #8 as the platform has it."""
        return cls(
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
            tuple(certificates),
        )

    @property
    def leaf(self) -> x509.Certificate:
        """The certificate that stunnel presents: the file's first.

        See SSL_CTX_use_certificate_chain_file(3).
        """
        return self.certificates[0]

    def render(self) -> bytes:
        """Return the whole file: key, empty line, the host's certificate, then the chain."""
        return b"\n".join((self.key, *map(public_pem, self.certificates)))


@dataclass(frozen=True, slots=True)
class HostPemDefect:
    """Why bytes are no host PEM: a sentence for people; ``line`` counts from 1, 0 is the file."""

    line: int
    reason: str


def public_pem(certificate: x509.Certificate) -> bytes:
    """Return one certificate as canonical PEM."""
    return render(certificate.public_bytes(Encoding.DER))


def parse_host_pem(data: bytes) -> HostPem | HostPemDefect:
    """Find the one private key and the certificates in ``data``.

    They may be in any order, with text around them and with CRLF. The key is not decoded: who needs
    only the certificate does not touch it. Other kinds of blocks, such as the Diffie-Hellman
    parameters that old platforms kept here, are left out. Never raises.
    """
    certificates = parse_certificates(data)
    if isinstance(certificates, HostPemDefect):
        return certificates
    blocks = [block for block in find_blocks(data) if isinstance(block, PemBlock)]
    keys = [block for block in blocks if block.label.endswith(PRIVATE_KEY_SUFFIX)]
    if not keys:
        return HostPemDefect(0, "holds no private key")
    if len(keys) > 1:
        return HostPemDefect(
            keys[1].line,
            f"holds {len(keys)} private keys; stunnel takes the first, who reads it cannot know",
        )
    if not certificates:
        return HostPemDefect(0, "holds no certificate")
    return HostPem(key_text(data, keys[0]), certificates)


def key_text(data: bytes, block: PemBlock) -> bytes:
    """Return a private key's block with line ends as LF and one final newline."""
    lines = data[block.start : block.end].replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    return b"\n".join(line.strip() for line in lines) + b"\n"


def parse_certificates(data: bytes) -> tuple[x509.Certificate, ...] | HostPemDefect:
    """Return the certificates in ``data``; one that is broken is a defect of the whole."""
    found: list[x509.Certificate] = []
    for block in find_blocks(data):
        if isinstance(block, PemDefect):
            if block.commented:
                continue
            return HostPemDefect(block.line, block.reason)
        if block.label in CERTIFICATE_LABELS:
            certificate = read_certificate(data, block)
            if isinstance(certificate, HostPemDefect):
                return certificate
            found.append(certificate)
    return tuple(found)


def read_certificate(data: bytes, block: PemBlock) -> x509.Certificate | HostPemDefect:
    """Return the certificate that ``block`` of ``data`` holds, or why it holds none."""
    der = decode_body(data[block.body_start : block.body_end])
    if der is None:
        return HostPemDefect(block.line, f"{block.label} is not base64")
    try:
        return load_certificate(der)
    except ValueError as error:
        reason = (str(error).splitlines() or ["unreadable"])[0][:120]
        return HostPemDefect(block.line, f"{block.label} is not X.509: {reason}")


def load_certificate(der: bytes) -> x509.Certificate:
    """Return the certificate in ``der``; ``ValueError`` if it is none that can be read in full."""
    try:
        with warnings.catch_warnings():
            # Negative serial numbers and the like: OpenSSL reads such certificates.
            warnings.simplefilter("ignore", CryptographyDeprecationWarning)
            certificate = x509.load_der_x509_certificate(der)
            # The library decodes these only when asked, and raises then.
            _ = certificate.subject, certificate.issuer, certificate.serial_number
            _ = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    except (TypeError, OverflowError, x509.InvalidVersion) as error:
        raise ValueError(str(error)) from error
    return certificate
