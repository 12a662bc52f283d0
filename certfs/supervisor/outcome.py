"""How the command that waits learns whether the first start succeeded.

Owns the one report that a supervisor makes: to the descriptor of a waiting command, or in the foreground to people.
"""

import json
import os
import sys
from contextlib import suppress
from dataclasses import asdict

from certfs.protocol.launch_spec import Order
from certfs.protocol.link import Failure


class Outcome:
    """What the first start came to; ``pending`` until it is told. A supervisor that adopts has nothing to tell."""

    def __init__(self, order: Order) -> None:
        self.pending = order.adopt is None
        self._report_fd = order.report_fd

    def tell(self, failure: Failure | None) -> None:
        """Tell it once: None for success; later outcomes are nobody's business."""
        if not self.pending:
            return
        self.pending = False
        if self._report_fd is not None:
            with suppress(OSError):
                os.write(self._report_fd, json.dumps(asdict(failure) if failure else None).encode())
            os.close(self._report_fd)
        elif failure:
            line = f"certfs: {failure.message}: {failure.advice}".removesuffix(": ")
            sys.stderr.write(line + "\n")


def outcome_from_json(report: bytes) -> Failure | None:
    """Return what `Outcome.tell` was given."""
    raw = json.loads(report)
    return Failure(**raw) if raw else None
