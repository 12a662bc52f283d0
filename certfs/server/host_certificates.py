"""What the host shows to others: which certificates its own files hold, so that a change of one is logged (I20).

Owns what was last read of the two files. Private keys are in them as well: only certificates leave this module. A link
in the place of a file is not followed, because it may lead through our own mount; it counts as no certificate.
"""

import hashlib
import os
import stat
from collections.abc import Callable
from contextlib import suppress

import trio
from inotify_simple import INotify, flags

from certfs.core.certificate import Certificate, parse_source
from certfs.identity.paths import POOL_PEM, READ_LIMIT, SERVER_PEM
from certfs.safe_open import closing
from certfs.store.backing import FileId, fd_path, identity
from certfs.store.bundle import Actor
from certfs.store.directories import Roots

NAMES = frozenset((SERVER_PEM, POOL_PEM))
Report = Callable[[bytes, Certificate | None, Certificate | None, Actor | None], None]

_DIRECTORY = b"xensource"
_PATH = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_CHANGES = flags.CLOSE_WRITE | flags.CREATE | flags.MOVED_TO | flags.MOVED_FROM | flags.DELETE
_ECHO_SECONDS = 0.5
"""Who changes a file through the mount is known a moment after the store tells that it has changed."""


class HostCertificates:
    """The host's own certificates; ``report`` is told the path in the mount, what is there now, and what was.

    It is told nothing while this server is not the one in charge (``is_active``): then that one tells it.
    """

    def __init__(self, roots: Roots, report: Report, *, is_active: Callable[[], bool]) -> None:
        self._roots = roots
        self._report = report
        self._is_active = is_active
        self._known: dict[bytes, Certificate | None] = {}
        self._turn = trio.Lock()
        self.shown_at_start = ""
        """The SHA-256 of the file of which readers are told, as `load` found it; empty without one."""

    def load(self) -> None:
        """Read what there is; blocks."""
        with suppress(OSError):
            with closing(self._open()) as directory:
                self._known = {name: _read(directory, name) for name in NAMES}
                shown = _content(directory, SERVER_PEM)
            self.shown_at_start = hashlib.sha256(shown).hexdigest() if shown else ""

    async def watch(self) -> None:
        """Take note of what is changed in the store itself, for ever."""
        with suppress(OSError), INotify(nonblocking=True) as changes:
            with closing(self._open()) as directory:
                changes.add_watch(fd_path(directory), _CHANGES)
                own = identity(directory)[0]
            while True:
                await trio.lowlevel.wait_readable(changes.fileno())
                await trio.sleep(_ECHO_SECONDS)
                names = {os.fsencode(event.name) for event in changes.read(timeout=0)}
                for name in NAMES & names:
                    await self.changed(own, name, None)

    async def changed(self, directory: FileId, name: bytes, actor: Actor | None) -> None:
        """Take note that a file of one of the ``NAMES`` was made, written, replaced or removed in some directory."""
        async with self._turn:
            try:
                new = await trio.to_thread.run_sync(self._look, directory, name)
            except OSError:  # another directory, or none
                return
            old = self._known.get(name)
            self._known[name] = new
        if (new and new.fingerprint) != (old and old.fingerprint) and self._is_active():
            self._report(_DIRECTORY + b"/" + name, new, old, actor)

    def _look(self, directory: FileId, name: bytes) -> Certificate | None:
        with closing(self._open()) as own:
            if identity(own)[0] != directory:
                raise FileNotFoundError
            return _read(own, name)

    def _open(self) -> int:
        start, rest = self._roots.locate((_DIRECTORY,))
        return os.open(rest[0] if rest else b".", _PATH, dir_fd=start)


def _read(directory: int, name: bytes) -> Certificate | None:
    """Return the first certificate in a file, which is the host's; None where there is none or it cannot be read."""
    return next(iter(parse_source(_content(directory, name)).certificates), None)


def _content(directory: int, name: bytes) -> bytes:
    """Return what a file holds; nothing where there is none or it cannot be read."""
    with suppress(OSError), open(os.open(name, _READ, dir_fd=directory), "rb") as file:
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return file.read(READ_LIMIT)
    return b""
