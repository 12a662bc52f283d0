"""The plain copies: every bundle as an ordinary file in the store (promise I12).

Owns them: written atomically after a change, not written when nothing changed, removed when the bundle is empty.
A host without certfs is then an ordinary host with correct bundles. A failure is kept as a reason and tried again at
the next change; it never gets in the way of serving.
"""

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from certfs.core.bundle import Generation
from certfs.core.certificate import SourceContent, parse_source
from certfs.store.atomic import write_atomic
from certfs.store.backing import describe, fd_path, stamp, status_at
from certfs.store.bundle import LiveBundle

TEMPORARY_PREFIX = b".certfs-plain-"
"""What a copy's name begins with while it is being written; the mount never shows such a name."""

_MODE = 0o644
_PIECE = 1 << 20
_MOST_READ = 256 << 20
_END = b"-----END CERTIFICATE-----\n"


def temporary_name(bundle: bytes) -> bytes:
    """Return the name that the plain copy of ``bundle`` has while it is being written."""
    return TEMPORARY_PREFIX + bundle


@dataclass(frozen=True, slots=True)
class PlainState:
    """How a plain copy stands: ``generation`` that it holds, its ``stamp``, and the ``error`` of the last try."""

    generation: int = -1
    stamp: bytes = b""
    error: str = ""


class PlainCopy:
    """The plain copy of one bundle. ``write`` blocks; it is to be called by one thread at a time.

    ``report_after`` is for whoever reports its errors: not before that time on its clock.
    """

    def __init__(self, bundle: LiveBundle) -> None:
        self._bundle = bundle
        self.report_after = float("-inf")
        self.state = PlainState()

    @property
    def is_current(self) -> bool:
        """Whether the store holds what a reader of the mount gets."""
        return self.state.generation == self._bundle.generation.number and not self.state.error

    def write(self, directory: int) -> None:
        """Bring the copy in ``directory`` up to date with the bundle's present generation."""
        generation = self._bundle.generation
        name = self._bundle.spec.bundle[-1]
        try:
            status = status_at(directory, name)
            if self.state.generation == generation.number and self.state.stamp == _stamp(status):
                return
            if not generation.certificates:
                if status:  # a read-only store refuses to remove also what is not there
                    with suppress(FileNotFoundError):
                        os.unlink(name, dir_fd=directory)
            elif status is None or not _holds(directory, name, generation):
                self._replace(directory, name, generation, status)
            status = status_at(directory, name)
        except OSError as e:
            self.state = PlainState(self.state.generation, self.state.stamp, describe(e))
            return
        self.state = PlainState(generation.number, _stamp(status))

    def has_no_place(self, error: OSError) -> None:
        """Take note that there is no directory to write in: no harm as long as there is nothing to write."""
        generation = self._bundle.generation
        if isinstance(error, FileNotFoundError) and not generation.certificates:
            self.state = PlainState(generation.number)
        else:
            where = f"{error.filename}: " if error.filename else ""
            self.state = PlainState(self.state.generation, error=where + describe(error))

    @staticmethod
    def _replace(
        directory: int, name: bytes, generation: Generation, old: os.stat_result | None
    ) -> None:
        draft = temporary_name(name)
        with suppress(FileNotFoundError):
            # Left by a server that was killed in the middle of a copy.
            os.unlink(draft, dir_fd=directory)
        owner = (old.st_uid, old.st_gid) if old and os.geteuid() == 0 else None
        write_atomic(directory, name, _pieces(generation), mode=_MODE, owner=owner, temporary=draft)


def _stamp(status: os.stat_result | None) -> bytes:
    return stamp(status) if status else b""


def _pieces(generation: Generation) -> Iterator[bytes]:
    for offset in range(0, generation.size, _PIECE):
        yield generation.view.read(offset, _PIECE)


def _holds(directory: int, name: bytes, generation: Generation) -> bool:
    """Whether the file already has this generation's content."""
    try:
        file = os.open(
            name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory
        )
    except OSError:
        return False
    try:
        if os.fstat(file).st_size != generation.size:
            return False
        return all(os.read(file, len(piece)) == piece for piece in _pieces(generation))
    finally:
        os.close(file)


def missing(bundle: LiveBundle, directory: int) -> SourceContent:
    """Return what the copy in ``directory`` has and no source of the bundle: what the bundle before had besides."""
    known = {
        certificate.pem
        for _, source in bundle.catalog.sources()
        for certificate in source.content.certificates
    }
    # Split first: certificates that are known need not be read as such, and there may be many.
    blocks = (block + _END for block in _read(directory, bundle.spec.bundle[-1]).split(_END)[:-1])
    unknown = parse_source(b"".join(block for block in blocks if block not in known))
    return SourceContent(unknown.certificates)


def _read(directory: int, name: bytes) -> bytes:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with suppress(OSError), open(os.open(name, flags, dir_fd=directory), "rb") as file:
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return file.read(_MOST_READ)
    return b""


def digest(generation: Generation) -> str:
    """Return the SHA-256 of what a reader of this generation gets, in hexadecimal."""
    sha256 = hashlib.sha256()
    for piece in _pieces(generation):
        sha256.update(piece)
    return sha256.hexdigest()


def sweep(directory: int) -> None:
    """Remove what a killed server left of a copy that it was writing."""
    for name in os.listdir(fd_path(directory).encode()):
        if name.startswith(TEMPORARY_PREFIX):
            with suppress(OSError):
                os.unlink(name, dir_fd=directory)
