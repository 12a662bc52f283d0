"""What a source contributes: its certificates, and a reason for everything else (I4, I9)."""

from __future__ import annotations

import ssl
import warnings
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.utils import CryptographyDeprecationWarning
from hypothesis import given
from hypothesis import strategies as st

from certfs.core import certificate as judgement
from certfs.core.certificate import Severity, SourceContent, load_certificate, parse_source
from certfs.core.pem import render
from tests.core.samples import PEM_LIKE
from tests.support import mounts, pki, pki_forms

_DER = pki.issue("mutated", host_names=("a.example",)).der
_PLAIN_DER = pki.issue("mutated too", extensions=False).der
_NEIGHBOUR = pki.authority("neighbour")


def prints(content: SourceContent) -> list[str]:
    """Give the SHA-256 of each certificate."""
    return [each.fingerprint.hex() for each in content.certificates]


def reasons(content: SourceContent) -> list[str]:
    """Give each remark as it would be shown."""
    return [f"{each.severity.name} {each.line} {each.reason}" for each in content.remarks]


def trusted_block(auxiliary: bytes) -> bytes:
    """Write a TRUSTED CERTIFICATE with these trust settings."""
    return pki_forms.block(b"TRUSTED CERTIFICATE", pki_forms.first().der + auxiliary)


@given(data=st.one_of(st.binary(max_size=300), PEM_LIKE))
def test_no_bytes_raise(data: bytes) -> None:
    """I4: any content is judged; what gives nothing has a reason (I9)."""
    content = parse_source(data)
    assert content.certificates or content.remarks


@given(der=st.binary(max_size=200), label=st.sampled_from(sorted(judgement.CERTIFICATE_LABELS)))
def test_no_body_raises(der: bytes, label: str) -> None:
    """I4: a block of a certificate's label with any bytes in it is a defect, and its neighbour stays."""
    content = parse_source(pki_forms.block(label.encode(), der) + _NEIGHBOUR.pem)
    assert prints(content)[-1:] == [_NEIGHBOUR.sha256]
    assert content.remarks


@pytest.mark.parametrize("form", pki_forms.every(), ids=lambda form: form.name)
def test_every_form_gives_its_certificates(form: pki_forms.Form) -> None:
    """I4, I9: the good ones as written, and a remark that matters where something was meant."""
    content = parse_source(form.data)
    assert list(dict.fromkeys(prints(content))) == [each.sha256 for each in form.included]
    has_defect = any(remark.severity == Severity.DEFECT for remark in content.remarks)
    # A key that was cut short is a broken block, which is a defect, too.
    assert has_defect >= form.defect


@pytest.mark.parametrize("form", pki_forms.with_keys(), ids=lambda form: form.name)
def test_a_private_key_is_warned_of_and_never_repeated(form: pki_forms.Form) -> None:
    """I4: a remark names the label and the line of a key, and not one byte of it."""
    content = parse_source(form.data)
    assert any(remark.severity >= Severity.WARNING for remark in content.remarks)
    said = repr(content).encode()
    for line in form.secrets:
        for start in range(0, len(line) - 12, 4):
            assert line[start : start + 12] not in said


@given(data=PEM_LIKE, secret=st.binary(min_size=32, max_size=64))
def test_no_part_of_a_block_is_repeated_in_a_remark(data: bytes, secret: bytes) -> None:
    """I4: whatever is around a key, however it is broken."""
    key = pki_forms.block(b"PRIVATE KEY", secret)
    for text in (data + key, key + data, key[:-30] + data, key.replace(b"\n", b"") + data):
        said = " ".join(reasons(parse_source(text)))
        for line in pki_forms.body_of(key).split():
            assert line.decode()[:14] not in said


def test_reading_a_bundle_gives_the_bundle() -> None:
    """I4: what certfs writes, certfs reads unchanged: render and parse are inverse."""
    bundle = b"".join(each.pem for each in pki.many(30))
    content = parse_source(bundle)
    assert not content.remarks
    assert b"".join(each.pem for each in content.certificates) == bundle


def test_a_certificate_says_what_the_catalog_needs() -> None:
    """Fingerprint, subject and date are those of the certificate."""
    one = pki.issue("values", not_before=pki.NOW - 5 * pki.DAY)
    (found,) = parse_source(one.pem).certificates
    assert found.fingerprint.hex() == one.sha256
    assert found.not_before == int((pki.NOW - 5 * pki.DAY).timestamp())
    assert found.pem == one.pem


@pytest.mark.parametrize(
    "options, is_trusted",
    [
        ((), True),
        (("-addtrust", "serverAuth"), True),
        (("-addtrust", "anyExtendedKeyUsage"), True),
        (("-addtrust", "clientAuth", "-addtrust", "serverAuth"), True),
        (("-addtrust", "clientAuth"), False),
        (("-addtrust", "emailProtection", "-setalias", "mail only"), False),
        (("-addreject", "serverAuth"), False),
        (("-addreject", "anyExtendedKeyUsage"), False),
        (("-addreject", "emailProtection"), True),
        (("-addtrust", "serverAuth", "-addreject", "serverAuth"), False),
        (("-setalias", "only a name"), True),
    ],
)
def test_trust_settings_made_by_openssl_are_heeded(
    options: tuple[str, ...], *, is_trusted: bool
) -> None:
    """I4: what openssl marked as not for TLS servers does not silently become trust."""
    mounts.need_program("openssl")
    one = pki_forms.first()
    content = parse_source(pki_forms.trusted(one, *options))
    assert prints(content) == ([one.sha256] if is_trusted else [])
    assert any("for TLS servers" in each for each in reasons(content)) != is_trusted


@pytest.mark.parametrize(
    "auxiliary",
    [b"\x04\x02\x30\x00", b"\x30\x80", b"\x30\x03\x30\x05\x06", b"\x30", b"\x30\x02\xa0\x05"],
)
def test_trust_settings_that_cannot_be_read_are_not_overridden(auxiliary: bytes) -> None:
    """I4: in doubt a TRUSTED CERTIFICATE is a defect, because a plain copy would trust it for all."""
    content = parse_source(trusted_block(auxiliary))
    assert not content.certificates
    assert "trust settings" in reasons(content)[0]


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"", "DEFECT 0 empty file"),
        (b"hello", "DEFECT 0 no PEM block"),
        (_DER, "convert it with openssl x509"),
        ("text".encode("utf-16"), "UTF-16"),
        (pki_forms.block(b"PKCS7", b"x"), "openssl pkcs7 -print_certs"),
        (pki_forms.block(b"SOMETHING", b"x"), "DEFECT 1 SOMETHING is not a known kind"),
        (pki_forms.block(b"X509 CRL", b"x"), "NOTE 1 X509 CRL is not a certificate"),
        (b"\n\n" + pki_forms.block(b"CERTIFICATE", b"x"), "DEFECT 3 CERTIFICATE is cut short"),
        (b"# " + pki.issue("off").pem, "NOTE 1 BEGIN CERTIFICATE is not at the start"),
        (
            b"-----BEGIN CERTIFICATE-----\nProc-Type: 4\n\nMAA=\n-----END CERTIFICATE-----\n",
            "RFC 1421 headers",
        ),
    ],
)
def test_a_reason_says_what_it_is_and_where(data: bytes, reason: str) -> None:
    """I9: a person can act on it."""
    assert any(reason in each for each in reasons(parse_source(data)))


def test_a_file_with_very_many_defects_keeps_the_weightiest_reasons() -> None:
    """I9, I18: reasons are bounded, and notes do not crowd out a defect."""
    note = pki_forms.block(b"X509 CRL", b"x")
    content = parse_source(note * 200 + pki_forms.block(b"CERTIFICATE", b"x"))
    assert len(content.remarks) == 51
    assert [remark.severity for remark in content.remarks].count(Severity.DEFECT) == 1
    assert content.remarks[-1].reason.startswith("151 more")


def openssl_accepts(pem: bytes) -> bool:
    """Ask OpenSSL, by way of Python's ssl, whether it loads the whole text."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cadata=pem.decode("ascii"))
    except ssl.SSLError:
        return False
    return context.cert_store_stats()["x509"] == pem.count(b"-----BEGIN ")


_MUTATIONS = st.lists(
    st.tuples(
        st.integers(0, 1 << 16),
        st.one_of(
            st.integers(0, 255),
            # Tags and lengths that mean something.
            st.sampled_from([0, 1, 2, 3, 4, 5, 6, 12, 18, 19, 20, 22, 23, 24, 26, 28, 30]),
            st.sampled_from([0x30, 0x31, 0x7F, 0x80, 0xA0, 0xA3, 0xFF]),
        ),
    ),
    min_size=1,
    max_size=4,
)


@given(der=st.sampled_from([_DER, _PLAIN_DER]), mutations=_MUTATIONS)
def test_nothing_accepted_makes_openssl_lose_a_neighbour(
    der: bytes, mutations: list[tuple[int, int]]
) -> None:
    """I4: what cryptography loads and OpenSSL does not must not reach a bundle."""
    mutated = bytearray(der)
    for place, value in mutations:
        mutated[place % len(mutated)] = value
    loaded = load_certificate(bytes(mutated))
    if not isinstance(loaded, str):
        assert openssl_accepts(loaded.pem + _NEIGHBOUR.pem)
        assert openssl_accepts(_NEIGHBOUR.pem + loaded.pem)


def test_what_openssl_cannot_read_is_a_defect() -> None:
    """I4: a T61 name is read, a BMP name of half a character is not: OpenSSL is asked."""
    good = pki.issue("four", extensions=False).der
    as_bmp = good.replace(b"\x0c\x04four", b"\x1e\x04four")
    as_broken_bmp = good.replace(b"\x0c\x04four", b"\x1e\x04\xd8\x00ur")
    assert not isinstance(load_certificate(as_bmp), str)
    assert openssl_accepts(render(as_bmp))
    assert isinstance(load_certificate(as_broken_bmp), str)


def test_an_error_left_in_openssls_queue_is_not_the_next_certificates() -> None:
    """I5: what OpenSSL says of a certificate does not depend on what it was asked before."""
    der = pki.issue("after an error", extensions=False).der
    as_bmp = der.replace(b"\x0c\x0eafter an error", b"\x1e\x0eafter an error")
    broken = x509.UnrecognizedExtension(x509.OID_BASIC_CONSTRAINTS, b"\x30\x05")
    leaves_an_error = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    leaves_an_error.load_verify_locations(cadata=pki.with_extension(broken).pem.decode())
    leaves_an_error.cert_store_stats()
    assert not isinstance(load_certificate(as_bmp), str)


def test_a_name_that_openssl_does_not_know_the_type_of_is_a_defect() -> None:
    """I4: cryptography reads a VisibleString in a name, OpenSSL refuses the whole certificate."""
    der = pki.issue("visible", extensions=False).der.replace(b"\x0c\x07visible", b"\x1a\x07visible")
    assert x509.load_der_x509_certificate(der).subject
    assert not openssl_accepts(render(der))
    assert load_certificate(der) == "certificate cannot be read by OpenSSL"


def test_an_odd_but_readable_certificate_is_trusted_without_a_word() -> None:
    """A serial number of zero or less is no reason to drop what OpenSSL trusts, nor to warn."""
    der = bytearray(pki.issue("odd serial", extensions=False).der)
    serial = der.index(b"\xa0\x03\x02\x01\x02\x02") + 7
    der[serial] = 0x80  # whatever follows: 0xff may be more bytes than DER allows
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = load_certificate(bytes(der))
    assert not isinstance(loaded, str)
    with pytest.warns(CryptographyDeprecationWarning):
        x509.load_der_x509_certificate(bytes(der))


def test_a_panic_of_the_bindings_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    """I16: a panic in Rust arrives as a BaseException, and must not end the server: OpenSSL decides."""

    class PanicError(BaseException):
        """What pyo3 raises: nothing in its ancestry is an Exception."""

    def panic(_data: bytes) -> None:
        raise PanicError("called unwrap() on None")

    monkeypatch.setattr(x509, "load_der_x509_certificate", panic)
    assert prints(parse_source(_NEIGHBOUR.pem)) == [_NEIGHBOUR.sha256]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_a_wish_to_stop_is_obeyed(
    monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]
) -> None:
    """Ctrl-C in the middle of a parse ends the program and not the certificate."""

    def interrupt(_data: bytes) -> None:
        raise stop

    monkeypatch.setattr(x509, "load_der_x509_certificate", interrupt)
    with pytest.raises(stop):
        parse_source(_NEIGHBOUR.pem)


_AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")


def test_all_of_debians_authorities_are_read() -> None:
    """Real input: every certificate of ca-certificates, in its order, without a remark."""
    if not _AUTHORITIES.exists():
        mounts.missing(str(_AUTHORITIES))
    data = _AUTHORITIES.read_bytes()
    content = parse_source(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CryptographyDeprecationWarning)
        known = x509.load_pem_x509_certificates(data)
    assert prints(content) == [each.fingerprint(hashes.SHA256()).hex() for each in known]
    assert not content.remarks
    assert openssl_accepts(b"".join(each.pem for each in content.certificates))
