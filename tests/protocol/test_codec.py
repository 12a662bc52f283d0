"""What is read back from a file is of the types that it was written with, or nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from certfs.errors import PrivilegeError
from certfs.linux.processes import ProcessId
from certfs.protocol import codec, state_file
from certfs.protocol.notify_spec import Wishes
from certfs.protocol.notify_state import recalled
from certfs.protocol.state_file import Event, State
from certfs.safe_open import read_own
from certfs.store.undo_log import Recovered, recover

STATE = State(
    mode="dom0",
    phase="serving",
    targets=("/etc/stunnel",),
    stores=("/etc/stunnel",),
    config_file=None,
    since=1.5,
    supervisor=ProcessId(3, 4),
    events=(Event(at=1.0, kind="killed", detail="x"),),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


def test_a_state_survives_its_journey() -> None:
    """What is written is what is read."""
    assert codec.from_json(State, codec.to_json(STATE)) == STATE


@given(name=st.sampled_from(sorted(asdict(STATE))), value=JSON)
@example(name="supervisor", value={"pid": "1", "started": 2})
@example(name="targets", value=["/etc", 5])
@example(name="since", value=True)
@example(name="server_since", value=float("nan"))
@example(name="since", value=float("inf"))
@example(name="since", value=10**400)
def test_a_state_of_another_form_is_none(name: str, value: object) -> None:
    """Whatever a value is exchanged for: the result is an error or a state whose values have their types."""
    raw = {**asdict(STATE), name: value}
    try:
        state = codec.from_json(State, json.dumps(raw).encode())
    except ValueError:
        return
    assert (
        json.loads(codec.to_json(state))[name] == json.loads(json.dumps(value)) or name == "version"
    )


@given(content=st.binary(max_size=100))
@example(content=b"[" * 100_000)
@example(content=b'"\\ud800"')
@example(content=codec.to_json(STATE)[:-3])
def test_what_is_no_state_is_an_error(content: bytes) -> None:
    """Bytes of any form are a `ValueError`, and none that a reader does not expect."""
    with pytest.raises(ValueError, match=r"."):
        codec.from_json(State, content)


def _regular(path: Path) -> None:
    path.write_bytes(codec.to_json(STATE))


def _others_may_write(path: Path) -> None:
    _regular(path)
    path.chmod(0o666)


def _somebody_elses(path: Path) -> None:
    _regular(path)
    os.chown(path, 65534, 65534)


def _too_large(path: Path) -> None:
    with path.open("wb") as stream:
        stream.truncate(state_file.STATE_BYTES + 1)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(os.mkfifo, id="fifo"),
        pytest.param(lambda path: path.symlink_to("/dev/zero"), id="link to a device"),
        pytest.param(lambda path: path.mkdir(), id="directory"),
        _others_may_write,
        pytest.param(
            _somebody_elses, marks=pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
        ),
        _too_large,
    ],
)
def test_a_file_that_is_not_ours_says_nothing(make: object, tmp_path: Path) -> None:
    """A state file is of this user, regular, small, and nobody else can write to it; any other is none."""
    assert callable(make)
    make(tmp_path / "state.json")
    with pytest.raises(OSError, match=r".+"):
        read_own(str(tmp_path / "state.json"), state_file.STATE_BYTES)
    assert state_file.read_state(str(tmp_path)) is None


def test_a_file_in_a_directory_of_everybody_says_nothing(tmp_path: Path) -> None:
    """Where others can write to the directory, they can put another file of this user in place of the state."""
    _regular(tmp_path / "state.json")
    assert state_file.read_state(str(tmp_path)) == STATE
    tmp_path.chmod(0o777)
    assert state_file.read_state(str(tmp_path)) is None


def test_instances_in_a_directory_of_others_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commands do not look for instances where somebody else could have put them."""
    tmp_path.chmod(0o777)
    monkeypatch.setenv(state_file.OVERRIDE, str(tmp_path))
    with pytest.raises(PrivilegeError, match="only you can write"):
        state_file.instances()


READERS: dict[str, Callable[[Path], object]] = {
    "the state": lambda path: state_file.read_state(str(path.parent)),
    "the wishes": lambda path: Wishes.read(str(path)).notify,
    "what readers were told": lambda path: recalled(str(path)).entries,
    "the undo log": lambda path: (recover(str(path.parent)) or Recovered()).sources,
}


@pytest.mark.parametrize("content", [b"[" * 200_000, b'{"a":' * 200_000, b"\xff", b"[]", b"7"])
@pytest.mark.parametrize("reader", READERS)
def test_no_content_of_a_file_of_ours_is_raised_at_its_reader(
    reader: str, content: bytes, tmp_path: Path
) -> None:
    """Also JSON that is nested deeper than a parser goes says nothing, as any other that was not written by us."""
    (tmp_path / "state.json").write_bytes(content)
    (tmp_path / "state.json").chmod(0o600)
    assert not READERS[reader](tmp_path / "state.json")
