"""Opening files by path where other users own directories on the way (path_resolution(7)).

Owns which symbolic links a privileged process follows: beneath a store none (`open_beneath`), elsewhere only those that
no other user can have put there (`open_trusted`, what systemd calls a safe path). A path is resolved one component at a
time, each relative to the descriptor of the one before, so that nothing can be exchanged between a check and its use.
openat2(2) does as much in one call, but not before Linux 5.6.
"""

import ctypes
import errno
import os
import platform
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from certfs.procfs import mount_of, mounts

_COMPONENT: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_FUSE: Final = 0x65735546
NOBODY: Final = 65_534
"""A user and a group that own nothing, where it is not known who serves a file system."""
_MOST_LINKS: Final = 40
_MOST_COMPONENTS: Final = 4096
"""As many as a path of PATH_MAX bytes has, for the path and all links on it together."""
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def closing(fd: int) -> Iterator[int]:
    """Give an open descriptor for the time of the context, and close it then."""
    try:
        yield fd
    finally:
        os.close(fd)


class LinkRefusedError(OSError):
    """A symbolic link is not followed; the errno is ELOOP, as for O_NOFOLLOW (open(2))."""

    def __init__(self, what: str, name: bytes) -> None:
        super().__init__(errno.ELOOP, f"a symbolic link{what} is not followed", os.fsdecode(name))


def open_beneath(root: int, path: Iterable[bytes]) -> int:
    """Open the directory ``path`` beneath the directory ``root`` with O_PATH.

    OSError, `LinkRefusedError` where a component is a symbolic link.
    """
    current = os.dup(root)
    try:
        for name in path:
            following = os.open(_one_component(name), _COMPONENT, dir_fd=current)
            os.close(current)
            current = following
            _require_directory(current, name)
    except BaseException:
        os.close(current)
        raise
    return current


def make_beneath(root: int, path: Iterable[bytes], mode: int, *, parents_mode: int = 0o755) -> int:
    """Do as `open_beneath`, and make each directory on the way that is missing."""
    names = tuple(path)
    current = os.dup(root)
    for depth, name in enumerate(names, start=1):
        try:
            os.mkdir(
                _one_component(name), mode if depth == len(names) else parents_mode, dir_fd=current
            )
        except FileExistsError:
            pass
        except BaseException:
            os.close(current)
            raise
        with closing(current):
            following = open_beneath(current, (name,))
        current = following
    return current


def open_trusted(path: str | bytes, flags: int, mode: int = 0o600, *, at: int | None = None) -> int:
    """Do as open(2), relative to the directory ``at`` if given, but do not follow what another user may have put there.

    As root a symbolic link is followed only if root owns it and no other user can have put it where it is; otherwise it
    is a `LinkRefusedError`. A process without root follows all links: the kernel judges what its user may reach.
    """
    pending = _components(os.fsencode(path))
    start = b"/" if os.fsencode(path).startswith(b"/") else b"."
    current = os.open(start, os.O_PATH | os.O_CLOEXEC, dir_fd=at)
    links = 0
    try:
        for _ in range(_MOST_COMPONENTS):
            name = pending.pop(0) if pending else b"."
            target = _trusted_target(current, name)
            if target is None and not pending:
                return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=current)
            if target is None:
                current = _replaced(current, os.open(name, _COMPONENT, dir_fd=current))
                continue
            links += 1
            if links > _MOST_LINKS:
                break
            pending[:0] = _components(target)
            if target.startswith(b"/"):
                current = _replaced(current, os.open(b"/", _COMPONENT))
    finally:
        os.close(current)
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)


def open_mountpoint(path: str) -> int:
    """Open what something is mounted on, or is to be, with O_PATH and as `open_trusted`; never a link of that name.

    What is mounted there is not asked: it may be dead.
    """
    parent, name = os.path.split(path)
    with closing(open_trusted(parent, os.O_PATH | os.O_DIRECTORY)) as directory:
        return os.open(name or ".", _COMPONENT, dir_fd=directory)


def refusal(directory: str) -> str:
    """Return why a directory is not one that only this user can write to, empty if it is. FileNotFoundError."""
    with closing(os.open(directory, _COMPONENT)) as descriptor:
        if stat.S_ISDIR(os.stat(descriptor).st_mode) and _is_own(descriptor):
            return ""
    return f"{directory} is not a directory that only you can write to"


def read_own(path: str, limit: int) -> bytes:
    """Return the content of a file that this user made in a directory that nobody else can write to.

    OSError: EPERM for any other file, be it a link, and EFBIG for more than ``limit`` bytes.
    """
    parent, name = os.path.split(path)
    with closing(
        os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    ) as directory:
        if not _is_own(directory):
            raise PermissionError(errno.EPERM, "others can write to its directory", path)
        # O_NONBLOCK: opening a FIFO must not block.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        descriptor = os.open(name, flags, dir_fd=directory)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode) or not _is_own(descriptor):
            raise PermissionError(errno.EPERM, "not a file that only you can write to", path)
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"larger than {limit} bytes", path)
    return content


def replace_own(path: str, content: bytes) -> None:
    """Replace a file that is for this user alone; a reader sees the old one or the new one. OSError."""
    with open(f"{path}.new", "wb", opener=private) as stream:
        stream.write(content)
    os.rename(f"{path}.new", path)


def private(path: str, flags: int) -> int:
    """Open as `open` asks its ``opener`` to: whatever the umask, a new file is for this user alone, and no link."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _is_own(descriptor: int) -> bool:
    status = os.stat(descriptor)
    is_own = status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return is_own and server_of(descriptor) is None


def _replaced(old: int, new: int) -> int:
    os.close(old)
    return new


def _components(path: bytes) -> list[bytes]:
    return [name for name in path.split(b"/") if name not in {b"", b"."}]


def _one_component(name: bytes) -> bytes:
    if name in {b"", b".", b".."} or b"/" in name:
        raise OSError(errno.EXDEV, "not the name of a directory beneath", os.fsdecode(name))
    return name


def _require_directory(descriptor: int, name: bytes) -> None:
    mode = os.stat(descriptor).st_mode
    if stat.S_ISLNK(mode):
        raise LinkRefusedError("", name)
    if not stat.S_ISDIR(mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), os.fsdecode(name))


def _trusted_target(directory: int, name: bytes) -> bytes | None:
    """Return where the link ``name`` leads, None for what is no link; OSError for a link that root must not follow."""
    try:
        descriptor = os.open(name, _COMPONENT, dir_fd=directory)
    except FileNotFoundError:
        return None
    with closing(descriptor):
        target = link_target(descriptor)
        if target is None or os.geteuid() != 0:
            return target
        is_roots = os.stat(descriptor).st_uid == 0 and _is_roots_alone(os.stat(directory))
        if not is_roots or server_of(descriptor) is not None:
            raise LinkRefusedError(" that another user can exchange", name)
        return target


def server_of(descriptor: int) -> int | None:
    """Return the other user who serves the file system that a file is in, None if it is not another user's.

    Such a file system says of owners and modes what its user likes (mount.fuse3(8), allow_other).
    """
    device = os.stat(descriptor).st_dev
    if os.major(device):  # none of them is on a disk, as nearly all others are
        return None
    name = f"{os.major(device)}:{os.minor(device)}"
    found = mount_of(descriptor) or next((one for one in mounts() if one.device == name), None)
    if found is not None:
        return None if found.owner in {None, 0, os.geteuid()} else found.owner
    # Its user may have unmounted it a moment ago.
    try:
        return NOBODY if file_system_type(descriptor) == _FUSE else None
    except OSError:
        return NOBODY


def file_system_type(fd: int) -> int:
    """Return the type of a file system as in statfs(2)."""
    buffer = ctypes.create_string_buffer(256)
    if _libc.fstatfs(fd, buffer) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    # The first field has the size of a long, but on s390x that of an int.
    kind = ctypes.c_uint if platform.machine() == "s390x" else ctypes.c_ulong
    return int(kind.from_buffer(buffer).value) & 0xFFFFFFFF


def link_target(descriptor: int) -> bytes | None:
    """Return where a symbolic link leads, None for what is none: known without asking its file system."""
    try:
        return os.readlink(b"", dir_fd=descriptor)
    except OSError as e:
        # readlinkat(2) with an empty path: ENOENT and EINVAL both say "not a symbolic link".
        if e.errno in {errno.ENOENT, errno.EINVAL}:
            return None
        raise


def _is_roots_alone(directory: os.stat_result) -> bool:
    """Whether nobody but root can rename what root has in a directory."""
    if directory.st_uid != 0:
        return False
    others = directory.st_mode & (stat.S_IWOTH | (stat.S_IWGRP if directory.st_gid else 0))
    return not others or bool(directory.st_mode & stat.S_ISVTX)
