"""What a health check finds, as a value that ``certfs check`` and ``certfs repair`` share."""

import enum
from dataclasses import dataclass
from pathlib import Path

from certfs.identity.remedies import Remedy


class Severity(enum.IntEnum):
    """How bad a finding is; the numbers are the exit codes of ``certfs check``."""

    NOTE = 0
    """Nothing is wrong that could be seen."""
    WARNING = 1
    """It works now, and will fail later or is not as it should be."""
    CRITICAL = 2
    """Connections fail, or a secret is open."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong with a file: ``name`` is for programs.

    ``what`` completes a sentence that begins with ``file``. ``mend`` is the command or the action
    that mends it; ``remedy`` is what ``certfs repair`` does about it, None if that takes a
    decision.
    """

    severity: Severity
    name: str
    file: Path
    what: str
    mend: str
    remedy: Remedy | None = None
