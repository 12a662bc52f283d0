"""What is asked of libcrypto in this process is what the openssl program answers."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support import libcrypto, mounts, pki, pki_forms

_NAME = pki.name('a "b", c\x01\u0416')
_OPTIONS = {
    "oneline": libcrypto.ONELINE,
    "RFC2253": libcrypto.RFC2253,
    "oneline,-esc_msb,-space_eq": libcrypto.LOGGED,
}


def _program(*arguments: str, pem: bytes) -> bytes:
    mounts.need_program("openssl")
    return subprocess.run(
        ["openssl", *arguments], input=pem, check=True, capture_output=True, timeout=30
    ).stdout


@pytest.mark.parametrize("option", _OPTIONS)
def test_a_name_is_printed_as_the_program_prints_it(option: str) -> None:
    """The flags mean what the options of `-nameopt` mean."""
    one = pki.issue(_NAME)
    printed = _program("x509", "-noout", "-subject", "-nameopt", option, pem=one.pem)
    expected = printed.removeprefix(b"subject=").removesuffix(b"\n")
    assert libcrypto.printed_subject(one.der, _OPTIONS[option]) == expected


def test_the_old_form_is_printed_as_the_program_prints_it() -> None:
    """X509_NAME_oneline is `-nameopt compat`."""
    one = pki.issue(_NAME)
    printed = _program("x509", "-noout", "-subject", "-nameopt", "compat", pem=one.pem)
    assert libcrypto.subject_oneline(one.der) == printed.removeprefix(b"subject=").strip()


@pytest.mark.parametrize("form", pki_forms.every(), ids=lambda form: form.name)
def test_a_file_holds_what_the_program_finds_in_it(form: pki_forms.Form, tmp_path: Path) -> None:
    """Certificates are read up to the first error, as `crl2pkcs7 -certfile` reads them."""
    mounts.need_program("openssl")
    file = tmp_path / "form.pem"
    file.write_bytes(form.data)
    whole = libcrypto.authorities(form.data)
    try:
        expected = pki.certificates_openssl_reads(str(file))
    except subprocess.CalledProcessError:
        assert not whole
    else:
        assert [libcrypto.sha256(each) for each in whole or ()] == expected
