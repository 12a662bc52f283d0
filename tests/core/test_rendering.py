"""How long a name is when it is printed: OpenSSL is asked, and stunnel shows whatever is let in."""

from __future__ import annotations

import os
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import AuthorityInformationAccessOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from certfs.core.certificate import load_certificate, parse_source
from certfs.core.der import read_element, read_elements
from certfs.core.rendering import LONGEST_LOGGED, Rendering
from tests.support import libcrypto, mounts, pki, pki_raw, stunnel
from tests.support.pki_deviations import in_high_form
from tests.support.pki_raw import element, sequence
from tests.support.stunnel import Server, Verdict

pytestmark = pytest.mark.filterwarnings("ignore:Attribute's length")

ROUNDS = int(os.environ.get("CERTFS_TEST_STUNNEL_ROUNDS", "1"))
"""How many names of each kind are shown to stunnel; the nightly run shows more."""

_LOG_LINE = 1024
"""What stunnel formats a line of its log into; it reads beyond if the line would be longer."""
_OTHER = x509.ObjectIdentifier("1.3.6.1.4.1.99999.1.2.3.4.5")
_KINDS = {
    "letters": ("a", _ASN1Type.UTF8String, NameOID.ORGANIZATIONAL_UNIT_NAME),
    "control": ("\x01", _ASN1Type.UTF8String, NameOID.ORGANIZATIONAL_UNIT_NAME),
    "newlines": ("\n", _ASN1Type.UTF8String, NameOID.COMMON_NAME),
    "delete": ("\x7f", _ASN1Type.T61String, NameOID.COMMON_NAME),
    "zeros": ("\0", _ASN1Type.IA5String, NameOID.COMMON_NAME),
    "quotes": ('"', _ASN1Type.UTF8String, NameOID.COMMON_NAME),
    "backslashes": ("\\", _ASN1Type.UTF8String, NameOID.COMMON_NAME),
    "commas": (",", _ASN1Type.UTF8String, NameOID.ORGANIZATION_NAME),
    "slashes": ("/", _ASN1Type.UTF8String, NameOID.ORGANIZATION_NAME),
    "percent": ("%n", _ASN1Type.UTF8String, NameOID.ORGANIZATION_NAME),
    "Cyrillic": ("\u0416", _ASN1Type.UTF8String, NameOID.STREET_ADDRESS),
    "Latin-1": ("\u00e9", _ASN1Type.T61String, NameOID.LOCALITY_NAME),
    "BMP": ("\u4e2d", _ASN1Type.BMPString, NameOID.COMMON_NAME),
    "BMP control": ("\x02", _ASN1Type.BMPString, NameOID.COMMON_NAME),
    "Universal": ("\U0001f511", _ASN1Type.UniversalString, NameOID.COMMON_NAME),
    "unknown types": ("x", _ASN1Type.UTF8String, _OTHER),
    "long short names": ("x", _ASN1Type.UTF8String, NameOID.JURISDICTION_STATE_OR_PROVINCE_NAME),
}


def _attribute(value: str, kind: _ASN1Type, oid: x509.ObjectIdentifier) -> x509.NameAttribute[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return x509.NameAttribute(oid, value, kind, _validate=False)


def _name(kind: str, length: int, piece: int) -> x509.Name:
    """Make a name of so many characters, in attributes of ``piece`` characters each."""
    characters, string, oid = _KINDS[kind]
    text = characters * length
    return x509.Name(
        [_attribute(text[at : at + piece], string, oid) for at in range(0, length, piece)]
    )


def _rendering(der: bytes) -> Rendering:
    """Add up the subject of a certificate."""
    (to_be_signed, *_) = read_elements(der, read_element(der, 0, len(der)))
    subject = list(read_elements(der, to_be_signed))[5]
    found = Rendering()
    encodings = {0x0C: "utf-8", 0x1E: "utf-16-be", 0x1C: "utf-32-be"}
    for relative in read_elements(der, subject):
        for attribute in read_elements(der, relative):
            kind, value = read_elements(der, attribute)
            content = der[value.content : value.end]
            text = content.decode(encodings.get(value.tag, "latin-1")).encode()
            found.add(der[kind.content : kind.end], content, text)
    return found


@given(kind=st.sampled_from(sorted(_KINDS)), length=st.integers(1, 120), piece=st.integers(1, 60))
def test_a_length_is_what_openssl_prints_at_least_and_little_more(
    kind: str, length: int, piece: int
) -> None:
    """I4: the bound is on the text that OpenSSL makes of a name, whatever it is made of."""
    der = pki.issue(_name(kind, length, piece), extensions=False).der
    found = _rendering(der)
    attributes = -(-length // piece)
    logged = len(libcrypto.printed_subject(der, libcrypto.LOGGED))
    assert logged <= found.logged <= 2 * logged + 60 * attributes
    assert len(libcrypto.printed_subject(der, libcrypto.RFC2253)) <= found.escaped
    assert len(libcrypto.subject_oneline(der)) <= found.escaped


def _longest(kind: str, piece: int) -> pki.Identity:
    """Find the certificate with the longest name of this kind that is let in, as a CA."""
    below, above = 1, 2000
    while above - below > 1:
        length = (below + above) // 2
        accepted = parse_source(pki.authority(_name(kind, length, piece)).pem).certificates
        below, above = (length, above) if accepted else (below, length)
    return pki.authority(_name(kind, below, piece), key=pki.ec_key(1))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path]]:
    """Run a stunnel whose certificate is replaced for each name."""
    mounts.need_program("stunnel")
    directory = tmp_path_factory.mktemp("server")
    own = directory / "own.pem"
    own.write_bytes(pki.issue("before").host_pem)
    with stunnel.server(api=own, pool=own, directory=directory) as running:
        yield running, own


def _log_lines(log: str) -> list[int]:
    """Give the length of each text that stunnel logged."""
    return [len(line.encode().partition(b"]: ")[2]) for line in log.splitlines()]


@pytest.mark.stunnel
@pytest.mark.parametrize("kind", _KINDS)
def test_stunnel_shows_the_longest_name_that_is_let_in(
    kind: str, server: tuple[Server, Path], tmp_path: Path
) -> None:
    """I4: a client with such an authority verifies with it, and no line of its log is cut off."""
    running, own = server
    bundle = tmp_path / "bundle.pem"
    for piece in (60, 7, 300, *range(1, ROUNDS))[: ROUNDS + 1]:
        authority = _longest(kind, piece)
        leaf = pki.issue("other.example", issuer=authority, host_names=("other.example",))
        own.write_bytes(leaf.host_pem)
        running.reload()
        (certificate,) = parse_source(authority.pem).certificates
        bundle.write_bytes(certificate.pem)
        outcome = stunnel.connect_appliance(running.port, bundle, host="other.example")
        assert outcome.verdict is Verdict.ACCEPTED, (piece, outcome.reason)
        assert max(_log_lines(outcome.log)) < _LOG_LINE


@pytest.mark.parametrize("kind", _KINDS)
def test_what_stunnel_could_not_show_is_left_out(kind: str) -> None:
    """I4, I9: a name beyond what stunnel formats into is a defect, as issuer as well."""
    characters, _, _ = _KINDS[kind]
    authority = pki.authority(_name(kind, 3 * _LOG_LINE // len(characters.encode()), 50))
    for identity in (authority, pki.issue("harmless", issuer=authority)):
        content = parse_source(identity.pem + pki.authority("neighbour").pem)
        assert len(content.certificates) == 1
        (remark,) = content.remarks
        assert "name" in remark.reason


@pytest.mark.parametrize("length", [200, LONGEST_LOGGED // 2])
def test_a_name_of_ordinary_letters_is_let_in(length: int) -> None:
    """The bound is far beyond the names that authorities have; those of the field have 300 characters."""
    for kind in ("letters", "Cyrillic", "BMP"):
        count = length // len(_KINDS[kind][0].encode())
        assert parse_source(pki.authority(_name(kind, count, 60)).pem).certificates


def _with_responder(url: str) -> pki.Identity:
    access = x509.AccessDescription(
        AuthorityInformationAccessOID.OCSP, x509.UniformResourceIdentifier(url)
    )
    return pki.with_extension(x509.AuthorityInformationAccess([access]), "with a responder")


@pytest.mark.parametrize(
    "length, accepted", [(30, True), (LONGEST_LOGGED, True), (LONGEST_LOGGED + 1, False)]
)
def test_a_responder_that_stunnel_could_not_show_is_left_out(
    length: int, *, accepted: bool
) -> None:
    """I4: with OCSPaia stunnel logs the URL; one of 9 KB crashed the client in 5 of 8 tries."""
    content = parse_source(_with_responder("http://127.0.0.1/".ljust(length, "a")).pem)
    assert bool(content.certificates) is accepted
    assert any("responder" in each.reason for each in content.remarks) is not accepted


_RESPONDER = element(0x06, bytes.fromhex("2b06010505073001"))
_LONG_URL = element(0x86, b"http://127.0.0.1/".ljust(LONGEST_LOGGED + 1, b"a"))


def _pieces(data: bytes, *ends: int) -> bytes:
    """Encode an OCTET STRING in pieces (X.690, 8.7.3)."""
    pieces = zip((0, *ends), (*ends, len(data)), strict=True)
    return element(0x24, *(element(0x04, data[start:end]) for start, end in pieces))


_ACCESS = sequence(sequence(_RESPONDER, _LONG_URL))


@pytest.mark.parametrize(
    "value",
    [
        element(0x04, _ACCESS),
        element(0x04, sequence(sequence(_RESPONDER, in_high_form(_LONG_URL)))),
        element(0x04, sequence(sequence(_RESPONDER, in_high_form(_LONG_URL, octets=3)))),
        element(0x04, sequence(sequence(in_high_form(_RESPONDER), _LONG_URL))),
        element(0x04, sequence(sequence(b"\x06\x81" + _RESPONDER[1:], _LONG_URL))),
        *(_pieces(_ACCESS, end) for end in range(6, 26)),
        _pieces(_ACCESS, 10, 12, 14, 300),
        element(0x24, _pieces(_ACCESS, 12)),
    ],
)
def test_a_long_responder_is_found_in_every_encoding(value: bytes) -> None:
    """I4: OpenSSL finds the URL in each of them, and stunnel would log it."""
    access = sequence(bytes.fromhex("06082b06010505070101"), value)
    der = pki_raw.certificate(pki_raw.name(pki_raw.attribute(b"responder")), extensions=[access])
    shown = subprocess.run(
        ["openssl", "x509", "-inform", "DER", "-noout", "-ocsp_uri"],
        input=der,
        check=True,
        capture_output=True,
        timeout=60,
    )
    assert len(shown.stdout) > LONGEST_LOGGED
    assert "responder" in str(load_certificate(der))
