"""What one source file contributes to a bundle: its certificates, and remarks on everything else in it.

Owns the judgement of a PEM file's content (promise I4). Values in, values out; must not know where the bytes came from.
A private key's content never leaves this module: a remark names its label and line and nothing else.
"""

import enum
import hashlib
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import NewType

from certfs.core.der import SEQUENCE, DerError, read_element, read_elements
from certfs.core.fields import read_dates, read_extensions, read_fields
from certfs.core.loading import is_ordinary, openssl_loads
from certfs.core.name import longest_responder, read_name
from certfs.core.other_forms import find_other_form, find_other_forms
from certfs.core.pem import PemBlock, PemDefect, decode_body, find_blocks, render, shown_label
from certfs.core.readers import Reader, refusals
from certfs.core.rendering import LONGEST_LOGGED
from certfs.core.signature import OwnSignature, check_own_signature

Fingerprint = NewType("Fingerprint", bytes)
"""SHA-256 over a certificate's DER: 32 bytes."""

CERTIFICATE_LABELS = frozenset({"CERTIFICATE", "X509 CERTIFICATE", "TRUSTED CERTIFICATE"})
"""Labels that OpenSSL reads as a certificate (PEM_STRING_X509, _X509_OLD, _X509_TRUSTED)."""

# Blocks that people keep beside a certificate on purpose and that add nothing to trust.
_KNOWN_LABELS = frozenset(
    {
        "X509 CRL",
        "CERTIFICATE REQUEST",
        "NEW CERTIFICATE REQUEST",
        "DH PARAMETERS",
        "X9.42 DH PARAMETERS",
        "EC PARAMETERS",
        "DSA PARAMETERS",
        "PARAMETERS",
        "PUBLIC KEY",
        "RSA PUBLIC KEY",
    }
)

_SERVER_AUTH = bytes.fromhex("06082b06010505070301")
_ANY_EXTENDED_KEY_USAGE = bytes.fromhex("0604551d2500")
_SERVER_USES = frozenset({_SERVER_AUTH, _ANY_EXTENDED_KEY_USAGE})
_REJECT = 0xA0
_MOST_REMARKS = 50
_MOST_CERTIFICATES = 5_000
"""Of one source; a MiB holds some 3,000 of the smallest ones."""
_MOST_VERIFIABLE = 256
"""Certificates of one source whose signature may be verified to put them in order; 0.5 ms each at most."""
UNKNOWN_TIME = -(1 << 62)
"""The notBefore of a certificate whose date cannot be read."""
_EMPTY, _NO_BLOCK = "empty file", "no PEM block"
NOTHING_IN_IT = frozenset((_EMPTY, _NO_BLOCK))
"""Reasons that say of a file that nothing in it looks like a certificate."""
_BEGIN_LINE = b"-----BEGIN CERTIFICATE-----\n"
_END_LINE = b"-----END CERTIFICATE-----\n"


class Severity(enum.IntEnum):
    """How much a remark matters: what has a NOTE was left out as its writer wants it; the others want a look."""

    NOTE = 0
    WARNING = 1
    DEFECT = 2


@dataclass(frozen=True, slots=True)
class Remark:
    """Why something in a source is not in the bundle (promise I9). ``line`` counts from 1; 0 is the whole file."""

    severity: Severity
    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class Certificate:
    """One certificate as a bundle needs it.

    ``subject_key`` is equal for names that OpenSSL holds equal; ``not_before`` is in seconds since the epoch, or
    ``UNKNOWN_TIME``; ``pem`` is the canonical text that a reader gets. ``is_verifiable`` if it names itself as its
    issuer, and is not one too many of its source to be verified with its own key.
    """

    fingerprint: Fingerprint
    subject_key: bytes
    not_before: int
    pem: bytes
    is_verifiable: bool = False

    @property
    def der(self) -> bytes:
        """The certificate as it was read."""
        return decode_body(self.pem[len(_BEGIN_LINE) : -len(_END_LINE)]) or b""


@dataclass(frozen=True, slots=True)
class SourceContent:
    """All that one source contributes: ``certificates`` as written, and ``remarks`` on what else it holds."""

    certificates: tuple[Certificate, ...] = ()
    remarks: tuple[Remark, ...] = ()


def parse_source(data: bytes, readers: Collection[Reader] = ()) -> SourceContent:
    """Judge the whole content of a source file; never raises, whatever the bytes are.

    What one of these ``readers`` refuses is left out; it would refuse the whole bundle for it.
    """
    certificates: list[Certificate] = []
    remarks: list[Remark] = []
    blocks: list[PemBlock] = []
    verifiable = 0
    for block in find_blocks(data):
        if isinstance(block, PemBlock):
            blocks.append(block)
        certificate = _judge(data, block, remarks)
        if certificate is not None and len(certificates) == _MOST_CERTIFICATES:
            reason = f"more than {_MOST_CERTIFICATES} certificates: this one and what follows is left out"
            remarks.append(Remark(Severity.DEFECT, block.line, reason))
            break
        if certificate is not None and readers:
            refusal = _refusal(certificate, readers)
            if refusal:
                remarks.append(Remark(Severity.WARNING, block.line, refusal))
                continue
        if certificate is not None:
            verifiable += certificate.is_verifiable
            if verifiable > _MOST_VERIFIABLE:
                certificate = replace(certificate, is_verifiable=False)
            certificates.append(certificate)
    if not certificates and not remarks:
        remarks.append(Remark(Severity.DEFECT, 0, _no_block_reason(data)))
    else:
        others = find_other_forms(data, blocks, [remark.line for remark in remarks])
        remarks += (Remark(Severity.DEFECT, line, reason) for line, reason in others)
    return SourceContent(tuple(certificates), _bounded(remarks))


def _judge(data: bytes, block: PemBlock | PemDefect, remarks: list[Remark]) -> Certificate | None:
    """Return the certificate of a block or of what is left of one; append what there is to say to ``remarks``."""
    if isinstance(block, PemDefect):
        certificate, reason = _read_unclosed(data, block)
        is_note = block.commented or certificate is not None
        severity = Severity.NOTE if is_note else Severity.DEFECT
        remarks.append(Remark(severity, block.line, reason))
        return certificate
    if block.label not in CERTIFICATE_LABELS:
        remarks.append(_remark_on_other_block(block))
        return None
    return _read_certificate(data, block, remarks)


def _refusal(certificate: Certificate, readers: Collection[Reader]) -> str:
    """Return why one of the ``readers`` refuses a certificate, empty if all take it."""
    for one in refusals(certificate.der):
        if one.reader in readers:
            return f"{one.reader.label} refuses a bundle with this certificate: {one.reason}"
    return ""


def _bounded(remarks: list[Remark]) -> tuple[Remark, ...]:
    """Return the remarks that matter most, in the order of the text: a file of a MiB can give rise to 60,000 (I18)."""
    if len(remarks) <= _MOST_REMARKS:
        return tuple(remarks)
    by_weight = sorted(remarks, key=lambda remark: -remark.severity)
    kept, rest = by_weight[:_MOST_REMARKS], by_weight[_MOST_REMARKS:]
    kept.sort(key=lambda remark: remark.line)
    return (*kept, Remark(rest[0].severity, 0, f"{len(rest)} more blocks or parts left out"))


def _remark_on_other_block(block: PemBlock) -> Remark:
    if block.label.endswith("PRIVATE KEY"):
        return Remark(
            Severity.WARNING,
            block.line,
            f"{shown_label(block.label)} in a source of trust: left out, should not be here",
        )
    if block.label in _KNOWN_LABELS:
        return Remark(Severity.NOTE, block.line, f"{block.label} is not a certificate: left out")
    if block.label in {"PKCS7", "PKCS #7 SIGNED DATA", "CMS"}:
        return Remark(
            Severity.DEFECT,
            block.line,
            f"{block.label} is not read: convert it with openssl pkcs7 -print_certs",
        )
    return Remark(
        Severity.DEFECT, block.line, f"{shown_label(block.label)} is not a known kind of block"
    )


def _no_block_reason(data: bytes) -> str:
    if not data:
        return _EMPTY
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "text is UTF-16 or UTF-32: save it as ASCII or UTF-8"
    if data.startswith((b"\x30\x82", b"\x30\x83")):
        return f"{_NO_BLOCK}; looks like DER: convert it with openssl x509 -inform der"
    other = find_other_form(data, 0, len(data))
    return _NO_BLOCK if other is None else f"{_NO_BLOCK}; {other[1]}"


def _read_unclosed(data: bytes, defect: PemDefect) -> tuple[Certificate | None, str]:
    """Return the certificate of a block that lost its END, if OpenSSL reads it and may trust it; and the reason."""
    if defect.block is None or defect.block.label not in CERTIFICATE_LABELS:
        return None, defect.reason
    remarks: list[Remark] = []
    certificate = _read_certificate(data, defect.block, remarks)
    if certificate is not None:
        return certificate, defect.reason
    return None, "; ".join((defect.reason, *(remark.reason for remark in remarks)))


def _read_certificate(data: bytes, block: PemBlock, remarks: list[Remark]) -> Certificate | None:
    """Return the block's certificate, or None with the reason appended to ``remarks``."""

    def defect(reason: str) -> None:
        remarks.append(Remark(Severity.DEFECT, block.line, reason))

    body = data[block.body_start : block.body_end]
    decoded = decode_body(body)
    if decoded is None:
        what = "RFC 1421 headers" if b":" in body else "characters or padding that are not base64"
        defect(f"{block.label} has {what}")
        return None
    length = _outer_length(decoded)
    if length is None:
        defect(f"{block.label} is cut short or not DER")
        return None
    der, rest = decoded[:length], decoded[length:]
    if block.label == "TRUSTED CERTIFICATE":
        distrust = _distrust(rest)
        if distrust is not None:
            defect(distrust)
            return None
    elif rest:
        remarks.append(
            Remark(Severity.NOTE, block.line, f"{len(rest)} bytes after the certificate: left out")
        )
    certificate = load_certificate(der)
    if isinstance(certificate, str):
        defect(certificate)
        return None
    return certificate


def load_certificate(der: bytes) -> Certificate | str:
    """Return the certificate in ``der``, or the reason why it is none that OpenSSL can load and stunnel can show."""
    try:
        fields = read_fields(der)
        issuer, subject = read_name(der, fields.issuer), read_name(der, fields.subject)
        not_before, _not_after = read_dates(der, fields)
        ordinary = issuer.is_plain and subject.is_plain and is_ordinary(der)
        # In what is encoded in pieces a responder is not to be found as it stands; DER has none.
        extensions = () if ordinary else read_extensions(der, fields)
        texts = (der, *(each.value for each in extensions if each.in_pieces))
        if max(map(longest_responder, texts)) > LONGEST_LOGGED:
            return "certificate has the URL of an OCSP responder that is too long: it can crash stunnel"
    except DerError as e:
        return f"certificate cannot be read: {e}"
    pem = render(der)
    if not ordinary and not openssl_loads(pem):
        return "certificate cannot be read by OpenSSL"
    return Certificate(
        Fingerprint(hashlib.sha256(der).digest()),
        subject.key,
        UNKNOWN_TIME if not_before is None else int(not_before.timestamp()),
        pem,
        is_verifiable=issuer.key == subject.key,
    )


def own_signature(certificate: Certificate) -> OwnSignature:
    """Verify a certificate with its own key where it names itself as its issuer; those of others fit."""
    if not certificate.is_verifiable:
        return OwnSignature.FITS
    der = certificate.der
    return check_own_signature(der, read_fields(der))


def _outer_length(data: bytes) -> int | None:
    """Return how many bytes the first DER element of ``data`` takes if it is a SEQUENCE, None if it is none."""
    try:
        element = read_element(data, 0, len(data))
    except DerError:
        return None
    return element.end if element.tag == SEQUENCE else None


def _distrust(auxiliary: bytes) -> str | None:
    """Return why OpenSSL's trust settings forbid this certificate for a TLS server, None where they do not.

    The settings are an X509_CERT_AUX behind the certificate (openssl-x509(1), "Trust Settings"): the uses that it is
    trusted for, then [0] those that it is rejected for. A plain copy would override both.
    """
    if not auxiliary:
        return None
    try:
        settings = read_element(auxiliary, 0, len(auxiliary))
        if settings.tag != SEQUENCE:
            raise DerError("trust settings are no SEQUENCE")  # noqa: TRY301
        trusted: set[bytes] | None = None
        rejected: set[bytes] = set()
        for element in read_elements(auxiliary, settings):
            if element.tag in {SEQUENCE, _REJECT}:
                uses = {auxiliary[use.start : use.end] for use in read_elements(auxiliary, element)}
                if element.tag == SEQUENCE:
                    trusted = uses
                else:
                    rejected = uses
    except DerError:
        return "TRUSTED CERTIFICATE has trust settings that cannot be read"
    if rejected & _SERVER_USES:
        return "TRUSTED CERTIFICATE is rejected for TLS servers by its own trust settings"
    if trusted is not None and not trusted & _SERVER_USES:
        return "TRUSTED CERTIFICATE is not trusted for TLS servers by its own trust settings"
    return None
