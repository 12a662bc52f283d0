"""Finding blocks in whatever bytes a file has, and writing canonical ones."""

from __future__ import annotations

import base64
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from certfs.core.pem import PemBlock, PemDefect, decode_body, find_blocks, render, shown_label
from tests.core.samples import PEM_LIKE
from tests.support import pki, pki_forms

_CANONICAL = re.compile(
    rb"-----BEGIN CERTIFICATE-----\n(?:[A-Za-z0-9+/=]{64}\n)*(?:[A-Za-z0-9+/=]{1,64}\n)?"
    rb"-----END CERTIFICATE-----\n"
)


def found(data: bytes) -> list[str]:
    """Give what there is in the text, in a few words each."""
    return [
        f"{each.line}:{each.label}" if isinstance(each, PemBlock) else f"{each.line}!{each.reason}"
        for each in find_blocks(data)
    ]


def block(label: str = "CERTIFICATE", body: str = "MAA=\n") -> bytes:
    """Write a block whose body means nothing."""
    return f"-----BEGIN {label}-----\n{body}-----END {label}-----\n".encode()


@given(data=st.one_of(st.binary(max_size=400), PEM_LIKE))
@example(data=b"-----BEGIN -----END -----BEGIN A-----")
def test_any_bytes_can_be_searched(data: bytes) -> None:
    """I4: nothing raises, and every place that is told of is in the text and in order."""
    position = 0
    line = 1
    for each in find_blocks(data):
        assert each.line >= line or isinstance(each, PemDefect)
        assert 1 <= each.line <= data.count(b"\n") + 1
        if isinstance(each, PemBlock):
            assert position <= each.start < each.body_start <= each.body_end < each.end
            assert data[each.start :].startswith(f"-----BEGIN {each.label}-----".encode())
            assert data[: each.end].endswith(f"-----END {each.label}-----".encode())
            assert data.count(b"\n", 0, each.start) + 1 == each.line
            position, line = each.end, each.line


@given(der=st.binary(min_size=1, max_size=300))
def test_what_is_written_is_canonical_and_reads_back(der: bytes) -> None:
    """I4: rendering and reading are inverse, and the form is RFC 7468's strict one."""
    pem = render(der)
    assert _CANONICAL.fullmatch(pem)
    (each,) = find_blocks(pem)
    assert isinstance(each, PemBlock)
    assert (each.start, each.end) == (0, len(pem) - 1)
    assert decode_body(pem[each.body_start : each.body_end]) == der


@given(ders=st.lists(st.binary(min_size=1, max_size=80), max_size=6))
def test_blocks_one_after_another_are_found_one_after_another(ders: list[bytes]) -> None:
    """A bundle that was written is read back certificate by certificate."""
    bundle = b"".join(map(render, ders))
    bodies = [
        decode_body(bundle[each.body_start : each.body_end])
        for each in find_blocks(bundle)
        if isinstance(each, PemBlock)
    ]
    assert bodies == ders


def test_rendering_is_what_cryptography_writes() -> None:
    """The canonical form is the one that everybody's tools write."""
    one = pki.authority("canonical")
    assert render(one.der) == one.pem


@pytest.mark.parametrize(
    "form",
    pki_forms.layouts() + pki_forms.stripped() + pki_forms.nuls(),
    ids=lambda form: form.name,
)
def test_every_sloppy_form_is_read(form: pki_forms.Form) -> None:
    """I4: CRLF, BOM, indentation and the rest are read at least as leniently as OpenSSL does."""
    blocks = list(find_blocks(form.data))
    assert all(isinstance(each, PemBlock) for each in blocks)
    assert len(blocks) >= len(form.included)


@pytest.mark.parametrize(
    "data, expected",
    [
        (block().replace(b"\n", b"\r\n"), ["1:CERTIFICATE"]),
        (block().replace(b"\n", b"\r"), ["1:CERTIFICATE"]),
        (b"\xef\xbb\xbf" + block(), ["1:CERTIFICATE"]),
        (b"\xef\xbb\xbf  " + block(), ["1:CERTIFICATE"]),
        (b"text\n\n" + block(), ["3:CERTIFICATE"]),
        (b" \t" + block(), ["1:CERTIFICATE"]),
        (block().rstrip() + block(), ["1:CERTIFICATE", "3:CERTIFICATE"]),
        (block().rstrip() + b"  " + block(), ["1:CERTIFICATE", "3:CERTIFICATE"]),
        (b"-----BEGIN A-----MAA=-----END A-----", ["1:A"]),
    ],
)
def test_what_openssl_and_people_write_is_found(data: bytes, expected: list[str]) -> None:
    """The line that is named is that of the BEGIN, counted from 1."""
    assert found(data) == expected


@pytest.mark.parametrize(
    "data, expected",
    [
        (b"-----BEGIN A-----\nMAA=\n", ["1!BEGIN A has no END"]),
        (b"-----BEGIN A-----\nMAA=\n" + block("B"), ["1!BEGIN A has no END", "3:B"]),
        (b"-----BEGIN A-----\nMA" + block("B"), ["1!BEGIN A has no END", "2:B"]),
        (
            b"-----BEGIN A-----\n-----END B-----\n" + block("C"),
            ["1!BEGIN A is closed by END B", "3:C"],
        ),
        (b"-----END A-----\n" + block("B"), ["1!END A has no BEGIN", "2:B"]),
        (block("A")[1:] + block("B"), ["3!END A has no BEGIN", "4:B"]),
        (b"-----BEGIN A----\nMAA=\n-----END A-----\n", ["3!END A has no BEGIN"]),
        (b"# -----END A-----\n", ["1!END A has no BEGIN"]),
        (b"see " + block("A"), ["1!BEGIN A is not at the start of its line"]),
        (
            block("A").rstrip() + b" and " + block("B"),
            ["1:A", "3!BEGIN B is not at the start of its line"],
        ),
    ],
)
def test_a_broken_block_ends_nothing_but_itself(data: bytes, expected: list[str]) -> None:
    """I4: the search goes on behind it, and the reason names its line."""
    assert found(data) == expected


@pytest.mark.parametrize("lead", [b"#", b"# ", b"  # ", b"#kept: "])
def test_a_block_that_is_commented_out_is_meant_so(lead: bytes) -> None:
    """I9: a comment is no defect."""
    (each,) = find_blocks(lead + block())
    assert isinstance(each, PemDefect)
    assert each.commented


@pytest.mark.parametrize(
    "body, expected",
    [
        (b"", b""),
        (b"\nTWFu\n", b"Man"),
        (b" TW\tFu\r\n\v\f", b"Man"),
        (b"TWE=", b"Ma"),
        (b"TQ==", b"M"),
        (b"TQ=", None),
        (b"TQ==TQ==", None),
        (b"T", None),
        (b"=TWFu", None),
        (b"TW-u", None),
        (b"TW\0Fu", None),
        (b"Proc-Type: 4,ENCRYPTED\n\nTWFu", None),
    ],
)
def test_a_body_is_base64_or_nothing(body: bytes, expected: bytes | None) -> None:
    """RFC 4648: white space may be anywhere, and nothing else outside of the alphabet."""
    assert decode_body(body) == expected


@given(data=st.binary(max_size=200))
def test_decoding_undoes_encoding(data: bytes) -> None:
    """Every body that OpenSSL writes can be read."""
    assert decode_body(base64.encodebytes(data)) == data


@pytest.mark.parametrize(
    "label", ["CERTIFICATE", "X509 CRL", "X9.42 DH PARAMETERS", "PKCS #7 SIGNED DATA", "PKCS7"]
)
def test_an_ordinary_label_is_named(label: str) -> None:
    """I9: a reason says what the block is called."""
    assert shown_label(label) == label


@given(
    secret=st.binary(min_size=16, max_size=48),
    head=st.sampled_from(["", "PRIVATE KEY----", "PRIVATE KEY "]),
)
def test_a_label_that_may_be_a_key_is_not_named(secret: bytes, head: str) -> None:
    """I4: a key that lost its line breaks and a dash reads like a label, and is not repeated."""
    encoded = base64.b64encode(secret).decode()
    written = f"-----BEGIN {head}{encoded}-----\n-----END {encoded}-----\n".encode()
    begins = written.split(b"-----END")[0] * 2
    for data in (written, b"x" + written, written[:-40], begins):
        for each in find_blocks(data):
            if isinstance(each, PemDefect):
                assert encoded not in each.reason
            else:
                assert encoded not in shown_label(each.label)
