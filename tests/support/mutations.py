"""Files of certificates with random damage, in their text and in their DER.

Owns how files are damaged. The same seed does the same damage, to certificates that are made anew in each process.
"""

from __future__ import annotations

import functools
import random

from tests.support import pki_deviations, pki_forms, pki_raw

_TOKENS = (
    b"-----BEGIN CERTIFICATE-----",
    b"-----END CERTIFICATE-----",
    b"-----BEGIN TRUSTED CERTIFICATE-----",
    b"-----END TRUSTED CERTIFICATE-----",
    b"-----BEGIN X509 CERTIFICATE-----\n",
    b"-----BEGIN PRIVATE KEY-----",
    b"-----END PRIVATE KEY-----\n",
    b"-----",
    b"-",
    b"\n",
    b"\r\n",
    b"\r",
    b"\0",
    b"=",
    b"==",
    b" ",
    b"\t",
    b"\v",
    b":",
    b"#",
    b"\x1a",
    b"\xa0",
    b"\xc2\xa0",
    b"\xe2\x80\x8b",
    b"\xef\xbb\xbf",
    b"\xe2\x80\x94",
    b" " * 254,
    b"x" * 253,
    b"Proc-Type: 4,ENCRYPTED\n",
)
_TAGS = bytes.fromhex("0001020304050607090a0c0d1213141617181a1c1e303180a0a1a2a3")
_STRINGS = frozenset((0x03, 0x04, 0x0C, 0x13, 0x14, 0x16, 0x17, 0x1E))
_SELDOM = 0.05
_LENGTHS = (b"\x80", b"\x81", b"\x82\x00", b"\x83\x00\x00", b"\x84\x00\x00\x00", b"\xff", b"\x00")


@functools.cache
def _texts() -> list[bytes]:
    return [form.data for form in pki_forms.every()]


@functools.cache
def _certificates() -> list[bytes]:
    forms = (pki_forms.first(), pki_forms.second())
    return [*(form.der for form in forms), *pki_deviations.every().values()]


def file_of(seed: int) -> bytes:
    """Make the file of that number: two of three are damaged in their text, the others in a certificate's DER."""
    randomly = random.Random(seed)  # noqa: S311 - reproducible on purpose
    if seed % 3:
        return _damaged_text(randomly, randomly.choice(_texts()))
    return _damaged_der(randomly)


def _damaged_text(randomly: random.Random, text: bytes) -> bytes:
    """Cut, join, flip, insert and delete at random places, often where a line ends."""
    data = bytearray(text)
    for _ in range(randomly.choice((1, 1, 1, 2, 3, 8))):
        place = randomly.randrange(len(data) + 1)
        if randomly.random() < 0.4:
            place = max(data.find(b"\n", place), 0)
        kind = randomly.randrange(9)
        if kind == 0:
            del data[place : place + randomly.choice((1, 1, 5, 64, 300))]
        elif kind <= 2:
            data[place:place] = randomly.choice(_TOKENS)
        elif kind == 3 and place < len(data):
            data[place] = randomly.randrange(256)
        elif kind == 4:
            data[place:place] = randomly.choice(_texts())
        elif kind == 5:
            del data[place:]
        elif kind == 6:
            start = randomly.randrange(len(data) + 1)
            data[place:place] = data[start : start + 200]
        elif kind == 7:
            end = randomly.choice(_TOKENS)
            data = bytearray(bytes(data).replace(b"\n", end + b"\n"))
        else:
            data += randomly.choice(_texts())
    return bytes(data)


def _damaged_der(randomly: random.Random) -> bytes:
    """Damage a certificate, and put a good one before or behind it."""
    der = bytearray(randomly.choice(_certificates()))
    for _ in range(randomly.choice((1, 1, 1, 2, 4))):
        # The names and dates are in the first part; keys and signatures are what damage harms least.
        place = randomly.randrange(min(len(der), randomly.choice((60, 200, 2000))))
        kind = randomly.randrange(7)
        if kind == 0:
            der[place] = randomly.randrange(256)
        elif kind == 1:
            der[place] = randomly.choice(_TAGS)
        elif kind == 2:
            der[place] ^= 1 << randomly.randrange(8)
        elif kind == 3:
            del der[place : place + randomly.choice((1, 1, 2, 8))]
        elif kind == 4:
            der[place:place] = randomly.choice(_LENGTHS)
        elif kind == 5:
            der = bytearray(_as_ber(bytes(der), randomly))
        else:
            der[place:place] = randomly.randbytes(randomly.choice((1, 2, 8)))
    label = randomly.choice(
        (b"CERTIFICATE", b"CERTIFICATE", b"X509 CERTIFICATE", b"TRUSTED CERTIFICATE")
    )
    block = pki_forms.block(label, bytes(der))
    neighbour = pki_forms.second().pem
    return randomly.choice((block, block + neighbour, neighbour + block))


def _as_ber(data: bytes, randomly: random.Random) -> bytes:
    """Write elements anew, some with a padded or open length or a long tag, some strings in two pieces (X.690, 8)."""
    written = []
    position = 0
    while position + 1 < len(data):
        tag, first = data[position], data[position + 1]
        if tag & 0x1F == 0x1F:
            break  # written anew before
        octets = first - 0x80 if first > 0x80 else 0
        start = position + 2 + octets
        length = int.from_bytes(data[position + 2 : start]) if octets else first
        content = data[start : start + length]
        position = start + length
        if tag & 0x20:
            content = _as_ber(content, randomly)
        elif tag in _STRINGS and randomly.random() < _SELDOM:
            half = len(content) // 2
            tag |= 0x20
            content = b"".join(
                pki_raw.element(tag & 0x1F, piece) for piece in (content[:half], content[half:])
            )
        if tag & 0x20 and randomly.random() < _SELDOM:
            encoded = bytes((tag, 0x80)) + content + b"\0\0"
        elif randomly.random() < _SELDOM:
            zeros = randomly.choice((3, 4, 8, 9, 100))
            encoded = bytes((tag, 0x80 | zeros)) + len(content).to_bytes(zeros) + content
        else:
            encoded = pki_raw.element(tag, content)
        if randomly.random() < _SELDOM:
            encoded = pki_deviations.in_high_form(encoded, octets=randomly.choice((1, 1, 2, 5)))
        written.append(encoded)
    return b"".join(written) + data[position:]
