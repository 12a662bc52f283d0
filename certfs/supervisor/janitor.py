"""The janitor (J): what is left when supervisor and server can no longer do their part (I14).

A shell with two waits, so that two faults at once leave no path at ENOTCONN:

- Its standard input is a pipe that the supervisor (S) holds. Its end means that S is dead. A
  server (W) starts another S then, which ends this janitor; unless every W is dead too, or stopped: those are ended,
  and every mount that J was told to watch is detached.
- The end of W's life pipe means that W is dead. S has seen to that a second later, unless S is stopped: then J detaches
  what does not answer any more.

What lies beneath somebody else's mount is detached when that one goes, however long that takes. The script is
``janitor.sh``, which J reads from a file in memory; what it is to watch comes over the pipe. So its command line names
nothing of ours: whoever kills by name or by argument kills the other two and leaves this one to clean up.
"""

import functools
import os
import signal
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Final

from certfs.linux.descriptors import memory_file
from certfs.linux.mount_table import escape
from certfs.linux.processes import ProcessId, reap, start
from certfs.procfs import FILESYSTEM_TYPE
from certfs.safe_open import closing
from certfs.supervisor.event_loop import EventLoop

_SHELL: Final = "/bin/sh"
_AS_ROOT: Final = "umount -l -i -n -c"
_AS_USER: Final = "fusermount3 -u -z -q --"

_PAUSE_SECONDS: Final = 1.0
"""Before a janitor that died is replaced: where none can be started this must not become a busy loop."""


class Janitor:
    """The supervisor's hold on the janitor: from the first server on there always is one, and it knows every device."""

    def __init__(
        self, loop: EventLoop, *, places: Collection[str], replaced: Callable[[], None]
    ) -> None:
        self.process: ProcessId | None = None
        self._loop = loop
        self._replaced = replaced
        self._places = places
        self._watch = _watch((), (), places)
        _script()  # of this version, whatever is installed later
        self._life = os.open(os.devnull, os.O_RDONLY)
        self._pipe = -1

    def attend(self, life_fd: int) -> None:
        """Have one that also waits for the end of the server with this life pipe; it replaces the one before."""
        os.close(self._life)
        self._life = os.dup(life_fd)
        self._start()

    def watch(self, devices: Collection[str], servers: Collection[ProcessId]) -> None:
        """Let it detach these file systems (``major:minor``) when S and these servers are dead."""
        self._watch = _watch(devices, servers, self._places)
        self._say(self._watch)

    def check(self) -> None:
        """Start another one soon if this one has died; to be called when a child has ended."""
        if self.process and not self.process.alive():
            with suppress(ProcessLookupError):
                # Its other half. The number is its own until it is reaped.
                os.killpg(self.process.pid, signal.SIGKILL)
            reap(self.process.pid)
            self.process = None
            self._start_later()

    def dismiss(self) -> None:
        """End it: nothing is left to do."""
        if self.process:
            self.process.kill_session()

    def finish(self, devices: Collection[str]) -> None:
        """Have it detach these, also what can only be detached later."""
        self.watch(devices, ())
        if self.process is None:
            self._start()
        self._say("finish\n")

    def _start(self) -> None:
        before, pipe = self.process, self._pipe
        read_end, self._pipe = os.pipe()
        os.set_blocking(self._pipe, False)
        try:
            self.process = _start(self._life, read_end)
        except OSError:
            self.process = None
            self._start_later()
        finally:
            os.close(read_end)
        self._say(self._watch)
        if before:
            before.kill_session()
            reap(before.pid)
        if pipe >= 0:
            os.close(pipe)

    def _start_later(self) -> None:
        self._loop.after("janitor", _PAUSE_SECONDS, self._start_again)

    def _start_again(self) -> None:
        self._start()
        self._replaced()

    def _say(self, line: str) -> None:
        # One that reads nothing for so long is dead, and about to be replaced.
        with suppress(BlockingIOError, BrokenPipeError):
            if self._pipe >= 0:
                os.write(self._pipe, os.fsencode(line))


def leave_behind(devices: Collection[str]) -> None:
    """Start a janitor of nobody's, which detaches ``devices`` where they are in view, or come into view later."""
    nothing = os.open(os.devnull, os.O_RDWR)
    read_end, write_end = os.pipe()
    try:
        os.write(write_end, f"{_watch(devices, (), ())}finish\n".encode())
        _start(nothing, read_end, output=nothing)
    finally:
        for fd in (nothing, read_end, write_end):
            os.close(fd)


def _watch(
    devices: Collection[str], servers: Collection[ProcessId], places: Collection[str]
) -> str:
    named = ",".join(f"{server.pid}:{server.started}" for server in servers) or "0:0"
    where = ",".join(map(escape, places)) or "-"
    return f"watch {FILESYSTEM_TYPE} {named} {where} {' '.join(devices)}\n"


def _start(life_fd: int, stdin: int, *, output: int | None = None) -> ProcessId:
    user = os.geteuid()
    unmount = _AS_ROOT if user == 0 else _AS_USER
    script_fd = memory_file(_script())
    command = (_SHELL, f"/dev/fd/{script_fd}", unmount, str(life_fd), str(user))
    with closing(script_fd):
        pid = start(command, keep=(life_fd, script_fd), stdin=stdin, output=output)
    return ProcessId.of(pid)


@functools.cache
def _script() -> bytes:
    with open(os.path.join(os.path.dirname(__file__), "janitor.sh"), "rb") as stream:
        return stream.read()
