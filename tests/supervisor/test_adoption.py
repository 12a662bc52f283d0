"""Which server a supervisor that takes over goes on with (I14, I17)."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from certfs.linux.processes import ProcessId
from certfs.procfs import FILESYSTEM_TYPE, Entry
from certfs.protocol.state_file import State
from certfs.supervisor.supervisor import is_replaced

NEXT = ProcessId.of(os.getpid())
OLD = ProcessId(NEXT.pid, NEXT.started - 1)
"""Another process than `NEXT`, and one that does not live."""
DEVICE = "0:40"
MOUNTED = (Entry(2, 1, DEVICE, "/", "/home/mnt", FILESYSTEM_TYPE, owner=1000),)
BEFORE = State(
    mode="standalone",
    phase="plain",
    targets=("/home/mnt",),
    stores=("/home/store",),
    config_file=None,
    since=0.0,
    supervisor=NEXT,
    server=NEXT,
)


def test_a_server_whose_mount_went_for_the_next_one_is_let_go() -> None:
    """A supervisor killed between two mounts has not ended the instance: the next server goes on."""
    assert is_replaced(BEFORE, OLD, DEVICE, ())


@pytest.mark.parametrize(
    "before,process,table",
    [
        pytest.param(BEFORE, OLD, MOUNTED, id="its mount is there"),
        pytest.param(BEFORE, NEXT, (), id="it is in charge itself"),
        pytest.param(replace(BEFORE, server=OLD), NEXT, (), id="the other one is dead"),
        pytest.param(replace(BEFORE, server=None), OLD, (), id="there is no other one"),
        pytest.param(None, OLD, (), id="nothing was written down"),
    ],
)
def test_every_other_server_is_taken_over(
    before: State | None, process: ProcessId, table: tuple[Entry, ...]
) -> None:
    """Only one that lost its mount to a living successor is let go."""
    assert not is_replaced(before, process, DEVICE, table)


def test_a_server_without_a_mount_waits_for_one() -> None:
    """The next server itself has nothing to lose yet."""
    assert not is_replaced(BEFORE, OLD, None, ())
