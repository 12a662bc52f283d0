"""The log of processes that do without the logging package: lines on standard error.

Owns the form of a line, for the journal or for a file; it is that of `certfs.server.audit`.
"""

import os
import sys
import time
from contextlib import suppress
from typing import Final, Literal

from certfs.moment import written

Level = Literal["error", "warning", "info"]
_PRIORITY: Final[dict[Level, int]] = {"error": 3, "warning": 4, "info": 6}


def log(level: Level, text: str, *, journal: bool) -> None:
    """Write one line; a log that cannot be written is no reason to stop."""
    start = f"<{_PRIORITY[level]}>"
    if not journal:
        start = f"{written(time.time())} {level.upper()} "
    # As `certfs.core.text.printable` does: a path may hold whatever a reader of the log would act on.
    shown = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )
    with suppress(OSError):
        os.write(sys.stderr.fileno(), f"{start}{shown}\n".encode(errors="backslashreplace"))
