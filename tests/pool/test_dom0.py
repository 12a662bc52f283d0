"""A host whose own /etc/xensource and /etc/stunnel are presented is a member like others (I22)."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from tests.support import etcd, pki
from tests.support.host import Host, kill, serving_host
from tests.support.identity import UUID as HOST_UUID
from tests.support.identity import run_certfs
from tests.support.mounts import wait_until

pytestmark = [pytest.mark.mount, pytest.mark.slow, pytest.mark.timeout(300)]

_USER = "root:secret"


@pytest.fixture
def cluster() -> Iterator[etcd.Cluster]:
    """Run one etcd on the loopback."""
    with etcd.cluster() as made:
        yield made


@pytest.fixture
def dom0() -> Iterator[Host]:
    """A host that serves its own directories."""
    with serving_host() as made:
        yield made


def join(cluster: etcd.Cluster, state: Path) -> None:
    """Make a pool with a publisher, and its membership in ``state``."""
    password = state.with_name("password")
    password.write_text("secret\n")
    (endpoint,) = cluster.endpoints
    engine = ("--endpoint", endpoint, "--ca", cluster.ca, "--root-password", password)
    assert run_certfs("pool", "init", "own", *engine).returncode == 0
    admitted = run_certfs("pool", "admit", "own", HOST_UUID, "--publisher", *engine)
    file = state.with_name("join")
    file.write_text(admitted.stdout)
    joined = run_certfs("pool", "join", file, "--state", state)
    assert joined.returncode == 0, joined.stderr


def test_a_host_s_own_directories_follow_the_pool(
    cluster: etcd.Cluster, dom0: Host, tmp_path: Path
) -> None:
    """What is copied into /etc/stunnel/certs is published, also after a crash, and a removal comes (I22)."""
    state, log = tmp_path / "state", tmp_path / "log"
    join(cluster, state)
    shared, second = pki.authority("shared"), pki.authority("second")
    own = pki.pool_certificate(UUID(HOST_UUID))
    (dom0.tree.root / "xensource/xapi-pool-tls.pem").write_bytes(own.host_pem)
    command = dom0.entering(*dom0.program(), "pool", "run", "--state", state)
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=dom0.environment)
    try:
        wait_until(lambda: "in sync" in log.read_text(), what="the pool")
        (dom0.tree.root / "stunnel/certs/shared.pem").write_bytes(shared.pem)
        wait_until(lambda: cluster.data_holds(shared.pem.splitlines()[1]), what="the publication")
        wait_until(lambda: cluster.data_holds(own.pem.splitlines()[1][:40]), what="the own entry")
        server = dom0.server()
        dom0.live_again(kill(server), not_pid=server, seconds=60)
        (dom0.tree.root / "stunnel/certs/second.pem").write_bytes(second.pem)
        wait_until(lambda: cluster.data_holds(second.pem.splitlines()[1]), what="the next one")
        bundle = dom0.tree.root / "stunnel/xapi-stunnel-ca-bundle.pem"
        assert shared.pem in bundle.read_bytes()
        prefix = "/certfs/v1/own/dirs/certs/"
        cluster.control("del", f"{prefix}{'0' * 16}/shared.pem", user=_USER)
        wait_until(lambda: shared.pem not in bundle.read_bytes(), what="the removal")
        assert second.pem in bundle.read_bytes()
        told = dom0.certfs("pool", "status", "--json", "--state", state)
        assert json.loads(told)["state"] == "in sync"
    finally:
        process.terminate()
        process.wait(20)


def test_without_a_mount_the_process_says_so(dom0: Host, tmp_path: Path) -> None:
    """Where nothing is mounted there is no store to be had, and the error names what to do."""
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    membership = {
        "pool": "own", "uuid": HOST_UUID, "endpoints": ["http://127.0.0.1:1"], "ca": "", "user": "",
        "password": "",
    }  # fmt: skip
    (state / "membership.json").write_text(json.dumps(membership))
    (state / "membership.json").chmod(0o600)
    dom0.certfs("unmount")
    assert "not mounted" in dom0.certfs("pool", "run", "--state", state, expect=7)
