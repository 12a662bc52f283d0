"""Settings of the property tests: no time limit per example, because the machine is shared."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("certfs", deadline=None, print_blob=True)
settings.load_profile("certfs")
