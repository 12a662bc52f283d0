"""What is left of a block in text that is in none: base64 without a BEGIN, and markers that are damaged (promise I9).

Owns the recognition of these, and of a certificate in base64 within a line (YAML, JSON). Nothing is read from such
text and nothing of it is repeated: it may be a key.
"""

import re
from collections.abc import Iterator
from itertools import chain

_FIRST_LINE = re.compile(
    rb"[ \t]*+(?:(?:<[^<>\r\n]{1,80}>)?"  # XML, as in SAML's metadata
    rb"(?P<base64>[A-Za-z0-9+/]{16,}(?:[ \t]+[A-Za-z0-9+/]{16,})*(?:[ \t]+[A-Za-z0-9+/]{1,15})?={0,2})"
    rb"(?:<[^<>\r\n]{1,80}>)?"
    rb"|(?P<marker>[^\w\r\n]{0,20}(?:begin|end)[ \t_-]{1,3}(?:x509 |trusted )?certificate[^\w\r\n]{0,20}))"
    rb"[ \t\v\f\0\x80-\xff]*(?=[\r\n]|\Z)",
    re.IGNORECASE,
)
# That begins with one of two bytes: then the search passes over the others in no time. While it goes on no other thread
# has its turn, and a file may be one line of blanks.
_LINE = re.compile(rb"[\r\n]" + _FIRST_LINE.pattern, re.IGNORECASE)
# A certificate of version 3: 30 82 .. .. 30 82 .. .. a0 03 02 01, or 30 81 for what is signed. Or the BEGIN of a PEM.
_WITHIN_LINE = re.compile(
    rb"MII[\w+/-]{2}[DTjz]C(?:C[\w+/-]{3}gAwIBA|B[\w+/-][Kaq6]ADAgEC)|LS0tLS1CRUdJTiBDRVJU"
)
_BLANK_LINES = re.compile(
    rb"\s{0,12}"
)  # text from a mail or a word processor may have one or two between its lines
_LINE_END = re.compile(rb"[\r\n]")
_HEXADECIMAL = re.compile(rb"[0-9A-Fa-f]+")
# A hyphen, and what word processors make of one, in UTF-8, Latin-1 and Windows-1252.
_DASH = re.compile(
    rb"[-_\xad\x96\x97]|\xe2\x80[\x90-\x95]|\xe2\x88\x92|\xef\xb9[\x98\xa3]|\xef\xbc\x8d"
)
_SHORT_REST = re.compile(rb"\s*[A-Za-z0-9+/=]{0,20}\s*")
_FEWEST_CHARACTERS = 100
"""Of base64; no certificate is that short, and no checksum but in hexadecimal that long."""
_MARKER = "BEGIN or END of a certificate is damaged: each has five hyphens on both sides and capital letters"
_ENCODED = "a certificate in base64 within a line: put it in a file of its own, as PEM text"
_BASE64 = "base64 text outside of any block: its BEGIN and END lines are missing or damaged"


def find_loose(data: bytes, start: int, end: int, line: int) -> Iterator[tuple[int, str]]:
    """Yield line and reason for all in ``data[start:end]``, which begins in that ``line``, that looks like a block.

    A marker counts with the base64 beside it as one, and a line with the base64 that follows it.
    """
    found = list(_find_parts(data, start, end, line))
    lines = {one for one, _ in found}
    within = _find_within_lines(data, start, end, line)
    yield from sorted((*found, *((one, _ENCODED) for one in within if one + 1 not in lines)))


def _find_parts(data: bytes, start: int, end: int, line: int) -> Iterator[tuple[int, str]]:
    counted = start
    length = first = run_end = 0
    reported_end = -1  # of base64, to which a marker right behind it belongs
    marker: int | None = None
    first_line = _FIRST_LINE.match(data, 0, end) if start == 0 else None
    found = chain((first_line,) if first_line else (), _LINE.finditer(data, max(start - 1, 0), end))
    for match in chain(found, (None,)):
        position = end if match is None else match.start() + (match is not first_line)
        line += data.count(b"\n", counted, position)
        counted = position
        is_base64 = match is not None and match["base64"] is not None
        if length and not (is_base64 and _BLANK_LINES.fullmatch(data, run_end, position)):
            if length >= _FEWEST_CHARACTERS:
                yield (first, _BASE64) if marker is None else (marker, _MARKER)
                marker, reported_end = None, run_end
            length = 0
        if match is None:
            break
        if is_base64:
            if not _HEXADECIMAL.fullmatch(match["base64"]):
                first = first if length else line
                length += len(match["base64"])
                run_end = match.end()
        elif _DASH.search(match["marker"]) and b"#" not in match["marker"]:
            if marker is not None:
                yield marker, _MARKER
            # The last line of base64 may be too short to be told from a word.
            rest = data[reported_end:position] if reported_end >= 0 else b"."
            belongs = _SHORT_REST.fullmatch(rest) is not None
            marker = None if belongs else line
            reported_end = -1
    if marker is not None:
        yield marker, _MARKER


def _find_within_lines(data: bytes, start: int, end: int, line: int) -> Iterator[int]:
    counted = position = start
    while found := _WITHIN_LINE.search(data, position, end):
        before = max(data.rfind(each, position, found.start()) for each in (b"\n", b"\r"))
        whole = _FIRST_LINE.match(data, before + 1 if before >= 0 else position, end)
        if whole is None or whole["base64"] is None:
            line += data.count(b"\n", counted, found.start())
            counted = found.start()
            yield line
        after = _LINE_END.search(data, found.end(), end)
        position = after.start() if after else end
