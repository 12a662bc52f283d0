"""Walking the elements of a certificate as leniently as OpenSSL does.

Owns the encoding (X.690). OpenSSL reads BER where DER is due: lengths that are padded or left open, strings in several
pieces, and small tags in the form that is for large ones. What it refuses is for it to say; this only has to find its
way through what it loads.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

BIT_STRING = 0x03
NULL = 0x05
OBJECT_IDENTIFIER = 0x06
SEQUENCE = 0x30
SET = 0x31

CONSTRUCTED = 0x20
TAG_NUMBER = 0x1F
_HIGH_TAG = 0x1F
_MORE = 0x80
_INDEFINITE = 0x80
_LONG_FORM = 0x80
_MOST_LENGTH_OCTETS = 8
_MOST_NESTED = 32


class DerError(ValueError):
    """The bytes are not the element that was expected."""


@dataclass(frozen=True, slots=True)
class Element:
    """An element: its first octet (``tag``), where it and its content begin, and where the content and it end.

    A small tag that is written in several octets is what it would be in one.
    """

    tag: int
    start: int
    content: int
    content_end: int
    end: int


def read_element(data: bytes, start: int, limit: int) -> Element:
    """Return the element at ``start``, which must end by ``limit``; DerError where there is none."""
    tag, content, length = _read_header(data, start, limit)
    if length is None:
        content_end = _find_end(data, content, limit)
        return Element(tag, start, content, content_end, content_end + 2)
    end = content + length
    if end > limit:
        raise DerError("element is cut short")
    return Element(tag, start, content, end, end)


def read_elements(data: bytes, parent: Element) -> Iterator[Element]:
    """Yield the elements inside ``parent``; DerError where they do not fill it."""
    position = parent.content
    while position < parent.content_end:
        element = read_element(data, position, parent.content_end)
        yield element
        position = element.end


def read_first(data: bytes, parent: Element, count: int) -> list[Element]:
    """Return the first ``count`` elements inside ``parent``; DerError where there are fewer."""
    found = list(islice(read_elements(data, parent), count))
    if len(found) < count:
        raise DerError("element lacks a part")
    return found


def walk(data: bytes, outermost: Element) -> Iterator[Element]:
    """Yield an element and all that are in it; DerError where they do not fill each other, or are nested too deeply.

    The depth is bounded because to find the end of an element whose length is left open takes all that is in it.
    """
    open_elements = [(outermost, 0)]
    while open_elements:
        element, depth = open_elements.pop()
        yield element
        if element.tag & CONSTRUCTED:
            if depth == _MOST_NESTED:
                raise DerError("elements are nested too deeply")
            open_elements.extend((inner, depth + 1) for inner in read_elements(data, element))


def content_of(data: bytes, element: Element) -> bytes:
    """Return the content of a string, put together if it is in several pieces (X.690, 8.7.3 and 8.21)."""
    if not element.tag & CONSTRUCTED:
        return data[element.content : element.content_end]
    pieces = []
    # Depth first, in the order of the text. The depth is bounded by that of what OpenSSL loads.
    open_elements = [read_elements(data, element)]
    while open_elements:
        piece = next(open_elements[-1], None)
        if piece is None:
            open_elements.pop()
        elif piece.tag & CONSTRUCTED:
            if len(open_elements) > _MOST_NESTED:
                raise DerError("string is nested too deeply")
            open_elements.append(read_elements(data, piece))
        else:
            pieces.append(data[piece.content : piece.content_end])
    return b"".join(pieces)


def encode_element(tag: int, content: bytes) -> bytes:
    """Return a DER element (X.690, 8.1.3)."""
    length = len(content)
    if length < _LONG_FORM:
        return bytes((tag, length)) + content
    octets = length.to_bytes((length.bit_length() + 7) // 8)
    return bytes((tag, _LONG_FORM | len(octets))) + octets + content


def read_tag(data: bytes, start: int, limit: int) -> tuple[int, int]:
    """Return the tag and where the length begins (X.690, 8.1.2.4); DerError where the data end before."""
    if start >= limit:
        raise DerError("element is cut short")
    tag, position = data[start], start + 1
    if tag & TAG_NUMBER == _HIGH_TAG:
        is_small = True
        while position < limit and data[position] & _MORE:
            is_small = is_small and data[position] == _MORE
            position += 1
        if is_small and position < limit and data[position] < _HIGH_TAG:
            tag = tag & ~TAG_NUMBER | data[position]
        position += 1
    return tag, position


def _read_header(data: bytes, start: int, limit: int) -> tuple[int, int, int | None]:
    """Return the tag, where the content begins, and its length; None if that is left open."""
    tag, position = read_tag(data, start, limit)
    if position >= limit:
        raise DerError("element is cut short")
    length = data[position]
    position += 1
    if length < _LONG_FORM:
        return tag, position, length
    if length == _INDEFINITE:
        if not tag & CONSTRUCTED:
            raise DerError("length of an element is left open")
        return tag, position, None
    content = position + length - _LONG_FORM
    if content > limit:
        raise DerError("element is cut short")
    octets = data[position:content].lstrip(b"\0")
    if len(octets) > _MOST_LENGTH_OCTETS:
        raise DerError("length of an element is out of range")
    return tag, content, int.from_bytes(octets)


def _find_end(data: bytes, content: int, limit: int) -> int:
    """Return where the content of an element ends whose length is left open (X.690, 8.1.5): before two zero octets."""
    open_elements = 1
    position = content
    while True:
        if data[position : min(position + 2, limit)] == b"\0\0":
            open_elements -= 1
            if not open_elements:
                return position
            position += 2
            continue
        _tag, position, length = _read_header(data, position, limit)
        if length is None:
            open_elements += 1
        elif position + length > limit:
            raise DerError("element is cut short")
        else:
            position += length
