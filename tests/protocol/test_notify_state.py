"""What readers were told, as the notifier keeps it (I18, I21)."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

from certfs.protocol.notify_state import Entry, Memory, recalled


def test_bundles_that_come_and_go_leave_nothing(tmp_path: Path) -> None:
    """Neither in the file nor in memory: a pattern may stand for ever new names (I18)."""
    memory = Memory(str(tmp_path / "state"))
    tracemalloc.start()
    try:
        for number in range(5000):
            memory.entries = {f"key {number}": Entry(target="reader", bundle=f"ca-{number}.pem")}
            memory.save()
        assert tracemalloc.get_traced_memory()[0] < 1_000_000
    finally:
        tracemalloc.stop()
    assert list(json.loads((tmp_path / "state").read_bytes())["orders"]) == ["key 4999"]


def test_what_has_changed_is_written_and_what_is_new(tmp_path: Path) -> None:
    """The next notifier finds both."""
    memory = Memory(str(tmp_path / "state"))
    memory.entries = {"one": Entry(target="first"), "two": Entry(target="second")}
    memory.save()
    memory.entries["one"].runs = 7
    memory.entries["three"] = Entry(target="third")
    memory.save("one")
    assert recalled(memory.path).entries == memory.entries
