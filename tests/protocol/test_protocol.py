"""What processes tell each other arrives as it was sent; the runtime directory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certfs.errors import PrivilegeError
from certfs.linux.processes import ProcessId
from certfs.protocol import codec, control, messages, state_file
from certfs.protocol.control import Reply
from certfs.protocol.messages import Failure
from certfs.protocol.specs import (
    Adoption,
    MountSpec,
    ServerSpec,
    SupervisorSpec,
    Tree,
    pass_on,
    receive,
)
from certfs.protocol.state_file import Event, State

NAMES = st.binary(min_size=1, max_size=300).filter(lambda name: b"\0" not in name).map(os.fsdecode)


def mount_of(target: str, fd: int) -> MountSpec:
    """Return a standalone mount at ``target``."""
    tree = Tree(name="", store="/store", target=target, fd=fd)
    return MountSpec(mode="standalone", trees=(tree,), runtime="/run/certfs/x", log=target)


@given(target=NAMES)
def test_the_spec_of_a_server_survives_its_journey(target: str) -> None:
    """What the supervisor writes is what the server reads, whatever bytes the paths hold."""
    fds = [os.open(os.devnull, os.O_RDONLY) for _ in range(4)]
    mount = mount_of(target, fds[0])
    spec = ServerSpec(mount=mount, standby=True, link_fd=fds[1], life=(fds[2], fds[3]))
    try:
        assert receive(ServerSpec, pass_on(spec)) == spec
    finally:
        for fd in fds:
            os.close(fd)


@given(target=NAMES, janitor=st.sampled_from([None, ProcessId(3, 4)]))
def test_the_spec_of_a_supervisor_survives_its_journey(
    target: str, janitor: ProcessId | None
) -> None:
    """What starts a supervisor is what it reads."""
    fds = [os.open(os.devnull, os.O_RDONLY) for _ in range(3)]
    adoption = Adoption(
        process=ProcessId(1, 2),
        link_fd=fds[1],
        life_fd=fds[2],
        mountpoint=target,
        device="0:40",
        standby=False,
        janitor=janitor,
    )
    spec = SupervisorSpec(mount=mount_of(target, fds[0]), adopt=adoption)
    try:
        assert receive(SupervisorSpec, pass_on(spec)) == spec
    finally:
        for fd in fds:
            os.close(fd)


@pytest.mark.parametrize(
    "message",
    [
        messages.Loaded(),
        messages.Beat(1.5),
        messages.Beat(2),
        messages.Beat(asks=False),
        messages.Flushed(("a: b", "c")),
        messages.InCharge(ProcessId(1, 2), None),
        messages.Serve("/m", "0:40"),
        messages.Release(3600.0),
        messages.Failed(Failure(1, "x")),
    ],
)
def test_a_message_survives_its_journey(message: messages.Message) -> None:
    """What one side of the link says is what the other hears."""
    assert messages.decode(messages.encode(message)) == message


def test_a_message_of_another_version_is_understood() -> None:
    """In an upgrade the two sides may differ: what is unknown is left out, what is missing has its default (I17)."""
    assert messages.decode(b'Beat {"oldest": 1.0, "later": [1]}') == messages.Beat(1.0)
    assert messages.decode(b"Beat {}") == messages.Beat()
    assert messages.decode(b"Later {}") is None


@pytest.mark.parametrize(
    "broken", [b"Beat", b"Beat []", b'Beat {"oldest": "x"}', b"Serve {}", b"Beat {"]
)
def test_a_broken_message_is_an_error_of_one_kind(broken: bytes) -> None:
    """Whatever is wrong with it: ValueError."""
    with pytest.raises(ValueError, match=r"."):
        messages.decode(broken)


@given(message=st.text(), advice=st.text())
def test_a_failure_survives_its_journey(message: str, advice: str) -> None:
    """A failure arrives as it was sent, on the link and on the control socket; a huge one is cut, not lost."""
    failure = Failure(5, message[:1000], advice[:1000])
    assert messages.decode(messages.encode(messages.failed(failure))) == messages.Failed(failure)
    assert codec.from_json(Reply, codec.to_json(Reply(failure))) == Reply(failure)
    huge = messages.failed(Failure(5, message * 10_000, advice))
    assert len(messages.encode(huge)) < messages.MESSAGE_BYTES


@given(path=NAMES, other=NAMES)
def test_instance_names(path: str, other: str) -> None:
    """A mountpoint gives one valid file name, and two mountpoints give two."""
    name = state_file.instance_name("standalone", f"/{path}")
    assert "/" not in name
    assert len(name) <= 255
    if f"/{path}".strip("/") != f"/{other}".strip("/"):
        assert name != state_file.instance_name("standalone", f"/{other}")


def state_of(**changes: object) -> State:
    """Return a state."""
    values: dict[str, object] = {
        "mode": "dom0",
        "phase": "serving",
        "targets": ("/etc/stunnel",),
        "stores": ("/etc/stunnel",),
        "config_file": None,
        "since": 1.5,
        "supervisor": ProcessId(1, 2),
        "server": ProcessId(3, 4),
        "events": (Event(at=1.0, kind="killed", detail="x", plain_seconds=0.1),),
    }
    return State(**{**values, **changes})  # type: ignore[arg-type]


def test_the_state_file(tmp_path: Path) -> None:
    """What a supervisor wrote is read again; of another boot, or damaged, it is as good as absent."""
    state_file.write_state(str(tmp_path), state_of())
    assert state_file.read_state(str(tmp_path)) == state_of()
    state_file.write_state(str(tmp_path), state_of(boot="another"))
    assert state_file.read_state(str(tmp_path)) is None
    (tmp_path / "state.json").write_text('{"version": 1}')
    assert state_file.read_state(str(tmp_path)) is None


def test_the_lock_is_exclusive(tmp_path: Path) -> None:
    """While one process holds the lock of an instance, nobody else gets it."""
    held = state_file.take_lock(str(tmp_path))
    assert held is not None
    assert state_file.await_lock(str(tmp_path), 0.1) is None
    os.close(held)
    again = state_file.take_lock(str(tmp_path))
    assert again is not None
    os.close(again)


def test_a_runtime_directory_of_somebody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A runtime directory that others can write to is refused: its state could be forged."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o777)
    monkeypatch.setenv(state_file.OVERRIDE, str(tmp_path / "run"))
    with pytest.raises(PrivilegeError, match="only you can write"):
        state_file.make_instance("dom0", "/etc")


def test_a_runtime_directory_keeps_what_its_mode_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that an admin named is made passable for `df`, and not less readable than it was (I19)."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o755)
    monkeypatch.setenv(state_file.OVERRIDE, str(tmp_path / "run"))
    made = Path(state_file.make_instance("standalone", "/srv/tls"))
    assert made.stat().st_mode & 0o777 == 0o700
    state_file.remake_directory(str(made), passable=True)
    assert made.stat().st_mode & 0o777 == 0o711
    assert made.parent.stat().st_mode & 0o777 == 0o755


def test_a_control_socket_with_a_long_path(tmp_path: Path) -> None:
    """A runtime directory with a path longer than a socket address still has a control socket."""
    directory = tmp_path / ("long" * 40)
    directory.mkdir()
    with control.listen(str(directory)):
        connection = control.connect(str(directory))
        assert connection is not None
        connection.close()
    assert control.connect(str(directory)) is None
