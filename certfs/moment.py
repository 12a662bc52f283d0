"""Moments in the one form that people and programs are told them: UTC, RFC 3339, to the second."""

import time
from typing import Final

FORM: Final = "%Y-%m-%dT%H:%M:%SZ"


def written(seconds: float) -> str:
    """Return the form of a moment in seconds since the epoch."""
    return time.strftime(FORM, time.gmtime(seconds))
