"""What a certificate says of itself, for people: names and dates.

Owns the description of any certificate that is in a bundle, also of those that strict parsers refuse.
"""

from dataclasses import dataclass
from datetime import datetime

from certfs.core.certificate import Certificate
from certfs.core.fields import read_dates, read_fields
from certfs.core.name import name_text


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
