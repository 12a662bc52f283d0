"""Moments in the one form that people and programs are told them: UTC, RFC 3339, to the second."""

import calendar
import time

_FORM = "%Y-%m-%dT%H:%M:%SZ"


def written(seconds: float) -> str:
    """Return the form of a moment in seconds since the epoch."""
    return time.strftime(_FORM, time.gmtime(seconds))


def seconds_of(text: str) -> float:
    """Return the seconds since the epoch of what `written` has returned; ValueError if it has not."""
    return float(calendar.timegm(time.strptime(text, _FORM)))
