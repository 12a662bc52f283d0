"""The supervisor sees the death of a server at once; a server that was replaced lives as long as it is needed."""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path
from typing import cast

import pytest
import trio

from certfs.linux import processes
from certfs.linux.processes import ProcessId
from certfs.protocol import messages
from certfs.protocol.messages import Serve
from certfs.protocol.specs import MountSpec, ServerSpec
from certfs.protocol.state_file import State, clear_instance, write_state
from certfs.server.supervision import Served, Supervision

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


class _Quiet:
    """A server that has nothing to do but to live."""

    def oldest_request_seconds(self) -> float:
        """Nobody waits."""
        return 0.0


# The link stays open until the process ends.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_replaced_server_lives_while_it_is_bound_and_its_instance_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past its time it goes on for whoever has something of it mounted, and ends after the unmount (I17, I18)."""
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    myself = ProcessId.of(os.getpid())
    state = State(
        mode="standalone",
        phase="serving",
        targets=(),
        stores=(),
        config_file=None,
        since=0.0,
        supervisor=myself,
        lingering=(myself,),
    )
    write_state(str(runtime), state)
    looks: list[str] = []

    def look(device: str) -> bool:
        looks.append(device)
        if len(looks) == 3:
            clear_instance(str(runtime))
        return True

    monkeypatch.setattr("certfs.server.supervision.mounted_anywhere", look)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    mount = MountSpec(mode="standalone", trees=(), runtime=str(runtime))
    supervision = Supervision(ServerSpec(mount=mount, link_fd=theirs.detach()))
    supervision.mounted = Serve("/mnt", "0:40")
    ours.send(messages.encode(messages.Release(0.01)))
    with ours, trio.fail_after(60), trio.CancelScope() as scope:
        await supervision.run(cast("Served", _Quiet()), scope)
    assert scope.cancel_called
    assert looks == ["0:40"] * 3
