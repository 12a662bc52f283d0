"""The supervisor sees the death of a server at once."""

from __future__ import annotations

import os
import signal
import sys

from certfs.linux import processes
from certfs.linux.processes import ProcessId

LIVING = """
import sys, time
from certfs.server.supervision import show_life
from certfs.protocol.specs import MountSpec, ServerSpec

mount = MountSpec(mode="standalone", trees=(), runtime="")
life = (int(sys.argv[1]), int(sys.argv[2]))
show_life(ServerSpec(mount=mount, life=life))
print("ready", flush=True)
memory = bytearray(200 << 20)  # takes its time to be given back
time.sleep(60)
"""


def test_a_death_is_seen_before_the_process_has_ended() -> None:
    """The life pipe ends when a process is killed, before the process has; nobody else holds it (I14)."""
    life = os.pipe()
    talk, ear = os.pipe()
    command = (sys.executable, "-c", LIVING, *map(str, life))
    process = ProcessId.of(processes.start(command, keep=life, output=ear))
    os.close(life[1])
    os.close(ear)
    assert os.read(talk, 100).startswith(b"ready")
    ends = [
        os.readlink(f"/proc/{process.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{process.pid}/fd")
    ]
    assert ends.count(os.readlink(f"/proc/self/fd/{life[0]}")) == 1  # the read end
    process.kill()
    assert os.read(life[0], 1) == b""
    assert process.exit_code(5) == -signal.SIGKILL
    assert processes.wait(process.pid, 5) == -signal.SIGKILL
    for fd in (life[0], talk):
        os.close(fd)
