"""Writing a file so that its name always shows a whole one: old content or new, never a part.

Owns the order of system calls that makes this true on a crash, a full disk and a ``kill -9`` at any
point. Works relative to a directory descriptor; knows nothing of certificates, mounts or what the
bytes mean.
"""

import contextlib
import errno
import os
import secrets
from collections.abc import Callable, Iterable, Iterator

TEMPORARY_PREFIX = b".certfs-"
TEMPORARY_SUFFIX = b".tmp"
"""Temporary names are ``.certfs-RANDOM.tmp``: never a source (they do not end in ``.pem``), and
whoever finds one after a crash can tell that it is nobody's."""

Data = bytes | Iterable[bytes]
"""What a file is to hold: whole, or in pieces where it is too large to be copied."""

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def is_temporary(name: bytes) -> bool:
    """Tell whether ``name`` is one that an unfinished file has here."""
    return name.startswith(TEMPORARY_PREFIX) and name.endswith(TEMPORARY_SUFFIX)


def write_atomic(  # noqa: PLR0913 - what open(2), fchmod(2) and fchown(2) take
    directory_fd: int,
    name: bytes,
    data: Data,
    *,
    mode: int,
    owner: tuple[int, int] | None = None,
    temporary: bytes | None = None,
    finish: Callable[[int], None] = lambda _: None,
) -> None:
    """Make ``name`` in the directory hold ``data`` (in one or in pieces), in one step.

    ``mode`` is the permission bits that the file has, whatever the umask; ``owner`` is (uid, gid),
    -1 for "leave it", or None for the caller's own. ``temporary`` names the file while it is
    written. The data is written only when owner and mode are what they will be, so that a private
    key is at no moment readable by anybody who may not read it in the end. ``finish`` is called
    with the file's descriptor when everything is written.

    ``directory_fd`` may be opened with O_PATH. Raises ``OSError``: then the temporary is gone and
    the target is untouched, except for a failure of the last step (fsync of the directory), when
    the target is replaced but a power cut could still bring back the old one.
    """
    with _draft(directory_fd, data, mode, owner, temporary, finish) as (directory, draft):
        os.rename(draft, name, src_dir_fd=directory, dst_dir_fd=directory)


def create_exclusive(
    directory_fd: int,
    name: bytes,
    data: Data,
    *,
    mode: int,
    owner: tuple[int, int] | None = None,
) -> None:
    """Do as :func:`write_atomic` for a name that must not exist.

    Raises ``FileExistsError`` if it does, and changes nothing. Unlike with a plain O_EXCL, nobody
    ever sees the file empty or half written.
    """
    with _draft(directory_fd, data, mode, owner, None) as (directory, draft):
        # link(2) fails with EEXIST where rename(2) would replace.
        os.link(draft, name, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
        os.unlink(draft, dir_fd=directory)


@contextlib.contextmanager
def _draft(  # noqa: PLR0913, PLR0917 - what the two above take
    directory_fd: int,
    data: Data,
    mode: int,
    owner: tuple[int, int] | None,
    temporary: bytes | None,
    finish: Callable[[int], None] = lambda _: None,
) -> Iterator[tuple[int, bytes]]:
    """Yield the directory and a finished temporary file's name, to be put in its place."""
    draft = temporary if temporary is not None else _temporary_name()
    # Opened before anything is changed: fsync does not work on an O_PATH descriptor, and whatever
    # prevents the opening had better be known now.
    directory = os.open(b".", _DIRECTORY, dir_fd=directory_fd)
    try:
        # Only the owner's share of the mode at first: the group gets its own once it is the right
        # one.
        fd = os.open(draft, _CREATE, mode & 0o700, dir_fd=directory)
        try:
            try:
                _fill(fd, data, mode=mode, owner=owner, finish=finish)
            finally:
                os.close(fd)
            yield directory, draft
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(draft, dir_fd=directory)
            raise
        os.fsync(directory)
    finally:
        os.close(directory)


def _fill(
    fd: int,
    data: Data,
    *,
    mode: int,
    owner: tuple[int, int] | None,
    finish: Callable[[int], None],
) -> None:
    if owner is not None:
        os.fchown(fd, *owner)
    # After the chown, which drops set-id bits; and in any case, because the umask took its share.
    os.fchmod(fd, mode)
    for piece in (data,) if isinstance(data, bytes) else data:
        remaining = memoryview(piece)
        while remaining:
            written = os.write(fd, remaining)
            if written == 0:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            remaining = remaining[written:]
    finish(fd)
    os.fsync(fd)


def _temporary_name() -> bytes:
    return TEMPORARY_PREFIX + secrets.token_hex(8).encode() + TEMPORARY_SUFFIX
