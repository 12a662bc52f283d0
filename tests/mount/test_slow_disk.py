"""A disk that takes its time while the plain copies are brought up to date (I12, I14, I15)."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from certfs.protocol.timeouts import SUPERVISOR_SILENCE
from tests.support import frozen, mounts, pki
from tests.support.host import Host, host, kill
from tests.support.mounts import wait_until

pytestmark = [pytest.mark.mount, pytest.mark.namespace, pytest.mark.slow]

WARNING = "the plain copy is not current: any may lack the last changes"


@pytest.fixture
def disk() -> Iterator[tuple[Host, Path]]:
    """A host with /etc/stunnel on a file system of its own and two sources in its pool, and certfs mounted.

    The second source is a link to another file system, which can be changed while this one stands still.
    """
    place = mounts.scratch_directory()
    try:
        with frozen.loop_filesystem(place) as filesystem, host() as made:
            made.run("mount", "--bind", filesystem, "/etc/stunnel")
            made.run("mkdir", "/etc/stunnel/certs", "/etc/stunnel/certs-pool")
            made.inside("/etc/stunnel/certs-pool/0.pem").write_bytes(pki.issue("host 0").pem)
            elsewhere(made).write_bytes(pki.issue("host 1").pem)
            made.inside("/etc/stunnel/certs-pool/1.pem").symlink_to(elsewhere(made))
            made.certfs("mount")
            copy = filesystem / "xapi-pool-ca-bundle.pem"
            wait_until(copy.exists, seconds=60, what="the plain copy (I12)")
            yield made, filesystem
    finally:
        shutil.rmtree(place, ignore_errors=True)


def elsewhere(made: Host) -> Path:
    """Return what the second source is a link to."""
    return made.directory / "1.pem"


def remove_source(made: Host) -> None:
    """Take the second source out of the bundle; the plain copy is stale from then on, if its disk stands still."""
    elsewhere(made).unlink()
    assert made.tree.pool_bundle.read_bytes().count(b"BEGIN") == 1


def descriptors(pid: int) -> int:
    """Return how many descriptors a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_a_slow_disk_is_nobodys_death(disk: tuple[Host, Path]) -> None:
    """Server and supervisor outlive a flush that takes longer than a supervisor may be silent, and it is told."""
    made, filesystem = disk
    server, supervisor = made.server(), made.supervisor()
    with frozen.frozen(filesystem):
        remove_source(made)
        began = time.monotonic()
        assert WARNING in made.certfs("detached", "--", "true")
        wait_until(
            lambda: time.monotonic() - began > SUPERVISOR_SILENCE + 2.5,
            seconds=60,
            what="the moment at which a supervisor without answers would be ended",
        )
    assert (made.server(), made.supervisor()) == (server, supervisor)
    assert "answers no more" not in made.log()
    assert made.tree.pool_bundle.read_bytes().count(b"BEGIN") == 1
    copy = filesystem / "xapi-pool-ca-bundle.pem"
    wait_until(lambda: copy.read_bytes().count(b"BEGIN") == 1, seconds=60, what="the plain copy")


def test_a_supervisor_killed_while_its_server_flushes(disk: tuple[Host, Path]) -> None:
    """The server goes on, and the next supervisor is asked to stand aside in its place."""
    made, filesystem = disk
    server, supervisor = made.server(), made.supervisor()
    before = descriptors(supervisor)
    with frozen.frozen(filesystem):
        remove_source(made)
        command = made.start(*made.program(), "detached", "--", "true")
        wait_until(lambda: descriptors(supervisor) > before, what="the connection")
        kill(supervisor)
    command.communicate(timeout=60)
    wait_until(made.presented, what="the mount")
    wait_until(lambda: made.supervisor() not in {0, supervisor}, what="another supervisor")
    assert made.server() == server
    assert made.tree.pool_bundle.read_bytes().count(b"BEGIN") == 1
