"""What is known of an instance, when its file cannot be written for a while."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from certfs.linux import processes
from certfs.linux.processes import ProcessId
from certfs.protocol.specs import MountSpec, SupervisorSpec
from certfs.protocol.state_file import read_state
from certfs.supervisor.history import History
from certfs.supervisor.machine import Strikes
from certfs.supervisor.server_process import ServerProcess
from certfs.supervisor.view import Memory


def test_a_state_that_could_not_be_written_is_written_later(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """After /run was full the state file is made right without an event, and the log says it once (I14)."""
    runtime = tmp_path / "missing"
    mount = MountSpec(mode="standalone", trees=(), runtime=str(runtime))
    history = History(SupervisorSpec(mount=mount))
    memory = Memory(runtime=str(runtime), targets=(), can_attach=True, devices=("0:40",))
    history.save("plain", None, strikes=Strikes(), janitor=None, memory=memory)
    for _ in range(3):
        history.save_again()
    assert read_state(str(runtime)) is None
    runtime.mkdir(mode=0o700)
    history.save_again()
    state = read_state(str(runtime))
    assert state is not None
    assert state.devices == ("0:40",)
    said = capfd.readouterr().err
    assert said.count("cannot write") == 1
    assert said.count("written again") == 1


def test_of_too_many_replaced_servers_those_that_are_bound_end_last(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Beyond the bound the oldest ends for which nobody has a bind mount; the number holds in any case (I17, I18)."""
    mount = MountSpec(mode="standalone", trees=(), runtime=str(tmp_path))
    history = History(SupervisorSpec(mount=mount))
    pids = [processes.start(("sleep", "60"), keep=()) for _ in range(11)]
    servers = [
        cast("ServerProcess", SimpleNamespace(process=ProcessId.of(pid), device=f"0:{pid}"))
        for pid in pids
    ]
    try:
        for number, server in enumerate(servers[:10]):
            history.linger(server, bound={f"0:{pid}" for pid in pids[: min(number, 1)]})
        ended = [processes.wait(pid, 5) for pid in pids[1:3]]
        assert ended == [-9, -9]
        history.linger(servers[10], bound={f"0:{pid}" for pid in pids})
        assert processes.wait(pids[0], 5) == -9
    finally:
        for pid in pids[3:]:
            os.kill(pid, 9)
            processes.wait(pid, 5)
    assert capfd.readouterr().err.count("too many replaced servers") == 3
