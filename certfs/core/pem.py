"""Finding PEM blocks in arbitrary bytes (RFC 7468), and writing certificates as canonical PEM.

Owns the text layer: where a block begins and ends, its label, its line, its base64. It reads at least as leniently
as OpenSSL does (CRLF, BOM, text around blocks, indentation, no newline between END and BEGIN) and writes strictly.
Must not know what a block's content means. Nothing of a block's body is ever put into a reason: it may be a key.
"""

import binascii
import re
from collections.abc import Iterator
from dataclasses import dataclass

# RFC 7468, section 3: a label is printable characters; eighty are more than any registered label needs, and the
# bound keeps the search linear on hostile input.
_MARKER = re.compile(rb"-----(BEGIN|END) ([ -~]{1,80}?)-----")
# Words no longer than those of registered labels: what is shown of a label cannot be a piece of a key's base64.
_ORDINARY_LABEL = re.compile(r"[A-Z0-9.#]{1,14}(?: [A-Z0-9.#]{1,14}){0,4}")
_BASE64 = re.compile(rb"[A-Za-z0-9+/=\s]*")
_BOM = b"\xef\xbb\xbf"
_WHITE_SPACE = b" \t\r\n\v\f"
_LINE_LENGTH = 64


@dataclass(frozen=True, slots=True)
class PemBlock:
    """One complete block: ``label`` from its markers, ``line`` of its BEGIN marker (from 1), and where it stands.

    ``data[start:end]`` is the block with both markers, ``data[body_start:body_end]`` what is between them.
    Offsets rather than bytes, so that a private key is never copied by finding it.
    """

    label: str
    line: int
    start: int
    body_start: int
    body_end: int
    end: int


@dataclass(frozen=True, slots=True)
class PemDefect:
    """Something that looks like a block and is none: the ``line`` (from 1) and the ``reason``, for people."""

    line: int
    reason: str
    commented: bool = False


def find_blocks(data: bytes) -> Iterator[PemBlock | PemDefect]:
    """Yield every block and every broken block of ``data`` in the order of the text; never raises.

    A block without an END ends nothing but itself: the search goes on at the next BEGIN. An END without a BEGIN is a
    block whose first line was lost or damaged.
    """
    line = 1
    counted = 0
    previous_end = 0
    previous_was_end = False
    begun: tuple[str, int, re.Match[bytes]] | None = None
    owed = False  # the END of a BEGIN that was reported already
    for marker in _MARKER.finditer(data):
        line += _newlines(data, counted, marker.start())
        counted = marker.start()
        label = marker[2].decode("ascii")
        if marker[1] == b"BEGIN":
            lead = _line_lead(data, previous_end, marker.start(), after_end=previous_was_end)
            # The rest of a block that was cut short in the middle of a line is no text of anybody's.
            is_rest = begun is not None and _BASE64.fullmatch(lead) is not None
            if begun is not None:
                yield PemDefect(begun[1], f"BEGIN {shown_label(begun[0])} has no END")
                begun = None
            if lead.strip(_WHITE_SPACE) and not is_rest:
                commented = lead.lstrip().startswith(b"#")
                yield PemDefect(
                    line, f"BEGIN {shown_label(label)} is not at the start of its line", commented
                )
                owed = True
            else:
                begun = (label, line, marker)
                owed = False
            previous_was_end = False
        else:
            if begun is not None:
                if begun[0] == label:
                    opening = begun[2]
                    yield PemBlock(
                        label,
                        begun[1],
                        opening.start(),
                        opening.end(),
                        marker.start(),
                        marker.end(),
                    )
                else:
                    yield PemDefect(
                        begun[1],
                        f"BEGIN {shown_label(begun[0])} is closed by END {shown_label(label)}",
                    )
            elif not owed:
                lead = _line_lead(data, previous_end, marker.start(), after_end=previous_was_end)
                commented = lead.lstrip().startswith(b"#")
                yield PemDefect(line, f"END {shown_label(label)} has no BEGIN", commented)
            begun = None
            owed = False
            previous_was_end = True
        previous_end = marker.end()
    if begun is not None:
        yield PemDefect(begun[1], f"BEGIN {shown_label(begun[0])} has no END")


def shown_label(label: str) -> str:
    """Return a label as a reason may name it: a key that lost its line breaks can look like a label."""
    return label if _ORDINARY_LABEL.fullmatch(label) else "(unusual label)"


def _newlines(data: bytes, start: int, end: int) -> int:
    return data.count(b"\n", start, end)


def _line_lead(data: bytes, previous_end: int, start: int, *, after_end: bool) -> bytes:
    """What stands before a marker on its line; looks back no further than the marker before, to stay linear."""
    newline = max(data.rfind(b"\n", previous_end, start), data.rfind(b"\r", previous_end, start))
    if newline >= 0:
        return data[newline + 1 : start]
    if previous_end == 0:
        return data[:start].removeprefix(_BOM)
    return data[previous_end:start] if after_end else b"another marker"


def decode_body(body: bytes) -> bytes | None:
    """Return the bytes that a block's base64 stands for, or None where it is not base64 (RFC 4648, section 4).

    White space is allowed anywhere, as RFC 7468's lax form has it; anything else outside the alphabet is not.
    """
    try:
        return binascii.a2b_base64(body.translate(None, _WHITE_SPACE), strict_mode=True)
    except binascii.Error:
        return None


def render(der: bytes) -> bytes:
    """Return ``der`` as one canonical CERTIFICATE block (RFC 7468, section 3): lines of 64, LF, a final newline."""
    text = binascii.b2a_base64(der, newline=False)
    lines = [text[i : i + _LINE_LENGTH] for i in range(0, len(text), _LINE_LENGTH)]
    return b"\n".join((b"-----BEGIN CERTIFICATE-----", *lines, b"-----END CERTIFICATE-----", b""))
