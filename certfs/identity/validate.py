"""The platform's checks of a certificate and key that an admin brings, with the platform's names.

Owns what is accepted as a host's server certificate and as the name of a CA certificate. Values in,
values out or a :class:`CertificateError`; must not know where the result goes. The checks and their
order are those of ``ocaml/gencert/lib.ml`` and ``ocaml/xapi/certificates.ml`` in
xapi-project/xen-api.
"""

import re
import shlex
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.hashes import SHA256, SHA512
from cryptography.hazmat.primitives.serialization import load_der_private_key
from cryptography.x509.oid import ObjectIdentifier, SignatureAlgorithmOID

from certfs.core.pem import PemBlock, PemDefect, decode_body, find_blocks
from certfs.identity.errors import (
    CertificateError,
    CertificateNameInvalidError,
    ServerCertificateChainInvalidError,
    ServerCertificateExpiredError,
    ServerCertificateInvalidError,
    ServerCertificateNotValidYetError,
    ServerCertificateSignatureError,
    ServerKeyAlgorithmError,
    ServerKeyInvalidError,
    ServerKeyLengthError,
    ServerKeyMismatchError,
    ServerKeyMultiPrimeError,
)
from certfs.identity.hostpem import PRIVATE_KEY_SUFFIX, HostPemDefect, parse_certificates
from certfs.identity.privatekey import RsaKeyShape, belongs, read_shape

RSA_BITS = range(2048, 4096 + 1)
_NAME = re.compile(r"(?!\.)[A-Za-z0-9._-]{1,255}(?<=\.pem)")
STANDARD_INPUT = Path("standard input")
_NEW_KEY = "make a key and have it certified: openssl genrsa -out KEY.pem 2048"
_KEY_APART = "a private key goes with --private-key, its certificate with --certificate"
_DAMAGED = "the file is damaged or cut off: copy the file anew"


@dataclass(frozen=True, slots=True)
class Document:
    """A file that an admin brings: its content, and the path that errors name."""

    path: Path
    data: bytes

    def __repr__(self) -> str:
        """Name the file only: the data may be a key."""
        return f"Document({str(self.path)!r})"


def validate_private_key(document: Document) -> RSAPrivateKey:
    """Return the one RSA key in ``document``, of two primes and 2048 to 4096 bits."""
    block = _only_key(document)
    path = document.path
    der = decode_body(document.data[block.body_start : block.body_end])
    if der is None:
        raise ServerKeyInvalidError(f"the private key in {path} is not base64", advice=_DAMAGED)
    shape = read_shape(der, label=block.label)
    if isinstance(shape, str):
        raise ServerKeyAlgorithmError(
            f"the private key in {path} is {shape}, not RSA", advice=_NEW_KEY
        )
    if shape is not None:
        _check_shape(shape, path)
    try:
        key = load_der_private_key(der, password=None)
    except (ValueError, TypeError):
        # Without the library's error: a traceback would show it, and it is about a key.
        raise ServerKeyInvalidError(
            f"the private key in {path} cannot be read", advice=_DAMAGED
        ) from None
    except UnsupportedAlgorithm:
        raise ServerKeyAlgorithmError(
            f"the private key in {path} is of a kind that is not known here", advice=_NEW_KEY
        ) from None
    if not isinstance(key, RSAPrivateKey):
        raise ServerKeyAlgorithmError(f"the private key in {path} is not RSA", advice=_NEW_KEY)
    return key


def validate_server_certificate(
    document: Document, key: RSAPrivateKey, *, now: datetime | None = None
) -> x509.Certificate:
    """Return the one certificate in ``document``: valid now, for ``key``, signed with SHA-2."""
    certificate = _only_certificate(document)
    path, moment = document.path, now or datetime.now(UTC)
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if moment < begin:
        raise ServerCertificateNotValidYetError(
            f"{path} is valid from {iso(begin)}, and it is {iso(moment)}",
            advice="check this host's clock with timedatectl, or wait until then",
        )
    if moment > end:
        raise ServerCertificateExpiredError(
            f"{path} was valid until {iso(end)}, and it is {iso(moment)}",
            advice="have the certificate renewed, or check this host's clock with timedatectl",
        )
    if not belongs(key, certificate):
        raise ServerKeyMismatchError(
            f"the private key does not belong to the certificate in {path}",
            advice="give the key that the certificate was requested with",
        )
    if not has_supported_signature(certificate):
        raise ServerCertificateSignatureError(
            f"{path} is signed with {algorithm_name(certificate.signature_algorithm_oid.dotted_string)}",
            advice="have it signed anew with SHA-256 or SHA-512",
        )
    return certificate


def validate_chain(document: Document) -> tuple[x509.Certificate, ...]:
    """Return the certificates in ``document``, at least one."""
    certificates = parse_certificates(document.data)
    if isinstance(certificates, HostPemDefect):
        raise ServerCertificateChainInvalidError(
            f"{document.path}{_line(certificates)} {certificates.reason}",
            advice=advice_for(document, key=_KEY_APART),
        )
    if not certificates:
        raise ServerCertificateChainInvalidError(
            f"{document.path} holds no certificate", advice=advice_for(document, key=_KEY_APART)
        )
    return certificates


_ADVICE = (
    (b"PRIVATE KEY-----", "{key}"),
    (b"-----BEGIN X509 CRL-----", "{crl}"),
    (b"-----BEGIN PKCS7-----", "make certificates of it with: openssl pkcs7 -print_certs -in {file} -out {made}"),
    (b"CERTIFICATE REQUEST-----", "a request is no certificate yet: have it signed by the CA"),
    (b"-----BEGIN", _DAMAGED),
)  # fmt: skip
"""The one thing to do about a file that holds no certificates, by the first of these that it does hold."""


def advice_for(
    document: Document,
    *,
    key: str = "a private key must stay secret: give the file with the CA's certificate",
    crl: str = "a revocation list is installed with: certfs pool-install-crl {file}",
) -> str:
    """Return the one thing to do about a file from which no certificates can be taken.

    ``key`` and ``crl`` are what is said of a private key and of a revocation list.
    """
    file, made = _argument(document.path), _argument(document.path, ".pem")
    if document.data.startswith(b"\x30"):  # a SEQUENCE of DER
        return f"it may be DER: openssl x509 -inform DER -in {file} -out {made}"
    for mark, advice in _ADVICE:
        if mark in document.data:
            return advice.format(key=key, crl=crl.format(file=file), file=file, made=made)
    return "give a file of certificates in PEM form"


def _advice_for_key(document: Document) -> str:
    if document.data.startswith(b"\x30"):
        file, made = _argument(document.path), _argument(document.path, ".pem")
        return f"it may be DER: openssl pkey -inform DER -in {file} -out {made}"
    if b"CERTIFICATE-----" in document.data:
        return _KEY_APART
    return "give the key in PEM form (BEGIN PRIVATE KEY)"


def _argument(path: Path, ending: str = "") -> str:
    """Return a path for a shell's command line; what came from standard input may be in any file."""
    return shlex.quote(f"{'FILE' if path == STANDARD_INPUT else path}{ending}")


ANOTHER_NAME = "; --name gives another one than the file's"


def validate_name(
    name: str, *, error: type[CertificateError] = CertificateNameInvalidError, hint: str = ""
) -> None:
    """Check the name of an installed file: letters, digits, ``._-``, ending in ``.pem``, 255 bytes (NAME_MAX)."""
    if _NAME.fullmatch(name) is None:
        raise error(
            f"{name!r} is not a name for an installed file",
            advice="use letters, digits, '.', '_' and '-', no dot at the start, '.pem' at the end, 255 at most"
            + hint,
        )


def has_supported_signature(certificate: x509.Certificate) -> bool:
    """Tell whether the certificate is signed with SHA-256 or SHA-512, and not RSASSA-PSS."""
    if certificate.signature_algorithm_oid == SignatureAlgorithmOID.RSASSA_PSS:
        return False
    return isinstance(_signature_hash(certificate), SHA256 | SHA512)


def algorithm_name(number: str) -> str:
    """Return the name of an algorithm by its object identifier in digits; these if it has no name."""
    try:
        name = ObjectIdentifier(number)._name  # noqa: SLF001 - no public one
    except ValueError:
        return number
    return number if name == "Unknown OID" else name


def iso(moment: datetime) -> str:
    """Return a moment in UTC as ISO 8601 to the second, as the platform's errors have it."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _signature_hash(certificate: x509.Certificate) -> object:
    try:
        return certificate.signature_hash_algorithm
    except UnsupportedAlgorithm:
        return None


def _check_shape(shape: RsaKeyShape, path: Path) -> None:
    if shape.is_multi_prime:
        raise ServerKeyMultiPrimeError(
            f"the RSA key in {path} has more than two primes", advice=_NEW_KEY
        )
    if shape.bits not in RSA_BITS:
        raise ServerKeyLengthError(
            f"the RSA key in {path} has {shape.bits} bits; "
            f"{RSA_BITS.start} to {RSA_BITS.stop - 1} are supported",
            advice=_NEW_KEY,
        )


def _only_key(document: Document) -> PemBlock:
    path = document.path
    keys: list[PemBlock] = []
    for block in find_blocks(document.data):
        if isinstance(block, PemDefect):
            if not block.commented:
                raise ServerKeyInvalidError(
                    f"{path}, line {block.line}: {block.reason}", advice="copy the file anew"
                )
        elif block.label.endswith(PRIVATE_KEY_SUFFIX):
            keys.append(block)
    if not keys:
        raise ServerKeyInvalidError(
            f"{path} holds no private key in PEM form", advice=_advice_for_key(document)
        )
    if len(keys) > 1:
        raise ServerKeyInvalidError(
            f"{path} holds {len(keys)} private keys",
            advice="leave only the one that the certificate was requested with",
        )
    headers = document.data[keys[0].body_start : keys[0].body_end]
    if keys[0].label == "ENCRYPTED PRIVATE KEY" or b"ENCRYPTED" in headers:
        raise ServerKeyInvalidError(
            f"the private key in {path} is encrypted",
            advice=f"decrypt it with: openssl pkey -in {_argument(path)} -out {_argument(path, '.pem')}",
        )
    return keys[0]


def _only_certificate(document: Document) -> x509.Certificate:
    path = document.path
    certificates = parse_certificates(document.data)
    if isinstance(certificates, HostPemDefect):
        raise ServerCertificateInvalidError(
            f"{path}{_line(certificates)} {certificates.reason}",
            advice=advice_for(document, key=_KEY_APART),
        )
    match certificates:
        case (only,):
            return only
        case ():
            raise ServerCertificateInvalidError(
                f"{path} holds no certificate in PEM form",
                advice=advice_for(document, key=_KEY_APART),
            )
        case _:
            raise ServerCertificateInvalidError(
                f"{path} holds {len(certificates)} certificates",
                advice="give the host's own with --certificate, the rest with --certificate-chain",
            )


def _line(defect: HostPemDefect) -> str:
    return f", line {defect.line}:" if defect.line else ":"
