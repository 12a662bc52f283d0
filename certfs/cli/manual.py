"""What certfs(1) says beside the commands: files, the configuration's keys, and the environment.

Owns these lists, which tests hold against the program. The keys are taken from docs/config.md, which is written by hand
and whose tables have a row for each key.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

FILES: Final = (
    ("/etc/certfs.toml", "The configuration of the host's own mount, if it is there."),
    (
        "/etc/xensource, /etc/stunnel, /etc/trusted-certs",
        "The host's own directories, presented over themselves; the last one where it is.",
    ),
    ("STORE/.certfs/host-uuid", "In a standalone store: the UUID of the host that it stands for."),
    (
        "MOUNT/.certfs/status.json",
        "At the root of a mount, reached by name: what certfs status shows.",
    ),
    (
        "BUNDLE",
        "Beneath a mount, in the store: the plain copy of each bundle, which is in view when nothing is mounted.",
    ),
    (
        "/run/certfs, $XDG_RUNTIME_DIR/certfs, /tmp/certfs-UID",
        "The runtime directory, of root or else of the user: a directory for each mount with state and log.",
    ),
    (
        "/etc/systemd/system/certfs.service, certfs-pool.service",
        "What certfs install-units writes, with --pool also the second.",
    ),
)

ENVIRONMENT: Final = (
    ("CERTFS_RUNTIME_DIR", "Another runtime directory, where there is no writable /run."),
    ("XDG_RUNTIME_DIR", "Where an ordinary user's runtime directory is."),
    (
        "CERTFS_POOL_STATE",
        "Where a host keeps its membership of a pool. Default: /var/lib/certfs/pool.",
    ),
    ("XDG_CONFIG_HOME", "Where install-units --user puts a unit. Default: ~/.config."),
    (
        "NOTIFY_SOCKET, JOURNAL_STREAM",
        "Set by systemd: readiness is told to it, and log lines carry a priority.",
    ),
    ("_CERTFS_COMPLETE", "Used by the shell's completion."),
)


@dataclass(frozen=True, slots=True)
class Key:
    """A key of the configuration: what is allowed, its default (empty if it has to be given), and its meaning."""

    name: str
    allowed: str
    default: str
    meaning: str


def configuration_keys(page: str) -> Iterator[Key]:
    """Yield the keys in the tables of docs/config.md; those of the last one are of ``[[notify]]``."""
    prefix = ""
    for line in page.splitlines():
        if re.match(r"\| key \| (?:type, )?allowed \|", line):
            prefix = "notify." if "type" not in line else ""
        row = re.fullmatch(r"\| `([\[\]a-z0-9_.]+)` \| *(.*?) *\| *(.*?) *\| *(.*) \|", line)
        if row and not row[1].startswith("[["):
            yield Key(prefix + row[1], *(_plain(cell) for cell in row.groups()[1:]))


def _plain(cell: str) -> str:
    """Return a cell of Markdown as plain text."""
    return re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", cell).replace("`", "")
