"""A directory of files that an admin installs by command: CA certificates, those for one purpose, or revocation lists.

Owns adding and removing such a file under its name, with the platform's modes and names of errors, and the links by
which OpenSSL finds a file by its subject (openssl-rehash(1)). Must not know what is in the files.
"""

import contextlib
import errno
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from certfs.errors import CertfsError, from_os_error
from certfs.identity.errors import CertificateError, CertificateLibraryCorruptError
from certfs.identity.paths import (
    PUBLIC_MODE,
    SOURCE_DIRECTORY_MODE,
    HostPaths,
    command,
    file_errors,
    is_present,
    open_directory,
    read_file,
)
from certfs.store.atomic import create_exclusive
from certfs.store.cached import names_in

HASH_LINK = re.compile(r"[0-9a-f]{8}\.r?[0-9]+")
_REHASH_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Library:
    """Where the files are, and what the platform calls what can be wrong with them.

    ``uninstall`` and ``listing`` are the commands that an error advises, with their options.
    """

    paths: HostPaths
    directory: Path
    already_exists: type[CertificateError]
    does_not_exist: type[CertificateError]
    corrupt: type[CertificateError]
    uninstall: str
    listing: str

    def add(self, name: str, data: bytes, *, dry_run: bool) -> None:
        """Make the file NAME, which must not be there; the directory is made if it is missing."""
        path = self.directory / name
        with self._opened(create=not dry_run) as fd:
            if fd is not None and is_present(os.fsencode(name), within=fd):
                raise self._taken(path)
            if fd is not None and not dry_run:
                with file_errors(path):
                    try:
                        create_exclusive(fd, os.fsencode(name), data, mode=PUBLIC_MODE)
                    except FileExistsError:
                        raise self._taken(path) from None

    def take(self, name: str, *, force: bool, dry_run: bool) -> bytes | None:
        """Remove the file NAME and return what could be read of it; None if it is missing, which takes ``force``."""
        path = self.directory / name
        with self._opened(create=False) as fd:
            if fd is None or not is_present(os.fsencode(name), within=fd):
                if force:
                    return None
                raise self.does_not_exist(
                    f"{path} does not exist",
                    advice=f"{command(self.paths, self.listing)} shows what is installed; --force ignores this",
                )
            content = b""
            with contextlib.suppress(OSError):
                content = read_file(os.fsencode(name), within=fd)
            if not dry_run:
                self._remove(fd, path)
            return content

    def rehash(self, *, always: bool) -> tuple[str, ...]:
        """Make the links by hash anew, or only where there are some; return a warning if that was not possible."""
        with open_directory(self.directory) as fd:
            if not always and not any(
                HASH_LINK.fullmatch(os.fsdecode(name)) for name in names_in(fd)
            ):
                # Nothing looks up by hash here, and names of our own would only be in the way.
                return ()
            try:
                subprocess.run(
                    # By descriptor: the path may lead to another directory by now.
                    ["openssl", "rehash", f"/proc/self/fd/{fd}"],
                    pass_fds=(fd,),
                    check=True,
                    # No pipes: Python then looks for its end again and again, so this process does not stand still.
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    timeout=_REHASH_SECONDS,
                )
            except (OSError, subprocess.SubprocessError):
                return (
                    f"the hash links in {self.directory} are out of date: run openssl rehash on it",
                )
        return ()

    @contextlib.contextmanager
    def _opened(self, *, create: bool) -> Iterator[int | None]:
        """Open the directory; None if it is missing and not to be made."""
        with contextlib.ExitStack() as stack:
            try:
                mode = SOURCE_DIRECTORY_MODE if create else None
                fd = stack.enter_context(open_directory(self.directory, create_mode=mode))
            except FileNotFoundError:
                if create:
                    raise CertificateLibraryCorruptError(
                        f"{self.directory.parent} does not exist",
                        advice="check the path; for a store or a mount, name it with --store",
                    ) from None
                fd = None
            except OSError as error:
                raise _unusable(self.directory, error) from error
            yield fd

    def _taken(self, path: Path) -> CertificateError:
        return self.already_exists(
            f"{path} exists already",
            advice="choose another name with --name, or remove it: "
            + command(self.paths, f"{self.uninstall} {path.name}"),
        )

    def _remove(self, fd: int, path: Path) -> None:
        try:
            os.unlink(path.name, dir_fd=fd)
            os.fsync(fd)
        except OSError as error:
            if not path.is_dir():
                raise _unusable(path, error) from error
            # The platform's name for what it cannot remove.
            raise self.corrupt(
                f"{path} cannot be removed: it is a directory", advice=f"rm -r {path} removes it"
            ) from error


def _unusable(path: Path, error: OSError) -> CertfsError:
    if error.errno == errno.ENOTDIR:
        return CertificateLibraryCorruptError(
            f"{path}: {error.strerror}", advice="move it away, then run this again"
        )
    return from_os_error(str(path), error)
