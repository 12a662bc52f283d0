"""What a process of certfs is started with: a server and a notifier by a supervisor, that by a command or by a server.

A spec is written to a file in memory, of which the new process gets the descriptor (`pass_on`, `receive`).
"""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, NoReturn, Protocol, TypeVar

from certfs.linux.descriptors import memory_file
from certfs.linux.processes import ProcessId, python, start
from certfs.protocol import codec
from certfs.safe_open import closing

SERVER_MODULE: Final = "certfs.server.main"
SUPERVISOR_MODULE: Final = "certfs.supervisor.supervisor"
ENDING: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""The signals that ask a supervisor to unmount."""

Mode = Literal["standalone", "dom0"]


def wishes_file(runtime: str) -> str:
    """Return the path of what an instance's configuration says of readers (`certfs.protocol.notify_spec.Wishes`)."""
    return f"{runtime}/wishes.json"


def notify_state_file(runtime: str) -> str:
    """Return the path of what readers were told (`certfs.protocol.notify_state`).

    It is beside the instance, because it outlives an unmount.
    """
    directory, name = os.path.split(runtime)
    return f"{directory}/notify-{name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """One directory of the store and the place where it is presented.

    Paths are decoded with the file system's error handler (`os.fsdecode`): they may hold any bytes.
    """

    name: str
    """Its name in the root of the FUSE mount, such as ``stunnel``; empty when it is the root itself (standalone)."""
    store: str
    """Its path, for people: never resolved by a supervisor or a server."""
    target: str
    """Where it is seen: the mountpoint, or in Dom0 the same path as ``store``."""
    fd: int
    """The store's directory, opened O_PATH | O_DIRECTORY before anything covered it."""
    beneath_fd: int | None = None
    """The directory that the mount covers, opened likewise, where the store cannot be bound over it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MountSpec:
    """What one instance of certfs serves; it stays the same over every restart, but for trees that come ``later``."""

    mode: Mode
    trees: tuple[Tree, ...]
    """Standalone: one, with an empty name."""
    later: tuple[str, ...] = ()
    """Paths of directories of the host that become trees as soon as they exist."""
    inner: str = ""
    """Standalone, root: the tree's name in the closed root of the hidden mount; empty where it is the root itself."""
    runtime: str
    """The instance's directory (`certfs.protocol.state_file`)."""
    config_file: str | None = None
    config_optional: bool = False
    """The file counts if it is there, at the start of a server; otherwise it must be."""
    allow_other: bool = False
    journal: bool = False
    """Standard error is the systemd journal: log lines carry a ``<N>`` priority (sd-daemon(3)) and no time."""
    log: str | None = None
    """The path of the file that standard error is; None if it is the journal or a terminal."""

    def inherited(self) -> tuple[int, ...]:
        """Return the descriptors of all directories."""
        fds = (fd for tree in self.trees for fd in (tree.fd, tree.beneath_fd))
        return tuple(fd for fd in fds if fd is not None)

    @property
    def is_closed(self) -> bool:
        """Whether nobody but root gets further than the root of the FUSE mount, which is shown in parts (I19)."""
        return self.mode == "dom0" or bool(self.inner)

    @property
    def source(self) -> str:
        """The source in the mount table: the store, so that ``df`` and ``umount SOURCE`` tell mounts apart."""
        return self.trees[0].store if self.mode == "standalone" else "certfs"

    @property
    def state_file(self) -> str:
        """The JSON of `certfs.protocol.state_file.State`, replaced atomically."""
        return f"{self.runtime}/state.json"

    @property
    def config_in_use(self) -> str | None:
        """The configuration file that a server reads that starts now."""
        if self.config_file and self.config_optional and not os.path.lexists(self.config_file):
            return None
        return self.config_file

    @property
    def settings_file(self) -> str:
        """The configuration that the last server serves with (`certfs.server.settings`)."""
        return f"{self.runtime}/settings.json"

    @property
    def undo_log(self) -> str:
        """The directory of what a server leaves to the next one (`certfs.store.undo_log`)."""
        return f"{self.runtime}/undo-log"

    @property
    def title(self) -> str:
        """Where the mount is, for people."""
        return ", ".join(tree.target for tree in self.trees)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSpec:
    """What one server is to do."""

    mount: MountSpec
    standby: bool = False
    """Another server still writes the plain copies: read everything, serve, but write none until told."""
    asked: bool = False
    """The server was asked for: read the configuration anew. Otherwise it follows a death."""
    first: bool = False
    """Nothing has been mounted yet, and a command waits to hear whether anything will be."""
    link_fd: int = -1
    """The server's end of the link."""
    life: tuple[int, int] = (-1, -1)
    """A pipe (read end, write end) whose end tells the supervisor that the server has died."""

    def inherited(self) -> tuple[int, ...]:
        """Return every descriptor that the process with this spec holds."""
        return (*self.mount.inherited(), self.link_fd, *self.life)


@dataclass(frozen=True, slots=True, kw_only=True)
class Adoption:
    """A server that already runs, for a supervisor that did not start it."""

    process: ProcessId
    link_fd: int
    """The supervisor's end of the link."""
    life_fd: int
    """The read end of the server's `ServerSpec.life`."""
    mountpoint: str | None
    """None if it has loaded and was not given a descriptor yet."""
    device: str | None
    standby: bool
    janitor: ProcessId | None
    """The janitor of the supervisor before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorSpec:
    """What one supervisor is to do."""

    mount: MountSpec
    report_fd: int | None = None
    """Where the first outcome goes; None if nobody waits for it."""
    lock_fd: int | None = None
    """Holds the lock of the instance; None to take it."""
    adopt: Adoption | None = None
    """None to start a server."""
    server_module: str = SERVER_MODULE

    def inherited(self) -> tuple[int, ...]:
        """Return every descriptor that the supervisor with this spec holds."""
        fds = [*self.mount.inherited(), self.report_fd, self.lock_fd]
        if self.adopt:
            fds += [self.adopt.link_fd, self.adopt.life_fd]
        return tuple(fd for fd in fds if fd is not None)


class Spec(Protocol):
    """What a process is started with."""

    def inherited(self) -> tuple[int, ...]:
        """Return every descriptor that the process holds."""
        ...


AnySpec = TypeVar("AnySpec", bound=Spec)


def start_with(
    spec: Spec, module: str, *, stdin: int | None = None, output: int | None = None
) -> int:
    """Start the process ``module`` with ``spec`` and the streams of `start`; return its pid. OSError."""
    with closing(pass_on(spec)) as spec_fd:
        keep = (*spec.inherited(), spec_fd)
        return start(command(module, spec_fd), keep=keep, stdin=stdin, output=output)


def pass_on(spec: Spec) -> int:
    """Return a descriptor from which ``spec`` can be received."""
    return memory_file(codec.to_json(spec))


def receive(kind: type[AnySpec], fd: int) -> AnySpec:
    """Read a spec from ``fd`` to its end and close it; its descriptors are not passed on to this process's children."""
    with open(fd, "rb") as stream:
        spec = codec.from_json(kind, stream.read())
    for inherited in spec.inherited():
        os.set_inheritable(inherited, False)
    return spec


def command(module: str, spec_fd: int) -> tuple[str, ...]:
    """Return the command line of the process ``module`` whose spec is in ``spec_fd``."""
    return python(module, str(spec_fd))


def execute(spec: SupervisorSpec, raise_again: Callable[[], None] = lambda: None) -> NoReturn:
    """Let this process become a supervisor with ``spec``; OSError if it cannot.

    A signal that is to end it waits until the new program has its handlers: the default would end it with the mount
    still there. One that has arrived and was not dispatched yet would be lost with this program: ``raise_again`` is
    called, with these signals blocked, to have it come again.
    """
    spec_fd = pass_on(spec)
    for fd in (*spec.inherited(), spec_fd):
        os.set_inheritable(fd, True)
    program, *_ = arguments = command(SUPERVISOR_MODULE, spec_fd)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    raise_again()
    try:
        os.execv(program, arguments)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
