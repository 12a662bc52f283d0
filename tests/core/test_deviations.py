"""I4: what OpenSSL loads is in the bundle, is described and is put in order, however it deviates from DER."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from certfs.core.catalog import Catalog, Source
from certfs.core.certificate import Certificate, parse_source
from certfs.core.details import Details, describe
from certfs.core.pem import render
from tests.support import libcrypto, mounts, pki, pki_deviations, pki_raw
from tests.support.pki_raw import attribute, element, name, sequence

_DEVIATIONS = pki_deviations.every()


def judged(der: bytes) -> Certificate:
    """Give the one certificate of a file."""
    content = parse_source(render(der))
    assert len(content.certificates) == 1, content.remarks
    return content.certificates[0]


@pytest.mark.parametrize("kind", _DEVIATIONS)
def test_what_openssl_loads_is_in_as_it_is(kind: str) -> None:
    """I4: its DER is not changed, it has no remark, and OpenSSL loads it from the bundle beside a neighbour."""
    der = _DEVIATIONS[kind]
    assert libcrypto.loads(der)
    neighbour = pki.authority("neighbour")
    content = parse_source(render(der) + neighbour.pem)
    assert [each.der for each in content.certificates] == [der, neighbour.der]
    assert content.remarks == ()
    catalog = Catalog()
    catalog.update({b"a.pem": Source(content)})
    assert len(libcrypto.authorities(b"".join(catalog.snapshot())) or ()) == 2


@pytest.mark.parametrize("kind", _DEVIATIONS)
def test_it_is_described(kind: str) -> None:
    """I9: names and dates are shown, or said to be unknown; nothing raises."""
    details = describe(judged(_DEVIATIONS[kind]))
    assert isinstance(details, Details)
    assert details.subject.isprintable()
    known = kind != "dates that are none"
    assert (details.not_before is not None) == (details.not_after is not None) == known


@pytest.mark.parametrize(
    "kind, subject",
    [
        ("Latin-1 in a T61String", "CN=F\u00fcr uns"),
        ("odd characters in a PrintableString", "CN=*_@& \\<host\\>"),
        ("BMPString", "CN=BMP \u4e2d"),
        ("UniversalString", "CN=Universal"),
        ("BIT STRING in a name", "CN=#0062697473"),
        ("name in pieces", "CN=in pieces"),
        ("unsorted set in a name", "CN=z+O=a"),
        ("empty name", ""),
    ],
)
def test_a_subject_is_shown_as_it_is_meant(kind: str, subject: str) -> None:
    """I9: as RFC 4514 writes it."""
    assert describe(judged(_DEVIATIONS[kind])).subject == subject


def test_dates_are_in_utc() -> None:
    """I9: whatever zone a certificate has them in."""
    details = describe(judged(_DEVIATIONS["dates with an offset"]))
    assert details.not_before == datetime(2023, 12, 31, 22, tzinfo=UTC)
    assert details.not_after == datetime(2044, 1, 1, 5, 30, tzinfo=UTC)


def test_one_without_a_date_comes_last_of_its_subject() -> None:
    """I5: what is not known to be newer does not hide what is."""
    subject = name(attribute(b"dated"))
    dateless = pki_raw.certificate(
        subject, dates=sequence(element(0x17, b"soon"), element(0x17, b"later"))
    )
    dated = pki_raw.certificate(subject)
    catalog = Catalog()
    catalog.update(
        {
            b"a.pem": Source(parse_source(render(dateless))),
            b"b.pem": Source(parse_source(render(dated))),
        }
    )
    assert b"".join(catalog.snapshot()) == render(dated) + render(dateless)


@given(
    text=st.text(max_size=12),
    other=st.text(alphabet=st.sampled_from(' "#+,;<>\\a\0\u00e9'), min_size=1, max_size=8),
)
def test_an_ordinary_name_is_written_as_cryptography_writes_it(text: str, other: str) -> None:
    """I9: one form of a name, whoever writes it."""
    names = x509.NameOID
    relatives = [
        [(names.COMMON_NAME, text), (names.STREET_ADDRESS, other)] if text else [],
        [(names.ORGANIZATION_NAME, other)],
        [(x509.ObjectIdentifier("1.3.6.1.4.1.99999.128.16384"), other)],
    ]
    subject = x509.Name(
        [
            x509.RelativeDistinguishedName([x509.NameAttribute(*each) for each in relative])
            for relative in relatives
            if relative
        ]
    )
    identity = pki.issue(subject, extensions=False)
    expected = identity.certificate.subject.rfc4514_string()
    shown = describe(judged(identity.der)).subject
    assert shown == "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in expected
    )


def _chained(deviation: bytes, label: bytes) -> tuple[bytes, bytes, bytes]:
    """Make a root, an intermediate with this extension, and a leaf; each signed by the one before."""
    root_name, own_name = name(attribute(b"chain root")), name(attribute(label))
    constraints = bytes.fromhex("0603551d13")
    ca = sequence(constraints, b"\x01\x01\xff", element(0x04, sequence(b"\x01\x01\xff")))
    root = pki_raw.certificate(root_name, extensions=[ca])
    between = pki_raw.certificate(own_name, issuer=root_name, extensions=[deviation])
    leaf = pki_raw.certificate(name(attribute(b"leaf")), issuer=own_name)
    return root, between, leaf


@pytest.mark.parametrize("flag", [b"\x01\x01\x00", b"\x01\x01\x01"], ids=["FALSE", "01"])
def test_openssl_verifies_with_an_authority_of_the_field(flag: bytes, tmp_path: Path) -> None:
    """I4: an intermediate with `critical FALSE`, as SHECA's, is trust that works, also through the bundle."""
    mounts.need_program("openssl")
    constraints = bytes.fromhex("0603551d13")
    deviation = sequence(constraints, flag, element(0x04, sequence(b"\x01\x01\xff")))
    root, between, leaf = _chained(deviation, b"SHECA RSA DV Server CA")
    with pytest.raises(ValueError, match="error parsing asn1"):
        _ = x509.load_der_x509_certificate(between).extensions
    catalog = Catalog()
    catalog.update({b"a.pem": Source(parse_source(render(root) + render(between)))})
    (tmp_path / "bundle.pem").write_bytes(b"".join(catalog.snapshot()))
    (tmp_path / "leaf.pem").write_bytes(render(leaf))
    subprocess.run(
        ["openssl", "verify", "-CAfile", tmp_path / "bundle.pem", tmp_path / "leaf.pem"],
        check=True,
        capture_output=True,
        timeout=30,
    )
