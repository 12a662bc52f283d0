"""Reading source files, whatever they turn out to be (promises I6, I9, I18).

Owns the decision whether a directory entry is a source, and the reading of it: bounded, never blocking on a FIFO or a
device, never through our own mount. What cannot be read is a source with a reason, not an error.
"""

import fcntl
import os
import signal
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum, auto

from certfs.core.bundle import is_editors_lock, is_source_name
from certfs.core.catalog import Source
from certfs.core.certificate import Remark, Severity, SourceContent, parse_source
from certfs.core.readers import Reader
from certfs.store.backing import (
    O_PATH_NOFOLLOW,
    FileId,
    describe,
    fd_path,
    file_id,
    identity,
    stamp,
    stamp_head,
    status_at,
)
from certfs.store.cached import names_in
from certfs.store.path_walk import Owner, PathWalker, as_owner

DEFAULT_SIZE_LIMIT = 1 << 20
"""Bytes above which a source file is not read."""

_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_ATTEMPTS = 3
_TICK_NS = 20_000_000
"""Before Linux 6.13 two changes within a tick of the kernel (up to 10 ms) leave a file with the same times."""
_QUIET_NS = 1_000_000_000
"""A link's target that was not written for so long counts where it is whole, whoever has it open."""
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}


class Writers(Enum):
    """What is known, before a source is read, of those who may have it open for writing."""

    NONE = auto()
    """There are none: whoever changed it did so through this server, the only one of its mount, and has closed it."""
    UNLIKELY = auto()
    """Something in the store says that it is complete: it is read where nobody can tell."""
    IDLE = auto()
    """One has closed it, or nobody knows: it is read, and counts where it is whole, even if some process has it open.

    The kernel does not say whether that process writes, and one that does not must not hold back what others wrote.
    """
    LIKELY = auto()
    """A write was heard of, and no more: it is read only if the kernel says that nobody has it open."""


Step = tuple[FileId, bytes]


@dataclass(frozen=True, slots=True)
class Reading:
    """A source as it was found; ``is_link`` if it is a symbolic link, whose target can change on its own.

    ``through_mount`` if the way to the target leads over our own mount, where the kernel must not be asked for it.
    ``way`` is what decides where a link leads: names and the directories that they are in, the target's at the end.
    ``is_held`` if another program has a lease on it (fcntl(2)) and was asked to give it back: it is to be read again.
    """

    source: Source
    is_link: bool = False
    through_mount: bool = False
    way: tuple[Step, ...] = ()
    is_held: bool = False


def source_names(
    directory: int, is_source: Callable[[bytes], bool] = is_source_name
) -> list[bytes]:
    """Return the names in a directory that can be sources."""
    return [
        name
        for name in names_in(directory)
        if is_source(name)
        and not (is_editors_lock(name) and is_lock_link(name, status_at(directory, name)))
    ]


def is_lock_link(name: bytes, status: os.stat_result | None) -> bool:
    """Whether this is the link that an editor makes beside a file that it has open: no source, and no news."""
    return is_editors_lock(name) and status is not None and stat.S_ISLNK(status.st_mode)


def _left_out(
    reason: str, status: os.stat_result | None = None, severity: Severity = Severity.DEFECT
) -> Source:
    remark = Remark(severity, 0, reason)
    return Source(SourceContent((), (remark,)), stamp(status) if status else b"")


def as_it_was(known: Source | None) -> Source:
    """Return what a source contributes until its last writer closes it (I3): what is ``known`` of it, if anything."""
    if known is None:
        known = _left_out("being written", severity=Severity.NOTE)
    return known if known.kept else replace(known, kept=True)


def recovered(found: Source, before: SourceContent) -> Source:
    """Return what a source contributes when its writer lost it with the server; ``before`` counts unless it is whole.

    Nobody will ever say that such a file is complete. Where it looks so, the writer may have had its fsync(2) answered.
    """
    if _is_whole(found.content):
        return found
    reason = "its writer was interrupted: it counts as it was before, until it is written again"
    content = SourceContent(before.certificates, (Remark(Severity.WARNING, 0, reason),))
    return Source(content, found.stamp, kept=True)


def _held(known: Source | None) -> Source:
    """Return what a source contributes while another program, such as Samba or an NFS server, has a lease on it."""
    if known is not None and known.content.certificates:
        return replace(known, stamp=b"", kept=True)
    reason = "another program has a lease on it, and was asked to give it back"
    return _left_out(reason, severity=Severity.WARNING)


def _is_whole(content: SourceContent) -> bool:
    defects = (remark.severity is Severity.DEFECT for remark in content.remarks)
    return bool(content.certificates) and not any(defects)


def unanswered() -> Source:
    """Return what a link contributes whose target does not answer."""
    return _left_out("symbolic link: its target does not answer")


def has_writer(fd: int) -> bool | None:
    """Whether any process holds the file open for writing: then a read lease is refused (fcntl(2), F_SETLEASE).

    None where leases are not to be had (some filesystems, a file of another user): then nobody can tell.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except BlockingIOError:
        return True
    except OSError:
        return None
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False


def ignore_lease_breaks() -> None:
    """Keep the signal of a broken lease from ending the process; to be called once, from the main thread."""
    signal.signal(signal.SIGIO, signal.SIG_IGN)


@dataclass(frozen=True, slots=True)
class SourceReader:
    """Reads sources: ``size_limit`` in bytes; ``is_bundle`` tells the plain copy of a bundle, which is no source.

    What one of the ``readers`` refuses is left out of them.
    ``watch_way`` is told of each directory that a link leads over, before that is looked into; it returns its identity.
    ``owner`` is that of a link which the directory was reached by: what this user may not read is not read.
    ``is_served`` if a server decides what is being written: who only has a file open does not count then.
    """

    walker: PathWalker
    size_limit: int = DEFAULT_SIZE_LIMIT
    is_bundle: Callable[[FileId], bool] = lambda _: False
    readers: tuple[Reader, ...] = ()
    watch_way: Callable[[int], FileId] = lambda directory: identity(directory)[0]
    owner: Owner | None = None
    is_served: bool = False

    def read(
        self,
        directory: int,
        name: bytes,
        status: os.stat_result,
        known: Source | None = None,
        writers: Writers = Writers.NONE,
    ) -> Reading | None:
        """Return the source of this name and status, None if it went away; never raises for what is there.

        ``known`` is handed back as it is when its stamp shows that the file has not changed, and while somebody has the
        file open for writing.
        """
        is_link = stat.S_ISLNK(status.st_mode)
        through_mount = False
        owner = self.owner
        way: list[Step] = []
        try:
            if is_link:
                fd, through_mount, _, owner = self.walker.walk(
                    directory,
                    name,
                    lambda at, step: way.append((self.watch_way(at), step)),
                    self.owner,
                )
            elif known is not None and known.stamp == stamp(status):
                return Reading(known)
            else:
                fd = os.open(name, O_PATH_NOFOLLOW, dir_fd=directory)
        except OSError as e:
            reading = _reading_of_error(e, status, is_link=is_link)
            return replace(reading, way=tuple(way)) if reading else None
        try:
            source = self._read_inode(fd, known, writers, owner, is_link=is_link)
        except BlockingIOError:
            return Reading(_held(known), is_link, through_mount, tuple(way), is_held=True)
        else:
            return Reading(source, is_link, through_mount, tuple(way))
        finally:
            os.close(fd)

    def link_stamp(self, directory: int, name: bytes, *, through_mount: bool) -> bytes:
        """Return a stamp of a link's target, empty where there is none.

        The kernel is quicker at following it, but not to be asked when the way leads ``through_mount``.
        """
        with suppress(OSError):
            if not through_mount:
                return stamp(os.stat(name, dir_fd=directory))
            fd = self.walker.open(directory, name)
            try:
                return stamp(os.stat(fd))
            finally:
                os.close(fd)
        return b""

    def _read_inode(  # noqa: PLR0911 - one for each reason to leave a source out
        self,
        fd: int,
        known: Source | None,
        writers: Writers,
        owner: Owner | None,
        *,
        is_link: bool,
    ) -> Source:
        status = os.stat(fd)
        kind = _KINDS.get(stat.S_IFMT(status.st_mode))
        if kind is not None:
            return _left_out(f"{kind}: only regular files and links to them are sources", status)
        if known is not None and known.stamp == stamp(status):
            return known
        if is_link and self.is_bundle(file_id(status)):
            return _left_out("link to a bundle: a bundle cannot be its own source", status)
        if status.st_size > self.size_limit:
            return self._too_large(status)
        try:
            with as_owner(owner):
                file = os.open(fd_path(fd), _READ)
        except BlockingIOError:
            raise
        except OSError as e:
            return _unread(e, status)
        try:
            is_quiet = time.time_ns() - status.st_mtime_ns > _QUIET_NS
            # Nobody tells when a link's target is closed.
            is_idle = self.is_served or writers is Writers.IDLE or (is_link and is_quiet)
            return self._read_open(file, known, writers, is_idle=is_idle)
        except OSError as e:
            return _unread(e, status)
        finally:
            os.close(file)

    def _read_open(
        self, file: int, known: Source | None, writers: Writers, *, is_idle: bool
    ) -> Source:
        if writers is not Writers.NONE:
            found = has_writer(file)
            if found and is_idle:
                source = self._read_file(file, certain=False)
                return source if _is_whole(source.content) else as_it_was(known)
            if found or (found is None and writers is Writers.LIKELY):
                return as_it_was(known)
        source = self._read_file(file, certain=writers is Writers.NONE)
        # Somebody may have begun while it was read, and emptied it first.
        begun = writers is not Writers.NONE and has_writer(file)
        return as_it_was(known) if begun else source

    def _too_large(self, status: os.stat_result) -> Source:
        return _left_out(
            f"{status.st_size} bytes, more than the limit of {self.size_limit}", status
        )

    def _read_file(self, file: int, *, certain: bool) -> Source:
        """Read an open file; ``certain`` if whoever changes it next will say so, whatever its times are."""
        for _ in range(_ATTEMPTS):
            before = os.fstat(file)
            data = _read_up_to(file, self.size_limit + 1)
            after = os.fstat(file)
            if len(data) > self.size_limit:
                return self._too_large(after)
            if stamp(before) == stamp(after):
                is_old = time.time_ns() - after.st_ctime_ns > _TICK_NS
                seen = stamp(after) if certain or is_old else stamp_head(file_id(after))
                return Source(parse_source(data, self.readers), seen)
        return _left_out("changes while it is read")


def _read_up_to(file: int, limit: int) -> bytes:
    pieces = []
    offset = 0
    while offset < limit:
        piece = os.pread(file, limit - offset, offset)
        if not piece:
            break
        pieces.append(piece)
        offset += len(piece)
    return b"".join(pieces)


def _reading_of_error(error: OSError, status: os.stat_result, *, is_link: bool) -> Reading | None:
    """Return what a source is that cannot be opened; None if it went away meanwhile."""
    missing = isinstance(error, FileNotFoundError)
    if not is_link:
        return None if missing else Reading(_unread(error, status))
    reason = "symbolic link to nothing" if missing else f"symbolic link: {_unreadable(error)}"
    return Reading(_left_out(reason), is_link=True)


def _unread(error: OSError, status: os.stat_result) -> Source:
    """Return what a file is that cannot be read; without a stamp, unless its mode is why, so that it is tried again."""
    lasting = isinstance(error, PermissionError)
    return _left_out(_unreadable(error), status if lasting else None)


def _unreadable(error: OSError) -> str:
    return f"cannot be read: {describe(error)}"
