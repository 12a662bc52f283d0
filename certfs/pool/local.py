"""What the process of a member hears on its own host: changes of files, and requests of commands.

Owns the inotify watches in the store, reading the host's own PEM files there, the control socket, and where files are
that were set aside.
"""

import glob
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final, Self

import inotify_simple
import msgspec
import trio

from certfs.core.bundle import is_source_name
from certfs.errors import AlreadyRunningError, CertfsError, DeadlineError
from certfs.pool.directory import Scan, SourceDirectory
from certfs.pool.keys import PoolError
from certfs.pool.store import Store
from certfs.safe_open import closing
from certfs.store.swaps import SWAP_SUFFIX

SOCKET: Final = "control"
ASIDE: Final = "aside"
_SWAP: Final = SWAP_SUFFIX.decode("ascii")
_WATCHED: Final[dict[tuple[bytes, ...], Callable[[str], bool]]] = {
    (b"stunnel",): lambda name: name.removesuffix(_SWAP) in {"certs", "certs-pool"},
    (b"stunnel", b"certs"): lambda name: is_source_name(os.fsencode(name)),
    (b"stunnel", b"certs-pool"): lambda name: is_source_name(os.fsencode(name)),
    (b"xensource",): lambda name: name.startswith("xapi-pool-tls."),
}
"""The directories, and which names in them matter: not the plain copies of bundles, nor files that are being made."""
_flags = inotify_simple.flags
_MASK: Final = (
    _flags.CLOSE_WRITE
    | _flags.MOVED_FROM
    | _flags.MOVED_TO
    | _flags.CREATE
    | _flags.DELETE
    | _flags.ONLYDIR
)
_PEM_BYTES: Final = 1 << 20
_LINE_BYTES: Final = 1 << 20


class Told(msgspec.Struct, frozen=True):
    """What commands have asked for and the next step carries out.

    ``publish`` are names that were here before this host joined. ``restore`` makes the directories what the pool has.
    ``flush`` is carried out when what had changed here has been published.
    """

    publish: tuple[str, ...] = ()
    accept_deletions: bool = False
    restore: bool = False
    flush: bool = False

    def then(self, later: "Told") -> "Told":
        """Return both."""
        return Told(
            self.publish + later.publish,
            self.accept_deletions or later.accept_deletions,
            self.restore or later.restore,
            self.flush or later.flush,
        )


class Request(msgspec.Struct, frozen=True):
    """What a command sends: a ``told`` to carry out, or none to ask how things are."""

    told: Told | None = None


class Answer(msgspec.Struct, frozen=True):
    """What the process says of itself; ``pending`` while a request is not carried out."""

    report: dict[str, Any]
    pending: bool


class Watcher:
    """Hears of changes in the directories, and calls ``changed`` after each; use it with ``with``."""

    def __init__(self, store: Store, changed: Callable[[], None]) -> None:
        self._store = store
        self._changed = changed
        self._swaps = 0
        """Goes up when a program begins to replace a directory (I10), and when that may have been missed."""
        self._inotify = inotify_simple.INotify(nonblocking=True)
        self._matters: dict[int, Callable[[str], bool]] = {}
        """By the watch."""

    def __enter__(self) -> Self:
        self.watch()
        return self

    def __exit__(self, *_: object) -> None:
        self._inotify.close()

    def watch(self) -> None:
        """Watch the directories that are there now; the same one again changes nothing (inotify(7))."""
        for path, matters in _WATCHED.items():
            with suppress(OSError), closing(self._store.open(path)) as directory:
                watch = self._inotify.add_watch(f"/proc/self/fd/{directory}", _MASK)
                self._matters[watch] = matters

    async def listen(self) -> None:
        """Hear of changes until cancelled."""
        while True:
            await trio.lowlevel.wait_readable(self._inotify.fileno())
            self._poll()

    async def scan(self, directory: SourceDirectory) -> Scan:
        """Read a directory; if another program began to replace it meanwhile, it counts as being replaced.

        What was read may then have a part of the old and a part of the new. Looking for its D.bk before and after would
        not do: the whole swap may happen in between.
        """
        self._poll()
        before = self._swaps
        found = await trio.to_thread.run_sync(directory.scan)
        self._poll()
        return found if self._swaps == before else replace(found, swapping=True)

    def _poll(self) -> None:
        for event in self._inotify.read(timeout=0):
            if event.mask & _flags.IGNORED:
                self._matters.pop(event.wd, None)
            elif event.mask & _flags.Q_OVERFLOW:
                self._swaps += 1
                self._changed()
            elif self._matters[event.wd](event.name):
                begun = event.mask & (_flags.CREATE | _flags.MOVED_TO)
                self._swaps += bool(begun and event.name.endswith(_SWAP))
                self._changed()


def read_pem(store: Store, name: str) -> bytes:
    """Return a file of the host's own, empty where it is missing or no regular file."""
    try:
        directory = store.open((b"xensource",))
    except OSError:
        return b""
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with open(os.open(name, flags, dir_fd=directory), "rb") as file:
            return file.read(_PEM_BYTES)
    except OSError:
        return b""
    finally:
        os.close(directory)


@dataclass(frozen=True, slots=True)
class ControlSocket:
    """The socket in the state directory ``path``, by which commands reach the process: one line each way."""

    path: str

    @property
    def address(self) -> str:
        """Where it is."""
        return f"{self.path}/{SOCKET}"

    async def need_silence(self) -> None:
        """Raise AlreadyRunningError where a process answers: it has its membership and its journal in memory."""
        with suppress(OSError):
            await (await trio.open_unix_socket(self.address)).aclose()
            raise AlreadyRunningError(
                f"{self.path}: certfs pool run is at work on it",
                advice="end it first; where systemd runs it: systemctl stop certfs-pool",
            )

    async def serve(self, answer: Callable[[Request], Awaitable[msgspec.Struct]]) -> None:
        """Answer requests until cancelled; AlreadyRunningError where another process does."""
        await self.need_silence()
        with suppress(FileNotFoundError):
            os.unlink(self.address)
        listening = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
        umask = os.umask(0o177)
        try:
            await listening.bind(self.address)
        finally:
            os.umask(umask)
        listening.listen(16)

        async def handle(stream: trio.SocketStream) -> None:
            with suppress(trio.BrokenResourceError, msgspec.DecodeError), trio.move_on_after(600):
                async with stream:
                    request = msgspec.json.decode(await _line(stream), type=Request)
                    await stream.send_all(msgspec.json.encode(await answer(request)) + b"\n")

        await trio.serve_listeners(handle, [trio.SocketListener(listening)])

    async def ask(self, request: Request, seconds: float) -> bytes:
        """Return the answer of the process; PoolError where it does not run, DeadlineError."""
        try:
            with trio.fail_after(seconds):
                async with await trio.open_unix_socket(self.address) as stream:
                    await stream.send_all(msgspec.json.encode(request) + b"\n")
                    return await _line(stream)
        except trio.TooSlowError:
            raise DeadlineError(
                f"{self.path}: the pool process did not answer within {seconds:g} s",
                advice="certfs pool status says how it is",
            ) from None
        except (OSError, trio.BrokenResourceError) as error:
            raise _not_running(self.path) from error


def set_aside(state: str) -> list[str]:
    """Return the files that the pool overruled, which stay in the state directory until somebody removes them."""
    return sorted(glob.iglob(f"{glob.escape(state)}/{ASIDE}/*/*.pem"))


def _not_running(path: str) -> CertfsError:
    return PoolError(
        f"{path}: the pool process does not run",
        advice="systemctl start certfs-pool, or certfs pool run",
    )


async def _line(stream: trio.SocketStream) -> bytes:
    found = b""
    while not found.endswith(b"\n") and len(found) < _LINE_BYTES:
        piece = await stream.receive_some()
        if not piece:
            break
        found += piece
    return found
