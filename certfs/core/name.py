"""The names in a certificate: compared as OpenSSL compares them, and written for people.

Owns the canonical form of a Name. OpenSSL finds an issuer by it: strings as UTF-8, ASCII letters in lower case, white
space trimmed and runs of it made one (x509_name_canon in crypto/x509/x_name.c). Names that are equal so are one subject
for promise I5.
"""

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from certfs.core.der import (
    BIT_STRING,
    CONSTRUCTED,
    OBJECT_IDENTIFIER,
    SEQUENCE,
    SET,
    TAG_NUMBER,
    DerError,
    Element,
    content_of,
    encode_element,
    read_element,
    read_elements,
    read_tag,
)
from certfs.core.rendering import LONGEST_ESCAPED, LONGEST_LOGGED, Rendering
from certfs.core.text import printable

_LONGEST_IDENTIFIER = 64
_CANONICAL = 0x0C
_LONGEST_DER = 4096
"""Bytes of DER that are looked at: what is longer prints to more than ``LONGEST_LOGGED``, but for its structure."""

# What OpenSSL canonicalises (ASN1_MASK_CANON), with the encoding of each.
_CANONICAL_ENCODINGS = {
    0x0C: "utf-8",  # UTF8String
    0x13: "latin-1",  # PrintableString
    0x16: "latin-1",  # IA5String
    0x14: "latin-1",  # T61String, which OpenSSL takes for Latin-1
    0x1A: "latin-1",  # VisibleString
    0x1C: "utf-32-be",  # UniversalString
    0x1E: "utf-16-be",  # BMPString
}
_ENCODINGS = {**_CANONICAL_ENCODINGS, 0x12: "latin-1"}  # NumericString
# Types whose every value that decodes is also read by OpenSSL; for others OpenSSL itself is asked.
_PLAIN_TAGS = frozenset({0x0C, 0x13, 0x16})

_OCSP = bytes.fromhex("2b06010505073001")
_URL = 0x86
# RFC 4514, section 3, and what OpenSSL and the platform call the others.
ATTRIBUTE_NAMES = {
    bytes.fromhex("550403"): "CN",
    bytes.fromhex("550404"): "SN",
    bytes.fromhex("550405"): "serialNumber",
    bytes.fromhex("550406"): "C",
    bytes.fromhex("550407"): "L",
    bytes.fromhex("550408"): "ST",
    bytes.fromhex("550409"): "STREET",
    bytes.fromhex("55040a"): "O",
    bytes.fromhex("55040b"): "OU",
    bytes.fromhex("55040c"): "title",
    bytes.fromhex("55040d"): "description",
    bytes.fromhex("55040f"): "businessCategory",
    bytes.fromhex("550410"): "postalAddress",
    bytes.fromhex("550411"): "postalCode",
    bytes.fromhex("550412"): "postOfficeBox",
    bytes.fromhex("550414"): "telephoneNumber",
    bytes.fromhex("550429"): "name",
    bytes.fromhex("55042a"): "GN",
    bytes.fromhex("55042b"): "initials",
    bytes.fromhex("55042c"): "generationQualifier",
    bytes.fromhex("55042d"): "x500UniqueIdentifier",
    bytes.fromhex("55042e"): "dnQualifier",
    bytes.fromhex("550433"): "houseIdentifier",
    bytes.fromhex("550441"): "pseudonym",
    bytes.fromhex("550448"): "role",
    bytes.fromhex("550461"): "organizationIdentifier",
    bytes.fromhex("0992268993f22c640103"): "mail",
    bytes.fromhex("0992268993f22c640101"): "UID",
    bytes.fromhex("0992268993f22c640119"): "DC",
    bytes.fromhex("2a864886f70d010901"): "emailAddress",
    bytes.fromhex("2a864886f70d010902"): "unstructuredName",
    bytes.fromhex("2a864886f70d010908"): "unstructuredAddress",
    bytes.fromhex("2b0601040182373c020101"): "jurisdictionL",
    bytes.fromhex("2b0601040182373c020102"): "jurisdictionST",
    bytes.fromhex("2b0601040182373c020103"): "jurisdictionC",
}
_ESCAPED = str.maketrans({character: f"\\{character}" for character in '\\"+,;<>'} | {"\0": "\\00"})


@dataclass(frozen=True, slots=True)
class Name:
    """A Name: ``key`` is equal for names that OpenSSL holds equal; ``is_plain`` if it surely can decode the name."""

    key: bytes
    is_plain: bool


def read_name(der: bytes, name: Element) -> Name:
    """Read a Name of the certificate ``der``; DerError where it is none, or is too long to be printed."""
    if name.end - name.start > _LONGEST_DER:
        raise DerError(f"name of {name.end - name.start} bytes, more than {_LONGEST_DER}")
    digest = hashlib.sha256()
    is_plain = True
    rendering = Rendering()
    for relative in read_elements(der, name):
        attributes = []
        for kind, value in _attributes(der, relative):
            content = _content(der, value)
            text = _text(value.tag, content)
            is_plain = is_plain and value.tag in _PLAIN_TAGS and text is not None
            identifier = content_of(der, kind)
            rendering.add(identifier, content, None if text is None else text.encode())
            canonical = _canonical_value(value.tag, content, text)
            attributes.append(encode_element(OBJECT_IDENTIFIER, identifier) + canonical)
        for attribute_bytes in sorted(attributes):
            digest.update(len(attribute_bytes).to_bytes(4) + attribute_bytes)
        digest.update(b"\xff\xff\xff\xff")
    if rendering.logged > LONGEST_LOGGED or rendering.escaped > LONGEST_ESCAPED:
        raise DerError("name that is too long when it is printed: it can crash stunnel")
    return Name(digest.digest()[:16], is_plain)


def longest_responder(der: bytes) -> int:
    """Return the length of the longest OCSP responder's URL in ``der`` (RFC 5280, 4.2.2.1), 0 where there is none.

    Looked for by the bytes of its type, so that extensions that cannot be parsed have no way around the bound.
    """
    longest = 0
    found = der.find(_OCSP)
    while found >= 0:
        start = found + len(_OCSP)
        with suppress(DerError):
            tag, _ = read_tag(der, start, len(der))
            if tag == _URL | CONSTRUCTED:
                # No authority writes one in pieces, and to find its end could take the whole certificate, each time.
                return len(der)
            if tag == _URL:
                location = read_element(der, start, len(der))
                longest = max(longest, location.end - location.content)
        found = der.find(_OCSP, start)
    return longest


def canonical_name(der: bytes, name: Element) -> bytes:
    """Return a Name in OpenSSL's canonical encoding, without the outer header; DerError where it is none."""
    return b"".join(
        encode_element(SET, b"".join(sorted(_canonical_attributes(der, relative))))
        for relative in read_elements(der, name)
    )


def name_text(der: bytes, name: Element) -> str:
    """Return a Name as RFC 4514 writes it, made safe to print; DerError where it is none."""
    relatives = [
        "+".join(_attribute_text(der, kind, value) for kind, value in _attributes(der, relative))
        for relative in read_elements(der, name)
    ]
    return printable(",".join(reversed(relatives)))


def _attribute_text(der: bytes, kind: Element, value: Element) -> str:
    content = _content(der, value)
    text = _text(value.tag, content)
    if text is None:
        shown = f"#{content.hex()}"
    else:
        shown = text.translate(_ESCAPED)
        if shown.startswith(("#", " ")):
            shown = f"\\{shown}"
        if shown.endswith(" ") and len(text) > 1:
            shown = f"{shown[:-1]}\\ "
    identifier = content_of(der, kind)
    return f"{ATTRIBUTE_NAMES.get(identifier) or dotted(identifier)}={shown}"


def dotted(identifier: bytes) -> str:
    """Return an object identifier in digits (X.690, 8.19); in hexadecimal if it is longer than any registered one."""
    if len(identifier) > _LONGEST_IDENTIFIER:
        return f"#{identifier.hex()}"
    numbers = []
    number = 0
    for octet in identifier:
        number = number << 7 | octet & 0x7F
        if not octet & 0x80:
            numbers.append(number)
            number = 0
    if not numbers:
        return "0"
    first = min(numbers[0] // 40, 2)
    return ".".join(map(str, (first, numbers[0] - 40 * first, *numbers[1:])))


def _attributes(der: bytes, relative: Element) -> Iterator[tuple[Element, Element]]:
    """Yield type and value of each attribute in a RelativeDistinguishedName."""
    for attribute in read_elements(der, relative):
        parts = list(read_elements(der, attribute))
        if len(parts) != 2 or parts[0].tag != OBJECT_IDENTIFIER:  # noqa: PLR2004 - a pair
            raise DerError("attribute of a name has no type or no value")
        yield parts[0], parts[1]


def _canonical_attributes(der: bytes, relative: Element) -> Iterator[bytes]:
    for kind, value in _attributes(der, relative):
        content = _content(der, value)
        canonical = _canonical_value(value.tag, content, _text(value.tag, content))
        # What `_content` returns of a SEQUENCE has its header.
        encoded = content if value.tag == SEQUENCE else encode_element(canonical[0], canonical[1:])
        identifier = encode_element(OBJECT_IDENTIFIER, content_of(der, kind))
        yield encode_element(SEQUENCE, identifier + encoded)


def _content(der: bytes, value: Element) -> bytes:
    """Return the content of a value; of a SEQUENCE, which OpenSSL keeps unread, all that it is.

    The unused bits of a BIT STRING are 0, as OpenSSL writes them (ossl_c2i_ASN1_BIT_STRING in crypto/asn1/a_bitstr.c).
    """
    if value.tag == SEQUENCE:
        return der[value.start : value.end]
    content = content_of(der, value)
    if value.tag != BIT_STRING or not content:
        return content
    if len(content) == 1:
        return b"\0"
    return content[:-1] + bytes((content[-1] & 0xFF << content[0],))


def _text(tag: int, content: bytes) -> str | None:
    """Return the value of an attribute; None if it is no string, or one that cannot be decoded."""
    encoding = _ENCODINGS.get(tag & TAG_NUMBER)
    if encoding is None:
        return None
    try:
        return content.decode(encoding)
    except UnicodeError:
        return None


def _canonical_value(tag: int, content: bytes, text: str | None) -> bytes:
    """Return the tag and the content that OpenSSL compares a value by."""
    if text is None or tag & TAG_NUMBER not in _CANONICAL_ENCODINGS:
        return bytes((tag & TAG_NUMBER,)) + content
    # bytes.lower() and bytes.split() touch ASCII only, as OpenSSL's ossl_tolower and ossl_isspace do.
    return bytes((_CANONICAL,)) + b" ".join(text.encode().lower().split())
