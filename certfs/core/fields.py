"""The fields of a certificate (RFC 5280, 4.1), found in whatever OpenSSL loads.

Owns the places of the fields in a certificate, and what its dates say. Strict parsers refuse certificates that OpenSSL
verifies with; this one refuses nothing that it can find its way through.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone

from certfs.core.der import (
    CONSTRUCTED,
    DerError,
    Element,
    content_of,
    read_element,
    read_elements,
    read_first,
)

_BOOLEAN = 0x01
_VERSION = 0xA0
EXTENSIONS = 0xA3
_UTC_TIME = 0x17
_FEWEST_FIELDS = 6
SUBJECT_ALTERNATIVE_NAME = bytes.fromhex("551d11")
BASIC_CONSTRAINTS = bytes.fromhex("551d13")
_LONGEST_VERSION = 4
_UTC_TIME_FORM = re.compile(rb"(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)?(?:Z|([+-])(\d\d)(\d\d))")
_GENERALIZED_TIME_FORM = re.compile(
    rb"(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)(?:(\d\d)(?:\.\d+)?)?(?:Z|([+-])(\d\d)(\d\d))"
)
_PIVOT_YEAR = 50  # RFC 5280, 4.1.2.5.1


@dataclass(frozen=True, slots=True)
class Fields:
    """Where the fields of a certificate are; ``version`` counts from 1, ``extensions`` is None where it has none.

    A version that is no number of reason is 0.
    """

    version: int
    serial_number: Element
    signature: Element
    issuer: Element
    validity: Element
    subject: Element
    public_key: Element
    extensions: Element | None
    outer_signature: Element


def read_fields(der: bytes) -> Fields:
    """Find the fields of the certificate ``der``; DerError where they are not there."""
    outermost = read_element(der, 0, len(der))
    to_be_signed, outer_signature, _signature = read_first(der, outermost, 3)
    fields = list(read_elements(der, to_be_signed))
    version = 1
    if fields and fields[0].tag == _VERSION:
        (number,) = read_first(der, fields.pop(0), 1)
        octets = content_of(der, number)
        version = int.from_bytes(octets, signed=True) + 1 if len(octets) <= _LONGEST_VERSION else 0
    if len(fields) < _FEWEST_FIELDS:
        raise DerError("certificate lacks fields")
    serial_number, signature, issuer, validity, subject, public_key, *optional = fields
    extensions = next((field for field in optional if field.tag == EXTENSIONS), None)
    return Fields(
        version,
        serial_number,
        signature,
        issuer,
        validity,
        subject,
        public_key,
        extensions,
        outer_signature,
    )


@dataclass(frozen=True, slots=True)
class Extension:
    """An extension (RFC 5280, 4.2): the content of its identifier, and of its value, which may be ``in_pieces``."""

    identifier: bytes
    is_critical: bool
    value: bytes
    in_pieces: bool


def read_extensions(der: bytes, fields: Fields) -> tuple[Extension, ...]:
    """Return the extensions of a certificate as they are listed; DerError where they cannot be parsed."""
    if fields.extensions is None:
        return ()
    (listed,) = read_first(der, fields.extensions, 1)
    return tuple(_read_extension(der, element) for element in read_elements(der, listed))


def _read_extension(der: bytes, element: Element) -> Extension:
    parts = tuple(read_elements(der, element))
    if len(parts) < 2:  # noqa: PLR2004 - an identifier and a value
        raise DerError("extension has no value")
    identifier, *rest = parts
    is_critical = rest[0].tag == _BOOLEAN and any(content_of(der, rest[0]))
    value = rest[-1]
    in_pieces = bool(value.tag & CONSTRUCTED)
    return Extension(content_of(der, identifier), is_critical, content_of(der, value), in_pieces)


def read_dates(der: bytes, fields: Fields) -> tuple[datetime | None, datetime | None]:
    """Return notBefore and notAfter in UTC, None for a date that cannot be read."""
    not_before, not_after = [
        _read_time(content_of(der, field), is_utc_time=field.tag & 0x1F == _UTC_TIME)
        for field in read_first(der, fields.validity, 2)
    ]
    return not_before, not_after


def _read_time(text: bytes, *, is_utc_time: bool) -> datetime | None:
    match = (_UTC_TIME_FORM if is_utc_time else _GENERALIZED_TIME_FORM).fullmatch(text)
    if match is None:
        return None
    year, month, day, hour, minute, second = (int(part or 0) for part in match.groups()[:6])
    if is_utc_time:
        year += 1900 if year >= _PIVOT_YEAR else 2000
    sign, hours, minutes = match.groups()[6:]
    try:
        offset = timedelta(hours=int(hours or 0), minutes=int(minutes or 0))
        zone = timezone(-offset if sign == b"-" else offset)
        moment = datetime(year, month, day, hour, minute, second, tzinfo=zone)
        return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return None
