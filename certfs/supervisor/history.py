"""What is known of an instance, kept in its state file and its log, and told to whoever waits for the first outcome.

Owns the history: events, since when, deaths in a row. The supervisor says what happened; this says it on.
"""

import os
import sys
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace
from typing import Final

from certfs.linux import console
from certfs.linux.processes import ProcessId
from certfs.linux.sd_notify import notify
from certfs.protocol import codec
from certfs.protocol.messages import Failure
from certfs.protocol.specs import SupervisorSpec
from certfs.protocol.state_file import (
    REMEMBERED_EVENTS,
    Event,
    EventKind,
    KeptBind,
    Phase,
    State,
    read_state,
    write_state,
)
from certfs.supervisor.machine import Strikes
from certfs.supervisor.server_process import ServerProcess
from certfs.supervisor.view import Memory

MOST_LINGERING: Final = 8
"""So many replaced servers may serve what is still open; beyond, the oldest is ended (I18)."""


class History:
    """The history of one instance; an adopting supervisor goes on with what its predecessor wrote."""

    def __init__(self, spec: SupervisorSpec) -> None:
        self._spec = spec
        before = read_state(spec.mount.runtime) if spec.adopt else None
        self.before: State | None = before
        self._since = before.since if before else time.time()
        self._events = before.events if before else ()
        self._lingering = before.lingering if before else ()
        self._draining = {each.device: each.server for each in before.kept} if before else {}
        """Those of them whose mount was still there at the last look, by its device."""
        self._lost: float | None = None
        self._unwritten: State | None = None
        self._fails = False
        self._next_start: float | None = None
        self._report_fd = spec.report_fd
        self._untold = spec.adopt is None
        """The first outcome has not been told."""

    def log(self, level: console.Level, text: str) -> None:
        """Write a line to the log."""
        mount = self._spec.mount
        console.log(level, f"{mount.title}: {text}", journal=mount.journal)

    def report(self, failure: Failure | None) -> None:
        """Tell the command that waits, or in the foreground people, what the first start came to; later ones nobody."""
        if not self._untold:
            return
        self._untold = False
        if self._report_fd is not None:
            with suppress(OSError):
                os.write(self._report_fd, codec.to_json(failure))
            os.close(self._report_fd)
        elif failure:
            line = f"certfs: {failure.message}: {failure.advice}".removesuffix(": ")
            sys.stderr.write(line + "\n")

    def lose(self, kind: EventKind, detail: str, *, lost: float) -> None:
        """Note that the live mount was lost at ``lost`` (time.monotonic), and that plain files are in view now."""
        self._lost = lost
        seconds = time.monotonic() - lost
        event = Event(at=time.time() - seconds, kind=kind, detail=detail, plain_seconds=seconds)
        self._remember(event)
        self.log("error", f"the server {detail}; the plain directories are in view")

    def note(self, kind: EventKind, detail: str, *, live_seconds: float | None = None) -> None:
        """Note and log something that takes nothing out of view."""
        self.log("info" if kind == "restarted" else "error", f"{kind}: {detail}")
        self._remember(Event(at=time.time(), kind=kind, detail=detail, live_seconds=live_seconds))

    def live(self) -> None:
        """Note that the mount is live; after a loss, how long that took."""
        if self._lost is not None:
            seconds = time.monotonic() - self._lost
            events = list(self._events)
            for index in reversed(range(len(events))):
                if events[index].plain_seconds is not None:
                    events[index] = replace(events[index], live_seconds=seconds)
                    break
            self._events = tuple(events)
            self.log("info", f"live again after {seconds:.2f} s")
            self._lost = None
        notify("READY=1", f"STATUS=serving {self._spec.mount.title}")

    def linger(self, server: ServerProcess, *, bound: Collection[str]) -> None:
        """Note a replaced server that serves what is still open; end the oldest where there are too many.

        Those go last of whose devices others have ``bound`` something.
        """
        if server.device:
            self._draining[server.device] = server.process
        last = [process for device, process in self._draining.items() if device in bound]
        living = [each for each in (*self._lingering, server.process) if each.alive()]
        while len(living) > MOST_LINGERING:
            oldest = next((each for each in living if each not in last), living[0])
            self.log("warning", f"process {oldest.pid}: too many replaced servers, ended")
            oldest.kill()
            living.remove(oldest)
        self._lingering = tuple(living)

    def draining(self, devices: Collection[str]) -> frozenset[str]:
        """Return the devices of replaced servers that live, of those ``devices`` that are mounted."""
        self._draining = {
            device: server
            for device, server in self._draining.items()
            if device in devices and server.alive()
        }
        return frozenset(self._draining)

    def wait(self, strikes: Strikes, seconds: float) -> None:
        """Say that the next server is started only after so long."""
        text = f"death {strikes.deaths} in a row: plain directories for {seconds} s"
        self.log("error", text)
        notify(f"STATUS={text}")
        self._next_start = time.time() + seconds

    def save(
        self,
        phase: Phase,
        server: ServerProcess | None,
        *,
        strikes: Strikes,
        janitor: ProcessId | None,
        memory: Memory,
    ) -> None:
        """Replace the state file."""
        mount = self._spec.mount
        if server:  # the wait is over, whatever becomes of this one
            self._next_start = None
        state = State(
            mode=mount.mode,
            phase=phase,
            targets=tuple(target.point for target in memory.targets),
            # A tree that has come is not seen before its server is in charge.
            stores=tuple(tree.store for tree in mount.trees[: len(memory.targets)]),
            config_file=mount.config_in_use,
            since=self._since,
            supervisor=ProcessId.of(os.getpid()),
            server=server.process if server else None,
            server_since=server.since if server else None,
            janitor=janitor,
            lingering=self._lingering,
            kept=tuple(
                KeptBind(number, device, point, self._draining[device])
                for number, device, point in memory.kept
                if device in self._draining
            ),
            mountpoint=server.mountpoint if server else None,
            device=server.device if server else None,
            devices=memory.devices,
            allow_other=mount.allow_other,
            log=mount.log,
            deaths=strikes.deaths,
            defects=strikes.defects,
            next_start=self._next_start,
            events=self._events,
        )
        self._unwritten = state
        self.save_again()

    def save_again(self) -> None:
        """Write the state file where that has failed: /run may have been full, and nothing else may happen for days."""
        if self._unwritten is None:
            return
        mount = self._spec.mount
        try:
            write_state(mount.runtime, self._unwritten)
        except OSError as error:
            if not self._fails:
                text = f"cannot write {mount.state_file}: {error.strerror}; tried again until it can be"
                self.log("error", text)
            self._fails = True
            return
        if self._fails:
            self.log("info", f"{mount.state_file} is written again")
        self._unwritten, self._fails = None, False

    def _remember(self, event: Event) -> None:
        self._events = (*self._events, event)[-REMEMBERED_EVENTS:]
