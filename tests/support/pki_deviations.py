"""Certificates that deviate from DER and from RFC 5280 as those of real authorities do, and that OpenSSL loads.

Owns the table. SHECA's RSA DV, OV and EV Server CAs write `critical FALSE`, SecureNet's CA Class B has an explicit
version 1; the others are of the same kinds.
"""

from __future__ import annotations

import functools

from tests.support import pki_raw
from tests.support.pki_raw import attribute, certificate, element, name, sequence

_BASIC_CONSTRAINTS = bytes.fromhex("0603551d13")
_KEY_USAGE = bytes.fromhex("0603551d0f")
_ORGANIZATION = bytes.fromhex("060355040a")
_TRUE, _FALSE, _ONE = b"\x01\x01\xff", b"\x01\x01\x00", b"\x01\x01\x01"
_IS_CA = element(0x04, sequence(_TRUE))
_SIGNS = element(0x04, b"\x03\x02\x01\x06")


def _named(value: bytes, kind: int) -> bytes:
    return certificate(name(attribute(value, kind)))


def _extended(label: bytes, *extensions: bytes) -> bytes:
    return certificate(name(attribute(label)), extensions=extensions)


def _padded(content: bytes, octets: int) -> bytes:
    """Encode a SEQUENCE whose length has zeros in front."""
    return bytes((0x30, 0x80 | octets)) + len(content).to_bytes(octets) + content


def in_high_form(encoded: bytes, *, octets: int = 1) -> bytes:
    """Write the tag of an element as those from 31 on are written (X.690, 8.1.2.4), in so many further octets."""
    number = b"\x80" * (octets - 1) + bytes((encoded[0] & 0x1F,))
    return bytes((encoded[0] | 0x1F,)) + number + encoded[1:]


def _open(content: bytes) -> bytes:
    """Encode a SEQUENCE whose length is left open."""
    return b"\x30\x80" + content + b"\0\0"


def _content(encoded: bytes) -> bytes:
    """Give the content of an element with a length of three octets."""
    assert encoded[1] == 0x82
    return encoded[4:]


@functools.cache
def every() -> dict[str, bytes]:
    """Give the DER (or BER) of each, by what is odd about it."""
    ca = sequence(_BASIC_CONSTRAINTS, _IS_CA)
    unsorted = element(0x31, attribute(b"z"), attribute(b"a", identifier=_ORGANIZATION))
    plain = certificate(name(attribute(b"plain")))
    pieces = sequence(
        pki_raw.COMMON_NAME, b"\x2c\x80", element(0x0C, b"in "), element(0x0C, b"pieces"), b"\0\0"
    )
    return {
        "T61String": _named(b"T61 name", pki_raw.T61),
        "Latin-1 in a T61String": _named(b"F\xfcr uns", pki_raw.T61),
        "odd characters in a PrintableString": _named(b"*_@& <host>", pki_raw.PRINTABLE),
        "high bytes in a PrintableString": _named(b"F\xfcr uns", pki_raw.PRINTABLE),
        "high bytes in an IA5String": _named(b"F\xfcr uns", pki_raw.IA5),
        "BMPString": _named("BMP \u4e2d".encode("utf-16-be"), pki_raw.BMP),
        "UniversalString": _named("Universal".encode("utf-32-be"), pki_raw.UNIVERSAL),
        "letters in a NumericString": _named(b"numeric", 0x12),
        "BIT STRING in a name": _named(b"\0bits", 0x03),
        "SEQUENCE in a name": certificate(name(sequence(pki_raw.COMMON_NAME, b"\x30\x02v1"))),
        "empty name": certificate(name()),
        "empty attribute": _named(b"", pki_raw.UTF8),
        "unsorted set in a name": certificate(sequence(unsorted)),
        "critical FALSE": _extended(
            b"critical false", sequence(_BASIC_CONSTRAINTS, _FALSE, _IS_CA)
        ),
        "BOOLEAN 01": _extended(b"boolean", sequence(_BASIC_CONSTRAINTS, _ONE, _IS_CA)),
        "cA BOOLEAN 01": _extended(
            b"ca boolean", sequence(_BASIC_CONSTRAINTS, element(0x04, sequence(_ONE)))
        ),
        "broken extension": _extended(b"broken", ca, sequence(_KEY_USAGE, element(0x04, b"\x30"))),
        "extension twice": _extended(b"twice", ca, ca),
        "empty extension": _extended(b"empty", sequence(_KEY_USAGE, element(0x04))),
        "explicit version 1": certificate(
            name(attribute(b"explicit v1")), version=b"\xa0\x03\x02\x01\x00"
        ),
        "version 1": certificate(name(attribute(b"v1")), version=b""),
        "version 1 with extensions": certificate(
            name(attribute(b"v1 extended")), version=b"", extensions=[ca]
        ),
        "version 5": certificate(name(attribute(b"v5")), version=b"\xa0\x03\x02\x01\x04"),
        "negative serial number": certificate(name(attribute(b"neg")), serial=b"\x02\x01\x80"),
        "serial number of zero": certificate(name(attribute(b"zero")), serial=b"\x02\x01\x00"),
        "long serial number": certificate(
            name(attribute(b"long")), serial=element(0x02, b"\x01" * 60)
        ),
        "dates that are none": certificate(
            name(attribute(b"dateless")), dates=sequence(element(0x17, b"soon"), element(0x17, b""))
        ),
        "dates without seconds": certificate(
            name(attribute(b"no seconds")),
            dates=sequence(element(0x17, b"2401010000Z"), element(0x17, b"4401010000Z")),
        ),
        "dates with an offset": certificate(
            name(attribute(b"offset")),
            dates=sequence(
                element(0x17, b"240101000000+0200"), element(0x18, b"20440101000000-0530")
            ),
        ),
        "two signature algorithms": certificate(
            name(attribute(b"two")), outer_algorithm=pki_raw.SHA256_RSA
        ),
        "unknown key": certificate(
            name(attribute(b"unknown")),
            key=sequence(sequence(bytes.fromhex("06032a0304")), element(3, b"\0key")),
        ),
        "padded length": _padded(_content(plain), 3),
        "very padded length": _padded(_content(plain), 9),
        "length left open": _open(_content(plain)),
        "name in pieces": certificate(name(pieces)),
        "outermost tag in two octets": in_high_form(plain),
        "type of an attribute in a tag of three octets": certificate(
            name(
                sequence(
                    in_high_form(pki_raw.COMMON_NAME, octets=2), element(pki_raw.UTF8, b"high")
                )
            )
        ),
        "string in a tag of two octets": certificate(
            name(sequence(pki_raw.COMMON_NAME, in_high_form(element(pki_raw.UTF8, b"high"))))
        ),
        "version in a tag of two octets": certificate(
            name(attribute(b"high")), version=in_high_form(b"\xa0\x03\x02\x01\x02")
        ),
    }
