"""When the announcer is started, and with what order (promise I21).

Owns the pace: at once after a change, then at most once in `INTERVAL_SECONDS`, the last change included. systemd fails
a path unit for good after five starts in ten seconds. Nothing waits for the announcer: a server that is stopped while
it runs leaves it waiting, until the supervisor ends the server.
"""

import json
import logging
import os
import sys
from contextlib import suppress
from subprocess import DEVNULL, PIPE
from typing import Final

import trio

from certfs.fuse.announcements import ANNOUNCE, GENERATION
from certfs.fuse.synthetic import STATUS_DIRECTORY, SyntheticFiles
from certfs.linux.processes import ProcessId
from certfs.server import announcer
from certfs.store.bundle import LiveBundle

log = logging.getLogger("certfs")

INTERVAL_SECONDS: Final = 2.5
_GIVEN_UP_SECONDS: Final = 10.0
_LONGEST_PAUSE_SECONDS: Final = 60.0
"""Between two announcers that fail: where none can run, that must not cost a start every 2.5 s for ever."""


class Announcing:
    """The changes that watchers were not told of yet, and the process that tells them."""

    def __init__(self, synthetic: SyntheticFiles) -> None:
        self.interval = INTERVAL_SECONDS
        self.mountpoint = ""
        """Where the server is mounted, once it is."""
        self.device = ""
        """The device of this mount, as mountinfo has it (proc(5))."""
        self._synthetic = synthetic
        self._changed: dict[LiveBundle, None] = {}
        self._wake = trio.Event()
        self._process: ProcessId | None = None

    def is_announcer(self, pid: int) -> bool:
        """Whether this is the announcer, and not a process that has its number by now."""
        process = self._process
        return process is not None and process.pid == pid and process.alive()

    def changed(self, bundle: LiveBundle) -> None:
        """Take note that a bundle has another generation."""
        self._changed[bundle] = None
        self._wake.set()

    async def run(self) -> None:
        """Announce changes for as long as the server serves."""
        pause = self.interval
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            changed, self._changed = self._changed, {}
            if await self._announce(list(changed)):
                pause = self.interval
            else:
                # It was killed, got stuck or could not be started: what was not told of is told of by the next one.
                self._changed = changed | self._changed
                self._wake.set()
                pause = min(max(pause, 0.1) * 2, _LONGEST_PAUSE_SECONDS)
            await trio.sleep(pause)

    async def _announce(self, bundles: list[LiveBundle]) -> bool:
        """Have an announcer tell of bundles; whether it has."""
        steps = [step for bundle in bundles for step in self._steps(bundle)]
        order = {"mount": self.mountpoint, "device": self.device, "steps": steps}
        command = [sys.executable, "-I", "-S", announcer.__file__]
        try:
            process = await trio.lowlevel.open_process(
                command, stdin=PIPE, stdout=DEVNULL, stderr=DEVNULL, cwd="/"
            )
        except OSError as e:
            log.warning("watchers are not told of a change yet: %s", e)
            return False
        stdin = process.stdin
        assert stdin is not None  # noqa: S101 - PIPE makes one
        try:
            # One that is not known has no order, and is followed by another.
            with suppress(OSError), trio.move_on_after(_GIVEN_UP_SECONDS):
                # It acts when it has read its order to the end, so not before it is known.
                with suppress(trio.BrokenResourceError):
                    async with stdin:
                        self._process = ProcessId.of(process.pid)
                        await stdin.send_all(json.dumps(order).encode())
                await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                with trio.move_on_after(_GIVEN_UP_SECONDS):
                    await process.wait()
            self._process = None
        return process.returncode == 0

    def _steps(self, bundle: LiveBundle) -> list[list[str]]:
        """Return the calls that tell of a bundle: first of its name, then of each generation that is over."""
        path = os.fsdecode(b"/".join(bundle.spec.bundle))
        own = os.fsdecode(STATUS_DIRECTORY)
        replaced = ["rename", f"{own}/{os.fsdecode(ANNOUNCE)}", path]
        former = self._synthetic.former(bundle)
        return [
            replaced if bundle.exists else ["unlink", path],
            *(["unlink", f"{own}/{os.fsdecode(GENERATION)}{number}"] for number in former),
        ]
