"""How long to wait before the next server is started, after one died.

Pure: ages and counts in, seconds out.
"""

from dataclasses import dataclass
from typing import Final, Self

FREE_STRIKES: Final = 5
"""So many deaths in a row are answered at once."""
HEALTHY_SECONDS: Final = 60.0
"""A server that served for so long ends a row of deaths."""
LONGEST_SECONDS: Final = 60.0
LONGEST_WHEN_KILLED: Final = 0.25
"""SIGKILL comes from outside (a person, the kernel when memory is short), and is no defect of the server: it is
started again soon, however often it happens."""


@dataclass(frozen=True, slots=True)
class Strikes:
    """Deaths in a row."""

    count: int = 0

    def after(self, served_seconds: float) -> Self:
        """Return the strikes after one more death, of a server that had served for ``served_seconds``."""
        return type(self)(1 if served_seconds >= HEALTHY_SECONDS else self.count + 1)

    def delay(self, *, killed: bool) -> float:
        """Return the seconds to wait before the next start."""
        beyond = self.count - FREE_STRIKES
        if beyond <= 0:
            return 0.0
        longest = LONGEST_WHEN_KILLED if killed else LONGEST_SECONDS
        return min(2.0 ** min(beyond - 1, 10), longest)
