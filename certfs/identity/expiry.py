"""When a certificate is worth an alert because of its validity, as the platform alerts it.

Owns the thresholds and the names of the alerts (``ocaml/alerts/certificate/certificate_check.ml``
in xapi-project/xen-api). Values in, values out; what is alerted is a fact about a clock, so the
time is an argument.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from certfs.identity.describe import Description
from certfs.identity.listing import Kind
from certfs.identity.validate import iso

_SUBJECTS = {
    Kind.HOST: "HOST_SERVER_CERTIFICATE",
    Kind.HOST_INTERNAL: "HOST_INTERNAL_CERTIFICATE",
    Kind.POOL: "HOST_INTERNAL_CERTIFICATE",
    Kind.CA: "POOL_CA_CERTIFICATE",
    Kind.PINNED: "POOL_CA_CERTIFICATE",
}
_THRESHOLDS = (7, 14, 30)
"""Days before the end; an alert is for less than so many."""

_CRITICAL_DAYS = 7


@dataclass(frozen=True, slots=True)
class Alert:
    """An alert by the platform's ``name``; ``what`` is a part of a sentence."""

    name: str
    what: str
    is_critical: bool
    is_early: bool = False
    """The validity has not begun: the clock was wrong when the certificate was made, or is now."""


def alert(certificate: Description, kind: Kind, *, now: datetime) -> Alert | None:
    """Return the alert that a certificate is due for, None if its validity gives no reason.

    A date that cannot be read is a finding of the bundle that the certificate is in.
    """
    end, begin = certificate.not_after, certificate.not_before
    subject = _SUBJECTS[kind]
    if end is None or begin is None:
        return None
    if now > end:
        return Alert(f"{subject}_EXPIRED", f"expired at {iso(end)}", is_critical=True)
    if now < begin:
        what = f"is not valid before {iso(begin)}, and it is {iso(now)}"
        critical = kind not in {Kind.CA, Kind.PINNED}  # what is one among others cuts nobody off
        return Alert(f"{subject}_NOT_VALID_YET", what, is_critical=critical, is_early=True)
    for days in _THRESHOLDS:
        if end - now < timedelta(days=days):
            what = f"expires in less than {days} days, at {iso(end)}"
            critical = days <= _CRITICAL_DAYS
            return Alert(f"{subject}_EXPIRING_{days:02}", what, is_critical=critical)
    return None
