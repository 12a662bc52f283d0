"""How much work a function does, counted instead of timed.

Owns two counters that say the same on a busy machine as on an idle one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


def calls_of(work: Callable[[], object]) -> int:
    """Count the calls of Python and C functions that ``work`` takes."""
    count = 0

    def count_call(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal count
        count += event in {"call", "c_call"}

    sys.setprofile(count_call)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


class CountedBytes(bytes):
    """Bytes that know how many of them were looked at by searching, counting and slicing."""

    touched: int = 0

    def count(self, sub: Any, start: Any = 0, end: Any = None, /) -> int:  # noqa: ANN401
        """Count as bytes does; the range counts as touched."""
        self._touch(start, end)
        return super().count(sub, start, end)

    def rfind(self, sub: Any, start: Any = 0, end: Any = None, /) -> int:  # noqa: ANN401
        """Search as bytes does; the range counts as touched."""
        self._touch(start, end)
        return super().rfind(sub, start, end)

    def __getitem__(self, key: Any) -> Any:  # noqa: ANN401
        """Slice as bytes does; the slice counts as touched."""
        piece = super().__getitem__(key)
        self.touched += len(piece) if isinstance(piece, bytes) else 1
        return piece

    def _touch(self, start: int, end: int | None) -> None:
        self.touched += len(range(len(self))[start:end])
