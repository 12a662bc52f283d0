"""I9: what lost its markers, or has damaged ones, is named with its line; ordinary text is not."""

from __future__ import annotations

import base64
from urllib.parse import quote

import pytest

from certfs.core.certificate import Severity, parse_source
from tests.support import pki, pki_forms, pki_raw

_ONE, _TWO = pki.authority("loose one"), pki.authority("loose two")
_BODY = pki_forms.body_of(_ONE.pem)
_RAW_RSA = pki_raw.certificate(pki_raw.name(), key=pki_raw.rsa_key(2048))
_LINES = _TWO.pem.count(b"\n")


def _between(begin: str, end: str) -> bytes:
    return begin.encode() + b"\n" + _BODY + end.encode() + b"\n"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(_BODY, id="bare base64"),
        pytest.param(_BODY.replace(b"\n", b"") + b"\n", id="bare base64 in one line"),
        pytest.param(_BODY.replace(b"\n", b"\r\n"), id="bare base64 with CRLF"),
        pytest.param(_BODY.strip().replace(b"\n", b" ") + b"\n", id="bare base64 with blanks"),
        pytest.param(
            b"<ds:X509Certificate>" + _BODY.replace(b"\n", b"") + b"</ds:X509Certificate>\n",
            id="XML",
        ),
        pytest.param(
            _between("----BEGIN CERTIFICATE----", "----END CERTIFICATE----"), id="four hyphens"
        ),
        pytest.param(
            _between(
                "\u2014\u2014BEGIN CERTIFICATE\u2014\u2014",
                "\u2014\u2014END CERTIFICATE\u2014\u2014",
            ),
            id="em dashes",
        ),
        pytest.param(
            _between(
                "\u2013\u2013\u2013\u2013\u2013BEGIN CERTIFICATE\u2013\u2013",
                "-\u2013END CERTIFICATE-",
            ),
            id="en dashes",
        ),
        pytest.param(
            _between("-----begin certificate-----", "-----end certificate-----"), id="lower case"
        ),
        pytest.param(
            _between("-----Begin Certificate-----", "-----End Certificate-----"), id="mixed case"
        ),
        pytest.param(_between("-----BEGIN_CERTIFICATE-----", "-----END_CERTIFICATE-----"), id="_"),
        pytest.param(_between("-- BEGIN TRUSTED CERTIFICATE --", ""), id="another label, no END"),
        pytest.param(b"  caBundle: " + _BODY.replace(b"\n", b"") + b"\n", id="YAML"),
        pytest.param(b"ca.crt: " + base64.b64encode(_ONE.pem) + b"\n", id="PEM in a secret"),
        pytest.param(b'{"x5c":["' + _BODY.replace(b"\n", b"") + b'"]}\n', id="JSON"),
        pytest.param(
            b"x=" + base64.urlsafe_b64encode(_RAW_RSA) + b"\n", id="base64 for URLs, of RSA"
        ),
        pytest.param(quote(_ONE.pem).encode() + b"\n", id="escaped for URLs"),
    ],
)
@pytest.mark.parametrize("where", ["alone", "before", "behind", "between"])
def test_a_certificate_without_its_markers_has_a_reason(text: bytes, where: str) -> None:
    """I9: beside good blocks as well, once, with the line where it begins; the good ones stay."""
    before = _TWO.pem if where in {"behind", "between"} else b""
    behind = _TWO.pem if where in {"before", "between"} else b""
    content = parse_source(before + text + behind)
    assert {each.fingerprint.hex() for each in content.certificates} == (
        set() if where == "alone" else {_TWO.sha256}
    )
    (remark,) = content.remarks
    assert remark.severity is Severity.DEFECT
    assert remark.line == before.count(b"\n") + 1


@pytest.mark.parametrize(
    "form, other",
    [
        ("DER", _ONE.der),
        ("UTF-16", _ONE.pem.decode().encode("utf-16")),
        ("UTF-16", _ONE.pem.decode().encode("utf-16-be")),
        ("UTF-32", _ONE.pem.decode().encode("utf-32-le")),
    ],
)
def test_another_form_behind_pem_has_a_reason(form: str, other: bytes) -> None:
    """I9: what `cat` put behind a good block is named, although it is no text."""
    content = parse_source(_TWO.pem + other)
    assert len(content.certificates) == 1
    (remark,) = content.remarks
    assert (remark.severity, remark.line) == (Severity.DEFECT, _TWO.pem.count(b"\n") + 1)
    assert form in remark.reason


@pytest.mark.parametrize("marker", ["-- BEGIN CERTIFICATE --", "\u2014END CERTIFICATE\u2014"])
def test_a_damaged_marker_alone_has_a_reason(marker: str) -> None:
    """I9: its block may have been cut out."""
    (remark,) = parse_source(marker.encode() + b"\n\n" + _ONE.pem).remarks
    assert "damaged" in remark.reason


@pytest.mark.parametrize(
    "text",
    [
        b"# the certificate of our partner begins here: BEGIN CERTIFICATE is five hyphens\n",
        b"This CA was valid until the END CERTIFICATE ceremony of 2020\n",
        b"=== CERTIFICATES OF PARTNERS ===\n",
        b"SHA256 Fingerprint=" + b"AB:" * 31 + b"AB\n",
        b"ab" * 64 + b"\n",
        b"a0" * 32 + b"  certificate.pem\n",
        b"        Serial Number:\n            0a:1b:2c\n",
        b"ssh-rsa " + b"AAAAB3NzaC1yc2EAAAADAQABAAABgQ" * 8 + b" admin@host\n",
        b"Bag Attributes\n    localKeyID: 01 02 03\nsubject=CN = x\n",
        b"-" * 70 + b"\n",
        b"x" * 80 + b"\n",
    ],
)
def test_ordinary_text_has_no_remark(text: bytes) -> None:
    """People and programs keep such lines around certificates."""
    content = parse_source(text + _ONE.pem + text + _TWO.pem + text)
    assert len(content.certificates) == 2
    assert content.remarks == ()


def test_nothing_of_a_key_without_markers_is_repeated() -> None:
    """I4: base64 outside of a block may be a key."""
    key = pki_forms.body_of(_ONE.key_pem)
    said = repr(parse_source(key + _ONE.pem).remarks)
    assert key.split(b"\n")[0].decode()[:12] not in said
