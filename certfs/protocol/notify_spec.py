"""Whom to tell that a bundle has changed: what the configuration says, and what one notifier process is to do.

Owns these values; the supervisor hands them to the notifier as it does a spec to any process (`certfs.protocol.specs`).
"""

from dataclasses import dataclass, field
from typing import Final, Literal, Self

from certfs.protocol import codec
from certfs.protocol.specs import Tree
from certfs.safe_open import read_own, replace_own

HOST_CERTIFICATE: Final = "xensource/xapi-ssl.pem"
"""What readers with ``on = "host-certificate"`` are told of, from the root of the mount."""
_BYTES: Final = 16 << 20


On = Literal["bundle", "host-certificate"]
Action = Literal["try-reload-or-restart", "reload", "restart"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NotifySpec:
    """One ``[[notify]]`` of the configuration: a reader, what it wants to know, and how patient certfs is.

    Exactly one of ``systemd_unit``, ``pid_file``, ``command`` and ``copy`` is given. ``bundles`` are patterns (fnmatch)
    of paths from the root of the mount, none for all. Times are in seconds.
    """

    on: On = "bundle"
    bundles: tuple[str, ...] = ()
    systemd_unit: str = ""
    action: Action = "try-reload-or-restart"
    pid_file: str = ""
    signal: str = "HUP"
    process: str = ""
    """The name (comm) that the process of ``pid_file`` must have."""
    command: tuple[str, ...] = ()
    copy: str = ""
    """Where a plain copy of the one bundle in ``bundles`` is kept (``copy`` of a ``[[bundle]]``)."""
    user: str = ""
    """As whom ``command`` runs; empty for the user of certfs."""
    delay: float = 0.5
    max_delay: float = 5.0
    min_interval: float = 10.0
    timeout: float = 30.0
    grace: float = 5.0
    """Between TERM and KILL, and until a process that is not there is looked for again; not to be configured."""

    @property
    def is_for_each_bundle(self) -> bool:
        """Whether each bundle is told by itself; a reload is one for all."""
        return bool(self.command or self.copy) and self.on == "bundle"

    @property
    def target(self) -> str:
        """The reader in a few words."""
        if self.systemd_unit:
            return f"{self.action} {self.systemd_unit}"
        if self.copy:
            return f"copy {self.copy}"
        if self.pid_file:
            return f"{self.signal} to {self.process} ({self.pid_file})"
        return " ".join(self.command)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What the configuration says of readers: the server writes it down for the supervisor, which reads no TOML."""

    bundles: tuple[str, ...] = ()
    """Paths of bundles from the root of the mount; a ``*`` in the last part stands for any bundle of that form."""
    notify: tuple[NotifySpec, ...] = ()
    baseline: dict[str, str] = field(default_factory=dict)
    """The SHA-256 of each bundle and of the host certificate when the server began to serve, empty where absent."""

    def write(self, path: str) -> None:
        """Replace the file at ``path``; OSError where that is impossible."""
        replace_own(path, codec.to_json(self))

    @classmethod
    def read(cls, path: str) -> Self:
        """Return what `write` left; no wishes where there is nothing that can be read."""
        try:
            return codec.from_json(cls, read_own(path, _BYTES))
        except (OSError, ValueError):
            return cls()


@dataclass(frozen=True, slots=True, kw_only=True)
class NotifierSpec:
    """What one notifier process is to do."""

    trees: tuple[Tree, ...]
    bundles: tuple[str, ...]
    """As in `Wishes`."""
    notify: tuple[NotifySpec, ...]
    baseline: dict[str, str]
    """As in `Wishes`."""
    state: str
    """The path of the state file."""
    journal: bool = False

    def inherited(self) -> tuple[int, ...]:
        """Return every descriptor that the notifier with this spec holds, but its standard streams."""
        return tuple(tree.fd for tree in self.trees)
