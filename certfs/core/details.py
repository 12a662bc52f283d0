"""What a certificate says of itself, for people: names and dates, and what it is for.

Owns the description of any certificate that is in a bundle, also of those that strict parsers refuse.
"""

import ipaddress
from dataclasses import dataclass
from datetime import datetime

from certfs.core.certificate import Certificate
from certfs.core.der import SEQUENCE, DerError, Element, content_of, read_element, read_elements
from certfs.core.fields import (
    BASIC_CONSTRAINTS,
    SUBJECT_ALTERNATIVE_NAME,
    Fields,
    read_dates,
    read_extensions,
    read_fields,
)
from certfs.core.name import canonical_name, name_text
from certfs.core.text import printable

_BOOLEAN = 0x01
_IP_ADDRESS = 0x87
_ALTERNATIVE_NAMES = {0x82: "DNS", _IP_ADDRESS: "IP", 0x81: "email", 0x86: "URI"}
"""The kinds that are shown (RFC 5280, 4.2.1.6), in this order."""


@dataclass(frozen=True, slots=True)
class Details:
    """Names as RFC 4514 writes them, safe to print; dates in UTC, None for one that cannot be read."""

    subject: str
    issuer: str
    not_before: datetime | None
    not_after: datetime | None


def describe(certificate: Certificate) -> Details:
    """Describe a certificate that was judged before."""
    der = certificate.der
    fields = read_fields(der)
    not_before, not_after = read_dates(der, fields)
    return Details(
        name_text(der, fields.subject), name_text(der, fields.issuer), not_before, not_after
    )


def alternative_names(der: bytes, fields: Fields) -> tuple[str, ...] | None:
    """Return the subject's alternative names, each with its kind and safe to print; None if they cannot be read.

    Only host names, addresses and URIs: those of other kinds are left out.
    """
    try:
        value = _extension(der, fields, SUBJECT_ALTERNATIVE_NAME)
        if value is None:
            return ()
        names = [
            (name.tag, content_of(value, name))
            for name in read_elements(value, _sequence(value))
            if name.tag in _ALTERNATIVE_NAMES
        ]
        return tuple(
            f"{kind}:{_address(content) if tag == _IP_ADDRESS else printable(content)}"
            for tag, kind in _ALTERNATIVE_NAMES.items()
            for found, content in names
            if found == tag
        )
    except ValueError:
        return None


def is_ca(der: bytes, fields: Fields) -> bool | None:
    """Tell whether a certificate says that it is a CA's (RFC 5280, 4.2.1.9); None if that cannot be read."""
    try:
        value = _extension(der, fields, BASIC_CONSTRAINTS)
        if value is None:
            return False
        first = next(read_elements(value, _sequence(value)), None)
        return first is not None and first.tag == _BOOLEAN and any(content_of(value, first))
    except DerError:
        return None


def is_authority(der: bytes, fields: Fields) -> bool | None:
    """Tell whether OpenSSL lets a certificate vouch for others: a CA's, or a self-issued one of version 1."""
    if fields.version != 1:
        return is_ca(der, fields)
    try:
        return canonical_name(der, fields.subject) == canonical_name(der, fields.issuer)
    except DerError:
        return None


def _extension(der: bytes, fields: Fields, identifier: bytes) -> bytes | None:
    """Return the value of an extension, None if it is not there; DerError if it is there twice."""
    values = [one.value for one in read_extensions(der, fields) if one.identifier == identifier]
    if len(values) > 1:
        raise DerError("extension is there twice")
    return values[0] if values else None


def _sequence(value: bytes) -> Element:
    element = read_element(value, 0, len(value))
    if element.tag != SEQUENCE:
        raise DerError("extension is no SEQUENCE")
    return element


def _address(octets: bytes) -> str:
    """Return an address as it is written; ValueError if it is neither of IPv4 nor of IPv6."""
    return str(ipaddress.ip_address(octets))
