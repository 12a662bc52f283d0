"""Where a host's identity and trust are kept, and how their files are opened.

Owns the names of the platform's files and the careful opening of directories and small files. Must
not know what is in them.
"""

import contextlib
import errno
import fcntl
import os
import shlex
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from certfs.core.bundle import SOURCE_SUFFIX
from certfs.core.readers import Reader
from certfs.core.text import printable
from certfs.errors import BusyError, from_os_error
from certfs.safe_open import closing, open_trusted
from certfs.store.cached import names_in

SERVER_PEM = b"xapi-ssl.pem"
POOL_PEM = b"xapi-pool-tls.pem"
POOL_PEM_NEW = b"xapi-pool-tls.new"
POOL_PEM_BACKUP = b"xapi-pool-tls.bak"
CERTS = b"certs"
CERTS_POOL = b"certs-pool"

KEY_MODE = 0o400
PUBLIC_MODE = 0o644
SOURCE_DIRECTORY_MODE = 0o700
"""The modes that the platform gives: a file with a key, a certificate, ``certs`` and
``certs-pool``.
"""

READ_LIMIT = 1 << 20
"""Bytes; what is larger is no PEM file of a host and is not read (promise I18)."""

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# O_NONBLOCK: opening a FIFO or a device in the file's place must not block (promise I6).
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class BundlePlace:
    """A bundle, and the directory of certificates that it is made of.

    ``suffixes`` are those of its sources; what one of the ``readers`` refuses is not in it. ``is_made``: a running
    mount says that it makes this bundle, which the file shows only while there is one.
    """

    source: Path
    bundle: Path
    suffixes: tuple[bytes, ...] = (SOURCE_SUFFIX,)
    readers: tuple[Reader, ...] = ()
    is_made: bool = False


@dataclass(frozen=True, slots=True)
class HostPaths:
    """A host's two directories: ``xensource`` with its keys, ``stunnel`` with its trust.

    ``root`` is the store or standalone mount that they are in; None on a host of the platform. ``bundles`` are the
    host's bundles by its configuration; None for those of the platform.
    """

    xensource: Path
    stunnel: Path
    root: Path | None = None
    bundles: tuple[BundlePlace, ...] | None = None

    @classmethod
    def of_store(cls, directory: Path) -> "HostPaths":
        """Return the directories inside a store or a standalone mount."""
        return cls(directory / "xensource", directory / "stunnel", directory)

    @property
    def pool_pem(self) -> Path:
        """What this host shows to its pool."""
        return self.xensource / os.fsdecode(POOL_PEM)

    @property
    def trusted_certs(self) -> Path:
        """The newer layout's directories by purpose; many hosts have none."""
        return self.stunnel.with_name("trusted-certs")

    @property
    def certs(self) -> Path:
        """CA certificates that an admin has installed."""
        return self.stunnel / os.fsdecode(CERTS)

    @property
    def crls(self) -> Path:
        """Revocation lists that an admin has installed."""
        return self.stunnel / "crls"

    @property
    def certs_pool(self) -> Path:
        """The pool certificates of all hosts of the pool."""
        return self.stunnel / os.fsdecode(CERTS_POOL)


DOM0 = HostPaths(Path("/etc/xensource"), Path("/etc/stunnel"))


def command(paths: HostPaths, words: str) -> str:
    """Return a certfs command line that works on the same host as the caller does."""
    store = "" if paths.root is None else f" --store {shlex.quote(printable(str(paths.root)))}"
    return f"certfs {words}{store}"


@contextlib.contextmanager
def open_directory(
    path: Path | bytes, *, within: int | None = None, create_mode: int | None = None
) -> Iterator[int]:
    """Open a directory for the time of a ``with``; relative to the directory ``within`` if given.

    ``create_mode`` makes a missing directory (not its parents) with that mode. Raises ``OSError``,
    ELOOP where root would have to follow a link that another user can exchange.
    """
    path = os.fsencode(path)
    if create_mode is not None:
        parent = open_trusted(os.path.dirname(path) or b".", _DIRECTORY, at=within)
        try:
            os.mkdir(os.path.basename(path), create_mode, dir_fd=parent)
        except FileExistsError:
            pass
        finally:
            os.close(parent)
    with closing(open_trusted(path, _DIRECTORY, at=within)) as fd:
        yield fd


@contextlib.contextmanager
def host_directory(path: Path, *, create_mode: int | None = None) -> Iterator[int]:
    """Do as :func:`open_directory`, but a failure is an error for people that names ``path``."""
    with contextlib.ExitStack() as stack:
        with file_errors(path):
            fd = stack.enter_context(open_directory(path, create_mode=create_mode))
        yield fd


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[int]:
    """Open the directory ``path`` for one command that changes several of its files at a time.

    Raises ``BusyError`` if another certfs command is at it.
    """
    with host_directory(path) as fd:
        try:
            # Bound to the descriptor: gone with the process, however it ends (flock(2)).
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(
                f"{path}: another certfs command is working there",
                advice="wait for it to end, then run this one again",
            ) from None
        yield fd


def read_file(name: Path | bytes, *, within: int | None = None, limit: int = READ_LIMIT) -> bytes:
    """Return the content of a regular file, or of one that a symlink leads to.

    Raises ``OSError``: ENOENT and so on, EFBIG for more than ``limit`` bytes, EINVAL for what is no
    file, ELOOP for a link that root must not follow because another user can exchange it.
    """
    return read_with_status(name, within=within, limit=limit)[0]


def read_with_status(
    name: Path | bytes, *, within: int | None = None, limit: int = READ_LIMIT
) -> tuple[bytes, os.stat_result]:
    """Do as :func:`read_file`, and return the status of the very file that was read."""
    fd = open_trusted(os.fsencode(name), _READ, at=within)
    with open(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", os.fsdecode(name))
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"larger than {limit} bytes", os.fsdecode(name))
    return data, status


def status_of(name: Path | bytes, *, within: int | None = None) -> os.stat_result:
    """Return the status of a file by the way that :func:`read_file` takes. Raises ``OSError``."""
    with closing(open_trusted(os.fsencode(name), os.O_PATH, at=within)) as fd:
        return os.stat(fd)


def names_of(directory: Path) -> list[str]:
    """Return the names in a directory, sorted. Raises ``OSError``.

    EFBIG for one of a user's own file system that makes up names for ever, ELOOP as in :func:`open_directory`.
    """
    with open_directory(directory) as fd:
        return sorted(map(os.fsdecode, names_in(fd)))


def names_if_any(directory: Path) -> list[str]:
    """Do as :func:`names_of`; none where the directory is missing or cannot be read."""
    with contextlib.suppress(OSError):
        return names_of(directory)
    return []


def is_present(name: bytes, *, within: int) -> bool:
    """Tell whether the directory has an entry of that name, be it a dangling symlink."""
    try:
        os.lstat(name, dir_fd=within)
    except FileNotFoundError:
        return False
    return True


@contextlib.contextmanager
def file_errors(path: Path, *, advice: str = "") -> Iterator[None]:
    """Turn an ``OSError`` of the block into an error for people that names ``path``."""
    try:
        yield
    except OSError as error:
        raise from_os_error(str(path), error, advice=advice or _advice(error.errno)) from error


def _advice(code: int | None) -> str:
    if code == errno.ENOENT:
        return "check the path; for a store or a mount, name it with --store"
    return ""
