"""I9: certificates beside PEM that are written in another way are named; ordinary text is not."""

from __future__ import annotations

import base64
import binascii
import bz2
import gzip
import io
import lzma
import subprocess
import tarfile
import zipfile
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.serialization import NoEncryption, pkcs12

from certfs.core.certificate import NOTHING_IN_IT, Severity, parse_source
from tests.support import pki, pki_forms
from tests.support.mounts import need_program

_ONE = pki.authority("another form", key=pki.rsa_key(1))
_SHORT = pki.issue("sh", extensions=False)
_TWO = pki.authority("PEM beside it")


def _run(*command: str, data: bytes = _ONE.der) -> bytes:
    need_program(command[0])
    return subprocess.run(command, input=data, check=True, capture_output=True, timeout=30).stdout


def _hex(between: str, before: str = "") -> bytes:
    return between.join(f"{before}{octet:02x}" for octet in _ONE.der).encode() + b"\n"


def _tar(mode: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:  # type: ignore[call-overload] # any mode
        member = tarfile.TarInfo("x.der")
        member.size = len(_ONE.der)
        archive.addfile(member, io.BytesIO(_ONE.der))
    return file.getvalue()


def _zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.pem", _ONE.pem)
    return file.getvalue()


def _uuencoded(content: bytes) -> bytes:
    lines = (binascii.b2a_uu(content[at : at + 45]) for at in range(0, len(content), 45))
    return b"begin 644 x.crt\n" + b"".join(lines) + b"`\nend\n"


def _cisco() -> bytes:
    words = [_ONE.der[at : at + 4].hex().upper() for at in range(0, len(_ONE.der), 4)]
    lines = [" ".join(words[at : at + 8]) for at in range(0, len(words), 8)]
    return ("crypto pki certificate chain X\n certificate ca 01\n  " + "\n  ".join(lines)).encode()


_FORMS: dict[str, Callable[[], bytes]] = {
    "xxd": lambda: _run("xxd"),
    "xxd -p": lambda: _run("xxd", "-p"),
    "xxd -i": lambda: _run("xxd", "-i"),
    "xxd of PEM": lambda: _run("xxd", data=_ONE.pem),
    "hexdump": lambda: _run("hexdump"),
    "hexdump -C": lambda: _run("hexdump", "-C"),
    "od": lambda: _run("od"),
    "od -tx1": lambda: _run("od", "-An", "-tx1"),
    "a short certificate by od": lambda: _run("od", data=_SHORT.der),
    "a short certificate by hexdump": lambda: _run("hexdump", data=_SHORT.der),
    "a short certificate by xxd": lambda: _run("xxd", data=_SHORT.der),
    "hexadecimal": lambda: _hex(""),
    "capitals": lambda: _hex("").upper(),
    "colons": lambda: _hex(":"),
    "commas": lambda: _hex(", ", "0x"),
    "escapes": lambda: _hex("", "\\x"),
    "Cisco": _cisco,
    "decimal": lambda: ", ".join(map(str, _ONE.der)).encode() + b"\n",
    "signed": lambda: ", ".join(str((x ^ 128) - 128) for x in _ONE.der).encode() + b"\n",
    "certdata": lambda: b"".join(b"\\%03o" % octet for octet in _ONE.der) + b"\n",
    "uuencode": lambda: _uuencoded(_ONE.der),
    "uuencode of PEM": lambda: _uuencoded(_ONE.pem),
    "tar": lambda: _tar("w"),
    "tar.gz": lambda: _tar("w:gz"),
    "zip": _zip,
    "gzip": lambda: gzip.compress(_ONE.pem),
    "bzip2": lambda: bz2.compress(_ONE.pem),
    "xz": lambda: lzma.compress(_ONE.pem),
    "PKCS #12": lambda: pkcs12.serialize_key_and_certificates(
        b"x", None, _ONE.certificate, None, NoEncryption()
    ),
    "printed text": lambda: _run("openssl", "x509", "-text", "-noout", data=_ONE.pem),
    "base64 with blank lines": lambda: pki_forms.body_of(_ONE.pem).replace(b"\n", b"\r\n\r\n"),
}


@pytest.mark.parametrize(
    "form, where",
    [
        (form, where)
        for form in _FORMS
        for where in ("before", "behind", "between")
        # Printed text before a block is taken for that of the block.
        if form != "printed text" or where == "behind"
    ],
)
def test_another_form_beside_pem_has_a_reason(form: str, where: str) -> None:
    """I9: once, with the line at which it begins; what is written as PEM stays."""
    other = _FORMS[form]()
    before = _TWO.pem if where != "before" else b""
    behind = b"\n" + _TWO.pem if where != "behind" else b""
    content = parse_source(before + other + behind)
    assert {each.fingerprint.hex() for each in content.certificates} == {_TWO.sha256}
    (remark,) = content.remarks
    assert remark.severity is Severity.DEFECT
    first = before.count(b"\n") + 1
    assert first <= remark.line <= first + other.count(b"\n")


@pytest.mark.parametrize("form", _FORMS)
def test_another_form_alone_has_a_reason(form: str) -> None:
    """I9: and one that says more than that there is no PEM, where it is to be seen."""
    content = parse_source(_FORMS[form]())
    assert content.certificates == ()
    assert content.remarks
    assert form == "printed text" or content.remarks[0].reason not in NOTHING_IN_IT


def test_another_form_beside_a_revocation_list_has_a_reason() -> None:
    """I9: what is only noted does not hide it."""
    crl = pki_forms.block(b"X509 CRL", b"\x30\x00")
    note, defect = parse_source(crl + _ONE.der).remarks
    assert (note.severity, defect.severity) == (Severity.NOTE, Severity.DEFECT)


def _printed(identity: pki.Identity) -> bytes:
    return _run("openssl", "x509", "-text", "-noout", data=identity.pem)


def test_printed_text_belongs_to_the_block_beside_it() -> None:
    """Before or behind its block, as openssl and old bundles have it, it is a comment; alone it is a loss (I9)."""
    one, two = _printed(_ONE), _printed(_TWO)
    for good in (
        one + _ONE.pem + two + _TWO.pem,
        _ONE.pem + one + _TWO.pem + two,
        one + _ONE.pem,
        _TWO.pem + two,
        _ONE.pem + one + two + _TWO.pem,
        one + pki_forms.trusted(_ONE, "-addtrust", "serverAuth"),
    ):
        assert parse_source(good).remarks == ()
    for lost in (_ONE.pem + two, two + one + _ONE.pem, _ONE.pem + one + two):
        (remark,) = parse_source(lost).remarks
        assert "-noout" in remark.reason
        assert lost.splitlines()[remark.line - 1] == b"Certificate:"


def test_printed_text_of_a_damaged_block_is_no_second_loss() -> None:
    """I9: one reason for one certificate."""
    damaged = _ONE.pem.replace(b"-----END CERTIFICATE-----\n", b"")
    (remark,) = parse_source(_TWO.pem + _printed(_ONE) + damaged[:-100]).remarks
    assert "no END" in remark.reason


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(b"\0" * 4096, id="NULs that fill up a block of a disk"),
        pytest.param("Zertifikat f\u00fcr uns, \u8bc1\u4e66\n".encode() * 20, id="UTF-8"),
        pytest.param("Zertifikat f\u00fcr uns\n".encode("latin-1") * 20, id="Latin-1"),
        pytest.param("\u8a3c\u660e\u66f8\n".encode("iso2022_jp") * 20, id="ISO 2022"),
        pytest.param(b"\x1b[1mroot\x1b[0m\n" * 20, id="colours"),
        pytest.param(b"page\f\n" * 20, id="form feeds"),
        pytest.param(
            _ONE.sha256.encode() + b"\n" + _ONE.sha256.upper().encode() + b"\n", id="sums"
        ),
        pytest.param(b"begin 644 of our own text\n" * 3, id="begin"),
        pytest.param(b"Modulus=" + b"%x\n" % (1 << 2047), id="a modulus"),
    ],
)
def test_text_is_no_other_form(text: bytes) -> None:
    """What people and file systems leave beside certificates is no loss."""
    content = parse_source(text + b"\n" + _ONE.pem + text + b"\n" + _TWO.pem + text)
    assert len(content.certificates) == 2
    assert content.remarks == ()


def test_a_key_printed_or_dumped_is_no_certificate() -> None:
    """Only what begins as a certificate is named as one; nothing of it is repeated (I4)."""
    der = base64.b64decode(pki_forms.body_of(_ONE.key_pem))
    content = parse_source(_TWO.pem + _run("xxd", data=der))
    assert len(content.certificates) == 1
    assert content.remarks == ()
