"""How many examples a property is tried with: the number of scripts/test, or its multiple in scripts/nightly."""

from __future__ import annotations

from hypothesis import settings

_USUAL = 100
"""Examples in the profile of scripts/test (see tests/conftest.py)."""


def examples(count: int) -> settings:
    """Give settings with so many examples, and proportionally more where the profile has more."""
    return settings(max_examples=count * settings().max_examples // _USUAL)
