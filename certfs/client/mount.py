"""The ``mount`` command's part (L): check, lock, clean up what a dead instance left, start the supervisor, wait.

Everything that can be known to be wrong before something is started is found here, and raised as a `CertfsError`.
"""

import errno
import os
import resource
import select
import shutil
import signal
import stat
import time
from dataclasses import dataclass
from typing import Final, NoReturn

from certfs import procfs
from certfs.client.cleanup import end_leftovers
from certfs.errors import (
    AlreadyRunningError,
    CertfsError,
    ConfigError,
    DeadlineError,
    FuseError,
    MountpointError,
    PrivilegeError,
    StoreError,
)
from certfs.linux import log_file, mount_table
from certfs.linux.processes import in_child
from certfs.moment import written
from certfs.protocol import codec, state_file, timeouts
from certfs.protocol.messages import Failure
from certfs.protocol.specs import (
    SERVER_MODULE,
    SUPERVISOR_MODULE,
    Mode,
    MountSpec,
    SupervisorSpec,
    Tree,
    execute,
    start_with,
)
from certfs.safe_open import LinkRefusedError, closing, open_trusted
from certfs.supervisor.stand_in import is_bound

_LEAST_FILES: Final = 128
_LEAST_SIZE: Final = 1 << 20
_INNER: Final = "store"
_BY_ITSELF: Final = (
    "name the directory itself: another user could exchange the link for one to anywhere"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One directory to present."""

    name: str
    store: str
    target: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MountRequest:
    """What is to be mounted; paths are absolute and without symlinks."""

    mode: Mode
    places: tuple[Place, ...]
    later: tuple[str, ...] = ()
    """Directories to present over themselves as soon as they exist."""
    config_file: str | None
    config_optional: bool = False
    allow_other: bool
    flags: int = 0
    """Of mount(2), in addition to those of the store's file systems."""
    log: str | None = None
    """The log file; None for the one in the runtime directory."""
    server_module: str = SERVER_MODULE


def standalone(store: str, mountpoint: str) -> tuple[Place, ...]:
    """Return the one place of a standalone mount."""
    return (Place(name="", store=_path_of(_open_store(store)), target=_real_target(mountpoint)),)


def _open_store(path: str) -> int:
    try:
        return open_trusted(path, os.O_PATH | os.O_DIRECTORY)
    except LinkRefusedError as error:
        raise StoreError(
            f"the store {path} is reached by a link of another user: {error.filename}",
            advice=_BY_ITSELF,
        ) from error
    except OSError as error:
        raise StoreError(
            f"cannot open the store {path}: {error.strerror}",
            advice="create the directory, or name another with --store",
        ) from error


def _real_target(path: str) -> str:
    """Do as `canonical` for a directory that is there. MountpointError."""
    try:
        return _reached(path)
    except OSError as error:
        raise _unusable(path, error) from error


def _reached(path: str) -> str:
    parent, name = os.path.split(path.rstrip("/"))
    start = parent or ("/" if path.startswith("/") else ".")
    try:
        direct = os.path.join(_path_of(open_trusted(start, os.O_PATH | os.O_DIRECTORY)), name)
        # What is mounted at its end may be ours and dead, and is not asked.
        if procfs.top_at(procfs.mounts(), direct):
            return direct
        return _path_of(open_trusted(path, os.O_PATH))
    except LinkRefusedError as error:
        raise MountpointError(
            f"the mountpoint {path} is reached by a link of another user: {error.filename}",
            advice=_BY_ITSELF,
        ) from error


def _path_of(fd: int) -> str:
    """Return the path of a directory without links, and close its descriptor."""
    with closing(fd):
        return os.readlink(f"/proc/self/fd/{fd}")


def dom0(trees: tuple[str, ...]) -> tuple[Place, ...]:
    """Return the places of a Dom0 mount of ``trees``, such as /etc/stunnel."""
    paths = {os.path.basename(tree): canonical(tree) for tree in trees}
    return tuple(Place(name=name, store=path, target=path) for name, path in paths.items())


def canonical(path: str) -> str:
    """Return ``path`` absolute and without symlinks, without looking at a mount that may be ours and dead.

    MountpointError where another user chooses by a link which one root means (`open_trusted`).
    """
    absolute = os.path.abspath(path)
    try:
        return _reached(absolute)
    except OSError:
        return absolute  # nothing is there, so nothing is mounted there


def launch(request: MountRequest) -> int:
    """Mount as a daemon; return the supervisor's pid once the mount is served. CertfsError if it cannot be."""
    mount, lock = _prepare(request, foreground=False)
    log = mount.log
    assert log is not None  # noqa: S101  a daemon has one
    receiving, sending = os.pipe()
    spec = SupervisorSpec(
        mount=mount, report_fd=sending, lock_fd=lock, server_module=request.server_module
    )
    output = _open_log(log)
    pid = start_with(spec, SUPERVISOR_MODULE, output=output)
    for fd in (output, *spec.inherited()):
        os.close(fd)
    try:
        _await(receiving, log)
    except (DeadlineError, KeyboardInterrupt):
        os.kill(pid, signal.SIGTERM)
        raise
    finally:
        os.close(receiving)
    return pid


def become_supervisor(request: MountRequest) -> NoReturn:
    """Mount in the foreground: this process becomes the supervisor. CertfsError if the mount cannot be served."""
    mount, lock = _prepare(request, foreground=True)
    execute(SupervisorSpec(mount=mount, lock_fd=lock, server_module=request.server_module))


# --- checks


def _prepare(request: MountRequest, *, foreground: bool) -> tuple[MountSpec, int]:
    _check_fuse(request.mode)
    _check_limits()
    for place in request.places:
        _check_outside(place.target, state_file.runtime_directory(), "runtime directory")
        if request.log:
            _check_outside(place.target, os.path.realpath(request.log), "log")
    directory = state_file.make_instance(request.mode, request.places[0].target)
    lock = _lock(directory)
    errors = end_leftovers(directory)
    if errors:
        raise _cannot_detach(errors[0])
    for place in request.places:
        _check_served(place, directory, request)
    trees = tuple(_open_tree(place) for place in request.places)
    flags = state_file.MountFlags(asked=request.flags, beneath=_flags(trees))
    state_file.write_flags(directory, flags)
    mount = MountSpec(
        mode=request.mode,
        trees=trees,
        later=request.later,
        inner=_INNER if request.mode == "standalone" and os.geteuid() == 0 else "",
        runtime=directory,
        config_file=request.config_file,
        config_optional=request.config_optional,
        allow_other=request.allow_other,
        journal=foreground and "JOURNAL_STREAM" in os.environ,
        log=None if foreground else request.log or f"{directory}/log",
    )
    return mount, lock


def _flags(trees: tuple[Tree, ...]) -> int:
    """Return the flags for mount(2) that root's mount takes over from the file systems of the store."""
    found = [os.statvfs(tree.fd).f_flag for tree in trees]
    kept = (os.ST_NOSUID, os.ST_NODEV, os.ST_NOEXEC)  # the same numbers as MS_NOSUID and so on
    return sum(flag for flag in kept if any(each & flag for each in found))


def _check_limits() -> None:
    """Refuse limits of the process with which the server could not do for everybody what it has to (I18)."""
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files != resource.RLIM_INFINITY and files <= _LEAST_FILES:
        raise PrivilegeError(
            f"only {files} files may be open here (RLIMIT_NOFILE): certfs needs more than {_LEAST_FILES}",
            advice="raise the hard limit: ulimit -n, or LimitNOFILE= in a unit",
        )
    _, size = resource.getrlimit(resource.RLIMIT_FSIZE)
    if size != resource.RLIM_INFINITY and size < _LEAST_SIZE:
        raise PrivilegeError(
            f"files may have only {size} bytes here (RLIMIT_FSIZE): certfs writes for everybody",
            advice="lift the limit: ulimit -f unlimited, or LimitFSIZE=infinity in a unit",
        )


def _check_outside(target: str, path: str, what: str) -> None:
    """Keep the supervisor's own files out of the mount: it must not wait for what it supervises."""
    if f"{path}/".startswith(target.rstrip("/") + "/"):
        raise MountpointError(
            f"the {what} {path} is inside of {target}, which is to be mounted",
            advice="choose a place outside of it",
        )


def _check_fuse(mode: Mode) -> None:
    if mode == "dom0" and os.geteuid() != 0:
        raise PrivilegeError(
            "only root can present the host's own directories",
            advice="become root, or use: certfs mount --store DIR MOUNTPOINT",
        )
    if not os.path.exists("/dev/fuse"):
        raise FuseError(
            "/dev/fuse does not exist",
            advice="load the kernel module (modprobe fuse), or give the container --device /dev/fuse",
        )
    if os.geteuid() != 0 and shutil.which("fusermount3") is None:
        raise FuseError(
            "fusermount3 is not installed, and only root can mount without it",
            advice="install the package fuse3",
        )
    if os.geteuid() != 0 and not os.path.exists("/etc/mtab"):
        # It mounts, but takes nothing away again: not at an unmount, and not what a server that died has left.
        raise FuseError(
            "/etc/mtab does not exist, without which fusermount3 unmounts nothing",
            advice="as root: ln -s /proc/self/mounts /etc/mtab",
        )


def _lock(directory: str) -> int:
    """Take the instance's lock.

    Wait while a server that lost its supervisor gets a new one, and while an instance ends that was unmounted.
    """
    began = time.monotonic()
    while True:
        lock = state_file.take_lock(directory)
        state = state_file.read_state(directory)
        waited = time.monotonic() - began
        if lock is None:
            if not _is_ending(state) or waited > timeouts.ENDING:
                raise _already_running(state)
        else:
            orphan = state is not None and state.server is not None and state.server.alive()
            if not orphan or waited > timeouts.LOCK:
                return lock
            os.close(lock)
        time.sleep(0.02)


def _is_ending(state: state_file.State | None) -> bool:
    """Whether an instance whose lock is held has been unmounted: it has not said so yet, or is about to end."""
    if state is None or state.phase == "ending":
        return True
    here = {entry.point for entry in procfs.mounts() if entry.device in state.devices}
    return state.phase == "serving" and not here.issuperset(state.targets)


def _already_running(state: state_file.State | None) -> AlreadyRunningError:
    if state is None:
        return AlreadyRunningError(
            "certfs is being started here at this moment",
            advice="wait a moment; certfs status shows it then",
        )
    where = " and ".join(state.targets)
    return AlreadyRunningError(
        f"certfs already serves {where}: process {state.supervisor.pid}, since {written(state.since)}",
        advice=f"to end it: {state.command('unmount')}; to replace its server: {state.command('restart')}",
    )


def _check_served(place: Place, directory: str, request: MountRequest) -> None:
    """Refuse a store that another instance serves by another configuration.

    Each would write the plain copies that are right for itself, over those of the other, for ever.
    """
    for other in state_file.instances():
        state = None if other == directory else state_file.read_state(other)
        if state is None or place.store not in state.stores or not state.supervisor.alive():
            continue
        if (state.mode, state.config_file) != (request.mode, request.config_file):
            where = " and ".join(state.targets)
            raise _served(place.store, f"at {where}, with another configuration")


def _served(store: str, where: str) -> AlreadyRunningError:
    return AlreadyRunningError(
        f"the store {store} is served already, {where}",
        advice="use it there, or unmount that first, or name another store",
    )


def _open_tree(place: Place) -> Tree:
    _check_target(place)
    _check_nesting(place)
    fd = _open_store(place.store)
    above = procfs.mount_of(fd)
    if above and above.is_certfs:
        raise _served(place.store, f"at {above.point}")
    if not os.access(place.store, os.R_OK | os.X_OK, effective_ids=True):
        raise StoreError(
            f"the store {place.store} cannot be read by you",
            advice="change its owner or mode, or run certfs as another user",
        )
    beneath = None
    if place.target != place.store and os.geteuid() != 0:
        beneath = os.open(place.target, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    return Tree(name=place.name, store=place.store, target=place.target, fd=fd, beneath_fd=beneath)


def _check_nesting(place: Place) -> None:
    if place.target != place.store and place.target.startswith(place.store.rstrip("/") + "/"):
        raise MountpointError(
            f"the mountpoint {place.target} is inside of the store {place.store}",
            advice="choose one outside of it, or the store itself",
        )


def _check_target(place: Place) -> None:
    path = place.target
    top = procfs.top_at(procfs.mounts(), path)
    if top and procfs.is_ours(top):
        _remove_stale(path, top.device)
        top = procfs.top_at(procfs.mounts(), path)
    if top and place.target != place.store and not is_bound(place.store, place.target):
        raise MountpointError(
            f"something is already mounted at {path} ({top.kind})",
            advice=f"unmount it first: umount {path}",
        )
    try:
        status = os.stat(path)
    except OSError as error:
        raise _unusable(path, error) from error
    if not stat.S_ISDIR(status.st_mode):
        raise MountpointError(f"{path} is not a directory", advice="name a directory to mount on")
    if os.geteuid() != 0 and not os.access(path, os.W_OK, effective_ids=True):
        raise MountpointError(
            f"you may not mount on {path}: it is not writable by you",
            advice="choose a directory of your own",
        )


def _unusable(path: str, error: OSError) -> MountpointError:
    return MountpointError(
        f"cannot use {path} as a mountpoint: {error.strerror}", advice="create the directory first"
    )


def _remove_stale(path: str, device: str) -> None:
    """Detach a certfs mount whose server is dead; AlreadyRunningError if it answers, or hangs."""
    answer = in_child(lambda: os.stat(path), timeouts.PROBE)
    if answer is None:
        raise AlreadyRunningError(
            f"another certfs already serves {path}", advice=f"end it with: certfs unmount {path}"
        )
    if isinstance(answer, TimeoutError):
        raise AlreadyRunningError(
            f"another certfs is mounted at {path} and does not answer",
            advice=f"end it with: umount -l {path}",
        )
    if answer.errno in (errno.ENOTCONN, errno.ECONNABORTED):
        errors = mount_table.detach({device}, mount_table.unmounter()).errors
        if errors:
            raise _cannot_detach(errors[0])


def _cannot_detach(error: OSError) -> MountpointError:
    return MountpointError(
        f"a dead certfs is mounted at {error.filename} and cannot be detached: {error.strerror}",
        advice=f"detach it as root: umount -l {error.filename}",
    )


# --- waiting


def _open_log(path: str) -> int:
    try:
        return log_file.open_log(path)
    except OSError as error:
        raise ConfigError(
            f"cannot write the log {path}: {error.strerror}", advice="name another with --log"
        ) from error


def _await(receiving: int, log: str) -> None:
    if not select.select([receiving], [], [], timeouts.RESTART)[0]:
        raise DeadlineError(
            f"the mount was not served after {timeouts.RESTART:.0f} s", advice=f"see {log}"
        )
    report = os.read(receiving, 65536)
    if not report:
        raise DeadlineError("certfs ended before anything was mounted", advice=f"see: {log}")
    if report != codec.to_json(None):
        failure = codec.from_json(Failure, report)
        if failure.exit_code == DeadlineError.exit_code:
            raise DeadlineError(failure.message, advice=f"nothing is mounted. See: {log}")
        raise failure_error(failure)


def failure_error(failure: Failure) -> CertfsError:
    """Return the error that another process reported, to be raised in this one."""
    kinds = {kind.exit_code: kind for kind in CertfsError.__subclasses__()}
    kind = kinds.get(failure.exit_code, CertfsError)
    return kind(failure.message, advice=failure.advice)
