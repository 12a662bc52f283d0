"""The kernel's tables in /proc, read as values (proc(5)).

Owns the form of these tables, for every process of certfs. What stands in them can be chosen by any user of the
machine: the name of a mountpoint, of a file system, of a program. So they are read as bytes, lines end at a line feed
and fields at a single space, since those are what the kernel escapes; nothing else separates (a carriage return, a
no-break space), no byte has to be a character of some encoding, and a line of another form is left out. Only the
standard library: the supervisor imports this.
"""

import functools
import os
import re
import select
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

FILESYSTEM_TYPE: Final = "fuse.certfs"
"""What a mount of certfs says that it is. Any user can mount something that says the same: see `is_ours`."""
MOUNTINFO: Final = "/proc/self/mountinfo"
_READS: Final = 5
_BYTES: Final = 1 << 20
"""More than any table of one process has: 65,536 groups are half of it."""
_PIECE: Final = 1 << 16
_LONGEST_FIELD: Final = 4 * 4096
"""More than any path has that a system call takes (PATH_MAX), with each byte of it escaped."""
_NO_LOGIN: Final = (1 << 32) - 1
_ESCAPE: Final = re.compile(rb"\\([0-3][0-7]{2})")
_MOST_DIGITS: Final = 20
_IPV6_DIGITS: Final = 32
_STARTED_FIELD: Final = 22 - 3
_EXIT_FIELD: Final = 52 - 3
"""Counted from the state of a process, which is field 3 and follows its name."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One mount of this mount namespace.

    Text is decoded with the file system's error handler (`os.fsdecode`): it may hold any bytes.
    """

    mount_id: int
    parent_id: int
    device: str
    """``major:minor`` of the file system."""
    root: str
    """The directory (or file) of the file system that is mounted."""
    point: str
    """Where, from this process's root."""
    kind: str
    """The file system's type, such as ``fuse.certfs``; what follows ``fuse.`` was chosen by its user."""
    owner: int | None = None
    """The user who mounted a FUSE file system: the kernel and fusermount3 say so, the user has no choice."""

    @property
    def key(self) -> tuple[int, str, str]:
        """What tells it from other mounts, and from itself at another place: number, device and place."""
        return self.mount_id, self.device, self.point

    @property
    def is_certfs(self) -> bool:
        """Whether it says that it is one of certfs, whoever it belongs to."""
        return self.kind == FILESYSTEM_TYPE


def is_ours(entry: Entry) -> bool:
    """Whether a mount is one of certfs that this user, or root, has made.

    That is as much as the table tells. Which instance it belongs to is known by its device number, from what that
    instance has noted; what may be unmounted is decided by both.
    """
    return entry.is_certfs and entry.owner in (0, os.geteuid())


def mounts(pid: int | None = None) -> tuple[Entry, ...]:
    """Return the mounts of this namespace, or of that of process ``pid``; OSError without a /proc."""
    return _entries(_mountinfo(MOUNTINFO if pid is None else f"/proc/{pid}/mountinfo"))


def parse_mounts(raw: bytes) -> tuple[Entry, ...]:
    """Return what a mountinfo table says; never raises."""
    return _entries(_lines((raw,)))


def _entries(lines: Iterable[bytes]) -> tuple[Entry, ...]:
    return tuple(entry for line in lines if (entry := _mount(line)))


def top_at(entries: Collection[Entry], point: str) -> Entry | None:
    """Return the mount that is in view at ``point``, None if nothing is mounted there."""
    here = {entry.mount_id: entry for entry in entries if entry.point == point}
    covered = {entry.parent_id for entry in here.values()}
    return next((entry for entry in here.values() if entry.mount_id not in covered), None)


def mount_of(fd: int) -> Entry | None:
    """Return the mount that an open file was reached by; its file system is not asked."""
    number = mount_id(fd)
    start = b"%d " % number if number is not None else b"none "
    lines = (line for line in _mountinfo() if line.startswith(start))
    return next(filter(None, map(_mount, lines)), None)


def mount_id(fd: int) -> int | None:
    """Return the id of the mount that an open file was reached by (fdinfo), None where the kernel does not say it.

    OSError if that cannot be known now.
    """
    return _integer(_labelled(_read(f"/proc/self/fdinfo/{fd}"), b"mnt_id"))


class Stat(NamedTuple):
    """What /proc/PID/stat says of a process."""

    state: str
    """One letter: ``Z`` and ``X`` have ended, ``T`` and ``t`` are stopped."""
    started: int
    """Clock ticks after boot."""
    exit_status: int
    """As waitpid(2) has it, once it has ended and where this process may know it; else 0."""


def stat_of(pid: int) -> Stat | None:
    """Return the state of a process; None if there is none, or it may not be seen.

    OSError if that cannot be known now, for want of descriptors for instance: no reason to take it for dead.
    """
    try:
        return parse_stat(_read(f"/proc/{pid}/stat"))
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None


def parse_stat(raw: bytes) -> Stat | None:
    """Return what is said by /proc/PID/stat; the name in it may hold anything, parentheses and line feeds too."""
    _, closed, after = raw.rpartition(b") ")
    fields = after.rstrip(b"\n").split(b" ")
    if not closed or len(fields) < _EXIT_FIELD + 1 or len(fields[0]) != 1:
        return None
    started, exit_status = _integer(fields[_STARTED_FIELD]), _integer(fields[_EXIT_FIELD])
    if started is None or exit_status is None:
        return None
    return Stat(fields[0].decode("latin-1"), started, exit_status)


@dataclass(frozen=True, slots=True)
class Credentials:
    """What the kernel lets a process do with files."""

    uid: int
    gid: int
    """Those for the file system (credentials(7))."""
    groups: tuple[int, ...]
    capabilities: int
    """The effective ones, as bits (capabilities(7)), of the process's own user namespace."""


def credentials_of(pid: int) -> Credentials | None:
    """Return the credentials of a process; None if they cannot be known."""
    return parse_credentials(_of_process(pid, "status"))


def parse_credentials(status: bytes) -> Credentials | None:
    """Return the credentials that /proc/PID/status says."""
    users, groups, supplementary = (
        tuple(map(_integer, _labelled(status, label).split()))
        for label in (b"Uid", b"Gid", b"Groups")
    )
    capabilities = _hexadecimal(_labelled(status, b"CapEff"))
    known = tuple(number for number in supplementary if number is not None)
    match users, groups, capabilities:
        case [_, _, _, int(uid)], [_, _, _, int(gid)], int(bits) if len(known) == len(
            supplementary
        ):
            return Credentials(uid, gid, known, bits)
    return None


def command_of(pid: int) -> bytes:
    """Return the name of the program that a process runs, up to 15 bytes of anything; empty if it is not known."""
    return _of_process(pid, "comm").removesuffix(b"\n")


def arguments_of(pid: int) -> tuple[bytes, ...]:
    """Return the command line of a process; empty if it is not known."""
    raw = _of_process(pid, "cmdline")
    return tuple(raw.removesuffix(b"\0").split(b"\0")) if raw else ()


def unit_of(pid: int) -> str | None:
    """Return the systemd service that a process belongs to, None if it is in none, or that cannot be known."""
    return parse_cgroup(_of_process(pid, "cgroup"))


def parse_cgroup(raw: bytes) -> str | None:
    """Return the service that /proc/PID/cgroup names, in systemd's own hierarchy or the unified one (cgroups(7))."""
    for line in raw.split(b"\n"):
        match line.split(b":", 2):
            case [_, b"" | b"name=systemd", path]:
                units = [part for part in path.split(b"/") if part.endswith(b".service")]
                if units:
                    return os.fsdecode(units[-1])
    return None


def login_of(pid: int) -> int | None:
    """Return the user who has logged in to start a process (loginuid), whoever it is now; None if nobody has."""
    number = _integer(_of_process(pid, "loginuid").removesuffix(b"\n"))
    return None if number == _NO_LOGIN else number


class ListeningSocket(NamedTuple):
    """A TCP socket that waits for connections."""

    address: bytes
    """4 or 16 bytes, in words of the machine's byte order."""
    port: int
    inode: int
    """Of the socket, as in ``socket:[INODE]`` where a descriptor leads to."""


def listening_sockets(pid: int) -> tuple[ListeningSocket, ...]:
    """Return the listening TCP sockets of the network namespace that a process is in; none if they cannot be known."""
    return parse_tcp(_of_process(pid, "net/tcp")) + parse_tcp(_of_process(pid, "net/tcp6"))


def parse_tcp(raw: bytes) -> tuple[ListeningSocket, ...]:
    """Return the listening sockets that /proc/net/tcp or tcp6 names, whose columns are filled up with spaces."""
    return tuple(found for line in raw.split(b"\n") if (found := _socket(line)))


def _socket(line: bytes) -> ListeningSocket | None:
    match [field for field in line.split(b" ") if field]:
        case [_, local, _, b"0A", _, _, _, _, _, inode, *_]:
            digits, _, port = (part.lower() for part in local.partition(b":"))
            match _hexadecimal(digits), _hexadecimal(port), _integer(inode):
                case int(number), int(port_number), int(inode_number) if len(digits) % 8 == 0:
                    address = number.to_bytes(len(digits) // 2)
                    return ListeningSocket(address, port_number, inode_number)
    return None


class InterfaceAddress(NamedTuple):
    """One IPv6 address of this host."""

    address: bytes
    """16 bytes."""
    scope: int
    """IPV6_ADDR_… of <net/ipv6.h>, 0 for a global one."""
    flags: int
    """IFA_F_… of <linux/if_addr.h>."""
    interface: str


def ipv6_addresses() -> tuple[InterfaceAddress, ...]:
    """Return the IPv6 addresses of this host's interfaces; none where there is no IPv6."""
    try:
        return parse_ipv6(_read("/proc/net/if_inet6"))
    except OSError:
        return ()


def parse_ipv6(raw: bytes) -> tuple[InterfaceAddress, ...]:
    """Return what is said by /proc/net/if_inet6, whose columns are filled up with spaces."""
    return tuple(found for line in raw.split(b"\n") if (found := _address(line)))


def _address(line: bytes) -> InterfaceAddress | None:
    match [field for field in line.split(b" ") if field]:
        case [address, _, _, scope, flags, interface] if len(address) == _IPV6_DIGITS:
            match tuple(map(_hexadecimal, (address, scope, flags))):
                case int(number), int(known_scope), int(known_flags):
                    packed = number.to_bytes(_IPV6_DIGITS // 2)
                    name = os.fsdecode(interface)
                    return InterfaceAddress(packed, known_scope, known_flags, name)
    return None


def _mountinfo(path: str = MOUNTINFO) -> list[bytes]:
    """Return the lines of a mount table.

    The table comes in pieces, and before Linux 5.8 a mount is missing from it if another one goes between two of them.
    So it is read again when it has changed meanwhile.
    """
    for _ in range(_READS):
        with open(path, "rb", buffering=0) as stream:
            lines = list(_lines(iter(functools.partial(stream.read, _PIECE), b"")))
            poll = select.poll()
            poll.register(stream, select.POLLPRI)
            if not poll.poll(0):
                break
    return lines


def _lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Return the lines of a table that comes in pieces, each field of a line up to `_LONGEST_FIELD` bytes of it.

    Whoever moves a directory above a mount into others makes its line as long as they like: many megabytes.
    """
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        yield from map(_bounded, lines)
        rest = _bounded(rest)
    yield rest


def _bounded(line: bytes) -> bytes:
    if len(line) <= _LONGEST_FIELD:
        return line
    return b" ".join(field[:_LONGEST_FIELD] for field in line.split(b" "))


def _mount(line: bytes) -> Entry | None:
    before, _, after = line.partition(b" - ")
    kind, _, described = after.partition(b" ")
    try:
        number, parent, device, root, point, *_ = before.split(b" ")
    except ValueError:
        return None
    match (_integer(number), _integer(parent), *map(_integer, device.split(b":"))):
        case int(own_id), int(parent_id), int(major), int(minor):
            pass
        case _:
            return None
    if not kind or not root or not point:
        return None
    options = described.rpartition(b" ")[2].split(b",")
    return Entry(
        own_id,
        parent_id,
        f"{major}:{minor}",
        _unescaped(root),
        _unescaped(point),
        _unescaped(kind),
        _owner(options) if kind.startswith(b"fuse") else None,
    )


def _owner(options: Collection[bytes]) -> int | None:
    label = b"user_id="
    found = (option.removeprefix(label) for option in options if option.startswith(label))
    return _integer(next(found, b""))


def _unescaped(field: bytes) -> str:
    r"""Undo the octal escapes of blank, tab, line feed, backslash and number sign (``\040``); leave what is none."""
    return os.fsdecode(_ESCAPE.sub(lambda octal: bytes((int(octal[1], 8),)), field))


def _labelled(table: bytes, label: bytes) -> bytes:
    """Return what follows ``label:`` in a table of one such line for each value, empty if there is none."""
    start = label + b":"
    found = (line for line in table.split(b"\n") if line.startswith(start))
    return next(found, b"").removeprefix(start).strip(b" \t")


def _integer(field: bytes) -> int | None:
    return int(field) if field.isdigit() and len(field) <= _MOST_DIGITS else None


def _hexadecimal(field: bytes) -> int | None:
    is_number = 0 < len(field) <= _IPV6_DIGITS and not field.strip(b"0123456789abcdef")
    return int(field, 16) if is_number else None


def _of_process(pid: int, name: str) -> bytes:
    """Return a table of a process; empty if that has ended, or may not be seen, or the table cannot be read now."""
    try:
        return _read(f"/proc/{pid}/{name}")
    except OSError:
        return b""


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    pieces: list[bytes] = []
    try:
        while (piece := os.read(fd, _BYTES)) and sum(map(len, pieces)) < _BYTES:
            pieces.append(piece)
    finally:
        os.close(fd)
    return b"".join(pieces)
