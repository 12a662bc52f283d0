"""What a unit says, for each manager that it may be for: one template, and what each version of systemd knows.

Values in, text out. An old systemd only warns of a directive that it does not know, and goes on without; what matters
is what it understands in another way. Version 219 (EL7) takes the start limit from another section, and drops groups
from a list of system calls, so that the rest of the list would be all that is allowed.
"""

import string
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

NEWEST: Final = 252
"""The systemd of Debian 12; nothing in the template is newer."""

SINCE: Final = {
    "StartLimitIntervalSec": 230,
    "MemoryDenyWriteExecute": 231,
    "RestrictRealtime": 231,
    "RestrictNamespaces": 233,
    "IPAddressDeny": 235,
    "KeyringMode": 235,
    "LockPersonality": 235,
    "SystemCallFilter": 239,
    "SystemCallErrorNumber": 239,
}
"""The version that introduced a directive, if it is newer than 219 (systemd's NEWS).

The filter of system calls is older, but not its group @system-service; without a filter, its error number says nothing.
"""
_LIMIT: Final = "StartLimitIntervalSec"
_FOR_ROOT: Final = frozenset(
    (
        "CapabilityBoundingSet", "IPAddressDeny", "KeyringMode", "LockPersonality", "MemoryDenyWriteExecute",
        "NoNewPrivileges", "OOMScoreAdjust", "RestrictAddressFamilies", "RestrictNamespaces", "RestrictRealtime",
        "SystemCallArchitectures", "SystemCallErrorNumber", "SystemCallFilter",
    )
)  # fmt: skip
"""What a user's manager may not do, or does by forbidding new privileges, without which fusermount3 cannot mount."""
_DOM0_ONLY: Final = frozenset(("Before",))
_PLAIN: Final = frozenset((string.ascii_letters + string.digits + "_-./:@+=,").encode())


@dataclass(frozen=True, slots=True, kw_only=True)
class Standalone:
    """A mount of a store of its own; paths are absolute."""

    store: str
    mountpoint: str
    options: tuple[str, ...] = ()
    """Further arguments of ``certfs mount``."""


POOL_UNIT: Final = "certfs-pool.service"


def unit_name(mount: Standalone | None) -> str:
    """Return the name of the unit's file."""
    return f"certfs-{_escaped(mount.mountpoint)}.service" if mount else "certfs.service"


def unit_text(
    template: str,
    program: str,
    *,
    systemd: int = NEWEST,
    mount: Standalone | None = None,
    user: bool = False,
) -> str:
    """Return the unit for a certfs that is installed as ``program``: the host's own, or that of a ``mount``."""
    start = ["mount", "--foreground"]
    where = []
    if mount:
        start += ["--store", mount.store, *mount.options, mount.mountpoint]
        where = [mount.mountpoint]
    values = {
        "TITLE": f"certfs at {mount.mountpoint}"
        if mount
        else "certfs over the host's own directories",
        "DESCRIPTION": f"Live TLS CA bundles at {mount.mountpoint}"
        if mount
        else "Live TLS CA bundles in /etc/xensource and /etc/stunnel",
        "PATHS": _paths(program, mount),
        "PROGRAM": program.replace("%", "%%"),
        "START": _command(program, *start),
        "RELOAD": _command(program, "restart", *where),
        "STOP": _command(program, "unmount", "--if-mounted", "--own-unit", *where),
        "WANTED_BY": "default.target" if user else "multi-user.target",
    }
    left_out: set[str] = set()
    if user:
        left_out |= _FOR_ROOT
    if mount:
        left_out |= _DOM0_ONLY
    return _rendered(template, values, systemd, left_out)


def pool_unit_text(
    template: str, program: str, mount: Standalone | None, *, systemd: int = NEWEST
) -> str:
    """Return the unit of the process that keeps the store of a mount and its pool together."""
    where = ("--store", mount.store, *mount.options, mount.mountpoint) if mount else ()
    values = {
        "TITLE": mount.mountpoint if mount else "the host's own directories",
        "DESCRIPTION": f"The certificates of a pool of hosts in {mount.mountpoint if mount else '/etc/stunnel'}",
        "PATHS": _paths(program, mount),
        "PROGRAM": program.replace("%", "%%"),
        "MOUNT_UNIT": unit_name(mount),
        "START": _command(program, "pool", "run", *where),
    }
    return _rendered(template, values, systemd, set())


def _paths(program: str, mount: Standalone | None) -> str:
    """Return what has to be mounted before a unit starts: a program that is not there yet must not look removed."""
    places = (mount.store, mount.mountpoint) if mount else ("/etc", "/run")
    return _command(*places, program)


def _rendered(template: str, values: dict[str, str], systemd: int, left_out: set[str]) -> str:
    """Return a template without what is ``left_out`` or not known to a version of systemd, with its values."""
    for name in ("TITLE", "DESCRIPTION"):
        values[name] = values[name].replace("%", "%%").replace("\n", " ")
    left_out |= {name for name, since in SINCE.items() if since > systemd} - {_LIMIT}
    if not values["PROGRAM"].isprintable() or values["PROGRAM"].endswith((" ", "\\")):
        left_out.add("ConditionFileIsExecutable")  # it has no quoting
    lines = list(_lines(template, left_out))
    if systemd < SINCE[_LIMIT]:
        lines = _old_start_limit(lines)
    text = "\n".join(lines) + "\n"
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    return text


def _lines(template: str, left_out: set[str]) -> Iterator[str]:
    """Yield the lines that stay; a comment goes with what it is about."""
    comment: list[str] = []
    for line in template.splitlines():
        if line.startswith("#"):
            comment.append(line)
        elif line.partition("=")[0] not in left_out:
            yield from comment
            comment = []
            yield line
        else:
            comment = []


def _old_start_limit(lines: list[str]) -> list[str]:
    """Move the start limit to where systemd looked for it before version 230, under its old name."""
    limit = [line for line in lines if line.startswith("StartLimit")]
    rest = [line for line in lines if line not in limit]
    if limit:
        place = rest.index("[Service]") + 1
        rest[place:place] = [line.replace(_LIMIT, "StartLimitInterval") for line in limit]
    return rest


def _command(*words: str) -> str:
    return " ".join(map(_word, words))


def _word(word: str) -> str:
    """Quote one word of a command line (systemd.service(5)) or of a list of paths."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    escaped = escaped.replace("\n", "\\n").replace("\t", "\\t")
    return f'"{escaped}"' if any(byte not in _PLAIN for byte in word.encode()) else escaped


def _escaped(path: str) -> str:
    """Return a path as part of a unit's name (systemd-escape(1))."""
    parts = []
    for number, byte in enumerate(path.strip("/").encode(errors="surrogateescape")):
        character = chr(byte)
        if character == "/":
            parts.append("-")
        elif (
            (character.isascii() and character.isalnum())
            or character in ":_"
            or (character == "." and number)
        ):
            parts.append(character)
        else:
            parts.append(f"\\x{byte:02x}")
    return "".join(parts) or "-"
