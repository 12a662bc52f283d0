"""A bundle that somebody has bound as a file goes on showing what it showed, and is nowhere left dead (I14, I17)."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.support import pki
from tests.support.host import Host, janitor, kill
from tests.support.mounts import wait_until

pytestmark = [pytest.mark.mount, pytest.mark.namespace, pytest.mark.counted]

PLACE = "/run/bound.pem"
NOBODYS = "nobody's\n"


@pytest.fixture
def bound(dom0: Host) -> Host:
    """A host whose pool bundle, of two certificates, is bound as a file, and has changed since; nobody has looked."""
    bind(dom0)
    change(dom0, "first")
    return dom0


def bind(made: Host) -> None:
    """Bind the pool's bundle as a file."""
    made.inside(PLACE).write_text(NOBODYS)
    bound = made.run("mount", "--bind", "/etc/stunnel/xapi-pool-ca-bundle.pem", PLACE)
    assert bound.returncode == 0, bound.stderr


def change(made: Host, name: str) -> None:
    """Add a certificate."""
    (made.tree.certs_pool / f"{name}.pem").write_bytes(pki.issue(name).pem)


def shown(made: Host) -> int:
    """Return how many certificates the bound file has."""
    return made.inside(PLACE).read_bytes().count(b"BEGIN")


def present(made: Host) -> int:
    """Return how many certificates the bundle has."""
    return made.tree.pool_bundle.read_bytes().count(b"BEGIN")


def replaced(made: Host) -> int:
    """Return the server that was replaced and lives."""
    (server,) = made.state()["kept"]
    return int(server["server"]["pid"])


def test_it_stays_over_restarts_and_a_dead_supervisor_until_the_unmount(bound: Host) -> None:
    """Two restarts and another supervisor leave it what it was; `certfs unmount` takes it and its server along."""
    bound.certfs("restart")
    assert (shown(bound), present(bound)) == (2, 3)
    change(bound, "second")
    bound.certfs("restart")
    assert (shown(bound), present(bound)) == (2, 4)
    supervisor = bound.supervisor()
    kill(supervisor)
    wait_until(lambda: bound.supervisor() != supervisor, what="another supervisor")
    server = bound.server()
    bound.live_again(kill(server), not_pid=server)
    assert (shown(bound), present(bound)) == (2, 4)
    bound.certfs("unmount")
    assert bound.inside(PLACE).read_text() == NOBODYS
    wait_until(lambda: bound.processes() == [], what="the end of all processes")


def test_one_that_has_not_changed_comes_along(dom0: Host) -> None:
    """The next server has it too, so nothing is kept of the one before."""
    bind(dom0)
    server = dom0.server()
    dom0.certfs("restart")
    assert shown(dom0) == 2
    assert dom0.state()["kept"] == []
    wait_until(lambda: not Path(f"/proc/{server}").exists(), what="the end of the server before")


def test_whoever_unmounts_it_ends_the_server_that_was_kept_for_it(bound: Host) -> None:
    """The last that was open of a replaced server is gone."""
    bound.certfs("restart")
    server = replaced(bound)
    assert bound.run("umount", PLACE).returncode == 0
    wait_until(lambda: not Path(f"/proc/{server}").exists(), what="the end of the server before")
    wait_until(lambda: bound.state()["kept"] == [], what="the state")
    assert present(bound) == 3


def test_it_goes_with_the_server_that_was_kept_for_it(bound: Host) -> None:
    """Once that server is killed nothing can show it: it is taken away with the next beat, and never stays dead."""
    bound.certfs("restart")
    os.kill(replaced(bound), signal.SIGKILL)
    wait_until(lambda: PLACE not in bound.certfs_mounts(), what="the end of the bind mount")
    assert bound.inside(PLACE).read_text() == NOBODYS
    assert present(bound) == 3


def test_it_goes_with_a_crash(bound: Host) -> None:
    """The server that has it is dead, and the next one has another generation: what was beneath is in view."""
    assert present(bound) == 3
    server = bound.server()
    bound.live_again(kill(server), not_pid=server)
    assert bound.inside(PLACE).read_text() == NOBODYS


def test_where_every_other_process_was_killed_the_next_mount_takes_it_away(bound: Host) -> None:
    """What no state file names any more would stay for ever: the next `certfs mount` ends it and its server."""
    bound.certfs("restart")
    server = replaced(bound)
    kill(janitor(bound), bound.supervisor(), bound.server())
    bound.certfs("mount")
    assert bound.inside(PLACE).read_text() == NOBODYS
    wait_until(lambda: not Path(f"/proc/{server}").exists(), what="the end of the server before")
    assert present(bound) == 3
