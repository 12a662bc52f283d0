"""What configured readers were told, across the death of the notifier: the state file.

Owns its schema. It lies in the runtime directory, which ends with the boot: readers start anew then and read what there
is. It is replaced atomically; it need not be synced, since it is for the death of a process and not for that of the
machine. The notifier writes it, commands read it.
"""

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from certfs.linux.processes import ProcessId
from certfs.protocol.codec import checked, parsed
from certfs.safe_open import read_own, replace_own

FORMAT: Final = 1
_LARGEST: Final = 4 << 20


@dataclass(slots=True, kw_only=True)
class Entry:
    """One order: the reader, what it was told, and how that went. Times are seconds since the epoch."""

    target: str
    bundle: str = ""
    """Which bundle, where each has an order of its own."""
    told: str = ""
    dirty: bool = False
    failures: int = 0
    runs: int = 0
    last_success: float | None = None
    last_error: str = ""
    """Of the last run, empty if it went well."""
    waiting: bool = False
    last_run: float | None = None
    """When the last run began, in seconds of the monotonic clock."""
    process: ProcessId | None = None
    """What a run has started, while it is under way."""

    @property
    def is_failing(self) -> bool:
        """Whether the last runs failed, and the next is to come."""
        return self.failures > 0


@dataclass(slots=True)
class Memory:
    """All orders by key, and where they are kept."""

    path: str
    entries: dict[str, Entry] = field(default_factory=dict)
    problem: str = ""
    """Why what was saved cannot be used; empty also where nothing was."""
    _encoded: dict[str, str] = field(default_factory=dict)

    def save(self, *changed: str) -> None:
        """Write the file, with the entries that have ``changed``; OSError where that is impossible."""
        # Not encoded as a whole: with an order for each of 1,000 bundles that is most of what a change costs.
        kept = self._encoded.keys() - changed
        self._encoded = {
            key: self._encoded[key] if key in kept else json.dumps(asdict(entry))
            for key, entry in self.entries.items()
        }
        orders = ",".join(f"{json.dumps(key)}:{one}" for key, one in self._encoded.items())
        replace_own(self.path, f'{{"format":{FORMAT},"orders":{{{orders}}}}}'.encode())


def recalled(path: str) -> Memory:
    """Return what was saved at ``path``; where it makes no sense, nothing and the reason."""
    memory = Memory(path)
    try:
        raw: dict[str, Any] = parsed(read_own(path, _LARGEST))
        if raw["format"] == FORMAT:
            orders = dict(raw["orders"]).items()
            memory.entries = {str(key): checked(Entry, one) for key, one in orders}
        else:
            memory.problem = "it is of another version"
    except FileNotFoundError:
        pass
    except (OSError, ValueError, TypeError, KeyError) as error:
        memory.problem = str(error)
    return memory
