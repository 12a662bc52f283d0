"""The client of the engine (I22) against a real etcd."""

from __future__ import annotations

import os
import signal
import ssl
from collections.abc import Iterator
from functools import partial
from typing import TypeVar

import httpx
import msgspec
import pytest
import trio

from certfs.pool import engine as engine_module
from certfs.pool import outbound, wire
from certfs.pool.engine import (
    Access,
    CompactedError,
    Engine,
    EngineRefusedError,
    EngineUnreachableError,
    TooLargeError,
    _StaleTokenError,
    reached,
)
from certfs.pool.keys import (
    MOST_TRANSACTION_BYTES,
    MOST_TRANSACTION_NAMES,
    MOST_VALUE_BYTES,
    Keys,
    PoolError,
    Value,
    digest_of,
)
from certfs.pool.view import View
from tests.support import etcd, pki
from tests.support.etcd import END, KEY, access, follow, put

pytestmark = etcd.LEFT_BY_HTTPX

T = TypeVar("T")
HOST = "960abfff-6017-4d97-bd56-0a8f1a43e51a"


@pytest.fixture(scope="module")
def cluster() -> Iterator[etcd.Cluster]:
    """Run one etcd on the loopback, for all tests of this module."""
    with etcd.cluster() as made:
        yield made


async def test_a_change_of_other_users_costs_no_new_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that was under way while users changed is asked again with the token that there is (I22)."""
    asked: list[str] = []

    async def old(
        _: Engine, method: str, _request: msgspec.Struct, kind: type[T], _seconds: float
    ) -> T:
        asked.append(method)
        if len(asked) < 3:
            raise _StaleTokenError("auth: revision of auth store is old")
        return kind()

    monkeypatch.setattr(Engine, "_ask_once", old)
    async with Engine(Access(("https://10.0.0.1:2379",), "", "user", "secret")) as engine:
        engine._token = token = "a token"
        assert await engine.get(b"/o/x") is None
        assert engine._token == token
    assert asked == ["kv/range"] * 3


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


async def test_a_watch_of_a_stopped_member_ends(
    cluster: etcd.Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream of a member that is stopped, and so silent for ever, ends within two heartbeats (I22)."""
    monkeypatch.setattr(engine_module, "HEARTBEAT_SECONDS", 1.0)
    process = cluster.members[0].process
    assert process is not None
    process_stops = partial(os.kill, process.pid, signal.SIGSTOP)
    async with Engine(access(cluster)) as engine:
        start = (await engine.snapshot(KEY, END)).revision + 1
        began = trio.current_time()
        try:
            with trio.fail_after(30), pytest.raises(EngineUnreachableError, match="no answer"):
                await follow(engine, start, process_stops)
            assert trio.current_time() - began < 2 + 8, "two seconds, and for a busy machine"
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


# --- what the gateway does that a client must know ----------------------------


async def test_the_gateways_numbers_are_strings_and_its_zeros_are_absent(
    cluster: etcd.Cluster,
) -> None:
    """Etcd writes int64 as strings and leaves out what is zero or false; the values have numbers and zeros (I22)."""
    never = wire.Transaction(
        compare=(wire.Compare(key=b"/z", target="VALUE", value=b"x"),), success=()
    )
    context = ssl.create_default_context(cafile=cluster.ca)
    async with httpx.AsyncClient(verify=context) as plain, Engine(access(cluster)) as engine:
        (url,) = cluster.endpoints
        raw = (await plain.post(f"{url}/v3/kv/txn", content=msgspec.json.encode(never))).json()
        answer = await engine.ask("kv/txn", never, wire.TransactionAnswer)
        assert isinstance(raw["header"]["revision"], str)
        assert answer.header.revision == int(raw["header"]["revision"])
        assert "succeeded" not in raw
        assert answer.succeeded is False
        counted = wire.Range(key=b"/z", count_only=True)
        raw = (await plain.post(f"{url}/v3/kv/range", content=msgspec.json.encode(counted))).json()
        assert "count" not in raw
        assert (await engine.read(counted)).count == 0


@pytest.mark.parametrize(
    "operations, said",
    [
        ([put(b"/l/%d" % number, b"") for number in range(129)], "too many operations"),
        ([put(b"/l/1", b"x"), put(b"/l/1", b"y")], "duplicate key"),
        ([put(b"/l/1", b"x" * (1536 << 10))], "request is too large"),
    ],
)
async def test_what_the_engine_does_not_take_is_refused_in_its_words(
    cluster: etcd.Cluster, operations: list[wire.Operation], said: str
) -> None:
    """Over 128 operations, a key twice, over 1.5 MiB: etcd's 400 is an error with its reason, nothing is done (I22)."""
    async with Engine(access(cluster)) as engine:
        with pytest.raises(EngineRefusedError, match=said):
            await engine.transact(wire.Transaction(compare=(), success=tuple(operations)))
        assert await engine.get(b"/l/1") is None


async def test_a_request_over_2_mib_is_refused_in_its_words(cluster: etcd.Cluster) -> None:
    """What the gateway does not take, with a 429 as if it were busy, is an error that says it is too large (I22)."""
    async with Engine(access(cluster)) as engine:
        with pytest.raises(TooLargeError, match="larger than max"):
            await engine.transact(
                wire.Transaction(compare=(), success=(put(b"/l/2", b"x" * (2 << 20)),))
            )
        assert await engine.get(b"/l/2") is None


async def published(engine: Engine, pool: str, values: dict[bytes, bytes]) -> int:
    """Publish names with these values into an empty pool."""
    keys = Keys(pool)
    view = View(keys, await engine.snapshot(*keys.watched))
    changes = {name: Value(pem, digest_of(pem)) for name, pem in values.items()}
    revision = await outbound.publish(engine, outbound.Publication(keys, HOST, 1, view, changes))
    assert revision is not None
    return revision


@pytest.mark.parametrize(
    "names, size",
    [
        (MOST_TRANSACTION_NAMES, MOST_TRANSACTION_BYTES // MOST_TRANSACTION_NAMES - 201),
        (MOST_TRANSACTION_NAMES + 1, 10),
        (26, MOST_VALUE_BYTES),
    ],
)
async def test_the_largest_publications_are_taken(
    cluster: etcd.Cluster, names: int, size: int
) -> None:
    """The most names and bytes that certfs sends as one, or in a generation of its own, are within etcd's limits (I22).

    What they make is read in pages, smaller ones where an answer would be too large.
    """
    pool = f"large-{names}-{size}"
    values = {b"%0196d.pem" % number: b"x" * size for number in range(names)}
    async with Engine(access(cluster)) as engine:
        revision = await published(engine, pool, values)
        snapshot = await engine.snapshot(*Keys(pool).watched)
        assert snapshot.revision == revision
        assert [one.value for one in snapshot.keys[:-1]] == list(values.values())


async def test_more_names_than_one_publication_records_are_not_sent(cluster: etcd.Cluster) -> None:
    """Names whose audit entry the engine would not take are refused before anything is written to it (I18, I22)."""
    values = {b"%0196d.pem" % number: b"x" for number in range(5000)}
    async with Engine(access(cluster)) as engine:
        before = (await engine.snapshot(KEY, END)).revision
        with pytest.raises(PoolError, match="5000 names"):
            await published(engine, "many", values)
        assert (await engine.snapshot(KEY, END)).revision == before


async def test_a_revision_in_fragments_comes_as_one(
    cluster: etcd.Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a revision that etcd sends in several answers nothing is passed on before the last of them (I22)."""
    lines: list[wire.Watched] = []
    watched = Engine._watched

    def noted(self: Engine, line: bytes) -> wire.Watched:
        lines.append(watched(self, line))
        return lines[-1]

    monkeypatch.setattr(Engine, "_watched", noted)
    names = [b"/t/fragments/%04d/" % number + b"x" * 1500 for number in range(2100)]
    async with Engine(access(cluster)) as engine:
        for first in range(0, len(names), 120):
            operations = tuple(put(name, b"") for name in names[first : first + 120])
            await engine.transact(wire.Transaction(compare=(), success=operations))
        start = (await engine.snapshot(b"/t/fragments/", b"/t/fragments0")).revision + 1
        with trio.fail_after(30):
            async with engine.watch(KEY, END, start) as changes:
                every = wire.Delete(key=b"/t/fragments/", range_end=b"/t/fragments0")
                done = await engine.transact(
                    wire.Transaction(
                        compare=(),
                        success=(wire.Operation(request_delete_range=every), put(b"/t/@", b"")),
                    )
                )
                change = await changes.receive()
    assert [line.fragment for line in lines if line.events][:2] == [True, False]
    assert change.revision == done
    assert change.keys.keys() == {*names, b"/t/@"}
