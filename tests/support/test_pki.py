"""The test certificates are what the other tests take them for."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.support import pki, pki_forms


def test_the_three_readers_agree(tmp_path: Path) -> None:
    """The naive reader, OpenSSL and GnuTLS find the same certificates in a bundle."""
    identities = [*pki.many(5), pki.pool_certificate()]
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(b"".join(identity.pem for identity in identities))
    expected = [identity.sha256 for identity in identities]
    assert pki.certificates_in(bundle.read_bytes()) == expected
    assert pki.certificates_openssl_reads(str(bundle)) == expected
    assert pki.certificates_gnutls_reads(str(bundle)) == expected


@pytest.mark.parametrize("stray", [b"\n", b"# text\n", b"\0", b"\xef\xbb\xbf"])
def test_the_naive_reader_refuses_anything_else(stray: bytes) -> None:
    """One stray byte before, between or behind the blocks is noticed."""
    one, two = pki.many(2)
    for data in (stray + one.pem, one.pem + stray + two.pem, two.pem + stray):
        with pytest.raises(pki.NotCanonicalError):
            pki.certificates_in(data)


def test_a_pool_certificate_is_like_xapis() -> None:
    """A pool certificate has one name for subject and issuer, RSA 2048, no extensions."""
    identity = pki.pool_certificate()
    assert identity.certificate.subject == identity.certificate.issuer
    assert len(identity.certificate.extensions) == 0
    text = subprocess.run(
        ["openssl", "x509", "-noout", "-text"],
        input=identity.pem,
        capture_output=True,
        check=True,
        timeout=10,
    ).stdout.decode()
    assert "(2048 bit)" in text
    assert re.search(r"Subject: CN = [0-9a-f-]{36}, serialNumber = \d{14}", text)


def test_form_names_are_unique() -> None:
    """No two forms have the same name, so a failure names one file."""
    names = [form.name for form in pki_forms.every()]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    "form",
    pki_forms.layouts() + pki_forms.stripped() + pki_forms.nuls(),
    ids=lambda form: form.name,
)
def test_a_layout_is_what_openssl_says(form: pki_forms.Form) -> None:
    """Every layout marked as readable gives OpenSSL those certificates, others do not."""
    try:
        found = list(dict.fromkeys(pki_forms.openssl_reads(form)))
    except subprocess.CalledProcessError:
        found = []
    assert (found == [one.sha256 for one in form.included]) == form.openssl_reads
