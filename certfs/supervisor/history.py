"""What is known of an instance, kept in its state file and its log.

Owns the history: events, since when, deaths in a row. The supervisor says what happened; this says it on.
"""

import os
import time
from dataclasses import replace

from certfs.linux import console
from certfs.linux.processes import ProcessId
from certfs.linux.sd_notify import notify
from certfs.protocol.launch_spec import Order
from certfs.protocol.state_file import (
    REMEMBERED_EVENTS,
    Event,
    EventKind,
    Phase,
    State,
    read_state,
    write_state,
)
from certfs.supervisor.backoff import Strikes
from certfs.supervisor.server_process import Server


class Record:
    """The history of one instance; an adopting supervisor goes on with what its predecessor wrote."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._journal = order.mount.journal
        before = read_state(order.mount.runtime) if order.adopt else None
        self.before: State | None = before
        self._since = before.since if before else time.time()
        self._events = before.events if before else ()
        self.strikes = Strikes(before.strikes if before else 0)
        self._lost: float | None = None

    def log(self, level: console.Level, text: str) -> None:
        """Write a line to the log."""
        console.log(level, f"{self._order.mount.title}: {text}", journal=self._journal)

    def lose(self, kind: EventKind, detail: str, *, lost: float, plain_seconds: float) -> None:
        """Note that the live mount was lost at ``lost`` (time.monotonic), and so much later plain files were seen."""
        self._lost = lost
        at = time.time() - (time.monotonic() - lost)
        self._remember(Event(at=at, kind=kind, detail=detail, plain_seconds=plain_seconds))
        self.log("error", f"the server {detail}; the plain directories are in view")

    def note(self, kind: EventKind, detail: str, *, live_seconds: float | None = None) -> None:
        """Note and log something that takes nothing out of view."""
        self.log("info" if kind == "restarted" else "error", f"{kind}: {detail}")
        self._remember(Event(at=time.time(), kind=kind, detail=detail, live_seconds=live_seconds))

    def live(self) -> None:
        """Note that the mount is live; after a loss, how long that took."""
        if self._lost is not None:
            seconds = time.monotonic() - self._lost
            *earlier, last = self._events
            self._events = (*earlier, replace(last, live_seconds=seconds))
            self.log("info", f"live again after {seconds:.2f} s")
            self._lost = None
        notify("READY=1", f"STATUS=serving {self._order.mount.title}")

    def save(
        self,
        phase: Phase,
        server: Server | None,
        *,
        janitor: ProcessId | None,
        devices: tuple[str, ...],
    ) -> None:
        """Replace the state file."""
        mount = self._order.mount
        state = State(
            mode=mount.mode,
            phase=phase,
            targets=tuple(tree.target for tree in mount.trees),
            stores=tuple(tree.store for tree in mount.trees),
            config_file=mount.config_in_use,
            since=self._since,
            supervisor=ProcessId.of(os.getpid()),
            server=server.process if server else None,
            server_since=server.since if server else None,
            janitor=janitor,
            mountpoint=server.mountpoint if server else None,
            device=server.device if server else None,
            devices=devices,
            allow_other=mount.allow_other,
            log=mount.log,
            strikes=self.strikes.count,
            events=self._events,
        )
        try:
            write_state(mount.runtime, state)
        except OSError as error:
            self.log("error", f"cannot write {mount.state_file}: {error.strerror}")

    def _remember(self, event: Event) -> None:
        self._events = (*self._events, event)[-REMEMBERED_EVENTS:]
