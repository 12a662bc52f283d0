"""What the host shows to others: which certificates its own files hold, so that a change of one is logged (I20).

Owns what was last read of the two files. Private keys are in them as well: only certificates leave this module. A link
in the place of a file is not followed, because it may lead through our own mount; it counts as no certificate.
"""

import hashlib
import os
import stat
from collections.abc import Awaitable, Callable
from contextlib import suppress

import trio

from certfs.core.certificate import Certificate, parse_source
from certfs.identity.paths import POOL_PEM, READ_LIMIT, SERVER_PEM
from certfs.store.backing import FileId, identity
from certfs.store.bundle import Actor
from certfs.store.directories import Roots

NAMES = frozenset((SERVER_PEM, POOL_PEM))
Changed = Callable[[FileId, bytes, Actor | None], Awaitable[None]]
Report = Callable[[bytes, Certificate | None, Certificate | None, Actor | None], None]

_DIRECTORY = b"xensource"
_PATH = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class HostCertificates:
    """The host's own certificates; ``report`` is told the path in the mount, what is there now, and what was."""

    def __init__(self, roots: Roots, report: Report) -> None:
        self._roots = roots
        self._report = report
        self._known: dict[bytes, Certificate | None] = {}
        self._turn = trio.Lock()
        self.shown_at_start = ""
        """The SHA-256 of the file of which readers are told, as `load` found it; empty without one."""

    def load(self) -> None:
        """Read what there is; blocks."""
        with suppress(OSError):
            directory = self._open()
            try:
                self._known = {name: _read(directory, name) for name in NAMES}
                shown = _content(directory, SERVER_PEM)
            finally:
                os.close(directory)
            self.shown_at_start = hashlib.sha256(shown).hexdigest() if shown else ""

    async def changed(self, directory: FileId, name: bytes, actor: Actor | None) -> None:
        """Take note that a file of one of the ``NAMES`` was made, written, replaced or removed in some directory."""
        async with self._turn:
            try:
                new = await trio.to_thread.run_sync(self._look, directory, name)
            except OSError:  # another directory, or none
                return
            old = self._known.get(name)
            self._known[name] = new
        if (new and new.fingerprint) != (old and old.fingerprint):
            self._report(_DIRECTORY + b"/" + name, new, old, actor)

    def _look(self, directory: FileId, name: bytes) -> Certificate | None:
        own = self._open()
        try:
            if identity(own)[0] != directory:
                raise FileNotFoundError
            return _read(own, name)
        finally:
            os.close(own)

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
