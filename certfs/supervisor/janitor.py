"""The janitor (J): what is left when supervisor and server can no longer do their part (I14).

A shell with two waits, so that two faults at once leave no path at ENOTCONN:

- Its standard input is a pipe that the supervisor (S) holds. Its end means that S is dead. A
  server (W) starts another S then, which ends this janitor; unless every W is dead too, or stopped: those are ended,
  and every mount that J was told to watch is detached.
- The end of W's life pipe means that W is dead. S has seen to that a second later, unless S is stopped: then J detaches
  what does not answer any more.

What lies beneath somebody else's mount is detached when that one goes, however long that takes. What J is to watch
comes over the pipe, and its command line names nothing of ours: whoever kills by name or by argument kills the other
two and leaves this one to clean up.
"""

import os
import signal
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Final

from certfs import procfs
from certfs.linux.processes import ProcessId, reap, start
from certfs.supervisor.event_loop import Reactor

_SCRIPT: Final = r"""
trap '' HUP INT TERM
PATH=/usr/sbin:/usr/bin:/sbin:/bin:$PATH
# Names in the tables of the kernel are bytes, of no encoding.
export LC_ALL=C
unmount=$1 life=$2 user=$3

# Whether another mount lies upon the mount $1, at the same place $2.
covered() {
    while read -r _ beneath _ _ there _; do
        [ "$beneath $there" = "$1 $2" ] && return 0
    done <<END
$mounts
END
    return 1
}

# Whether the end $1 of a line of the mount table is that of a mount of certfs, made by this user or by root. The maker
# stands in the last field, which is the kernel's; the others hold what their user has chosen.
ours() {
    case $1 in *" - $kind "*) ;; *) return 1 ;; esac
    case ,${1##* }, in *",user_id=$user,"* | *,user_id=0,*) ;; *) return 1 ;; esac
}

# Detach what is ours and in view; with "dead", only what does not answer: the kernel gives the number of a mount that
# is gone to the next one, somebody else's. Sets hidden if something is covered.
sweep() {
    rounds=0 found=yes
    while [ "$found" ] && [ $rounds -lt 64 ]; do
        rounds=$((rounds + 1)) found= hidden=
        mounts=$(cat /proc/self/mountinfo)
        while read -r id _ device _ point rest; do
            case " $devices " in *" $device "*) ;; *) continue ;; esac
            ours " $rest" || continue
            if covered "$id" "$point"; then hidden=yes && continue; fi
            point=$(printf '%s' "$point" | sed 's/\\\([0-7]\{3\}\)/\\0\1/g')
            point=$(printf '%b.' "$point")
            # statfs(2) is never answered from a cache of the kernel's.
            [ "$1" = dead ] && stat -f -- "${point%.}" >/dev/null 2>&1 && continue
            $unmount "${point%.}" && found=yes
        done <<END
$mounts
END
    done
}

read -r _ kind servers devices
{
    read -r _
    sleep 1
    sweep dead
} <"/proc/self/fd/$life" &
finish=
while [ ! "$finish" ] && read -r word first second rest; do
    case $word in
        watch) kind=$first servers=$second devices=$rest ;;
        finish) finish=yes ;;
    esac
done

# Print the state of the process $1 that was started at $2; nothing if there is none. Its name, in parentheses, may hold
# parentheses and line feeds.
state_of() {
    started=$2
    stat=$(cat "/proc/$1/stat" 2>/dev/null)
    set -- ${stat##*) }
    [ "${20}" = "$started" ] && printf '%s' "$1"
}

# Whether a server can still start a supervisor: one that runs, or one that was stopped only a moment ago.
hope() {
    running= stopped=
    for server in $(printf '%s' "$servers" | tr , ' '); do
        case $(state_of "${server%:*}" "${server#*:}") in
            '' | Z | X) ;;
            T | t) stopped="$stopped ${server%:*}" ;;
            *) running=yes ;;
        esac
    done
    [ "$running" ] && patience=$([ $rounds -lt 200 ] && echo 100 || echo 10)
    patience=$((patience - 1))
    [ "$running" ] || { [ "$stopped" ] && [ $patience -gt 0 ]; }
}

rounds=0 patience=100 stopped=
while [ ! "$finish" ] && hope; do
    [ $rounds -lt 200 ] && pause=0.1 || pause=1
    rounds=$((rounds + 1))
    sleep $pause
done

exec >/dev/null 2>&1
if [ "$stopped" ]; then
    kill -9 $stopped
    for device in $devices; do
        echo 1 >"/sys/fs/fuse/connections/${device#*:}/abort"
    done
fi
sweep ${finish:-dead}
while [ "$hidden" ]; do
    findmnt --poll --first-only --nocanonicalize --timeout 1000 || sleep 0.2
    sweep ${finish:-dead}
done
"""
_AS_ROOT: Final = "umount -l -i -n -c"
_AS_USER: Final = "fusermount3 -u -z -q --"

_PAUSE_SECONDS: Final = 1.0
"""Before a janitor that died is replaced: where none can be started this must not become a busy loop."""


class Janitor:
    """The supervisor's hold on the janitor: from the first server on there always is one, and it knows every device."""

    def __init__(self, reactor: Reactor, *, replaced: Callable[[], None]) -> None:
        self.process: ProcessId | None = None
        self._reactor = reactor
        self._replaced = replaced
        self._watch = _watch((), ())
        self._life = os.open(os.devnull, os.O_RDONLY)
        self._pipe = -1

    def attend(self, life_fd: int) -> None:
        """Have one that also waits for the end of the server with this life pipe; it replaces the one before."""
        os.close(self._life)
        self._life = os.dup(life_fd)
        self._start()

    def watch(self, devices: Collection[str], servers: Collection[ProcessId]) -> None:
        """Let it detach these file systems (``major:minor``) when S and these servers are dead."""
        self._watch = _watch(devices, servers)
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
        self._reactor.after("janitor", _PAUSE_SECONDS, self._start_again)

    def _start_again(self) -> None:
        self._start()
        self._replaced()

    def _say(self, line: str) -> None:
        # One that reads nothing for so long is dead, and about to be replaced.
        with suppress(BlockingIOError, BrokenPipeError):
            if self._pipe >= 0:
                os.write(self._pipe, line.encode())


def leave_behind(devices: Collection[str]) -> None:
    """Start a janitor of nobody's, which detaches ``devices`` where they are in view, or come into view later."""
    nothing = os.open(os.devnull, os.O_RDWR)
    read_end, write_end = os.pipe()
    try:
        os.write(write_end, f"{_watch(devices, ())}finish\n".encode())
        _start(nothing, read_end, output=nothing)
    finally:
        for fd in (nothing, read_end, write_end):
            os.close(fd)


def _watch(devices: Collection[str], servers: Collection[ProcessId]) -> str:
    named = ",".join(f"{server.pid}:{server.started}" for server in servers) or "0:0"
    return f"watch {procfs.FILESYSTEM_TYPE} {named} {' '.join(devices)}\n"


def _start(life_fd: int, stdin: int, *, output: int | None = None) -> ProcessId:
    user = os.geteuid()
    unmount = _AS_ROOT if user == 0 else _AS_USER
    command = ("/bin/sh", "-c", _SCRIPT.strip(), "janitor", unmount, str(life_fd), str(user))
    return ProcessId.of(start(command, keep=(life_fd,), stdin=stdin, output=output))
