"""The subject and issuer names of a certificate, compared as OpenSSL compares them.

Owns the little of DER (X.690) that this takes: walking elements, and the canonical form of a Name. OpenSSL finds an
issuer by a canonical name: strings as UTF-8, ASCII letters in lower case, white space trimmed and runs of it made one
(x509_name_canon in crypto/x509/x_name.c). Names that are equal so are one subject for promise I5.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from certfs.core.rendering import LONGEST_ESCAPED, LONGEST_LOGGED, Rendering

_SEQUENCE = 0x30
_SET = 0x31
_OBJECT_IDENTIFIER = 0x06
_VERSION = 0xA0
_LONG_FORM = 0x80
_MAX_LENGTH_OCTETS = 4
_MAX_NAME = 4096
"""Bytes of DER that are looked at: what is longer prints to more than ``LONGEST_LOGGED``, but for its structure."""
_OCSP = bytes.fromhex("06082b06010505073001")
_UNIFORM_RESOURCE_IDENTIFIERS = frozenset({0x86, 0xA6})

# What OpenSSL canonicalises (ASN1_MASK_CANON), with the encoding of each.
_STRING_ENCODINGS = {
    0x0C: "utf-8",  # UTF8String
    0x13: "latin-1",  # PrintableString
    0x16: "latin-1",  # IA5String
    0x14: "latin-1",  # T61String, which OpenSSL takes for Latin-1
    0x1A: "latin-1",  # VisibleString
    0x1C: "utf-32-be",  # UniversalString
    0x1E: "utf-16-be",  # BMPString
}
# Types whose every value that decodes is also read by OpenSSL; for others OpenSSL itself is asked.
_PLAIN_TAGS = frozenset({0x0C, 0x13, 0x16})


class DerError(ValueError):
    """The bytes are not the DER that was expected."""


@dataclass(frozen=True, slots=True)
class Element:
    """One DER element of ``data``: its ``tag``, and where it and its content begin and end."""

    tag: int
    start: int
    content: int
    end: int


def read_element(data: bytes, start: int, limit: int) -> Element:
    """Return the element at ``start``, which must end by ``limit``; DerError where there is none."""
    if start + 2 > limit:
        raise DerError("element is cut short")
    length = data[start + 1]
    content = start + 2
    if length >= _LONG_FORM:
        octets = length - _LONG_FORM
        if not 1 <= octets <= _MAX_LENGTH_OCTETS or content + octets > limit:
            raise DerError("length of an element is not DER")
        length = int.from_bytes(data[content : content + octets])
        content += octets
    if content + length > limit:
        raise DerError("element is cut short")
    return Element(data[start], start, content, content + length)


def read_elements(data: bytes, parent: Element) -> Iterator[Element]:
    """Yield the elements inside ``parent``; DerError where they do not fill it."""
    position = parent.content
    while position < parent.end:
        element = read_element(data, position, parent.end)
        yield element
        position = element.end


@dataclass(frozen=True, slots=True)
class Name:
    """A Name: ``key`` is equal for names that OpenSSL holds equal; ``is_plain`` if it surely can decode the name."""

    key: bytes
    is_plain: bool


def read_names(der: bytes) -> tuple[Name, Name]:
    """Return issuer and subject of the certificate ``der`` (RFC 5280, 4.1); DerError where they cannot be decoded."""
    certificate = read_element(der, 0, len(der))
    to_be_signed = next(read_elements(der, certificate))
    fields = [field for field in read_elements(der, to_be_signed) if field.tag != _VERSION]
    _serial_number, _signature, issuer, _validity, subject, *_ = fields
    return _read_name(der, issuer), _read_name(der, subject)


def canonical_subject(der: bytes) -> bytes:
    """Return the subject of the certificate ``der`` in OpenSSL's canonical encoding, without the outer header.

    DerError where it cannot be decoded.
    """
    certificate = read_element(der, 0, len(der))
    to_be_signed = next(read_elements(der, certificate))
    fields = [field for field in read_elements(der, to_be_signed) if field.tag != _VERSION]
    _serial_number, _signature, _issuer, _validity, subject, *_ = fields
    return b"".join(
        encode_element(_SET, b"".join(sorted(_canonical_attributes(der, relative))))
        for relative in read_elements(der, subject)
    )


def _canonical_attributes(der: bytes, relative: Element) -> Iterator[bytes]:
    for attribute in read_elements(der, relative):
        kind, value = read_elements(der, attribute)
        content = der[value.content : value.end]
        canonical = _canonical_value(value.tag, content, _text(value.tag, content))
        yield encode_element(
            _SEQUENCE, der[kind.start : kind.end] + encode_element(canonical[0], canonical[1:])
        )


def encode_element(tag: int, content: bytes) -> bytes:
    """Return a DER element (X.690, 8.1.3)."""
    length = len(content)
    if length < _LONG_FORM:
        return bytes((tag, length)) + content
    octets = length.to_bytes((length.bit_length() + 7) // 8)
    return bytes((tag, _LONG_FORM | len(octets))) + octets + content


def algorithms_agree(der: bytes) -> bool:
    """Whether the certificate ``der`` names the same signature algorithm inside and outside (RFC 5280, 4.1.1.2).

    OpenSSL loads one that does not and never verifies with it; GnuTLS refuses the whole bundle because of it.
    """
    to_be_signed, outer, _signature = read_elements(der, read_element(der, 0, len(der)))
    fields = (field for field in read_elements(der, to_be_signed) if field.tag != _VERSION)
    _serial_number, inner, *_ = fields
    return der[inner.start : inner.end] == der[outer.start : outer.end]


def longest_responder(der: bytes) -> int:
    """Return the length of the longest OCSP responder's URL in ``der`` (RFC 5280, 4.2.2.1), 0 where there is none.

    Looked for by the bytes of its type, so that extensions that cannot be parsed have no way around the bound.
    """
    longest = 0
    found = der.find(_OCSP)
    while found >= 0:
        start = found + len(_OCSP)
        try:
            location = read_element(der, start, len(der))
        except DerError:
            location = None
        if location is not None and location.tag in _UNIFORM_RESOURCE_IDENTIFIERS:
            longest = max(longest, location.end - location.content)
        found = der.find(_OCSP, start)
    return longest


def _read_name(der: bytes, name: Element) -> Name:
    if name.end - name.start > _MAX_NAME:
        raise DerError(f"name of {name.end - name.start} bytes, more than {_MAX_NAME}")
    digest = hashlib.sha256()
    is_plain = True
    rendering = Rendering()
    for relative in read_elements(der, name):
        attributes = []
        for attribute in read_elements(der, relative):
            kind, value = read_elements(der, attribute)
            if kind.tag != _OBJECT_IDENTIFIER:
                raise DerError("attribute of a name has no type")
            is_plain = is_plain and value.tag in _PLAIN_TAGS
            content = der[value.content : value.end]
            text = _text(value.tag, content)
            rendering.add(der[kind.content : kind.end], content, text)
            canonical = _canonical_value(value.tag, content, text)
            attributes.append(der[kind.start : kind.end] + canonical)
        for attribute_bytes in sorted(attributes):
            digest.update(len(attribute_bytes).to_bytes(4) + attribute_bytes)
        digest.update(b"\xff\xff\xff\xff")
    if rendering.logged > LONGEST_LOGGED or rendering.escaped > LONGEST_ESCAPED:
        raise DerError("name that is too long when it is printed: it can crash stunnel")
    return Name(digest.digest()[:16], is_plain)


def _text(tag: int, content: bytes) -> bytes | None:
    """Return the value of an attribute as UTF-8, None if OpenSSL takes it for no string."""
    encoding = _STRING_ENCODINGS.get(tag)
    if encoding is None:
        return None
    try:
        return content.decode(encoding).encode()
    except UnicodeError as e:
        raise DerError("string in a name cannot be decoded") from e


def _canonical_value(tag: int, content: bytes, text: bytes | None) -> bytes:
    """Return the tag and the content that OpenSSL compares a value by."""
    if text is None:
        return bytes((tag,)) + content
    # bytes.lower() and bytes.split() touch ASCII only, as OpenSSL's ossl_tolower and ossl_isspace do.
    return b"\x0c" + b" ".join(text.lower().split())
