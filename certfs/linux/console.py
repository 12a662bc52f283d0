"""The log of processes that do without the logging package: lines on standard error.

Owns the form of a line, for the journal or for a file.
"""

import os
import sys
import time
from contextlib import suppress
from typing import Final, Literal

Level = Literal["error", "warning", "info"]
_PRIORITY: Final[dict[Level, int]] = {"error": 3, "warning": 4, "info": 6}


def log(level: Level, text: str, *, journal: bool) -> None:
    """Write one line; a log that cannot be written is no reason to stop."""
    if journal:
        line = f"<{_PRIORITY[level]}>{text}\n"
    else:
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        line = f"{moment} certfs[{os.getpid()}] {level}: {text}\n"
    with suppress(OSError):
        os.write(sys.stderr.fileno(), line.encode(errors="backslashreplace"))
