"""A host whose memory is gone, and an engine whose memory is (I22)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.support import pki
from tests.support.mounts import wait_until
from tests.support.pool import Pool, PoolHost, pool

pytestmark = [
    pytest.mark.mount,
    pytest.mark.slow,
    pytest.mark.counted,
    pytest.mark.timeout(300),
]


@pytest.fixture
def two() -> Iterator[Pool]:
    """Run two publishers on an engine of one member."""
    with pool(2, members=1) as made:
        yield made


def publish(pool: Pool, host: PoolHost, name: str) -> pki.Identity:
    """Copy a new certificate in on a host and wait until every host trusts it."""
    identity = pki.authority(name)
    (host.certs / f"{name}.pem").write_bytes(identity.pem)
    wait_until(lambda: pool.all_trust(identity), seconds=30, what=f"{name} everywhere")
    return identity


def test_without_its_journal_a_host_publishes_nothing_old(two: Pool) -> None:
    """A host that lost its journal while a certificate was removed shows it as drift and brings nothing back (I22)."""
    first, second = two.hosts
    gone = publish(two, first, "gone")
    kept = publish(two, first, "kept")
    second.kill()
    (first.certs / "gone.pem").unlink()

    def has_acknowledged() -> bool:
        return any(
            each["uuid"] == first.uuid and each["behind"] is False
            for each in first.status()["hosts"]
        )

    wait_until(has_acknowledged, seconds=20, what="the removal")
    (second.state / "journal.json").unlink()
    before = second.log.count("in sync")
    second.start()
    wait_until(lambda: second.log.count("in sync") > before, seconds=30, what="the start")
    wait_until(lambda: "gone.pem" in str(second.status()["drift"]), seconds=20, what="the drift")
    assert not first.trusts(gone)
    assert two.all_trust(kept)


def test_an_engine_that_went_back_is_not_believed(two: Pool) -> None:
    """With the engine's data of before, hosts are held, and what they trust stays (I22)."""
    member = two.cluster.members[0]
    early = publish(two, two.hosts[0], "early")
    member.kill()
    copy = member.data.with_name("old data")
    shutil.copytree(member.data, copy)
    two.cluster.start()
    late = publish(two, two.hosts[0], "late")
    member.kill()
    shutil.rmtree(member.data)
    copy.rename(member.data)
    for host in two.hosts:
        host.kill()
    two.cluster.start()
    for host in two.hosts:
        host.start()
    wait_until(
        lambda: all("went back" in host.log for host in two.hosts), seconds=60, what="held hosts"
    )
    assert two.all_trust(early)
    assert two.all_trust(late)
