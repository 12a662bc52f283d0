"""Frozen values as JSON, and back: everything that the processes of certfs tell each other.

What a reader does not know is left out, and what a writer did not know has its default: the two may be of different
versions, while an upgrade is under way. Paths survive whatever bytes they hold (`os.fsdecode`).
"""

import json
from dataclasses import asdict, is_dataclass

from certfs.protocol.checked import decoded as from_json

__all__ = ["from_json", "to_json"]


def to_json(value: object, *, indent: int | None = None) -> bytes:
    """Return the JSON of an instance of a dataclass, or of None."""
    plain = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    return json.dumps(plain, indent=indent).encode()
