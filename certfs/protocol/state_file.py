"""Where the processes of certfs find each other: the runtime directory, an instance's lock and its state file.

Owns the layout below /run/certfs (root) or $XDG_RUNTIME_DIR/certfs, and the schema of state.json. One directory for
each mount: ``dom0``, or ``at-`` and the mountpoint, escaped. In it: ``lock`` (held with flock(2) by the supervisor),
``state.json``, ``control`` (a socket), ``log``, ``mount-N``, the hidden mountpoints, and what a server leaves to the
next one: ``undo-log``, ``settings.json``. ``flags`` has the options of the mount, which a remount changes.
"""

import errno
import fcntl
import os
import shlex
import shutil
import stat
import time
import zlib
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Literal

from certfs.errors import PrivilegeError, from_os_error
from certfs.linux.processes import ProcessId
from certfs.protocol import codec, timeouts
from certfs.protocol.specs import Mode
from certfs.safe_open import read_own, refusal, replace_own

OVERRIDE: Final = "CERTFS_RUNTIME_DIR"
"""Environment variable that names another runtime directory, for containers that have no writable /run."""
HOST_INSTANCE: Final = "dom0"
_PASSABLE: Final = 0o011
REMEMBERED_EVENTS: Final = 50
STATE_BYTES: Final = 4 << 20
"""More than any state file has: events have short texts, and paths 4 KiB."""

_PLAIN: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._")
_FLAGS_BYTES: Final = 1000
_NAME_LENGTH: Final = 200
"""Names have up to 255 bytes (limits.h)."""

Phase = Literal["starting", "serving", "plain", "ending"]
"""``plain``: the server died, and the plain directories are in view until the next one serves."""
EventKind = Literal["killed", "crashed", "hung", "not started", "restarted", "adopted"]


def runtime_directory() -> str:
    """Return the directory that holds this user's instances; it need not exist."""
    user = os.geteuid()
    override = os.environ.get(OVERRIDE)
    if override:
        return os.path.realpath(override)
    if user == 0:
        return os.path.realpath("/run/certfs")
    session = os.environ.get("XDG_RUNTIME_DIR")
    return f"{os.path.realpath(session)}/certfs" if session else f"/tmp/certfs-{user}"  # noqa: S108  checked in `_own`


def instance_name(mode: Mode, mountpoint: str) -> str:
    """Return the name of an instance's directory; the same mountpoint gives the same name."""
    if mode == "dom0":
        return HOST_INSTANCE
    raw = os.fsencode(mountpoint).strip(b"/")
    name = "".join(chr(byte) if byte in _PLAIN else f"%{byte:02x}" for byte in raw)
    name = name.replace("%2f", "-")
    if len(name) > _NAME_LENGTH:
        name = f"{name[:_NAME_LENGTH]}%%{zlib.crc32(raw):08x}"
    return f"at-{name}"


def instances() -> tuple[str, ...]:
    """Return the directories of this user's instances, running or not. PrivilegeError as `check_own`."""
    base = runtime_directory()
    check_own(base)
    try:
        names = sorted(os.listdir(base))
    except FileNotFoundError:
        return ()
    return tuple(f"{base}/{name}" for name in names if name == "dom0" or name.startswith("at-"))


def make_instance(mode: Mode, mountpoint: str) -> str:
    """Make an instance's directory and return it. CertfsError, PrivilegeError if somebody else owns the place."""
    directory = f"{runtime_directory()}/{instance_name(mode, mountpoint)}"
    for path in (os.path.dirname(directory), directory):
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            pass
        except OSError as error:
            raise from_os_error(path, error, advice=_other_place()) from error
        check_own(path)
    return directory


def remake_directory(directory: str, *, passable: bool) -> None:
    """Make the directory of an instance that runs, if somebody has removed it; OSError if another user was faster.

    ``passable``: everybody may pass through, for the host's summary and so that statfs(2) of a hidden mount answers
    everybody (df, lsof); what else is in it has the mode 0600 or 0700. Only where the root of hidden mounts lets nobody
    else in: below it a store would be reached without the directories above it (promise I19).
    """
    for path in (os.path.dirname(directory), directory):
        with suppress(FileExistsError):
            os.mkdir(path, 0o700)
        reason = refusal(path)
        if reason:
            raise PermissionError(errno.EPERM, reason, path)
        if passable:
            # What else its mode allows is for whoever made it to say (CERTFS_RUNTIME_DIR).
            os.chmod(path, stat.S_IMODE(os.stat(path).st_mode) | _PASSABLE)


def check_own(path: str) -> None:
    """Check that a runtime directory is this user's, if it is there at all; PrivilegeError if somebody else made it.

    Whoever can write to it says which processes are to be killed and what is to be unmounted. CertfsError where this
    user may not even look.
    """
    reason = ""
    try:
        reason = refusal(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise from_os_error(path, error, advice=_other_place()) from error
    if reason:
        raise PrivilegeError(reason, advice=_other_place())


def _other_place() -> str:
    """Return what to do about a runtime directory that cannot be used, by what has named it."""
    if os.environ.get(OVERRIDE):
        return f"name a directory of your own in the environment variable {OVERRIDE}"
    if os.geteuid() != 0 and os.environ.get("XDG_RUNTIME_DIR"):
        return "XDG_RUNTIME_DIR has to name a directory of yours: after su or setpriv, unset it"
    return f"remove it, or name another in the environment variable {OVERRIDE}"


def take_lock(directory: str) -> int | None:
    """Lock an instance and return the descriptor that holds the lock, None if another process holds it."""
    fd = os.open(f"{directory}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def await_lock(directory: str, seconds: float = timeouts.LOCK) -> int | None:
    """Like `take_lock`, but wait for so long while another process holds the lock."""
    deadline = time.monotonic() + seconds
    while (lock := take_lock(directory)) is None and time.monotonic() < deadline:
        time.sleep(0.05)
    return lock


def boot_id() -> str:
    """Return what identifies this boot of the machine."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as stream:
        return stream.read().strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened to the server."""

    at: float
    """Seconds since the epoch."""
    kind: EventKind
    detail: str
    """For people, such as ``killed by SIGKILL``."""
    plain_seconds: float | None = None
    """From the death of the server to plain directories at every target; None if they were never in view."""
    live_seconds: float | None = None
    """From the death of the server (or the request to restart) to the live mount; None if that is still to come."""


@dataclass(frozen=True, slots=True)
class KeptBind:
    """A bind mount that others made of what only a replaced server still has; it is there as long as that lives."""

    mount_id: int
    device: str
    point: str
    server: ProcessId


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """The content of state.json. The supervisor alone writes it, at every change, atomically."""

    version: int = 1
    boot: str = field(default_factory=boot_id)
    """The boot (random(4), boot_id) that the process and device numbers are of."""
    mode: Mode
    phase: Phase
    targets: tuple[str, ...]
    """The paths where people see the trees."""
    stores: tuple[str, ...]
    config_file: str | None
    since: float
    """When this instance first served, in seconds since the epoch."""
    supervisor: ProcessId
    server: ProcessId | None = None
    server_since: float | None = None
    janitor: ProcessId | None = None
    lingering: tuple[ProcessId, ...] = ()
    """Servers that were replaced and serve what is still open, the oldest first."""
    kept: tuple[KeptBind, ...] = ()
    mountpoint: str | None = None
    """Where the server's FUSE mount is: ``MOUNTPOINT/.certfs/status.json`` is read there."""
    device: str | None = None
    """``major:minor`` of that mount."""
    devices: tuple[str, ...] = ()
    """Every file system of this instance that may still be in the mount table, older ones included."""
    allow_other: bool = False
    log: str | None = None
    """The log file; None if the log goes to standard error (the journal, a terminal)."""
    deaths: int = 0
    """Deaths in a row; 0 again once a server has served for a while."""
    defects: int = 0
    """How many of them were not kills from outside."""
    next_start: float | None = None
    """When the next server is started, in seconds since the epoch, while a back-off waits for that."""
    events: tuple[Event, ...] = field(default=())
    """The last ones, oldest first."""

    @property
    def processes(self) -> tuple[ProcessId, ...]:
        """The supervisor, and the server if there is one; either may have died."""
        return (self.supervisor, self.server) if self.server else (self.supervisor,)

    def command(self, name: str) -> str:
        """Return the command line of certfs that is about this mount."""
        return command_at(name, self.mode, self.targets[0])


def command_at(name: str, mode: Mode, target: str) -> str:
    """Return the command line of certfs that is about a mount: the host's own needs no name."""
    return f"certfs {name}" if mode == "dom0" else f"certfs {name} {shlex.quote(target)}"


def write_state(directory: str, state: State) -> None:
    """Replace state.json; a reader sees the old one or the new one."""
    path = f"{directory}/state.json"
    reason = refusal(directory)
    if reason:
        raise PermissionError(errno.EPERM, reason, path)
    replace_own(path, codec.to_json(state, indent=1))


def read_state(directory: str) -> State | None:
    """Return what the last supervisor of this boot wrote, None if there is nothing of this user's that can be read."""
    try:
        state = codec.from_json(State, read_own(f"{directory}/state.json", STATE_BYTES))
    except (OSError, ValueError):
        return None
    return state if state.boot == boot_id() else None


@dataclass(frozen=True, slots=True, kw_only=True)
class MountFlags:
    """The options of an instance's mount, as flags of mount(2)."""

    asked: int = 0
    """By whoever mounted it, or by the last remount."""
    beneath: int = 0
    """Those of the store's file systems: what is forbidden there stays forbidden above (I19)."""

    @property
    def all(self) -> int:
        """What the mount gets."""
        return self.asked | self.beneath


def read_flags(directory: str) -> MountFlags:
    """Return the options of an instance's next mount; none where nothing can be read."""
    try:
        with open(f"{directory}/flags", "rb") as stream:
            return codec.from_json(MountFlags, stream.read(_FLAGS_BYTES))
    except (OSError, ValueError):
        return MountFlags()


def write_flags(directory: str, flags: MountFlags) -> None:
    """Have the next mount of the instance, and those after it, get these options."""
    replace_own(f"{directory}/flags", codec.to_json(flags))


def clear_instance(directory: str) -> None:
    """Remove what a supervisor leaves behind; what is still mounted stays, and so does the log.

    The lock file stays as well: removing it would let two processes hold locks on two files of that name.
    """
    names: list[str] = []
    with suppress(FileNotFoundError):  # somebody has removed the directory
        names = os.listdir(directory)
    for name in names:
        path = f"{directory}/{name}"
        with suppress(OSError):
            if name.startswith("mount-"):
                os.rmdir(path)
            elif name == "undo-log":
                shutil.rmtree(path)
            elif name.startswith(
                ("state.json", "control", "settings.json", "summary.json", "flags")
            ):
                os.unlink(path)
