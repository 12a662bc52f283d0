"""The plain copies: every bundle as an ordinary file in the store (promise I12).

Owns them: written atomically after a change, not written when nothing changed, removed when the bundle is empty.
A host without certfs is then an ordinary host with correct bundles. A failure is kept as a reason and tried again at
the next change; it never gets in the way of serving.
"""

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

from certfs.core.bundle import Generation
from certfs.core.certificate import Certificate, SourceContent, parse_source
from certfs.safe_open import closing, open_trusted
from certfs.store.atomic import write_atomic
from certfs.store.backing import describe, stamp, status_at
from certfs.store.bundle import LiveBundle
from certfs.store.cached import names_in

TEMPORARY_PREFIX = b".certfs-plain-"
"""What a copy's name begins with while it is being written; the mount never shows such a name."""

_ASIDE_SUFFIX = b".before-certfs"
_MARK = "user.certfs"
"""An extended attribute of the copies that certfs has written: size and time, so that another's change shows."""
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
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

    ``report_after`` is for whoever reports its errors: not before that time on its clock. ``is_first`` until the first
    copy of the first server of a mount is written: what is in its place may be another program's, and hold what no
    source has. Those certificates are ``kept_aside``. ``is_passing`` if the directory was another one at the last try,
    or gone: mostly it is being replaced or removed, and the bundle is about to change with it.
    """

    def __init__(self, bundle: LiveBundle) -> None:
        self._bundle = bundle
        self.report_after = float("-inf")
        self.is_first = False
        self.is_passing = False
        self.kept_aside: tuple[Certificate, ...] = ()
        self.state = PlainState()

    @property
    def is_current(self) -> bool:
        """Whether the store holds what a reader of the mount gets."""
        return self.state.generation == self._bundle.generation.number and not self.state.error

    def write(self, directory: int) -> None:
        """Bring the copy in ``directory`` up to date with the bundle's present generation."""
        self.is_passing = False
        generation = self._bundle.generation
        name = self._bundle.spec.bundle[-1]
        try:
            status = status_at(directory, name)
            if self.state.generation == generation.number and self.state.stamp == _stamp(status):
                return
            holds = bool(status) and _holds(directory, name, generation)
            if self.is_first and not holds:
                self.kept_aside = _keep_aside(directory, name, self._bundle)
            self.is_first = False
            if not generation.certificates:
                if status:  # a read-only store refuses to remove also what is not there
                    with suppress(FileNotFoundError):
                        os.unlink(name, dir_fd=directory)
            elif not holds:
                self._replace(directory, name, generation, status)
            status = status_at(directory, name)
        except OSError as e:
            # Nothing can be made in a directory that was removed.
            self.is_passing = e.errno == errno.ENOENT
            self.state = PlainState(self.state.generation, self.state.stamp, describe(e))
            return
        self.state = PlainState(generation.number, _stamp(status))

    def has_no_place(self, error: OSError) -> None:
        """Take note that there is no directory to write in: no harm as long as there is nothing to write."""
        self.is_passing = error.errno in {errno.ESTALE, errno.ENOENT}
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

        def finish(file: int) -> None:
            # The time of the bundle itself: no cache and no rsync is to see another file after a restart.
            os.utime(file, ns=(generation.changed_ns, generation.changed_ns))
            with suppress(OSError):
                os.setxattr(file, _MARK, _mark(os.fstat(file)))

        write_atomic(
            directory,
            name,
            _pieces(generation),
            mode=_MODE,
            owner=owner,
            temporary=draft,
            finish=finish,
        )


def _mark(status: os.stat_result) -> bytes:
    return b"%d %d" % (status.st_size, status.st_mtime_ns)


def _is_own(directory: int, name: bytes) -> bool:
    """Whether a file is a copy as certfs wrote it."""
    with suppress(OSError), open(os.open(name, _READ, dir_fd=directory), "rb") as file:
        return os.getxattr(file.fileno(), _MARK) == _mark(os.fstat(file.fileno()))
    return False


def aside_name(bundle: bytes) -> bytes:
    """Return the name under which the first mount keeps what another program had in the place of the copy."""
    return bundle + _ASIDE_SUFFIX


def _keep_aside(directory: int, name: bytes, bundle: LiveBundle) -> tuple[Certificate, ...]:
    """Keep the certificates of a file that no source has, beside it; return those (promise I12).

    A copy of certfs itself is none of another program's, unless the whole source directory has gone since.
    """
    if bundle.directory is not None and _is_own(directory, name):
        return ()
    lost = _only_in(directory, name, bundle)
    aside = aside_name(name)
    status = status_at(directory, aside)
    if lost and status is None:
        # Another name for it: the copy is written to a new file.
        os.link(name, aside, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
    elif lost and status is not None:
        before = _read(directory, aside, links=True)
        kept = {one.fingerprint for one in parse_source(before).certificates}
        more = [one.pem for one in lost if one.fingerprint not in kept]
        if more:
            owner = (status.st_uid, status.st_gid) if os.geteuid() == 0 else None
            mode = stat.S_IMODE(status.st_mode) if stat.S_ISREG(status.st_mode) else _MODE
            write_atomic(directory, aside, (before, b"\n", *more), mode=mode, owner=owner)
    return lost


def kept_aside(bundle: LiveBundle, directory: int) -> tuple[Certificate, ...]:
    """Return what was kept aside and no source of the bundle has yet."""
    return _only_in(directory, aside_name(bundle.spec.bundle[-1]), bundle)


def _only_in(directory: int, name: bytes, bundle: LiveBundle) -> tuple[Certificate, ...]:
    """Return the certificates of a file, however that is written, which no source of the bundle has."""
    return tuple(
        certificate
        for certificate in parse_source(_read(directory, name, links=True)).certificates
        if bundle.catalog.owner(certificate.fingerprint) is None
    )


def date(bundle: LiveBundle, directory: int) -> None:
    """Let a bundle that is what its copy holds have the time of the copy, and so that of before a restart.

    One that is empty has no copy: what emptied it has changed its source directory.
    """
    name = bundle.spec.bundle[-1]
    status = status_at(directory, name)
    if not bundle.exists:
        status = None if status or bundle.directory is None else os.fstat(bundle.directory)
    elif status is not None and not _holds(directory, name, bundle.generation):
        status = None
    if status is not None:
        bundle.generation = replace(bundle.generation, changed_ns=status.st_mtime_ns)


def _stamp(status: os.stat_result | None) -> bytes:
    return stamp(status) if status else b""


def _pieces(generation: Generation) -> Iterator[bytes]:
    for offset in range(0, generation.size, _PIECE):
        yield generation.view.read(offset, _PIECE)


def _holds(directory: int, name: bytes, generation: Generation) -> bool:
    """Whether the file already has this generation's content."""
    try:
        file = os.open(name, _READ, dir_fd=directory)
    except OSError:
        return False
    with closing(file):
        if os.fstat(file).st_size != generation.size:
            return False
        return all(os.read(file, len(piece)) == piece for piece in _pieces(generation))


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


def _read(directory: int, name: bytes, *, links: bool = False) -> bytes:
    """Return what a file holds; of a link nothing, or else (``links``) what it leads to, if its user may know that."""
    with suppress(OSError):
        file_fd = (
            open_trusted(name, _READ, at=directory)
            if links
            else os.open(name, _READ, dir_fd=directory)
        )
        with open(file_fd, "rb") as file:
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
    for name in names_in(directory):
        if name.startswith(TEMPORARY_PREFIX):
            with suppress(OSError):
                os.unlink(name, dir_fd=directory)
