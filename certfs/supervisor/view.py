"""What of the servers' mounts is in view: the targets, what others bound from them, and what is left over.

Owns the device numbers of an instance's mounts. The supervisor says which server is to be seen; how that is done is
`certfs.supervisor.views`.
"""

from collections.abc import Callable
from typing import Final

from certfs import procfs
from certfs.protocol.link import Failure, Job, Mount
from certfs.protocol.owned_mounts import devices_of
from certfs.protocol.state_file import State
from certfs.supervisor import views
from certfs.supervisor.server_process import Server

FLUSH_SECONDS: Final = 5.0
"""How long a server may take to bring the plain copies up to date before they come into view."""

Complain = Callable[[str], None]


class Stage:
    """The mount table as far as one instance is concerned."""

    def __init__(self, mount: Mount, complain: Complain) -> None:
        self._mount = mount
        self._complain = complain
        self._views = views.views_for(mount)
        self._targets = {tree.target for tree in mount.trees}
        self._foreign: tuple[views.View, ...] = ()
        """Bind mounts that others made of ours; they come back with ours."""
        self._waiting: dict[str, views.View] = {}
        """By point: not in view because a mount of an earlier server is there, beneath somebody else's."""
        self.devices: tuple[str, ...] = ()
        """``major:minor`` of every mount of this instance that may be in the table."""
        self.can_hide = self._views.hidden
        """A server can go on while nothing of it is in view."""

    @property
    def waits(self) -> bool:
        """Whether something is to come into view when somebody else has unmounted what is over it."""
        return bool(self._waiting)

    def has_room(self) -> bool:
        """Whether a server can be mounted now.

        If something covers the place of one that cannot be hidden, `waits` is true from now on.
        """
        if self.can_hide:
            return True
        covered = self.covered()
        self._waiting = {
            view.point: view for view in views.planned(self._mount) if view.point in covered
        }
        return not self._waiting

    def finds_room(self) -> bool:
        """Whether there is room for a server that had none before."""
        return not self.can_hide and self.waits and self.has_room()

    def covered(self) -> tuple[str, ...]:
        """Return the places where mounts of this instance are beneath somebody else's."""
        table = procfs.mounts()
        points = dict.fromkeys(entry.point for entry in table if entry.device in self.devices)
        return tuple(point for point in points if self._is_covered(table, point))

    def start(self, module: str, *, beside: bool, asked: bool) -> Server:
        """Start ``module`` as the next server, with a place to mount; ``beside`` another one that still serves.

        ``asked`` if somebody waits for it.

        OSError if there is no place, or no process.
        """
        place = self._views.place()
        waits = beside and not self.can_hide
        try:
            job = Job(mount=self._mount, mountpoint=place, passive=beside, waits=waits, asked=asked)
            return Server.start(module, job)
        except OSError:
            self.clear(place)
            raise

    def clear(self, place: str) -> None:
        """Remove a server's hidden place, if nothing is mounted there any more."""
        views.discard_place(self._mount, place)

    def identify(self, server: Server, *, beside: Server | None = None) -> bool:
        """Find out the device of a server's mount; whether there is one, and not that of the server ``beside`` it.

        An ordinary user's servers have one place: until the next one has its turn, the mount there is not its own.
        """
        top = procfs.top_at(procfs.mounts(), server.mountpoint)
        if top is None or not procfs.is_ours(top) or (beside and beside.device == top.device):
            return False
        server.device = top.device
        self.devices = (*self.devices, top.device)
        return True

    def show(self, server: Server, previous: Server | None) -> Failure | None:
        """Bring ``server`` into view where it is not, in place of ``previous``; the failure if that is impossible."""
        if previous:
            self._remember_foreign(previous)
            previous.flush(FLUSH_SECONDS)
        device = previous.device if previous else None
        for view in views.planned(self._mount):
            error = self._bring(view, server, device)
            if error:
                text = f"cannot bring {view.point} into view: {error.strerror or error}"
                return Failure(6, text, "the log of the kernel (dmesg) may say why")
        for view in self._foreign:
            error = self._bring(view, server, device)
            if error:
                self._complain(f"cannot bind {view.point} again: {error.strerror or error}")
        return None

    def _bring(self, view: views.View, server: Server, previous: str | None) -> OSError | None:
        """Bring one view of ``server`` into view, in place of the device ``previous``; later, if somebody covers it.

        A view that a target propagates to (mount_namespaces(7)) is there already; a second would go back to it.
        """
        table = procfs.mounts()
        self._waiting.pop(view.point, None)
        top = procfs.top_at(table, view.point)
        if top is not None and top.device == server.device:
            return None
        if not self._is_covered(table, view.point):
            return self._views.show(view, server.mountpoint, previous)
        if not any((view.point, server.device) == (entry.point, entry.device) for entry in table):
            self._waiting[view.point] = view
        return None

    def _is_covered(self, table: tuple[procfs.Entry, ...], point: str) -> bool:
        """Whether a mount of this instance is at ``point``, beneath somebody else's."""
        top = procfs.top_at(table, point)
        here = {entry.device for entry in table if entry.point == point}
        return (
            top is not None and top.device not in self.devices and not here.isdisjoint(self.devices)
        )

    def resume(self, server: Server) -> None:
        """Bring into view what waited for that, where nothing is over it any more."""
        for view in tuple(self._waiting.values()):
            error = self._bring(view, server, None)
            if error:
                self._complain(f"cannot bring {view.point} into view: {error.strerror or error}")

    def hide(self, server: Server | None, *, except_for: Server | None = None) -> None:
        """Take everything but the mount of ``except_for`` out of view; ``server`` is the one whose binds come back."""
        if server:
            self._remember_foreign(server)
        spared = except_for.device if except_for else None
        self._detach({device for device in self.devices if device != spared})

    def take_over(self, server: Server, before: State | None) -> None:
        """Go on with what another supervisor left ``before``, and have ``server`` in view."""
        self.identify(server)
        if before:
            self.devices += tuple(devices_of(self._mount.runtime, before))
            self.tidy(server)
        if not self.shows(server):
            self.hide(server, except_for=server)
            self.show(server, None)

    def remove(self, server: Server) -> None:
        """Take what ``server`` shows out of view."""
        if server.device:
            self._detach({server.device})

    def shows(self, server: Server) -> bool:
        """Whether every target has a mount of ``server``, or waits for it beneath somebody else's."""
        table = procfs.mounts()
        seen = {entry.point for entry in table if entry.device == server.device}
        ours = {entry.point for entry in table if entry.device in self.devices}
        return self._targets - seen <= self._waiting.keys() & ours

    def mounted(self, server: Server) -> bool:
        """Whether any mount of ``server`` is in the table."""
        return any(entry.device == server.device for entry in procfs.mounts())

    def tidy(self, *alive: Server | None) -> bool:
        """Detach what belongs to none of the servers ``alive``, forget what is gone; whether anything changed.

        A dead mount that lay beneath somebody else's comes into view when that one goes.
        """
        before = self.devices
        entries = [entry for entry in procfs.mounts() if procfs.is_ours(entry)]
        there = {entry.device for entry in entries}
        self.devices = tuple(dict.fromkeys(device for device in before if device in there))
        # Where nothing of ours is left somebody has unmounted ours as well: it does not come back.
        points = {entry.point for entry in entries if entry.device in self.devices}
        self._waiting = {point: view for point, view in self._waiting.items() if point in points}
        dead = set(self.devices) - {server.device for server in alive if server}
        if dead:
            self._detach(dead)
        return self.devices != before

    def _detach(self, devices: set[str], *, keep: str | None = None) -> None:
        detached = self._views.hide(devices, keep=keep)
        for error in detached.errors:
            self._complain(f"cannot detach {error.filename}: {error.strerror}")
        if keep is None:
            # At once: a number that is free again is the next mount's, the one of the next server for instance.
            gone = devices - detached.left
            self.devices = tuple(device for device in self.devices if device not in gone)

    def _remember_foreign(self, server: Server) -> None:
        ours = {server.mountpoint, *self._targets}
        found = tuple(
            views.View(entry.root, entry.point)
            for entry in procfs.mounts()
            if entry.device == server.device and entry.point not in ours
        )
        if self.shows(server):
            found += tuple(view for point, view in self._waiting.items() if point not in ours)
            self._foreign = found
        else:
            self._foreign = found or self._foreign  # they were taken out of view with the targets
