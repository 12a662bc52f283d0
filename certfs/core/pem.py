"""Finding PEM blocks in arbitrary bytes (RFC 7468), and writing certificates as canonical PEM.

Owns the text layer: where a block begins and ends, its label, its line, its base64. Whatever OpenSSL finds in a file is
found here (``PEM_read_bio_ex`` in crypto/pem/pem_lib.c), and more: indentation, no newline between END and BEGIN. It
writes strictly. Must not know what a block's content means. Nothing of a block's body is ever put into a reason: it may
be a key.
"""

import binascii
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from certfs.core.loose import find_loose

# RFC 7468, section 3: a label is printable characters; eighty are more than any registered label needs, and the
# bound keeps the search linear on hostile input.
_MARKER = re.compile(rb"-----(BEGIN|END) ([ -~]{1,80}?)-----")
# Words no longer than those of registered labels: what is shown of a label cannot be a piece of a key's base64.
_ORDINARY_LABEL = re.compile(r"[A-Z0-9.#]{1,14}(?: [A-Z0-9.#]{1,14}){0,4}")
_BASE64 = re.compile(rb"[A-Za-z0-9+/=\s]*")
_WHITE_SPACE = b" \t\r\n\v\f"
# White space and marks without a width that come with text from a web page or an editor, and what fills up a file.
_INVISIBLE = re.compile(
    rb"(?:[ \t\r\n\v\f\0\x1a]|\xc2\xa0|\xe2\x80[\x8b-\x8f]|\xe2\x81\xa0|\xef\xbb\xbf)*"
)
# OpenSSL compares characters as signed numbers: those above 0x7f are below a blank, too (sanitize_line).
_STRIPPED_AT_LINE_ENDS = bytes((*range(0x21), *range(0x80, 0x100)))
_LINE_PIECE = 254
"""OpenSSL reads a line in pieces of so many bytes, and takes each of them for a line."""
_CONTROL = re.compile(rb"[\x01-\x1f\x7f]")
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
    """Something that looks like a block and is none: the ``line`` (from 1) and the ``reason``, for people.

    ``block`` is what there is of a block without an END of its own, where OpenSSL goes on reading to the END of a later
    one with the same label: it gets all that is before the first hyphen. ``commented`` if a writer wants it left out.
    """

    line: int
    reason: str
    commented: bool = False
    block: PemBlock | None = None


@dataclass(frozen=True, slots=True)
class _Begun:
    """A BEGIN whose END has not been seen yet; ``next_start`` is where the next BEGIN stands, if there is one."""

    label: str
    line: int
    start: int
    body_start: int
    next_start: int = -1


def find_blocks(data: bytes) -> Iterator[PemBlock | PemDefect]:
    """Yield every block and every broken block of ``data`` in the order of the text; never raises.

    A block without an END ends nothing but itself: the search goes on at the next BEGIN. An END without a BEGIN is a
    block whose first line was lost or damaged.
    """
    visible = _visible(data)
    search = _Search(visible)
    for marker in _MARKER.finditer(visible):
        search.advance(marker.start())
        label = marker[2].decode("ascii")
        yield from (
            search.begin(marker, label) if marker[1] == b"BEGIN" else search.end(marker, label)
        )
    yield from search.finish()


class _Search:
    """Where the search for blocks stands in ``data``; each marker is handed over in the order of the text."""

    __slots__ = (
        "_begun",
        "_counted",
        "_data",
        "_is_owed",
        "_line",
        "_line_start",
        "_loose_line",
        "_loose_start",
        "_previous_end",
        "_previous_was_end",
    )

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._line = 1
        self._line_start = 0
        self._counted = 0
        self._previous_end = 0
        self._previous_was_end = False
        self._begun: list[_Begun] = []
        self._is_owed = False  # the END of a BEGIN that was reported already
        self._loose_start, self._loose_line = 0, 1  # where the text begins that is in no block

    def advance(self, position: int) -> None:
        """Count the lines up to a marker."""
        newline = self._data.rfind(b"\n", self._counted, position)
        if newline >= 0:
            self._line += self._data.count(b"\n", self._counted, position)
            self._line_start = newline + 1
        self._counted = position

    def begin(self, marker: re.Match[bytes], label: str) -> Iterator[PemDefect]:
        """Take a BEGIN."""
        lead = self._lead(marker.start())
        # What is left of a block that was cut short in the middle of a line is no text before a marker.
        is_rest = bool(self._begun) and _BASE64.fullmatch(lead) is not None
        if self._is_line_start(marker.start(), lead) or is_rest:
            if self._begun:
                last = self._begun[-1]
                self._begun[-1] = replace(last, next_start=marker.start())
            else:
                yield from self._loose(marker.start())
            self._begun.append(_Begun(label, self._line, marker.start(), marker.end()))
            self._is_owed = False
        else:
            # OpenSSL takes it for text: a block that has begun goes on.
            commented = lead.lstrip().startswith(b"#")
            reason = f"BEGIN {shown_label(label)} is not at the start of its line"
            yield PemDefect(self._line, reason, commented)
            self._is_owed = not self._begun
        self._previous_end, self._previous_was_end = marker.end(), False

    def end(self, marker: re.Match[bytes], label: str) -> Iterator[PemBlock | PemDefect]:
        """Take an END."""
        if self._begun and self._begun[-1].label != label and marker.start() != self._line_start:
            return  # text within a block
        if self._begun:
            last = self._begun.pop()
            yield from self._without_end(label)
            if last.label == label:
                yield _block(last, marker.start(), marker.end())
            else:
                reason = f"BEGIN {shown_label(last.label)} is closed by END {shown_label(label)}"
                yield PemDefect(last.line, reason)
        elif not self._is_owed:
            commented = self._lead(marker.start()).lstrip().startswith(b"#")
            yield PemDefect(self._line, f"END {shown_label(label)} has no BEGIN", commented)
        self._is_owed = False
        self._previous_end, self._previous_was_end = marker.end(), True
        self._loose_start, self._loose_line = marker.end(), self._line

    def finish(self) -> Iterator[PemDefect]:
        """Take the end of the text."""
        if not self._begun and not self._is_owed:
            yield from self._loose(len(self._data))
        yield from self._without_end()

    def _without_end(self, label: str = "") -> Iterator[PemDefect]:
        """Give up the blocks that have no END of their own; OpenSSL reads those of the ``label`` that ends now."""
        for begun in self._begun:
            block = None
            if begun.label == label and begun.next_start >= 0:
                block = _block(begun, begun.next_start, begun.next_start)
            yield PemDefect(begun.line, f"BEGIN {shown_label(begun.label)} has no END", block=block)
        self._begun.clear()

    def _lead(self, start: int) -> bytes:
        """Return what is before a marker on its line; looks back no further than the marker before, to stay linear."""
        data, previous = self._data, self._previous_end
        newline = max(data.rfind(b"\n", previous, start), data.rfind(b"\r", previous, start))
        if newline >= 0:
            return data[newline + 1 : start]
        if previous == 0 or self._previous_was_end:
            return data[previous:start]
        return b"another marker"

    def _is_line_start(self, start: int, lead: bytes) -> bool:
        """Whether a marker begins a line, for people or for OpenSSL, which breaks long lines."""
        offset = start - self._line_start
        return _INVISIBLE.fullmatch(lead) is not None or offset % _LINE_PIECE == 0

    def _loose(self, end: int) -> Iterator[PemDefect]:
        """Give up what looks like a block in the text up to ``end`` that is in none."""
        found = find_loose(self._data, self._loose_start, end, self._loose_line)
        return (PemDefect(line, reason) for line, reason in found)


def _block(begun: _Begun, body_end: int, end: int) -> PemBlock:
    return PemBlock(begun.label, begun.line, begun.start, begun.body_start, body_end, end)


def _visible(data: bytes) -> bytes:
    """Return ``data`` with blanks for what OpenSSL does not see: a NUL hides the rest of its piece of a line.

    At the start of a piece it ends the file for OpenSSL; what is behind it is read here all the same.
    """
    if b"\0" not in data:
        return data
    pieces = []
    for line in data.split(b"\n"):
        for at in range(0, len(line), _LINE_PIECE):
            piece = line[at : at + _LINE_PIECE]
            shown = piece.find(b"\0")
            pieces.append(piece if shown <= 0 else piece[:shown].ljust(len(piece)))
        pieces.append(b"\n")
    return b"".join(pieces)[:-1]


def shown_label(label: str) -> str:
    """Return a label as a reason may name it: a key that lost its line breaks can look like a label."""
    return label if _ORDINARY_LABEL.fullmatch(label) else "(unusual label)"


def decode_body(body: bytes) -> bytes | None:
    """Return the bytes that a block's base64 stands for, or None where it is not base64 (RFC 4648, section 4).

    White space is allowed anywhere, as RFC 7468's lax form has it. As in OpenSSL, whatever is no printable ASCII at the
    end of a line does not count, and a hyphen ends the body.
    """
    if b":" in _stripped(body.lstrip().partition(b"\n")[0]):
        return None  # a header of RFC 1421
    text = body.translate(None, _WHITE_SPACE)
    if not text.isascii() or b"\0" in text or _CONTROL.search(text):
        text = b"".join(map(_stripped, body.split(b"\n"))).translate(None, _WHITE_SPACE)
    text, _, _ = text.partition(b"-")
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error:
        return None


def _stripped(line: bytes) -> bytes:
    """Return what OpenSSL makes of a line."""
    pieces = (line[at : at + _LINE_PIECE] for at in range(0, len(line), _LINE_PIECE))
    return b"".join(piece.partition(b"\0")[0].rstrip(_STRIPPED_AT_LINE_ENDS) for piece in pieces)


def render(der: bytes) -> bytes:
    """Return ``der`` as one canonical CERTIFICATE block (RFC 7468, section 3): lines of 64, LF, a final newline."""
    text = binascii.b2a_base64(der, newline=False)
    lines = [text[i : i + _LINE_LENGTH] for i in range(0, len(text), _LINE_LENGTH)]
    return b"\n".join((b"-----BEGIN CERTIFICATE-----", *lines, b"-----END CERTIFICATE-----", b""))
