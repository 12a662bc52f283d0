"""Engines that are set up, or fail, in a way that a client must know: each a real etcd of its own (I22)."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from dataclasses import replace

import httpx
import msgspec
import pytest
import trio
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.hazmat.primitives.serialization import PublicFormat as Public
from cryptography.x509.oid import ExtendedKeyUsageOID

from certfs.pool import engine as engine_module
from certfs.pool import wire
from certfs.pool.engine import Access, Engine, EngineRefusedError, EngineUnreachableError
from tests.support import etcd, mounts, pki
from tests.support.etcd import END, KEY, access, follow, put
from tests.support.mounts import wait_until
from tests.support.relay import relayed

pytestmark = etcd.LEFT_BY_HTTPX

TOKEN_SECONDS = 2


def transaction(*operations: wire.Operation) -> wire.Transaction:
    """Return operations that have no condition."""
    return wire.Transaction(compare=(), success=operations)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[etcd.Cluster]:
    """Run an engine with users, whose tokens expire after some seconds whether they are used or not."""
    directory = tmp_path_factory.mktemp("tokens")
    key = pki.rsa_key(1)
    (directory / "key").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    public = key.public_key().public_bytes(Encoding.PEM, Public.SubjectPublicKeyInfo)
    (directory / "public").write_bytes(public)
    words = ("pub-key", directory / "public"), ("priv-key", directory / "key")
    files = ",".join(f"{word}={file}" for word, file in words)
    token = f"--auth-token=jwt,{files},sign-method=RS256,ttl={TOKEN_SECONDS}s"
    with etcd.cluster(options=[token, "--bcrypt-cost=4"]) as made:
        for command in (
            ["user", "add", "root:secret"],
            ["role", "add", "root"],
            ["user", "grant-role", "root", "root"],
            ["user", "add", "guest:guest"],
            ["auth", "enable"],
        ):
            made.control(*command)
        yield made


async def test_a_token_that_expires_during_a_watch_loses_nothing(
    guarded: etcd.Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The heartbeat gets another token when the first has expired, and every change before and after it comes (I22)."""
    monkeypatch.setattr(engine_module, "HEARTBEAT_SECONDS", 0.5)
    root = access(guarded, user="root", password="secret")
    async with Engine(root) as engine, Engine(root) as other:
        start = (await engine.snapshot(KEY, END)).revision + 1
        first = engine._token
        with trio.fail_after(30):
            async with engine.watch(KEY, END, start) as changes:
                before = await other.transact(transaction(put(b"/t/x", b"1")))
                assert (await changes.receive()).revision == before
                while engine._token == first:  # noqa: ASYNC110 - the heartbeat finds that it has expired
                    await trio.sleep(0.05)
                assert await is_refused(guarded, first)
                after = await other.transact(transaction(put(b"/t/x", b"2")))
                assert (await changes.receive()).revision == after


async def test_users_and_forgotten_tokens(guarded: etcd.Cluster) -> None:
    """A forgotten token is renewed unseen; a wrong password and a missing right are refused (I22)."""
    async with Engine(access(guarded, user="root", password="secret")) as engine:
        assert await engine.get(b"/x") is None
        engine._token = "forgotten.1"
        assert await engine.get(b"/x") is None
    async with Engine(access(guarded, user="root", password="wrong")) as engine:
        with pytest.raises(EngineRefusedError, match="password"):
            await engine.get(b"/x")
    async with Engine(access(guarded, user="guest", password="guest")) as engine:
        with pytest.raises(EngineRefusedError, match="permission"):
            await engine.get(b"/x")


async def is_refused(cluster: etcd.Cluster, token: str) -> bool:
    """Whether a token counts no more."""
    context = ssl.create_default_context(cafile=cluster.ca)
    async with httpx.AsyncClient(verify=context, headers={"Authorization": token}) as plain:
        request = msgspec.json.encode(wire.Range(key=KEY))
        answer = await plain.post(f"{cluster.endpoints[0]}/v3/kv/range", content=request)
    return "invalid auth token" in answer.text


async def test_users_that_change_during_a_watch_lose_nothing(
    guarded: etcd.Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that is admitted makes every token of this kind old; watches and requests of the others go on (I22)."""
    monkeypatch.setattr(engine_module, "HEARTBEAT_SECONDS", 0.2)
    root = access(guarded, user="root", password="secret")
    async with Engine(root) as engine, Engine(root) as other:
        start = (await engine.snapshot(KEY, END)).revision + 1
        first = engine._token
        with trio.fail_after(30):
            async with engine.watch(KEY, END, start) as changes:
                await other.ask("auth/role/add", wire.RoleName(name="another"), wire.Plain)
                while engine._token == first:  # noqa: ASYNC110 - the heartbeat finds that it is old
                    await trio.sleep(0.05)
                done = await other.transact(transaction(put(b"/t/x", b"3")))
                assert (await changes.receive()).revision == done


async def test_an_unauthorised_watch_says_so(guarded: etcd.Cluster) -> None:
    """A watch that is not permitted, to which etcd says 200, `canceled` and no more, ends with its reason (I22)."""
    guest = access(guarded, user="guest", password="guest")
    context = ssl.create_default_context(cafile=guarded.ca)
    async with Engine(guest) as engine:
        with (
            trio.fail_after(30),
            pytest.raises(EngineUnreachableError, match=r"cancelled.*ermission"),
        ):
            await follow(engine, 1)
        request = wire.Watch(
            create_request=wire.WatchRange(key=KEY, range_end=END, start_revision=1)
        )
        async with (
            httpx.AsyncClient(
                verify=context, headers={"Authorization": engine._token}, timeout=30
            ) as plain,
            plain.stream(
                "POST", f"{guarded.endpoints[0]}/v3/watch", content=msgspec.json.encode(request)
            ) as answer,
        ):
            assert answer.status_code == httpx.codes.OK
            said = b""
            with trio.move_on_after(1) as silence:
                async for piece in answer.aiter_raw():
                    said += piece
            assert silence.cancelled_caught, "the stream ended"
            assert b'"canceled":true' in said


async def test_a_member_without_a_leader_ends_its_watches() -> None:
    """A member whose leader is gone answers heartbeats for ever; asked for a leader, it ends the stream (I22)."""
    quick = ["--heartbeat-interval=50", "--election-timeout=500"]
    with etcd.cluster([("127.0.0.1", [])] * 2, options=quick) as two:
        first, second = two.members
        alone = Access((first.endpoint,), two.ca.read_text(), "", "")
        async with Engine(alone) as engine:
            start = (await engine.snapshot(KEY, END)).revision + 1
            with trio.fail_after(30), pytest.raises(EngineUnreachableError, match="no leader"):
                await follow(engine, start, second.kill)
            heartbeat = wire.Range(key=KEY, serializable=True, count_only=True)
            await engine.read(heartbeat)


async def test_an_engine_that_wants_client_certificates_is_named() -> None:
    """With --client-cert-auth the engine refuses a client that has users only; the error says what to change (I22)."""
    with etcd.cluster(client_certificates=True) as strict:
        async with Engine(access(strict)) as engine:
            with pytest.raises(EngineUnreachableError) as caught:
                await engine.get(b"/x")
            assert "--client-cert-auth" in caught.value.advice


async def test_an_engine_whose_certificates_are_for_servers_only_has_no_leader() -> None:
    """Members refuse each other's certificates that are not for clients too; a request ends in its time (I22)."""
    places: list[tuple[str, list[str]]] = [("127.0.0.1", [])] * 2
    with etcd.cluster(places, uses=[ExtendedKeyUsageOID.SERVER_AUTH], healthy=False) as mute:
        log = mute.directory / "m0.log"
        wait_until(lambda: "incompatible key usage" in log.read_text(), seconds=30, what="the log")
        async with Engine(access(mute)) as engine:
            with pytest.raises(EngineUnreachableError, match="no answer in time") as caught:
                await engine.ask("kv/range", wire.Range(key=b"/x"), wire.RangeAnswer, 1.0)
            assert "has a leader" in caught.value.advice


async def test_a_watch_whose_connection_alone_is_gone_ends(
    guarded: etcd.Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection of a watch may be gone without a word while the heartbeat is answered on another one (I22)."""
    mounts.need_root()
    tcp = socket.IPPROTO_TCP
    soon = ((tcp, socket.TCP_KEEPIDLE, 1), (tcp, socket.TCP_KEEPINTVL, 1))
    monkeypatch.setattr(engine_module, "_KEEPALIVE", engine_module._KEEPALIVE + soon)
    (member,) = guarded.members
    root = access(guarded, user="root", password="secret")
    async with Engine(root) as other, relayed(member.address, member.client) as relay:
        through = replace(root, endpoints=(f"https://127.0.0.1:{relay.port}",))
        async with Engine(through) as engine:
            start = (await engine.snapshot(KEY, END)).revision + 1

            async def forgotten() -> None:
                async with engine.watch(KEY, END, start) as changes:
                    await other.transact(transaction(put(b"/t/x", b"1")))
                    await changes.receive()
                    (watched,) = relay.open
                    await relay.forget(watched)
                    await changes.receive()

            with trio.fail_after(30), pytest.raises(EngineUnreachableError):
                await forgotten()
            await engine.get(KEY)
