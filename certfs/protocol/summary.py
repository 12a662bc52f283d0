"""What everybody may know of a mount: whether it serves, since when, which bundles there are and how large.

Owns the schema of the summary and the place of the host's: ``/run/certfs/dom0/summary.json``, the same path for good.
The server in charge writes it at every change. It names no source and no reason: those are in the status, which is for
root and the owner of the store. Who reads it checks that the server still runs and is still mounted, since nobody may
be left to say otherwise.
"""

import os
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from certfs import procfs
from certfs.linux.processes import ProcessId
from certfs.protocol import codec
from certfs.protocol.specs import Mode
from certfs.protocol.state_file import boot_id

NAME: Final = "summary.json"
HOST_SUMMARY: Final = f"/run/certfs/dom0/{NAME}"
_BYTES: Final = 4 << 20
_PUBLIC_MODE: Final = 0o644


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleSummary:
    """One bundle; ``bundle`` and ``source`` are paths from the root of the mount."""

    bundle: str
    source: str
    suffixes: tuple[str, ...]
    """What the names of sources end in."""
    readers: tuple[str, ...]
    """What one of these would refuse is left out."""
    exists: bool
    certificates: int
    sources: int
    changed: str
    left_out: int
    """How many remarks there are on sources that contribute nothing, or less than their writer meant."""
    plain_copy_current: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """One mount, as the server in charge of it sees it; times are as `certfs.moment` writes them."""

    version: int = 1
    boot: str = field(default_factory=boot_id)
    """The boot that the process is of (random(4), boot_id)."""
    mode: Mode
    config_file: str | None
    targets: tuple[str, ...]
    """Where people see it."""
    since: str
    server: ProcessId
    server_since: str
    server_version: str | None = None
    bundles: tuple[BundleSummary, ...]
    plain_copies_current: bool

    def to_json(self) -> bytes:
        """Return the content of the file."""
        return codec.to_json(self, indent=2) + b"\n"

    def is_served(self) -> bool:
        """Whether its server still runs, and certfs is mounted at every target."""
        return self._runs() and all(self._mounted())

    def is_left_dead(self) -> bool:
        """Whether certfs is mounted and its server does not run."""
        return not self._runs() and any(self._mounted())

    def _runs(self) -> bool:
        return self.boot == boot_id() and self.server.alive()

    def _mounted(self) -> list[bool]:
        entries = procfs.mounts()
        tops = (procfs.top_at(entries, target) for target in self.targets)
        return [top is not None and top.is_certfs and top.owner == 0 for top in tops]


def write(directory: str, summary: Summary) -> None:
    """Replace the summary in an instance's directory; OSError where that is impossible."""
    fresh = f"{directory}/{NAME}.new"
    with open(fresh, "wb", opener=_public) as stream:
        os.fchmod(stream.fileno(), _PUBLIC_MODE)
        stream.write(summary.to_json())
    os.rename(fresh, f"{directory}/{NAME}")


def read_hosts(path: str = HOST_SUMMARY) -> Summary | None:
    """Return the summary of the host's own mount, None if there is none that root made."""
    with suppress(OSError, ValueError):
        # O_NONBLOCK: whatever is there must not be waited for.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as stream:
            status = os.fstat(fd)
            if stat.S_ISREG(status.st_mode) and status.st_uid == 0:
                return codec.from_json(Summary, stream.read(_BYTES))
    return None


def _public(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, _PUBLIC_MODE)
