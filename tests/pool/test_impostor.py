"""An engine in other hands: whatever it answers costs a bounded time and memory, and ends as an error (I18, I22)."""

from __future__ import annotations

import base64
import gzip
import json
import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from itertools import count
from pathlib import Path

import msgspec
import pytest
import trio

from certfs.pool import engine as engine_module
from certfs.pool import outbound, wire
from certfs.pool.engine import Access, Engine, EngineRefusedError, EngineUnreachableError
from certfs.pool.keys import Keys, MemberTable
from certfs.pool.membership import JoinFile
from certfs.pool.process import Member, backoff
from certfs.pool.store import Store
from tests.support import etcd, pki

pytestmark = etcd.LEFT_BY_HTTPX

Reply = Callable[[trio.SocketStream], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\n"
DEEP = b'{"x":' + b"[" * 100_000
HOST = str(uuid.uuid4())


class Impostor:
    """Has a port, answers each method of the gateway as it is told, and ends the connection then."""

    def __init__(self, replies: Mapping[str, Reply]) -> None:
        self._replies = replies
        self.asked: list[str] = []
        self.sent = 0
        self.access = Access((), "", "", "")

    async def serve(self, client: trio.SocketStream) -> None:
        """Answer one request."""
        request = b""
        while b"\r\n\r\n" not in request:
            request += await client.receive_some()
        method = request.split()[1].decode().removeprefix("/v3/")
        self.asked.append(method)
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self._replies[method](Counted(client, self))  # type: ignore[arg-type] # it has of a stream what answers use


class Counted:
    """A connection that counts what is sent."""

    def __init__(self, stream: trio.SocketStream, impostor: Impostor) -> None:
        self._stream, self._impostor = stream, impostor

    async def send_all(self, data: bytes) -> None:
        """Send."""
        self._impostor.sent += len(data)
        await self._stream.send_all(data)


@asynccontextmanager
async def impostor(replies: Mapping[str, Reply], *, user: str = "") -> AsyncIterator[Impostor]:
    """Run one on the loopback; every test ends within half a minute."""
    made = Impostor(replies)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(
                partial(trio.serve_tcp, host="127.0.0.1"), made.serve, 0
            )
            url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
            made.access = Access((url,), "", user, "secret")
            yield made
            nursery.cancel_scope.cancel()


def says(*pieces: bytes) -> Reply:
    """Return what sends these pieces."""

    async def reply(client: trio.SocketStream) -> None:
        for piece in pieces:
            await client.send_all(piece)

    return reply


def body(content: bytes) -> Reply:
    """Return what answers with this body."""
    return says(OK, b"Content-Length: %d\r\n\r\n" % len(content), content)


def answers(**content: object) -> Reply:
    """Return what answers with this as JSON."""
    return body(json.dumps(content).encode())


def endlessly(first: bytes, piece: bytes, *, every: float = 0.0) -> Reply:
    """Return what goes on without end."""

    async def reply(client: trio.SocketStream) -> None:
        await client.send_all(first)
        while True:
            await trio.sleep(every)
            await client.send_all(piece)

    return reply


ONE_MIB_CHUNK = b"100000\r\n" + b"x" * (1 << 20) + b"\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
ANSWERS = {
    "no HTTP": says(b"\x00\xff\x00 220 hello\r\n\r\n"),
    "nothing": says(),
    "no JSON": body(b"\xff\x00"),
    "nested JSON": body(DEEP),
    "another type": body(b"[]"),
    "a list for a header": answers(header=[]),
    "null": answers(header=None, kvs=None),
    "a revision below 0": answers(header={"revision": "-1"}),
    "a revision over int64": answers(header={"revision": str(2**63)}),
    "a revision of 30 digits": answers(header={"revision": int("9" * 30)}),
    "a revision that is none": answers(header={"revision": "x"}),
    "a number without end": body(b'{"header":{"revision":1e999}}'),
    "a key that is no base64": answers(kvs=[{"key": "!", "mod_revision": "1"}]),
    "a key without revision": answers(kvs=[{"key": ""}]),
    "half": says(OK, b"Content-Length: 100\r\n\r\n{"),
    "two lengths": says(OK, b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}}"),
    "packed": says(OK, b"Content-Encoding: gzip\r\n\r\n", gzip.compress(b"{}" + b" " * (64 << 20))),
    "another protocol": says(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n{}"),
    "a redirection": says(
        b"HTTP/1.1 307 X\r\nLocation: /v3/kv/put\r\n", b"Content-Length: 0\r\n\r\n"
    ),
    "an error that is none": says(b"HTTP/1.1 400 X\r\nContent-Length: 2\r\n\r\n[]"),
    "a nested error": says(b"HTTP/1.1 400 X\r\nContent-Length: %d\r\n\r\n" % len(DEEP), DEEP),
    "a body without end": endlessly(CHUNKED, ONE_MIB_CHUNK),
    "a body in drops": endlessly(CHUNKED, b"1\r\n \r\n", every=0.05),
    "an error without end": endlessly(CHUNKED.replace(b"200", b"500"), ONE_MIB_CHUNK),
    "a header without end": endlessly(OK + b"X: ", b"x" * (1 << 20)),
    "headers without end": endlessly(OK, b"X: x\r\n" * 10_000),
    "headers in drops": endlessly(OK, b"x", every=0.05),
    "ever more to come": endlessly(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
}


@pytest.mark.parametrize("reply", ANSWERS.values(), ids=ANSWERS.keys())
async def test_any_answer_is_an_error_in_time(reply: Reply) -> None:
    """Garbage, drops and what never ends are errors in the time and the memory that are meant, in one line (I18)."""
    async with impostor({"kv/range": reply}) as made, Engine(made.access) as engine:
        began = trio.current_time()
        with pytest.raises((EngineUnreachableError, EngineRefusedError)) as caught:
            await engine.ask("kv/range", wire.Range(key=b"x"), wire.RangeAnswer, 0.5)
        assert trio.current_time() - began < 0.5 + 10, "half a second, and for a busy machine"
        assert made.asked in ([], ["kv/range"]), "nothing else is asked, nor again"
        assert made.sent < 32 << 20
        assert caught.value.message.isprintable()
        assert len(caught.value.message) < 500


@pytest.mark.parametrize(
    "token", ["\u00e9", "a\r\nHost: b", "x" * 100_000, 7], ids=["letter", "line", "long", "number"]
)
async def test_a_token_that_is_none_is_an_error(token: object) -> None:
    """What an engine gives for a token goes into a header only if it is one (I22)."""
    replies = {"auth/authenticate": answers(token=token)}
    async with impostor(replies, user="host") as made, Engine(made.access) as engine:
        with pytest.raises(EngineUnreachableError, match="no JSON of etcd"):
            await engine.get(b"x")


async def test_cookies_are_not_kept() -> None:
    """An engine that sets new cookies with every answer fills no memory and no header (I18)."""
    numbers = count()

    async def reply(client: trio.SocketStream) -> None:
        await says(OK, b"Set-Cookie: c%d=x\r\nContent-Length: 2\r\n\r\n{}" % next(numbers))(client)

    async with impostor({"kv/range": reply}) as made, Engine(made.access) as engine:
        for _ in range(3):
            await engine.get(b"x")
        assert len(engine._client.cookies) == 0


def pages(step: int, *, more: bool = True, total: int = 0) -> Reply:
    """Return what answers with pages of 100 keys; their names go on by ``step`` for each key."""
    numbers = count(step=step)

    async def reply(client: trio.SocketStream) -> None:
        names = [base64.b64encode(b"/%09d" % next(numbers)).decode() for _ in range(100)]
        keys = [{"key": name, "mod_revision": "1"} for name in names]
        await answers(header={"revision": "1"}, kvs=keys, more=more, count=total)(client)

    return reply


RANGES = {
    "more and none": answers(header={"revision": "1"}, more=True),
    "the same again": pages(0),
    "backwards": pages(-1),
    "without end": pages(1),
    "a million": pages(1, total=1_000_000),
}


@pytest.mark.parametrize("reply", RANGES.values(), ids=RANGES.keys())
async def test_a_range_without_end_is_an_error(
    reply: Reply, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages that do not go on, and more keys than are kept, end the reading of a range (I18)."""
    monkeypatch.setattr(engine_module, "MOST_KEYS", 1000)
    async with impostor({"kv/range": reply}) as made, Engine(made.access) as engine:
        with pytest.raises((EngineUnreachableError, EngineRefusedError)):
            await engine.snapshot(b"/", b"0")
        assert len(made.asked) <= 11


def event(key: bytes, revision: int) -> dict[str, object]:
    """Return an event of a watch."""
    return {"kv": {"key": base64.b64encode(key).decode(), "mod_revision": str(revision)}}


def line(*events: dict[str, object], **more: object) -> bytes:
    """Return a line of a watch, as a chunk."""
    content = json.dumps({"result": {"events": events, **more}}).encode() + b"\n"
    return b"%x\r\n%s\r\n" % (len(content), content)


CREATED = CHUNKED + line(created=True)
FRAGMENTS = line(*(event(b"/%d" % number, 5) for number in range(100)), fragment=True)
WATCHES = {
    "nested JSON": says(CREATED, b"%x\r\n%s\n\r\n" % (len(DEEP) + 1, DEEP)),
    "no JSON": says(CREATED, b"2\r\nx\n\r\n"),
    "an unknown event": says(CREATED, line({**event(b"/", 1), "type": "MOVE"})),
    "an end": says(CREATED, b"0\r\n\r\n"),
    "an error": says(CHUNKED, b'19\r\n{"error":{"message":"x"}}\r\n1\r\n\n\r\n'),
    "nothing": endlessly(OK, b"", every=1),
    "a line without end": endlessly(CREATED, ONE_MIB_CHUNK),
    "an error without end": endlessly(CHUNKED.replace(b"200", b"400"), ONE_MIB_CHUNK),
    "a revision without end": endlessly(CREATED, FRAGMENTS),
    "a redirection": says(b"HTTP/1.1 307 X\r\nLocation: /\r\nContent-Length: 0\r\n\r\n"),
}


async def follow(
    engine: Engine, then: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
) -> None:
    """Take every change, after what happens at the beginning."""
    async with engine.watch(b"/", b"0", 1) as changes:
        await then()
        async for _ in changes:
            pass


@pytest.mark.parametrize("reply", WATCHES.values(), ids=WATCHES.keys())
async def test_any_watch_is_an_error_in_time(reply: Reply, monkeypatch: pytest.MonkeyPatch) -> None:
    """A watch that is garbage, or that never comes to its point, ends with an error and a bounded memory (I18)."""
    monkeypatch.setattr(engine_module, "CALL_SECONDS", 0.5)
    monkeypatch.setattr(engine_module, "MOST_BYTES", 4 << 20)
    replies = {"watch": reply, "kv/range": answers()}
    async with impostor(replies) as made, Engine(made.access) as engine:
        with pytest.raises((EngineUnreachableError, EngineRefusedError)) as caught:
            await follow(engine)
        assert caught.value.message.isprintable()
        assert made.sent < 64 << 20


async def test_a_watch_that_is_faster_than_its_reader_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has come and was not taken in is bounded: an engine that sends without end fills no memory (I18)."""
    monkeypatch.setattr(engine_module, "_MOST_CHUNKS", 50)
    flood = b"".join(line(event(b"/", number)) for number in range(200))
    replies = {"watch": endlessly(CREATED, flood), "kv/range": answers()}
    async with impostor(replies) as made, Engine(made.access) as engine:
        with pytest.raises(EngineUnreachableError, match="too large"):
            await follow(engine, trio.sleep_forever)


# --- the process of a member ----------------------------------------------------


KEYS = Keys("prod")
TABLE = msgspec.json.encode(MemberTable(publisher=True, admitted=0))
BOTH = [(KEYS.member(HOST), TABLE)]


def here(keys: list[tuple[bytes, bytes]], revision: int) -> Reply:
    """Return what answers a range with these keys."""
    return answers(
        header={"cluster_id": "1", "revision": str(revision)},
        kvs=[
            {
                "key": base64.b64encode(key).decode(),
                "value": base64.b64encode(value).decode(),
                "mod_revision": "3",
            }
            for key, value in keys
        ],
    )


@asynccontextmanager
async def running(base: Path, replies: Mapping[str, Reply]) -> AsyncIterator[Member]:
    """Run a member's process with an engine that gives these replies, beyond what every engine gives."""
    certs, state = base / "store/stunnel/certs", base / "state"
    certs.mkdir(parents=True)
    state.mkdir()
    store, directory = os.open(base / "store", os.O_PATH), os.open(state, os.O_RDONLY)
    usual = {
        "lease/grant": answers(ID="1", TTL="30"),
        "kv/txn": answers(succeeded=True, header={"revision": "9"}),
        "kv/range": here(BOTH, 9),
        "watch": endlessly(CREATED, b"", every=1),
    }
    try:
        async with impostor({**usual, **replies}) as made:
            membership = JoinFile("prod", HOST, made.access.endpoints, "", "", "")
            member = Member(membership, directory, str(state), Store({b"": store}), base / "store")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(member.run)
                yield member
                nursery.cancel_scope.cancel()
    finally:
        os.close(store)
        os.close(directory)


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something holds; `impostor` has the deadline."""
    while not condition():  # noqa: ASYNC110 - of what the process changes without saying so
        await trio.sleep(0.01)


async def test_a_watch_that_goes_back_is_not_followed(tmp_path: Path) -> None:
    """A change of a revision before that which was applied makes a host hold, and it stays as it is (I22)."""
    watch = endlessly(CREATED, line(event(KEYS.member(HOST), 4)), every=0.3)
    async with running(tmp_path, {"watch": watch}) as member:
        await until(lambda: member.report.state == "held")
        assert "went back from revision 9 to 4" in member.report.reason


async def test_a_record_of_a_publication_that_is_none_ends_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host whose audit entry in the engine is garbage says so, and goes on trying (I22)."""
    audit = here([(KEYS.audit(HOST, 1), b'{"at":0,"changes":{"../\\u00e9":"x"}}')], 9)
    monkeypatch.setattr(outbound, "publish", unknown)
    asked = count()

    async def reply(client: trio.SocketStream) -> None:
        await (audit if next(asked) else here(BOTH, 9))(client)

    async with running(tmp_path, {"kv/range": reply}) as member:
        await until(lambda: member.report.state == "in sync")
        certificate = pki.authority("x").pem
        (tmp_path / "store/stunnel/certs/x.pem").write_bytes(certificate)
        await until(lambda: member.report.state == "failing")
        assert "none of certfs" in member.report.reason


async def unknown(*_: object) -> int | None:
    """Stand for a publication whose outcome is not known."""
    raise EngineUnreachableError("it is away")


def test_an_engine_may_be_away_for_years() -> None:
    """However often a host has failed to reach the engine, it waits a minute at most, and tries again (I22)."""
    assert backoff(1) < 1
    assert max(map(backoff, range(100_000))) == 60
