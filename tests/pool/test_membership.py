"""Admitting hosts to a pool, on a real engine (I22)."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Iterator
from typing import TypeVar

import msgspec
import pytest

from certfs.pool import membership, wire
from certfs.pool.engine import Access, Engine, EngineUnreachableError
from certfs.pool.keys import Keys
from tests.support import etcd

T = TypeVar("T")
_ASKED_FOR_GOOD = {"kv/range", "auth/authenticate"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[etcd.Cluster]:
    """Run one etcd on the loopback, for all tests of this module."""
    with etcd.cluster() as made:
        yield made


@pytest.mark.parametrize("happened", [True, False])
async def test_an_admission_goes_on_when_the_engine_was_too_busy(
    cluster: etcd.Cluster, monkeypatch: pytest.MonkeyPatch, *, happened: bool
) -> None:
    """Each request of an admission may time out, whether it happened or not: the join file holds in the end (I22)."""
    root = Access(cluster.endpoints, cluster.ca.read_text(), "root", "secret")
    keys, host = Keys(f"p{secrets.token_hex(8)}"), str(uuid.uuid4())
    await membership.init_pool(root, keys)
    monkeypatch.setattr(membership, "_PAUSE_SECONDS", 0.0)
    timed_out: set[str] = set()
    ask = Engine.ask

    async def too_busy(
        self: Engine, method: str, request: msgspec.Struct, kind: type[T], seconds: float = 5.0
    ) -> T:
        which = method if method.startswith("kv/") else f"{method} {request}"
        if method in _ASKED_FOR_GOOD or which in timed_out:
            return await ask(self, method, request, kind, seconds)
        timed_out.add(which)
        if happened:
            await ask(self, method, request, kind, seconds)
        raise EngineUnreachableError("etcdserver: request timed out")

    monkeypatch.setattr(Engine, "ask", too_busy)
    join = await membership.admit(root, keys, host, publisher=True)
    monkeypatch.undo()
    assert len(timed_out) > 8
    async with Engine(join.access) as engine:
        for key in (keys.host(host), keys.head):
            put = wire.Operation(request_put=wire.Put(key=key, value=b"x"))
            assert await engine.transact(wire.Transaction(compare=(), success=(put,)))
        assert await engine.get(keys.member(host))
