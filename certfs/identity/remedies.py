"""What can be mended on a host without a decision, each as a value that says and does it.

Owns the mending itself; which remedy fits which finding is the health check's business. Each is
safe to apply twice and leaves the host no worse wherever it is interrupted.
"""

import contextlib
import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from certfs.identity.bundles import update_bundle
from certfs.identity.generate import generate_pool_certificate, generate_server_certificate
from certfs.identity.hostpem import HostPemDefect, parse_host_pem, public_pem
from certfs.identity.paths import KEY_MODE, PUBLIC_MODE, BundlePlace, open_directory, read_file
from certfs.identity.subject import host_names
from certfs.safe_open import closing, open_trusted
from certfs.store.atomic import create_exclusive, write_atomic
from certfs.store.backing import status_at
from certfs.store.cached import names_in


@dataclass(frozen=True, slots=True)
class MakeDirectory:
    """Make a missing directory with the platform's mode."""

    path: Path
    mode: int

    def __str__(self) -> str:
        return f"make the directory {self.path} with mode {self.mode:04o}"

    def apply(self) -> None:
        """Do it. Raises ``OSError``."""
        with open_directory(self.path, create_mode=self.mode):
            pass


@dataclass(frozen=True, slots=True)
class Rename:
    """Put the one usable copy of a file or directory in the place where it belongs."""

    path: Path
    target: Path

    def __str__(self) -> str:
        return f"rename {self.path} to {self.target.name}"

    def apply(self) -> None:
        """Do it. Raises ``OSError``."""
        with open_directory(self.path.parent) as directory:
            os.rename(self.path.name, self.target.name, src_dir_fd=directory, dst_dir_fd=directory)


@dataclass(frozen=True, slots=True)
class RemoveLeftover:
    """Remove a temporary file, or a directory of which everything is elsewhere too."""

    path: Path

    def __str__(self) -> str:
        return f"remove {self.path}"

    def apply(self) -> None:
        """Do it. Raises ``OSError``."""
        name = os.fsencode(self.path.name)
        with open_directory(self.path.parent) as directory, contextlib.suppress(FileNotFoundError):
            _remove(directory, name, depth=2)


def _remove(directory: int, name: bytes, *, depth: int) -> None:
    """Remove a file, or a directory with what is in it, no deeper than ``depth``: D.bk may hold D."""
    status = status_at(directory, name)
    if status is None or not stat.S_ISDIR(status.st_mode):
        os.unlink(name, dir_fd=directory)
        return
    if depth:
        with open_directory(name, within=directory) as inside:
            for each in names_in(inside):
                _remove(inside, each, depth=depth - 1)
    os.rmdir(name, dir_fd=directory)


@dataclass(frozen=True, slots=True)
class RestrictMode:
    """Take away what others than owner and group may do with a file of a single name."""

    path: Path
    mode: int

    def __str__(self) -> str:
        return f"set the mode of {self.path} to {self.mode:04o}"

    def apply(self) -> None:
        """Do it. Raises ``OSError``."""
        with closing(
            open_trusted(os.fsencode(self.path), os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
        ) as fd:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
                # A user who may write to the directory may have linked any file of the host there.
                raise OSError(errno.EMLINK, "has another name (a hard link): copy it first")
            os.fchmod(fd, status.st_mode & self.mode)


@dataclass(frozen=True, slots=True)
class PublishCertificate:
    """Write the public part of the pool certificate to where the pool's hosts look for it."""

    key_file: Path
    path: Path

    def __str__(self) -> str:
        return f"write the certificate of {self.key_file} to {self.path}"

    def apply(self) -> None:
        """Do it. Raises ``OSError``."""
        pem = parse_host_pem(read_file(self.key_file))
        if isinstance(pem, HostPemDefect):
            raise OSError(f"{self.key_file} {pem.reason}")
        with open_directory(self.path.parent) as directory:
            name = os.fsencode(self.path.name)
            write_atomic(directory, name, public_pem(pem.leaf), mode=PUBLIC_MODE)


@dataclass(frozen=True, slots=True)
class Generate:
    """Make a key and certificate that are missing, as the platform does at boot."""

    path: Path
    pool_uuid: str | None

    def __str__(self) -> str:
        return f"generate {self.path}"

    def apply(self) -> None:
        """Do it. Raises ``OSError``."""
        if self.pool_uuid is None:
            pem = generate_server_certificate(host_names())
        else:
            pem = generate_pool_certificate(self.pool_uuid)
        with open_directory(self.path.parent) as directory, contextlib.suppress(FileExistsError):
            create_exclusive(directory, os.fsencode(self.path.name), pem.render(), mode=KEY_MODE)


@dataclass(frozen=True, slots=True)
class UpdateBundle:
    """Write a bundle anew from its source directory."""

    place: BundlePlace

    def __str__(self) -> str:
        return f"write it anew from {self.place.source}"

    def apply(self) -> None:
        """Do it."""
        update_bundle(self.place)


Remedy = (
    MakeDirectory
    | Rename
    | RemoveLeftover
    | RestrictMode
    | PublishCertificate
    | Generate
    | UpdateBundle
)
