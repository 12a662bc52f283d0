"""Certificates in a source that are not written as PEM: DER, UTF-16, dumps, uuencode, archives, printed text (I9).

Owns the recognition of these in the text outside of blocks. Nothing is read from them and nothing of them is repeated.
"""

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence

from certfs.core.pem import PemBlock, decode_body

_BETWEEN = rb"[^0-9A-Za-z]{0,6}+(?:0?x)?+"
"""What stands between the octets of a dump: blanks, colons, commas, quotes, the ends of lines, `0x`, `\\x`."""
_HEX = rb"[0-9A-Fa-f]{2}"
_DECIMAL = rb"[ ,;\t\r\n]{1,4}+"


def _octets(*octets: bytes, between: bytes = _BETWEEN) -> bytes:
    return between.join(octets)


# A certificate of version 3 begins 30 82 .. .. 30 82 .. .. a0 03 02 01, or 30 81 for what is signed. No request, list
# or key begins so. Its first 13 octets are in the first line of every common dump.
_DUMPS = (
    _octets(
        *(b"30", b"82", _HEX, _HEX, b"30"),
        b"(?:" + _octets(b"82", _HEX, _HEX) + b"|" + _octets(b"81", _HEX) + b")",
        *(b"[aA]0", b"03", b"02", b"01"),
    ),
    # -----BEGIN CERT
    _octets(
        *((b"2[dD]",) * 5),
        *(b"42", b"45", b"47", b"49", b"4[eE]", b"20", b"43", b"45", b"52", b"54"),
    ),
    # In words of two octets, the lower one first: what od and hexdump print without an option.
    rb"8230 +[0-9a-f]{4} +8230 +[0-9a-f]{4} +03a0 +0102",
    rb"8230 +[0-9a-f]{4} +8130 +a0[0-9a-f]{2} +0203",
    rb"101060 +[0-7]{6} +101060 +[0-7]{6} +001640 +000402",
    rb"101060 +[0-7]{6} +100460 +12[0-7]{4} +001003",
    rb"\\060\\202\\[0-3][0-7]{2}\\[0-3][0-7]{2}\\060\\20[12]",  # Mozilla's certdata.txt
    _octets(
        *(b"48", rb"(?:130|-126)", rb"-?\d{1,3}", rb"-?\d{1,3}", b"48"),
        rb"(?:(?:130|-126)" + _DECIMAL + rb"-?\d{1,3}|(?:129|-127))",
        *(rb"-?\d{1,3}", rb"(?:160|-96)", b"3", b"2", b"1"),
        between=_DECIMAL,
    ),
)
_DER = re.compile(rb"0\x82..0(?:\x82.|\x81).\xa0\x03\x02\x01", re.DOTALL)
_WIDE = re.compile(rb"B(\0{1,3})E\1G\1I\1N\1 \1C\1E\1R\1T")
"""A BEGIN in UTF-16 or UTF-32 of either order of bytes."""
_UUENCODED = re.compile(rb"(?<![^\r\n])begin [0-7]{3,4} [^\r\n]{1,255}\r?\n[ -`]")
_CONTROLS = bytes((*range(1, 9), *range(0x0E, 0x1A), 0x1C, 0x1D, 0x1E, 0x1F, 0x7F))
"""What no text has: without NUL, ^Z and ESC, which fill up, end and colour it."""
_FEWEST_CONTROLS = 8
_PRINTED = re.compile(rb"(?<![^\r\n])Certificate:[ \t]*\r?\n[ \t]+Data:[ \t]*\r?\n")
"""How `openssl x509 -text` begins."""
_TAIL = 8
"""Octets of a signature that are compared."""
_SHORTEST = 60
"""Text that is shorter holds no certificate, in no form."""

_DUMP_REASON = "a certificate as a dump of numbers: put it in a file of its own, as PEM text"
_FORMS = (
    (_DER, "DER beside PEM: put it in a file of its own, as PEM text in ASCII or UTF-8"),
    (_WIDE, "UTF-16 or UTF-32 beside PEM: put it in a file of its own, as PEM text in ASCII or UTF-8"),
    *((re.compile(dump), _DUMP_REASON) for dump in _DUMPS),
    (_UUENCODED, "uuencoded data is not read: put the certificates in it in files of their own, as PEM text"),
)  # fmt: skip
_BINARY_REASON = (
    "binary data (an archive, a key store or the like) is not read: "
    "put the certificates in it in files of their own, as PEM text"
)
_PRINTED_REASON = "printed text of a certificate without the certificate: print it without -noout"


def find_other_forms(
    data: bytes, blocks: Sequence[PemBlock], defects: Sequence[int]
) -> Iterator[tuple[int, str]]:
    """Yield line and reason of a certificate that is no PEM, for each stretch of text between the ``blocks``.

    ``defects`` are the lines of what was found wrong already: printed text beside a damaged block belongs to it.
    """
    line, counted = 1, 0

    def line_of(position: int) -> int:
        nonlocal line, counted
        line += data.count(b"\n", counted, position)
        counted = position
        return line

    before: PemBlock | None = None
    for block in (*blocks, None):
        start = 0 if before is None else before.end
        end = len(data) if block is None else block.start
        if end - start >= _SHORTEST:
            found = find_other_form(data, start, end)
            if found is not None:
                yield line_of(found[0]), found[1]
            else:
                printed = _printed_alone(data, start, end, before=before, is_last=block is None)
                if printed is not None:
                    first, last = line_of(printed), line_of(end)
                    at = bisect_left(defects, first)
                    if at == len(defects) or defects[at] > last:
                        yield first, _PRINTED_REASON
        before = block


def _printed_alone(
    data: bytes, start: int, end: int, *, before: PemBlock | None, is_last: bool
) -> int | None:
    """Return where text stands in ``data[start:end]`` whose certificate is neither behind it nor ``before``."""
    printed = [match.start() for match in _PRINTED.finditer(data, start, end)]
    if printed and not is_last:
        printed.pop()
    if printed and before is not None:
        # Some write it behind the block. It ends with the signature, as the certificate does.
        der = decode_body(data[before.body_start : before.body_end]) or b""
        text = data[printed[0] : printed[1] if len(printed) > 1 else end].translate(
            None, b" \t\r\n"
        )
        if before.label.startswith("TRUSTED") or der[-_TAIL:].hex(":").encode() in text.lower():
            del printed[0]
    return printed[0] if printed else None


def find_other_form(data: bytes, start: int, end: int) -> tuple[int, str] | None:
    """Return where another form than PEM begins in ``data[start:end]``, and what it is; None where there is none."""
    found = [
        (match.start(), reason)
        for form, reason in _FORMS
        if (match := form.search(data, start, end)) is not None
    ]
    if found:
        return min(found)
    part = data[start:end]
    if len(part) - len(part.translate(None, _CONTROLS)) < _FEWEST_CONTROLS:
        return None
    return start + next(at for at, octet in enumerate(part) if octet in _CONTROLS), _BINARY_REASON
