"""The announcer's start and end: its death costs no event and no server, and it changes nothing elsewhere (I21)."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from certfs.fuse.synthetic import SyntheticFiles
from certfs.linux.processes import ProcessId
from certfs.server import announcer, announcing
from certfs.server.announcing import Announcing
from certfs.store.path_walk import PathWalker
from certfs.store.source_reader import SourceReader
from tests.store.scenes import Scene, nowhere, scene
from tests.support import pki

ONE = pki.authority("announcing")
FIRST_TIME = """
import os, pathlib, signal, sys, time
flag = pathlib.Path(__file__ + ".flag")
is_first = not flag.exists()
flag.touch()
if is_first:
    {first}
pathlib.Path(__file__ + ".order").write_text(sys.stdin.read())
"""


class ManyGenerations(SyntheticFiles):
    """A kernel that remembers more former generations than an order in a pipe has room for."""

    def former(self, _bundle: object) -> list[int]:
        """Return their numbers."""
        return list(range(20_000))


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Scene]:
    """Give a bundle with one certificate."""
    (tmp_path / "a.pem").write_bytes(ONE.pem)
    made = scene(tmp_path, SourceReader(PathWalker(nowhere)))
    made.bundle.load()
    yield made
    made.bundle.close()


async def order_of_an_announcer(live: Scene, program: Path) -> str:
    """Have a change of a bundle announced by a program, and return the order that it was given in the end."""
    made = Announcing(ManyGenerations(lambda: b""))
    made.interval = 0.05
    made.changed(live.bundle)
    order = program.with_name(f"{program.name}.order")
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.run)
            while not (order.exists() and order.read_text().endswith("}")):  # noqa: ASYNC110 - another process writes it
                await trio.sleep(0.01)
            await trio.testing.wait_all_tasks_blocked(0.2)  # the end of the process
            nursery.cancel_scope.cancel()
    return order.read_text()


@pytest.mark.parametrize(
    "first",
    ["os.kill(os.getpid(), signal.SIGKILL)", "sys.exit(1)", "time.sleep(300)", "os.close(0)"],
)
async def test_an_announcer_that_fails_is_followed_by_another(
    live: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """Killed, broken or stuck before it has read its order: the change is announced all the same."""
    program = tmp_path / "program"
    program.write_text(FIRST_TIME.format(first=first))
    monkeypatch.setattr(announcer, "__file__", str(program))
    monkeypatch.setattr(announcing, "_GIVEN_UP_SECONDS", 1.0)
    order = await order_of_an_announcer(live, program)
    assert len(json.loads(order)["steps"]) == 20_001


async def test_an_announcer_that_cannot_be_known_is_followed_by_another(
    live: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a descriptor for /proc the server goes on, and the change is announced a moment later (I16)."""
    program = tmp_path / "program"
    program.write_text(FIRST_TIME.format(first="pass"))
    monkeypatch.setattr(announcer, "__file__", str(program))
    known = ProcessId.of
    tries = 0

    def of(pid: int) -> ProcessId:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return known(pid)

    monkeypatch.setattr(ProcessId, "of", of)
    await order_of_an_announcer(live, program)
    assert tries > 1


@pytest.mark.parametrize("descriptors,status", [(4, 1), (64, 0)])
def test_a_step_that_fails_for_want_of_descriptors_is_a_failure(
    tmp_path: Path, descriptors: int, status: int
) -> None:
    """The announcer says so, and its order is given to another one: no watcher misses the change."""
    (tmp_path / "stunnel").mkdir()
    (tmp_path / ".certfs").mkdir()
    (tmp_path / ".certfs" / "announce").touch()
    device = os.stat(tmp_path).st_dev
    steps = [["rename", ".certfs/announce", "stunnel/ca.pem"], ["unlink", ".certfs/gen-1"]]
    order = {
        "mount": str(tmp_path),
        "device": f"{os.major(device)}:{os.minor(device)}",
        "steps": steps,
    }
    limited = ["prlimit", f"--nofile={descriptors}", sys.executable, "-I", "-S"]
    done = subprocess.run(
        [*limited, announcer.__file__], input=json.dumps(order).encode(), check=False, timeout=60
    )
    assert done.returncode == status
    assert (tmp_path / "stunnel" / "ca.pem").exists() == (status == 0)


def test_what_is_mounted_over_the_mount_is_left_alone(tmp_path: Path) -> None:
    """The announcer acts on the mount that it is told of, by its device, and on nothing else under its path."""
    bundle = tmp_path / "stunnel" / "ca.pem"
    bundle.parent.mkdir()
    bundle.write_bytes(ONE.pem)
    (tmp_path / ".certfs").mkdir()
    (tmp_path / ".certfs" / "announce").touch()
    steps = [["rename", ".certfs/announce", "stunnel/ca.pem"], ["unlink", "stunnel/ca.pem"]]
    order = {"mount": str(tmp_path), "device": "0:1", "steps": steps}
    command = [sys.executable, "-I", "-S", announcer.__file__]
    subprocess.run(command, input=json.dumps(order).encode(), check=True, timeout=60)
    assert bundle.read_bytes() == ONE.pem
