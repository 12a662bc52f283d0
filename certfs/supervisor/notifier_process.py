"""The notifier as a child of the supervisor: started where the configuration names readers, and started again.

Nobody waits for it. What it is to do is what the server in charge has left in a file before it said that it is ready.
"""

import os
import time
from typing import Final

from certfs.linux.processes import ProcessId
from certfs.protocol.notify_spec import NotifierSpec, Wishes
from certfs.protocol.specs import MountSpec, notify_state_file, start_with, wishes_file
from certfs.supervisor.event_loop import EventLoop

_MODULE: Final = "certfs.notifier.main"
_FIRST_PAUSE_SECONDS: Final = 1.0
_LONGEST_PAUSE_SECONDS: Final = 60.0


class NotifierProcess:
    """The supervisor's hold on the notifier; its end is the end of the pipe that is its standard input."""

    def __init__(self, mount: MountSpec, loop: EventLoop) -> None:
        self.process: ProcessId | None = None
        self._mount = mount
        self._loop = loop
        self._pipe = -1
        self._pause = _FIRST_PAUSE_SECONDS
        self._started_at = 0.0

    def renew(self) -> None:
        """Start it with what the server that is now in charge was configured with, in place of the one before."""
        self.dismiss()
        self._pause = _FIRST_PAUSE_SECONDS
        self._start()

    def check(self) -> None:
        """Start another one after a while if this one has died; to be called when a child has ended."""
        if self.process and not self.process.alive():
            self.dismiss()
            if time.monotonic() - self._started_at > _LONGEST_PAUSE_SECONDS:
                self._pause = _FIRST_PAUSE_SECONDS  # it was well for a while
            self._loop.after("notifier", self._pause, self._start)
            self._pause = min(self._pause * 2, _LONGEST_PAUSE_SECONDS)

    def dismiss(self) -> None:
        """Let it end."""
        self._loop.cancel("notifier")
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1
        self.process = None  # it is reaped as a stranger, when it has ended

    def _start(self) -> None:
        wishes = Wishes.read(wishes_file(self._mount.runtime))
        if not wishes.notify:
            return
        spec = NotifierSpec(
            trees=self._mount.trees,
            bundles=wishes.bundles,
            notify=wishes.notify,
            baseline=wishes.baseline,
            state=notify_state_file(self._mount.runtime),
            journal=self._mount.journal,
        )
        read_end, write_end = os.pipe()
        try:
            self.process = ProcessId.of(start_with(spec, _MODULE, stdin=read_end))
            self._pipe = write_end
            self._started_at = time.monotonic()
        except OSError:
            os.close(write_end)
            self._loop.after("notifier", self._pause, self._start)
        finally:
            os.close(read_end)
