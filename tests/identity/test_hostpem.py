"""Tests of host PEMs: one private key and at least one certificate, however the file is laid out."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certfs.identity.hostpem import HostPem, HostPemDefect, parse_certificates, parse_host_pem
from certfs.identity.privatekey import is_pair
from tests.support.openssl import OpenSsl, Pair


def _accepted(data: bytes) -> HostPem:
    pem = parse_host_pem(data)
    assert isinstance(pem, HostPem), pem
    assert is_pair(pem)
    return pem


def _refused(data: bytes) -> str:
    defect = parse_host_pem(data)
    assert isinstance(defect, HostPemDefect)
    return defect.reason


def test_key_and_certificate_in_any_order(server: Pair) -> None:
    """A host PEM may have its key before or after its certificate."""
    key, certificate = server.key.read_bytes(), server.certificate.read_bytes()
    assert _accepted(key + certificate) == _accepted(certificate + key)


def test_chain_stays_in_order(server: Pair, authority: Pair) -> None:
    """The first certificate is the host's own, those after it stay in their order."""
    key, leaf, root = (
        path.read_bytes() for path in (server.key, server.certificate, authority.certificate)
    )
    pem = _accepted(leaf + key + root)
    assert [one.subject.rfc4514_string() for one in pem.certificates] == [
        "CN=host.example",
        "CN=certfs test root",
    ]


@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b"\r"])
def test_text_around_and_line_ends(server: Pair, ending: bytes) -> None:
    """Text before, between and after the blocks and any kind of line end are allowed."""
    text = b"\n".join(
        [
            b"\xef\xbb\xbfThe key:",
            server.key.read_bytes(),
            b"# and what belongs to it:",
            b"subject=CN = host",
            server.certificate.read_bytes(),
            b"the end",
        ]
    )
    assert _accepted(text.replace(b"\n", ending)).certificates


def test_traditional_key_and_dh_parameters(openssl: OpenSsl, server: Pair) -> None:
    """A key in the traditional form is one, and what old platforms kept beside it is left out."""
    traditional = openssl.run("pkey", "-in", server.key, "-traditional")
    assert b"BEGIN RSA PRIVATE KEY" in traditional
    parameters = openssl.run("dhparam", "-dsaparam", "512")
    pem = _accepted(traditional + server.certificate.read_bytes() + parameters)
    assert b"DH PARAMETERS" not in pem.render()


def test_without_key(server: Pair) -> None:
    """A file without a private key is refused and told so."""
    assert _refused(server.certificate.read_bytes()) == "holds no private key"


def test_with_two_keys(server: Pair) -> None:
    """A file with two private keys is refused and told so."""
    key = server.key.read_bytes()
    assert _refused(key + server.certificate.read_bytes() + key).startswith("holds 2 private keys")


def test_without_certificate(server: Pair) -> None:
    """A file with a key alone is refused and told so."""
    assert _refused(server.key.read_bytes()) == "holds no certificate"


def test_empty() -> None:
    """An empty file is refused."""
    assert _refused(b"") == "holds no private key"


def test_broken_block(server: Pair) -> None:
    """A block that is cut off is refused with its line."""
    data = server.key.read_bytes() + server.certificate.read_bytes()
    defect = parse_host_pem(data[:-40])
    assert isinstance(defect, HostPemDefect)
    assert defect.line == server.key.read_bytes().count(b"\n") + 1
    assert _refused(re.sub(rb"\nMII", b"\nM!!", data)).endswith("is not base64")


def test_written_and_read_again(server: Pair) -> None:
    """What is written of a host PEM is read as the same, and loads in OpenSSL's order."""
    pem = _accepted(server.certificate.read_bytes() + server.key.read_bytes())
    assert parse_host_pem(pem.render()) == pem
    assert pem.render().index(b"PRIVATE KEY") < pem.render().index(b"CERTIFICATE")


def test_key_of_another_certificate_is_no_pair(openssl: OpenSsl, server: Pair) -> None:
    """Key and certificate that do not belong together are not taken for a pair."""
    pem = parse_host_pem(openssl.key("other").read_bytes() + server.certificate.read_bytes())
    assert isinstance(pem, HostPem)
    assert not is_pair(pem)


@given(st.binary() | st.text().map(str.encode))
def test_arbitrary_bytes_never_raise(data: bytes) -> None:
    """Whatever a file holds, reading it gives a value and never an exception."""
    assert isinstance(parse_host_pem(data), HostPem | HostPemDefect)
    assert isinstance(parse_certificates(data), tuple | HostPemDefect)


@given(st.binary(max_size=200))
def test_arbitrary_der_never_raises(der: bytes) -> None:
    """A block with arbitrary content is a defect, never an exception."""
    import base64  # noqa: PLC0415 - for this test alone

    block = (
        b"-----BEGIN CERTIFICATE-----\n" + base64.b64encode(der) + b"\n-----END CERTIFICATE-----\n"
    )
    assert isinstance(parse_certificates(block), HostPemDefect)
