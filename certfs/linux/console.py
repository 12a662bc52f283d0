"""The log of processes that do without the logging package: lines on standard error.

Owns the form of a line, for the journal or for a file, and the bound on the size of a log file.
"""

import os
import sys
import time
from contextlib import suppress
from typing import Final, Literal

Level = Literal["error", "warning", "info"]
_PRIORITY: Final[dict[Level, int]] = {"error": 3, "warning": 4, "info": 6}
LOG_BYTES: Final = 4 << 20


def log(level: Level, text: str, *, journal: bool) -> None:
    """Write one line; a log that cannot be written is no reason to stop."""
    if journal:
        line = f"<{_PRIORITY[level]}>{text}\n"
    else:
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        line = f"{moment} certfs[{os.getpid()}] {level}: {text}\n"
    with suppress(OSError):
        os.write(sys.stderr.fileno(), line.encode(errors="backslashreplace"))


def bound(path: str) -> None:
    """Keep the log file ``path``, which is standard error, below `LOG_BYTES`: its content moves to ``path.1``.

    The file is emptied in place, since several processes have it open for appending; a line that is written between
    the copy and the emptying is lost.
    """
    with suppress(OSError):
        if os.fstat(2).st_size < LOG_BYTES:
            return
        with open(path, "rb") as source, open(f"{path}.1", "wb", opener=_for_us_alone) as copy:
            os.sendfile(copy.fileno(), source.fileno(), 0, LOG_BYTES * 2)
        os.truncate(path, 0)


def _for_us_alone(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
