"""Names are equal here exactly where OpenSSL holds them equal: it is asked."""

from __future__ import annotations

import subprocess
import warnings
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from certfs.core.fields import read_fields
from certfs.core.name import ATTRIBUTE_NAMES, Name, name_text, read_name
from certfs.core.pem import render
from tests.support import mounts, pki, pki_raw
from tests.support.examples import examples

UTF8, PRINTABLE, T61 = _ASN1Type.UTF8String, _ASN1Type.PrintableString, _ASN1Type.T61String
IA5, BMP, UNIVERSAL = _ASN1Type.IA5String, _ASN1Type.BMPString, _ASN1Type.UniversalString
NUMERIC = _ASN1Type.NumericString


def attribute(
    value: str, kind: _ASN1Type = UTF8, oid: x509.ObjectIdentifier = NameOID.COMMON_NAME
) -> x509.NameAttribute[str]:
    """Make an attribute of a name with any string type, an empty one too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return x509.NameAttribute(oid, value, kind, _validate=False)


def name(*attributes: x509.NameAttribute[str]) -> x509.Name:
    """Make a name with each attribute in an RDN of its own."""
    return x509.Name(attributes)


def together(*attributes: x509.NameAttribute[str]) -> x509.Name:
    """Make a name with one RDN of several attributes."""
    return x509.Name([x509.RelativeDistinguishedName(attributes)])


def read_names(der: bytes) -> tuple[Name, Name]:
    """Read issuer and subject of a certificate."""
    fields = read_fields(der)
    return read_name(der, fields.issuer), read_name(der, fields.subject)


def key(subject: x509.Name) -> bytes:
    """Give what stands for the subject of a real certificate of that name."""
    return read_names(pki.issue(subject, extensions=False).der)[1].key


def openssl_hash(subject: x509.Name) -> str:
    """Ask OpenSSL for the hash of its canonical form of the name."""
    return subprocess.run(
        ["openssl", "x509", "-noout", "-subject_hash"],
        input=pki.issue(subject, extensions=False).pem,
        check=True,
        capture_output=True,
        timeout=30,
    ).stdout.decode()


O, OU = NameOID.ORGANIZATION_NAME, NameOID.ORGANIZATIONAL_UNIT_NAME  # noqa: E741 - what X.520 calls them
_FAMILIES = {
    "letters": [
        name(attribute("Example Host")),
        name(attribute("EXAMPLE HOST")),
        name(attribute("example host", PRINTABLE)),
        name(attribute("Example  Host")),
        name(attribute("  Example\t Host \n")),
        name(attribute("Example Host", IA5)),
        name(attribute("Example Host", T61)),
        name(attribute("Example Host", BMP)),
        name(attribute("example HOST", UNIVERSAL)),
        name(attribute("Example Hos")),
        name(attribute("ExampleHost")),
        name(attribute("Example\u00a0Host")),
        name(attribute("Example Host", oid=O)),
    ],
    "not ascii": [
        name(attribute("Stra\u00dfe \u00c4")),
        name(attribute("stra\u00dfe \u00c4")),
        name(attribute("stra\u00dfe \u00e4")),
        name(attribute("Stra\u00dfe \u00c4", BMP)),
        name(attribute("Stra\u00dfe \u00c4", UNIVERSAL)),
        name(attribute("\U0001f511")),
        name(attribute("\U0001f511", UNIVERSAL)),
        name(attribute("\u0130")),
        name(attribute("\u0131")),
    ],
    "numbers": [
        name(attribute("12 34")),
        name(attribute("12 34", NUMERIC)),
        name(attribute("12  34", NUMERIC)),
        name(attribute("12 34", PRINTABLE)),
    ],
    "structure": [
        name(attribute("a", oid=O), attribute("b")),
        name(attribute("b"), attribute("a", oid=O)),
        together(attribute("a", oid=O), attribute("b")),
        together(attribute("b"), attribute("a", oid=O)),
        together(attribute("B"), attribute(" A", oid=O)),
        together(attribute("a", oid=O), attribute("b"), attribute("c", oid=OU)),
        name(attribute("a", oid=O), attribute("b"), attribute("b")),
        name(),
        name(attribute("")),
        name(attribute(" ")),
    ],
}


@pytest.mark.parametrize("family", _FAMILIES)
def test_names_are_equal_where_openssl_holds_them_equal(family: str) -> None:
    """I5: one subject is one subject for OpenSSL too, whatever string types, case and spaces say."""
    mounts.need_program("openssl")
    names = _FAMILIES[family]
    ours = [key(each) for each in names]
    theirs = [openssl_hash(each) for each in names]
    disagreed = [
        (names[a], names[b])
        for a in range(len(names))
        for b in range(a)
        if (ours[a] == ours[b]) != (theirs[a] == theirs[b])
    ]
    assert disagreed == []
    assert len(set(ours)) > 1


@given(
    text=st.text(st.sampled_from("aA bB\t\u00e4\u00c4"), max_size=5),
    other=st.text(st.sampled_from("aA bB\t\u00e4\u00c4"), max_size=5),
    kinds=st.tuples(*[st.sampled_from([UTF8, BMP, UNIVERSAL])] * 2),
)
@examples(30)
def test_any_two_names_compare_as_in_openssl(
    text: str, other: str, kinds: tuple[_ASN1Type, _ASN1Type]
) -> None:
    """I5: the same for names that nobody thought of."""
    mounts.need_program("openssl")
    one, two = name(attribute(text, kinds[0])), name(attribute(other, kinds[1]))
    assert (key(one) == key(two)) == (openssl_hash(one) == openssl_hash(two))


def test_issuer_and_subject_are_told_apart() -> None:
    """The first name of a certificate is its issuer (RFC 5280, 4.1)."""
    ca = pki.authority("the issuer")
    issuer, subject = read_names(pki.issue("the subject", issuer=ca).der)
    assert issuer == read_names(ca.der)[1]
    assert subject != issuer


def test_a_name_of_ordinary_strings_is_plain() -> None:
    """Only for unusual string types is OpenSSL asked whether it can decode them."""
    assert read_names(pki.issue("ordinary").der)[1].is_plain
    odd = pki.issue(name(attribute("odd", BMP)), extensions=False)
    assert not read_names(odd.der)[1].is_plain


def test_a_string_that_cannot_be_decoded_is_not_plain() -> None:
    """OpenSSL is asked about such a name; for order it counts as the bytes that it is."""
    der = pki.issue("decode me", extensions=False).der
    one, other = (der.replace(b"decode me", b"decode \xff" + last) for last in (b"1", b"2"))
    assert not read_names(one)[1].is_plain
    assert read_names(one)[1].key != read_names(other)[1].key


def test_attributes_have_the_names_that_openssl_gives_them(tmp_path: Path) -> None:
    """What people read of a name is written with openssl's words, whatever attributes it has."""
    mounts.need_program("openssl")
    attributes = [
        pki_raw.attribute(b"x", identifier=pki_raw.element(0x06, identifier))
        for identifier in ATTRIBUTE_NAMES
    ]
    der = pki_raw.certificate(pki_raw.name(*attributes))
    (tmp_path / "named.pem").write_bytes(render(der))
    command = ["openssl", "x509", "-noout", "-subject", "-nameopt", "sname,sep_multiline"]
    said = subprocess.run(
        [*command, "-in", tmp_path / "named.pem"], check=True, capture_output=True, text=True
    ).stdout.splitlines()[1:]
    words = [line.strip().partition("=")[0].lower() for line in said]
    ours = name_text(der, read_fields(der).subject).split(",")
    assert [one.partition("=")[0].lower() for one in reversed(ours)] == words
