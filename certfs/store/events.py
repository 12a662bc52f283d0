"""Being told of changes that are made in the store itself, beneath the mount (promise I13).

Owns the inotify descriptor: which directories are watched, and turning the kernel's events into names. The kernel
queues an event before the call that caused it returns, so reading the queue before answering makes such a change as
visible as one made through the mount.
"""

import errno
import os
import select
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import trio
from inotify_simple import INotify, flags

from certfs.errors import StoreError
from certfs.store.backing import FileId, describe, fd_path, identity

_MASK = (
    flags.MODIFY
    | flags.CLOSE_WRITE
    | flags.CREATE
    | flags.DELETE
    | flags.MOVED_FROM
    | flags.MOVED_TO
    | flags.ATTRIB
    | flags.MOVE_SELF
    | flags.ONLYDIR
)


_MOUNTINFO = "/proc/self/mountinfo"
_MOST_WAYS = 4096
"""How many directories outside of the source directories are watched for the sake of links (promise I18)."""


class DirectoryEvent(NamedTuple):
    """A directory ``name`` in ``directory`` that was made, renamed to this name, or is gone (removed or renamed)."""

    directory: FileId
    name: bytes
    what: Literal["made", "arrived", "gone"]


@dataclass(frozen=True, slots=True)
class StoreEvents:
    """What happened since the last look: names by directory; ``overflow`` if the kernel dropped some.

    ``modified`` holds those of which only IN_MODIFY was heard: mostly files in the middle of being written, which are
    none of our business (I3), but also what truncate(2) does to a file that nobody has open. ``closed`` are those of
    ``names`` that a process had open for writing and closed. ``directories`` are what happened to directories, in
    order; their names are among the others as well. ``themselves`` are directories whose own attributes were changed.
    """

    names: dict[FileId, set[bytes]] = field(default_factory=dict)
    directories: tuple[DirectoryEvent, ...] = ()
    modified: dict[FileId, set[bytes]] = field(default_factory=dict)
    overflow: bool = False
    closed: dict[FileId, set[bytes]] = field(default_factory=dict)
    themselves: frozenset[FileId] = frozenset()

    @property
    def changed(self) -> set[FileId]:
        """The directories whose attributes may be others now."""
        return {*self.names, *self.themselves}

    def __bool__(self) -> bool:
        return bool(self.names or self.modified) or self.overflow

    def then(self, later: "StoreEvents") -> "StoreEvents":
        """Return these events and later ones as one."""
        names = _united(self.names, later.names)
        return StoreEvents(
            names,
            self.directories + later.directories,
            _without(_united(self.modified, later.modified), names),
            self.overflow or later.overflow,
            _united(self.closed, later.closed),
        )


def _united(
    one: dict[FileId, set[bytes]], other: dict[FileId, set[bytes]]
) -> dict[FileId, set[bytes]]:
    return {key: one.get(key, set()) | other.get(key, set()) for key in one.keys() | other.keys()}


def _without(
    found: dict[FileId, set[bytes]], known: dict[FileId, set[bytes]]
) -> dict[FileId, set[bytes]]:
    rest = {directory: names - known.get(directory, set()) for directory, names in found.items()}
    return {directory: names for directory, names in rest.items() if names}


class StoreWatcher:
    """Watches directories for changes of the names in them; a directory is known by its identity.

    ``problem`` is why not all of them are watched, empty if they are. Serving goes on without: what is changed through
    the mount needs no watching. StoreError where the system has no inotify to give.
    """

    def __init__(self) -> None:
        with ExitStack() as stack:
            try:
                self._mounts = stack.enter_context(open(_MOUNTINFO, "rb"))
                self._mounts_to_wake = stack.enter_context(open(_MOUNTINFO, "rb"))
                self._mounts_epoll = stack.enter_context(select.epoll())
                self._inotify = INotify(nonblocking=True)
            except OSError as e:
                raise StoreError(
                    f"inotify: {describe(e)}",
                    advice="raise fs.inotify.max_user_instances with sysctl(8)",
                ) from None
            stack.pop_all()
        self._watches: dict[int, FileId] = {}
        self._ways: dict[int, FileId] = {}
        self.watched: frozenset[FileId] = frozenset()
        """The directories of `watch` that are watched."""
        self._lock = threading.Lock()
        self._mounts_poll = select.poll()
        # It is always readable: a change is POLLERR and POLLPRI, told once to each open file.
        self._mounts_poll.register(self._mounts, select.POLLPRI)
        self._mounts_epoll.register(self._mounts_to_wake, select.EPOLLPRI)
        self.problem = ""

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when something happened."""
        return int(self._inotify.fileno())

    def watch_way(self, directory: int) -> FileId:
        """Watch a directory on the way of a link too, until `forget_ways`; any thread may call this.

        That costs a watch and no more, so nothing is said where there are too many: links are looked at again anyway.
        """
        key, _ = identity(directory)
        with self._lock:
            is_known = key in self._ways.values() or len(self._ways) >= _MOST_WAYS
        if not is_known:
            with suppress(OSError):
                watch = self._inotify.add_watch(fd_path(directory), _MASK)
                with self._lock:
                    self._ways[watch] = key
        return key

    def forget_ways(self, still: set[FileId]) -> None:
        """End the watches of `watch_way` but for these directories."""
        with self._lock:
            gone = {watch for watch, key in self._ways.items() if key not in still}
            for watch in gone:
                del self._ways[watch]
        for watch in gone - self._watches.keys():
            self._remove(watch)

    @property
    def ways(self) -> int:
        """How many directories are watched because a link leads over them."""
        return len(self._ways)

    async def wait(self) -> None:
        """Wait until there are events to read, or something was mounted or unmounted."""
        async with trio.open_nursery() as nursery:

            async def readable(descriptor: int) -> None:
                await trio.lowlevel.wait_readable(descriptor)
                nursery.cancel_scope.cancel()

            nursery.start_soon(readable, self.fileno())
            nursery.start_soon(readable, self._mounts_epoll.fileno())
        # Told once: it would be readable for ever.
        self._mounts_epoll.poll(0)

    def mounts_changed(self) -> bool:
        """Whether something was mounted or unmounted since the last call; one system call (proc(5), mountinfo)."""
        return bool(self._mounts_poll.poll(0))

    def watch(self, directories: Iterable[tuple[int, FileId]]) -> None:
        """Watch exactly these directories (descriptor and identity) from now on.

        What `watch_way` watches already is not asked for again: to watch a directory waits for its file system.
        """
        wanted = {}
        self.problem = ""
        with self._lock:
            known = {directory: watch for watch, directory in self._ways.items()}
        for fd, directory in directories:
            if directory in known:
                wanted[known[directory]] = directory
                continue
            try:
                wanted[self._inotify.add_watch(fd_path(fd), _MASK)] = directory
            except OSError as e:
                used_up = e.errno == errno.ENOSPC
                self.problem = "fs.inotify.max_user_watches is used up" if used_up else describe(e)
        for watch in self._watches.keys() - wanted.keys() - self._ways.keys():
            self._remove(watch)
        self._watches = wanted
        self.watched = frozenset(wanted.values())

    def _remove(self, watch: int) -> None:
        try:
            self._inotify.rm_watch(watch)
        except OSError:
            # The kernel ends a watch by itself when its directory is gone (inotify(7), IN_IGNORED).
            return

    def read(self) -> StoreEvents:
        """Return what happened, without waiting."""
        names: dict[FileId, set[bytes]] = {}
        directories: list[DirectoryEvent] = []
        modified: dict[FileId, set[bytes]] = {}
        closed: dict[FileId, set[bytes]] = {}
        themselves: set[FileId] = set()
        overflow = False
        for event in self._inotify.read(timeout=0):
            if event.mask & flags.Q_OVERFLOW:
                overflow = True
            if event.mask & flags.IGNORED:
                # Its directory is gone: the next one of that number is not watched.
                with self._lock:
                    self._ways.pop(event.wd, None)
                if self._watches.pop(event.wd, None) is not None:
                    self.watched = frozenset(self._watches.values())
            directory = self._watches.get(event.wd) or self._ways.get(event.wd)
            if directory is not None and not event.name:
                themselves.add(directory)
            elif directory is not None:
                found = modified if event.mask & flags.MODIFY else names
                name = os.fsencode(event.name)
                found.setdefault(directory, set()).add(name)
                if event.mask & flags.CLOSE_WRITE:
                    closed.setdefault(directory, set()).add(name)
                if event.mask & flags.ISDIR:
                    directories.extend(_directory_event(directory, name, event.mask))
        return StoreEvents(
            names,
            tuple(directories),
            _without(modified, names),
            overflow,
            closed,
            frozenset(themselves),
        )

    def close(self) -> None:
        """Stop watching."""
        self._inotify.close()
        self._mounts_epoll.close()
        self._mounts.close()
        self._mounts_to_wake.close()


class PendingEvents:
    """What a watcher tells, kept until it is applied: to learn of it and to act on it are two things."""

    def __init__(self, watcher: StoreWatcher) -> None:
        self._watcher = watcher
        self._events = StoreEvents()
        self._arrived = trio.Event()

    def __bool__(self) -> bool:
        """Whether there is something to take."""
        return bool(self._events)

    def poll(self) -> StoreEvents:
        """Return what happened since the last call; one system call when nothing did."""
        events = self._watcher.read()
        if events:
            self._events = self._events.then(events)
            self._arrived.set()
        return events

    def take(self) -> StoreEvents:
        """Return everything that was polled and not taken yet."""
        events, self._events = self._events, StoreEvents()
        return events

    async def wait(self) -> None:
        """Wait until there is something to poll or to take."""
        if self._events:
            return
        self._arrived = trio.Event()
        async with trio.open_nursery() as nursery:

            async def told() -> None:
                await self._watcher.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(told)
            await self._arrived.wait()
            nursery.cancel_scope.cancel()


def _directory_event(directory: FileId, name: bytes, mask: int) -> Iterator[DirectoryEvent]:
    if mask & flags.CREATE:
        yield DirectoryEvent(directory, name, "made")
    elif mask & flags.MOVED_TO:
        yield DirectoryEvent(directory, name, "arrived")
    elif mask & (flags.DELETE | flags.MOVED_FROM):
        yield DirectoryEvent(directory, name, "gone")
