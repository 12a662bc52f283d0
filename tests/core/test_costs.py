"""I18: what one source can cost is counted, whatever keys and subjects its certificates have."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric import padding

from certfs.core import catalog as catalogs
from certfs.core.catalog import Catalog, Source
from certfs.core.certificate import (
    Certificate,
    Severity,
    SourceContent,
    own_signature,
    parse_source,
)
from certfs.core.details import describe
from certfs.core.pem import render
from certfs.core.readers import Reader, refusals
from certfs.core.signature import OwnSignature
from tests.support import pki, pki_raw
from tests.support.counting import calls_of


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> list[Certificate]:
    """Note each certificate whose own signature is asked for."""
    asked: list[Certificate] = []

    def note(certificate: Certificate) -> OwnSignature:
        asked.append(certificate)
        return own_signature(certificate)

    monkeypatch.setattr(catalogs, "own_signature", note)
    return asked


def parsed(*ders: bytes) -> SourceContent:
    """Judge a file of these certificates."""
    content = parse_source(b"".join(map(render, ders)))
    assert len(content.certificates) == len(ders), content.remarks
    return content


def alike(count: int) -> list[bytes]:
    """Make certificates of one subject and date, of which one at most is signed with its own key."""
    good = pki.authority("alike").der
    return [good[:-2] + number.to_bytes(2) for number in range(count)]


def test_no_signature_is_verified_where_the_date_decides(verified: list[Certificate]) -> None:
    """I5: of one subject the later notBefore comes first, and nothing has to be verified for that."""
    ages = [pki.authority("aged").der] + [
        pki.issue("aged", ca=True, not_before=pki.NOW - days * pki.DAY).der for days in (9, 3, 5)
    ]
    catalog = Catalog()
    for number, der in enumerate(ages):
        catalog.update({b"%d.pem" % number: Source(parsed(der))})
    assert verified == []
    assert catalog.unverified([parsed(*ages)]) == []


def test_a_signature_is_verified_once_while_its_certificate_is_there(
    verified: list[Certificate],
) -> None:
    """I18: a change costs the signatures that are new, not those of all that share the subject."""
    catalog = Catalog()
    for number, der in enumerate(alike(20)):
        before = len(verified)
        catalog.update({b"%02d.pem" % number: Source(parsed(der))})
        assert len(verified) - before <= 2
    assert len(verified) == 20
    catalog.update({b"00.pem": None})
    catalog.update({b"00.pem": Source(parsed(*alike(1)))})
    assert len(verified) == 21


def test_a_thread_can_verify_before(verified: list[Certificate]) -> None:
    """I18: what ``unverified`` names is all that an update would verify, and then it verifies nothing."""
    catalog = Catalog()
    ders = alike(30)
    catalog.update({b"a.pem": Source(parsed(*ders[:10]))})
    verified.clear()
    content = parsed(*ders[5:])
    named = catalog.unverified([content])
    assert {each.der for each in named} == set(ders[10:])
    results = {each.fingerprint: own_signature(each) for each in named}
    catalog.update({b"b.pem": Source(content)}, results)
    assert verified == []


def test_the_signatures_of_a_source_are_bounded(verified: list[Certificate]) -> None:
    """I18: 256 of a source are verified; the others keep their places, and none is left out."""
    content = parsed(*alike(600))
    Catalog().update({b"a.pem": Source(content)})
    assert len(verified) == 600
    assert sum(each.is_verifiable for each in verified) == 256


@pytest.mark.parametrize(
    "der",
    [
        pki_raw.large_dsa("large", 1),
        pki_raw.large_rsa("large", 1),
        pki_raw.large_rsa("large", 1, bits=3072, exponent=(1 << 3000) + 1),
        pki_raw.large_rsa("large", 1, bits=1_000_000),
    ],
    ids=["DSA 10,000", "RSA 16,384", "RSA with a large exponent", "RSA 1,000,000"],
)
def test_large_keys_are_let_in_and_never_used(der: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """I4, I18: OpenSSL loads them, so they are trust; their signatures are not verified."""
    (certificate,) = parsed(der).certificates
    assert certificate.is_verifiable

    used: list[object] = []
    # Without a padding no RSA key verifies, and a DSA key is of a kind that is not looked at.
    monkeypatch.setattr(padding, "PKCS1v15", lambda: used.append(der))
    assert own_signature(certificate) is OwnSignature.UNKNOWN
    assert used == []


@pytest.mark.parametrize("kind", ["ec", "rsa"])
def test_what_became_of_a_signature(kind: str) -> None:
    """I5: the good one fits; with a damaged signature or a damaged key it does not."""
    good = pki.issue("signed", ca=True, key=pki.ec_key() if kind == "ec" else pki.rsa_key()).der
    damaged = good[:-1] + bytes((good[-1] ^ 1,))
    assert own_signature(parsed(good).certificates[0]) is OwnSignature.FITS
    assert own_signature(parsed(damaged).certificates[0]) is OwnSignature.BROKEN
    other = pki.issue("leaf", issuer=pki.authority("issuer"))
    assert own_signature(parsed(other.der).certificates[0]) is OwnSignature.FITS


def test_the_certificates_of_a_source_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """I9, I18: beyond the limit there is one reason, with the line where the rest begins."""
    monkeypatch.setattr("certfs.core.certificate._MOST_CERTIFICATES", 3)
    pems = [each.pem for each in pki.many(5)]
    content = parse_source(b"".join(pems))
    assert [each.pem for each in content.certificates] == pems[:3]
    (remark,) = content.remarks
    assert remark.severity is Severity.DEFECT
    assert remark.line == b"".join(pems[:3]).count(b"\n") + 1
    assert "more than 3 certificates" in remark.reason


_RESPONDER = bytes.fromhex("06082b06010505073001")


@pytest.mark.parametrize(
    "hostile",
    [
        pytest.param(_RESPONDER + b"\xa6\x80", id="open URLs"),
        pytest.param(_RESPONDER + b"\x86\x84\x7f\xff\xff\xff", id="URLs without an end"),
        pytest.param(b"\x30\x80", id="open elements"),
        pytest.param(b"\x24\x80", id="open strings"),
        pytest.param(b"\x30\x83\x00\x00\x00", id="empty elements"),
        pytest.param(b"\x1f\xff", id="long tags"),
    ],
)
def test_a_certificate_is_judged_in_proportion_to_its_size(hostile: bytes) -> None:
    """I18: ten times the bytes take about ten times the calls, whatever is in an extension; also for the readers."""

    def judge(size: int) -> int:
        value = hostile * (size // len(hostile))
        extension = pki_raw.sequence(
            bytes.fromhex("0603551d11"), b"\x01\x01\xff", pki_raw.element(0x04, value)
        )
        subject = pki_raw.name(pki_raw.attribute(b"hostile"))
        data = render(pki_raw.certificate(subject, extensions=[extension]))
        return calls_of(lambda: parse_source(data, (Reader.GNUTLS, Reader.JAVA)))

    assert judge(200_000) <= 12 * judge(20_000) + 2_000


@pytest.mark.parametrize(
    "der",
    [
        pki_raw.certificate(
            pki_raw.name(
                pki_raw.attribute(
                    b"x", identifier=pki_raw.element(0x06, b"\x2a" + b"\xff" * 3000 + b"\x01")
                )
            )
        ),
        pki_raw.certificate(
            pki_raw.name(pki_raw.attribute(b"version")),
            version=pki_raw.element(0xA0, pki_raw.element(0x02, b"\x80" + b"\0" * 3000)),
            extensions=[pki_raw.sequence(bytes.fromhex("0603551d0e"), b"\x04\x00")],
        ),
    ],
    ids=["object identifier", "version"],
)
def test_a_number_of_thousands_of_digits_is_shown_in_short(der: bytes) -> None:
    """I16: Python refuses to write such a number in digits; a description must not raise."""
    content = parse_source(render(der))
    for certificate in content.certificates:
        assert describe(certificate).subject.isprintable()
    assert all(each.reason for each in refusals(der))
