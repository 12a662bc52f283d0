"""What is known of an instance, when its file cannot be written for a while."""

from __future__ import annotations

from pathlib import Path

import pytest

from certfs.protocol.specs import MountSpec, SupervisorSpec
from certfs.protocol.state_file import read_state
from certfs.supervisor.history import History
from certfs.supervisor.machine import Strikes
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
