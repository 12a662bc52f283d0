"""What a supervisor says to a server over the link."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from certfs.linux.processes import ProcessId
from certfs.protocol import messages
from certfs.supervisor.server_process import ServerProcess

Link = tuple[ServerProcess, socket.socket]


@pytest.fixture
def link() -> Iterator[Link]:
    """Give a server as its supervisor knows it, and the server's end of the link."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.settimeout(0)
    life, write_end = os.pipe()
    server = ServerProcess(1, ProcessId.of(os.getpid()), ours, life, standby=False)
    with theirs:
        yield server, theirs
    server.close()
    os.close(write_end)


def _beats(link: Link, beat: messages.Beat) -> list[messages.Message | None]:
    """Send a beat, have it heard, and return what was said since the last call."""
    server, theirs = link
    theirs.send(messages.encode(beat))
    server.hear()
    said = []
    while True:
        try:
            said.append(messages.decode(theirs.recv(messages.MESSAGE_BYTES)))
        except BlockingIOError:
            return said


def test_only_a_beat_that_asks_is_answered(link: Link) -> None:
    """An idle server that sees that its beats are read is not woken by an answer to each."""
    server, _ = link
    server.introduce(None)
    introduction = messages.InCharge(ProcessId.of(os.getpid()), None)
    assert _beats(link, messages.Beat(asks=False)) == [introduction]
    assert _beats(link, messages.Beat(asks=False)) == []
    assert _beats(link, messages.Beat(asks=True)) == [introduction]


def test_a_server_that_could_not_be_told_who_is_in_charge_is_told_later(link: Link) -> None:
    """An introduction that found the link full comes with the next beat, also one that does not ask."""
    server, theirs = link
    while server.say(messages.Flush()):
        pass
    server.introduce(None)
    while True:
        try:
            theirs.recv(messages.MESSAGE_BYTES)
        except BlockingIOError:
            break
    introduction = messages.InCharge(ProcessId.of(os.getpid()), None)
    assert _beats(link, messages.Beat(asks=False)) == [introduction]
    assert _beats(link, messages.Beat(asks=False)) == []
