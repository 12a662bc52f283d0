"""The janitor (J): the process that is left when the supervisor and the server are killed together.

It is a shell that waits on a pipe whose write end the other two hold. The end of the pipe without a farewell means
that nobody is left, and it detaches every mount of the devices it was told to watch, so that no path stays at
ENOTCONN (I14). The devices come over the pipe, and its command line names nothing of ours: whoever kills by name or
by argument kills the other two and leaves this one to clean up.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Self

from certfs.daemon.job import FILESYSTEM_TYPE
from certfs.daemon.processes import ProcessId, reap, start
from certfs.daemon.reactor import Reactor

_SCRIPT: Final = r"""
trap '' HUP INT TERM
PATH=/usr/sbin:/usr/bin:/sbin:/bin:$PATH
unmount=$1 kind= devices=
while read -r word rest; do
    case $word in
        watch) kind=${rest%% *} devices=${rest#* } ;;
        bye) exit 0 ;;
    esac
done
rounds=0
while [ $rounds -lt 64 ]; do
    rounds=$((rounds + 1)) found=
    mounts=$(cat /proc/self/mountinfo)
    while read -r id parent device root point rest; do
        case " $devices " in *" $device "*) ;; *) continue ;; esac
        case $rest in *" - $kind "*) ;; *) continue ;; esac
        point=$(printf '%s' "$point" | sed 's/\\\([0-7]\{3\}\)/\\0\1/g')
        $unmount "$(printf '%b' "$point")" && found=yes
    done <<END
$mounts
END
    [ "$found" ] || break
done
"""
_AS_ROOT: Final = "umount -l -i -n -c"
_AS_USER: Final = "fusermount3 -u -z -q --"

_PAUSE_SECONDS: Final = 1.0
"""Before a janitor that died is replaced: where none can be started this must not become a busy loop."""


@dataclass(frozen=True, slots=True)
class JanitorPipe:
    """The pipe to the janitor; both ends are held by S and W, so that a new janitor can go on where one died."""

    read_end: int
    write_end: int

    @classmethod
    def create(cls) -> Self:
        """Return a new pipe."""
        read_end, write_end = os.pipe()
        os.set_blocking(write_end, False)
        return cls(read_end, write_end)

    @property
    def ends(self) -> tuple[int, int]:
        """Read end and write end, for processes that hold them too."""
        return self.read_end, self.write_end

    def watch(self, devices: tuple[str, ...]) -> None:
        """Tell the janitor which file systems (``major:minor``) it is to detach; replaces what it was told before."""
        self._say(f"watch {FILESYSTEM_TYPE} {' '.join(devices)}\n")

    def dismiss(self) -> None:
        """Tell the janitor that nothing is left to do."""
        self._say("bye\n")

    def _say(self, line: str) -> None:
        with suppress(
            BlockingIOError
        ):  # a janitor that reads nothing for so long is dead, and about to be replaced
            os.write(self.write_end, line.encode())


class Janitor:
    """The supervisor's hold on the janitor: there always is one, and it knows every device."""

    def __init__(
        self, pipe: JanitorPipe, reactor: Reactor, *, replaced: Callable[[], None]
    ) -> None:
        self.pipe = pipe
        self.process: ProcessId | None = None
        self._reactor = reactor
        self._replaced = replaced
        self._devices: tuple[str, ...] = ()

    def start(self) -> None:
        """Start one."""
        self.process = ProcessId.of(start(_command(), keep=(), stdin=self.pipe.read_end))
        self.watch(self._devices)

    def check(self) -> None:
        """Start another one soon if this one has died; to be called when a child has ended."""
        if self.process and not self.process.alive():
            reap(self.process.pid)
            self.process = None
            self._reactor.after("janitor", _PAUSE_SECONDS, self._replace)

    def watch(self, devices: tuple[str, ...]) -> None:
        """Let it detach these file systems when everybody else is dead."""
        self._devices = devices
        self.pipe.watch(devices)

    def _replace(self) -> None:
        self.start()
        self._replaced()


def _command() -> tuple[str, ...]:
    unmount = _AS_ROOT if os.geteuid() == 0 else _AS_USER
    return ("/bin/sh", "-c", _SCRIPT.strip(), "janitor", unmount)
