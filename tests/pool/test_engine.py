"""The client of the engine (I22) against a real etcd."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
import trio

from certfs.pool import wire
from certfs.pool.engine import (
    Access,
    CompactedError,
    Engine,
    EngineRefusedError,
    EngineUnreachableError,
    reached,
)
from tests.support import etcd, pki

KEY, END = b"/t/", b"/t0"


@pytest.fixture(scope="module")
def cluster() -> Iterator[etcd.Cluster]:
    """Run one etcd on the loopback, for all tests of this module."""
    with etcd.cluster() as made:
        yield made


def access(cluster: etcd.Cluster, *, user: str = "", password: str = "") -> Access:
    """Return the access of a user."""
    return Access(cluster.endpoints, cluster.ca.read_text(), user, password)


def put(key: bytes, value: bytes) -> wire.Operation:
    """Return the operation."""
    return wire.Operation(request_put=wire.Put(key=key, value=value))


async def follow(engine: Engine, start: int) -> None:
    """Take every change from a revision on, without end."""
    async with engine.watch(KEY, END, start) as changes:
        async for _ in changes:
            pass


async def test_a_transaction_compares_revisions(cluster: etcd.Cluster) -> None:
    """A transaction happens if each key has the revision that it had, 0 for one that is not there (I22)."""
    async with Engine(access(cluster)) as engine:
        absent = wire.Compare(key=b"/c/x", target="MOD", mod_revision=0)
        first = await engine.transact(
            wire.Transaction(compare=(absent,), success=(put(b"/c/x", b"1"),))
        )
        assert first is not None
        again = wire.Transaction(compare=(absent,), success=(put(b"/c/x", b"2"),))
        assert await engine.transact(again) is None
        same = wire.Compare(key=b"/c/x", target="MOD", mod_revision=first)
        assert await engine.transact(
            wire.Transaction(compare=(same,), success=(put(b"/c/x", b"3"),))
        )
        found = await engine.get(b"/c/x")
        assert found is not None
        assert found.value == b"3"


async def test_a_snapshot_has_all_pages_of_one_revision(cluster: etcd.Cluster) -> None:
    """A range of many pages is read as it was at one revision (I22)."""
    async with Engine(access(cluster)) as engine:
        for first in range(0, 480, 60):
            names = [b"/s/%04d" % number for number in range(first, first + 60)]
            await engine.transact(
                wire.Transaction(compare=(), success=tuple(put(name, b"v") for name in names))
            )
        snapshot = await engine.snapshot(b"/s/", b"/s0")
        assert [one.key for one in snapshot.keys] == [b"/s/%04d" % n for n in range(480)]
        assert snapshot.cluster


async def test_a_watch_gives_one_change_for_each_revision(cluster: etcd.Cluster) -> None:
    """What a transaction changed comes as one change, deletions as None, in the order of revisions (I22)."""
    async with Engine(access(cluster)) as engine:
        start = (await engine.snapshot(KEY, END)).revision + 1
        with trio.fail_after(30):
            async with engine.watch(KEY, END, start) as changes:
                await engine.transact(
                    wire.Transaction(compare=(), success=(put(b"/t/a", b"1"), put(b"/t/b", b"1")))
                )
                removed = wire.Operation(request_delete_range=wire.Delete(key=b"/t/a"))
                await engine.transact(wire.Transaction(compare=(), success=(removed,)))
                first, second = await changes.receive(), await changes.receive()
        assert set(first.keys) == {b"/t/a", b"/t/b"}
        assert second.keys == {b"/t/a": None}
        assert first.revision < second.revision


async def test_a_compacted_watch_says_so(cluster: etcd.Cluster) -> None:
    """A watch from a revision that is gone, which etcd answers with 200 and silence, is an error (I22)."""
    async with Engine(access(cluster)) as engine:
        for value in (b"1", b"2", b"3"):
            last = await engine.transact(
                wire.Transaction(compare=(), success=(put(b"/t/x", value),))
            )
        cluster.control("compact", str(last))
        with trio.fail_after(30), pytest.raises(CompactedError):
            await follow(engine, 1)


async def test_a_watch_of_a_stopped_member_ends(cluster: etcd.Cluster) -> None:
    """The stream of a member that is stopped, and so silent for ever, ends within two heartbeats (I22)."""
    process = cluster.members[0].process
    assert process is not None
    async with Engine(access(cluster)) as engine:
        start = (await engine.snapshot(KEY, END)).revision + 1
        try:
            os.kill(process.pid, signal.SIGSTOP)
            with trio.fail_after(30), pytest.raises(EngineUnreachableError):
                await follow(engine, start)
        finally:
            os.kill(process.pid, signal.SIGCONT)


async def test_an_endpoint_that_is_not_there(cluster: etcd.Cluster) -> None:
    """A dead endpoint is an error that names it; the next one answers after a rotation, and answers commands (I22)."""
    dead = Access(("https://127.0.0.1:1", *cluster.endpoints), cluster.ca.read_text(), "", "")
    async with reached(dead) as engine:
        assert await engine.get(b"/nothing") is None
    async with Engine(dead) as engine:
        with pytest.raises(EngineUnreachableError, match=r"127\.0\.0\.1:1"):
            await engine.get(b"/x")
        engine.rotate()
        assert await engine.get(b"/nothing") is None


async def test_another_authority_is_not_believed(cluster: etcd.Cluster) -> None:
    """An engine whose certificate the pinned CA did not sign is not talked to (I22)."""
    stranger = pki.authority("stranger").pem.decode()
    async with Engine(Access(cluster.endpoints, stranger, "", "")) as engine:
        with pytest.raises(EngineUnreachableError, match="verify failed"):
            await engine.get(b"/x")


async def test_users_and_expired_tokens() -> None:
    """A forgotten token is renewed unseen; a wrong password and a missing right are refused (I22)."""
    with etcd.cluster() as own:
        for words in (
            ["user", "add", "root:secret"],
            ["role", "add", "root"],
            ["user", "grant-role", "root", "root"],
            ["user", "add", "guest:guest"],
            ["auth", "enable"],
        ):
            own.control(*words)
        async with Engine(access(own, user="root", password="secret")) as engine:
            assert await engine.get(b"/x") is None
            engine._token = "forgotten.1"
            assert await engine.get(b"/x") is None
        async with Engine(access(own, user="root", password="wrong")) as engine:
            with pytest.raises(EngineRefusedError, match="password"):
                await engine.get(b"/x")
        async with Engine(access(own, user="guest", password="guest")) as engine:
            with pytest.raises(EngineRefusedError, match="permission"):
                await engine.get(b"/x")
