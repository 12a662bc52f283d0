"""Asking a mount how it is, from outside, without being stuck when it does not answer.

Owns the union of what the server says (``.certfs/status.json`` at the root of its mount) and what the supervisor wrote
down (state.json). Both are documented in ``docs/operations.md``.
"""

import json
import subprocess
from dataclasses import dataclass
from typing import Any, Final, Literal

from certfs import procfs
from certfs.protocol import state_file
from certfs.protocol.owned_mounts import devices_of
from certfs.protocol.state_file import Phase, State

ANSWER_SECONDS: Final = 3.0


@dataclass(frozen=True, slots=True)
class Answer:
    """How one mount is."""

    phase: Phase | Literal["dead"]
    """``dead``: no process is left, and mounts are."""
    report: dict[str, Any] | None
    """The server's status.json; None if it did not answer in time."""
    state: State | None
    """The supervisor's; None for a mount of somebody else, or where it could not be written."""

    def to_json(self) -> dict[str, Any]:
        """Return the object that ``certfs status --json`` prints."""
        known = {"answering": self.report is not None, "phase": self.phase}
        log = {"log": self.state.log} if self.state else {}
        return {**known, **(self.report or self._from_state()), **log}

    def _from_state(self) -> dict[str, Any]:
        state = self.state
        if state is None:
            return {}
        return {
            "version": state.version,
            "mode": state.mode,
            "config_file": state.config_file,
            "mounts": [
                {"target": target, "store": store}
                for target, store in zip(state.targets, state.stores, strict=True)
            ],
            "server": {"pid": state.server.pid, "since": state.server_since}
            if state.server
            else None,
            "supervisor": {"pid": state.supervisor.pid},
            "since": state.since,
            "bundles": None,
            "plain_copies_current": None,
            "events": [
                {
                    "at": event.at,
                    "kind": event.kind,
                    "detail": event.detail,
                    "plain_seconds": event.plain_seconds,
                    "live_seconds": event.live_seconds,
                }
                for event in state.events
            ],
        }


def ask_instance(directory: str) -> Answer | None:
    """Ask the instance with this runtime directory; None if nothing runs or is mounted there."""
    state = state_file.read_state(directory)
    if state is None:
        return _ask_hidden_mounts(directory)
    if not _runs(state):
        return Answer("dead", None, state) if devices_of(directory, state) else None
    report = _read(state.mountpoint) if state.mountpoint and state.device else None
    return Answer(state.phase, report, state)


def ask_mount(mountpoint: str) -> Answer | None:
    """Ask the certfs at ``mountpoint``, whoever it belongs to; None if there is none or it does not answer."""
    report = _read(mountpoint)
    return None if report is None else Answer("serving", report, None)


def _ask_hidden_mounts(directory: str) -> Answer | None:
    """Ask what is mounted in a runtime directory whose state could not be written, or was removed."""
    points = [
        entry.point for entry in procfs.mounts() if entry.point.startswith(f"{directory}/mount-")
    ]
    answers = (ask_mount(point) for point in reversed(points))
    return next((answer for answer in answers if answer), None)


def _runs(state: State) -> bool:
    return state.supervisor.alive() or (state.server is not None and state.server.alive())


def _read(mountpoint: str) -> dict[str, Any] | None:
    """Read the status through the mount in a process of its own, which can be killed while it waits."""
    process = subprocess.Popen(
        ("cat", "--", f"{mountpoint}/.certfs/status.json"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        answer, _ = process.communicate(timeout=ANSWER_SECONDS)
        report: dict[str, Any] = json.loads(answer)
    except subprocess.TimeoutExpired:
        # Not waited for: it ends when the server or its end answers the request that it is in.
        process.kill()
        if process.stdout:
            process.stdout.close()
        return None
    except ValueError:
        return None
    return report
