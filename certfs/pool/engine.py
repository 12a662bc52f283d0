"""A client of etcd (3.4.23 or later) through its JSON gateway, on httpx and trio.

Owns the connection: which endpoint is asked, the token, what an error means, and a watch that cannot fall silent
unnoticed. Must not know what the keys mean.
"""

import math
import ssl
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final, Self, TypeVar

import httpx
import msgspec
import trio

from certfs.core.certificate import parse_source
from certfs.errors import CertfsError
from certfs.pool import wire
from certfs.pool.wire import KeyValue

T = TypeVar("T")

CALL_SECONDS: Final = 5.0
HEARTBEAT_SECONDS: Final = 3.0
"""How often the member that is watched is asked, and how long its answer may take."""
_PAGE: Final = 200
_UNAUTHENTICATED: Final = 16
_DENIED: Final = 7
_RETRYABLE: Final = frozenset({4, 8, 13, 14})
"""gRPC's codes for a deadline, too much at once, an internal error and an engine that is not available."""
_STALE_TOKEN: Final = ("invalid auth token", "user name is empty", "revision of auth store is old")
_LARGEST_LINE: Final = 64 << 20
_MOST_CHUNKS: Final = 4096
"""Of a watch that were not taken in yet; a chunk has up to 64 KiB."""


class EngineUnreachableError(CertfsError):
    """No endpoint answers, or the engine has no leader; whether a change was made is not known."""

    exit_code = 51


class EngineRefusedError(CertfsError):
    """The engine refused a request: user or password, rights, a limit; nothing was changed."""

    exit_code = 52


class CompactedError(EngineUnreachableError):
    """What was missed is no longer kept by the engine: everything is to be read again."""


@dataclass(frozen=True, slots=True)
class Access:
    """Where the engine is and as whom to ask. ``ca`` is PEM; empty for plain HTTP, as on a loopback."""

    endpoints: tuple[str, ...]
    ca: str
    user: str
    password: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All keys of a range at one revision of a cluster."""

    cluster: int
    revision: int
    keys: tuple[KeyValue, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """All that one revision changed in a range; None for a key that was deleted."""

    revision: int
    keys: Mapping[bytes, KeyValue | None]


def pinned(ca: str) -> ssl.SSLContext:
    """Return the settings of TLS that trust only these certificates (PEM); ValueError where it is none."""
    found = b"".join(one.pem for one in parse_source(ca.encode()).certificates)
    if not found:
        raise ValueError("it is no CA certificate in PEM")
    return ssl.create_default_context(cadata=found.decode("ascii"))


class Engine:
    """A connection to the engine; use it with ``async with``."""

    def __init__(self, access: Access) -> None:
        self._access = access
        # Without a CA only plain HTTP is meant; https would be verified with what the system trusts.
        verify = pinned(access.ca) if access.ca else True
        # No proxy and no .netrc of the environment: the engine is where the configuration says.
        self._client = httpx.AsyncClient(verify=verify, trust_env=False, timeout=CALL_SECONDS)
        self._at = 0
        self._token = ""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
            await self._client.aclose()

    @property
    def endpoint(self) -> str:
        """The endpoint that is asked now."""
        return self._access.endpoints[self._at]

    def rotate(self) -> None:
        """Ask the next endpoint from now on."""
        self._at = (self._at + 1) % len(self._access.endpoints)
        self._token = ""

    async def find(self) -> None:
        """Go on to the first endpoint that answers and has a leader; where there is none, the next request says so."""
        for _ in self._access.endpoints[1:]:
            try:
                with suppress(EngineRefusedError):
                    await self.get(b"\0")
            except EngineUnreachableError:
                self.rotate()
            else:
                return

    async def ask(
        self, method: str, request: msgspec.Struct, kind: type[T], seconds: float = CALL_SECONDS
    ) -> T:
        """Ask one thing of the current endpoint.

        EngineUnreachableError: the outcome is not known. EngineRefusedError: nothing was done.
        """
        # Cancelled by now, the client may be closed: httpx takes that for an error.
        await trio.lowlevel.checkpoint()
        for attempt in (1, 2):
            try:
                return await self._ask_once(method, request, kind, seconds)
            except _StaleTokenError as error:
                self._token = ""
                if attempt == 2:  # noqa: PLR2004 - the last one
                    raise EngineRefusedError(
                        f"{self.endpoint}: {error}",
                        advice="the user or its password was changed: certfs pool admit makes a new join file",
                    ) from None
        raise AssertionError

    async def read(self, request: wire.Range) -> wire.RangeAnswer:
        """Read keys."""
        return await self.ask("kv/range", request, wire.RangeAnswer)

    async def get(self, key: bytes) -> KeyValue | None:
        """Return one key as it is now, None where there is none."""
        answer = await self.read(wire.Range(key=key))
        return answer.kvs[0] if answer.kvs else None

    async def transact(self, transaction: wire.Transaction) -> int | None:
        """Return the revision of a transaction, None where its comparisons did not hold."""
        answer = await self.ask("kv/txn", transaction, wire.TransactionAnswer)
        return answer.header.revision if answer.succeeded else None

    async def snapshot(self, key: bytes, end: bytes) -> Snapshot:
        """Read a range as it is at one revision, in pages."""
        keys: list[KeyValue] = []
        first = await self.read(wire.Range(key=key, range_end=end, limit=_PAGE))
        revision, answer = first.header.revision, first
        keys.extend(answer.kvs)
        while answer.more:
            start = keys[-1].key + b"\0"
            answer = await self.read(
                wire.Range(key=start, range_end=end, limit=_PAGE, revision=revision)
            )
            keys.extend(answer.kvs)
        return Snapshot(first.header.cluster_id, revision, tuple(keys))

    @asynccontextmanager
    async def watch(
        self, key: bytes, end: bytes, start: int
    ) -> AsyncIterator[trio.MemoryReceiveChannel[Change]]:
        """Follow a range from a revision on: a channel of changes, one for each revision.

        The block is cancelled with EngineUnreachableError when the member that is watched stops answering or loses its
        leader: its stream would be silent for ever. CompactedError where ``start`` is too old.
        """
        send, receive = trio.open_memory_channel[Change](64)
        # Unbounded, because the task that fills it may wait for nothing but the network: see `_read_stream`.
        fill, chunks = trio.open_memory_channel[bytes](math.inf)
        problem: list[CertfsError] = []
        async with trio.open_nursery() as nursery:

            async def ends(task: Awaitable[None]) -> None:
                try:
                    await task
                except CertfsError as error:
                    problem.append(error)
                nursery.cancel_scope.cancel()

            nursery.start_soon(ends, self._read_stream(key, end, start, fill))
            nursery.start_soon(ends, self._follow(chunks, send))
            nursery.start_soon(ends, self._beat(key))
            yield receive
            nursery.cancel_scope.cancel()
        if problem:
            raise problem[0]

    async def _beat(self, key: bytes) -> None:
        """Return when the member that is watched does not answer; its stream would be silent for ever."""
        while True:
            await trio.sleep(HEARTBEAT_SECONDS)
            request = wire.Range(key=key, serializable=True, count_only=True)
            await self.ask("kv/range", request, wire.RangeAnswer, HEARTBEAT_SECONDS)

    async def _read_stream(
        self, key: bytes, end: bytes, start: int, fill: trio.MemorySendChannel[bytes]
    ) -> None:
        """Pass on what comes from the engine.

        The loop neither waits nor raises: left in any other place than the innermost read, the generators that httpx
        nests would not be closed by their own order.
        """
        if not self._token:
            await self._authenticate()
        body = wire.Watch(
            create_request=wire.WatchRange(
                key=key, range_end=end, start_revision=start, fragment=True
            )
        )
        # Without this header a member that has lost its leader keeps the stream open and says nothing.
        headers = {**self._headers(), "Grpc-Metadata-hasleader": "true"}
        timeout = httpx.Timeout(CALL_SECONDS, read=None)
        try:
            async with self._client.stream(
                "POST", self._url("watch"), content=_encoded(body), headers=headers, timeout=timeout
            ) as response:
                if response.status_code != httpx.codes.OK:
                    raise self._failure("watch", response.status_code, await response.aread())
                async for chunk in response.aiter_raw():
                    fill.send_nowait(chunk)
        except _StaleTokenError as error:
            self._token = ""
            raise self._unreachable(str(error)) from None
        except httpx.HTTPError as error:
            raise self._unreachable(_reason(error)) from None
        raise self._unreachable("the watch ended")

    async def _follow(
        self, chunks: trio.MemoryReceiveChannel[bytes], send: trio.MemorySendChannel[Change]
    ) -> None:
        """Make changes of what comes from the engine."""
        rest = b""
        pending: dict[bytes, KeyValue | None] = {}
        revision = 0
        async for chunk in chunks:
            *lines, rest = (rest + chunk).split(b"\n")
            waiting = chunks.statistics().current_buffer_used
            if len(rest) > _LARGEST_LINE or waiting > _MOST_CHUNKS:
                raise self._unreachable("its watch sends more than can be taken in")
            for line in filter(bytes.strip, lines):
                watched = self._watched(line)
                for event in watched.events:
                    at = event.kv.mod_revision
                    if pending and at != revision:
                        await send.send(Change(revision, pending))
                        pending = {}
                    revision = at
                    pending[event.kv.key] = None if event.type == "DELETE" else event.kv
                if pending and not watched.fragment:
                    await send.send(Change(revision, pending))
                    pending = {}

    def _watched(self, line: bytes) -> wire.Watched:
        try:
            decoded = msgspec.json.decode(line, type=wire.WatchLine, strict=False)
        except (msgspec.DecodeError, ValueError):
            raise self._unreachable("its watch answers something that is no JSON of etcd") from None
        watched = decoded.result
        if bytes(decoded.error):
            said = bytes(decoded.error)[:200].decode(errors="replace")
            raise self._unreachable(f"the watch failed: {said}")
        if watched.compact_revision:
            raise CompactedError(
                f"{self.endpoint}: compacted up to {watched.compact_revision}",
                advice="everything is read again",
            )
        if watched.canceled:
            if any(text in watched.cancel_reason for text in _STALE_TOKEN):
                self._token = ""
            raise self._unreachable(f"the watch was cancelled: {watched.cancel_reason}")
        return watched

    async def lease(self, seconds: int) -> int:
        """Return a new lease."""
        return (await self.ask("lease/grant", wire.Grant(TTL=seconds), wire.Granted)).ID

    async def keep(self, lease: int) -> bool:
        """Keep a lease alive; False where it has expired."""
        answer = await self.ask("lease/keepalive", wire.LeaseId(ID=lease), wire.KeptAlive)
        return answer.result.TTL > 0

    async def _ask_once(
        self, method: str, request: msgspec.Struct, kind: type[T], seconds: float
    ) -> T:
        if not self._token and self._access.user and method != "auth/authenticate":
            await self._authenticate()
        try:
            response = await self._client.post(
                self._url(method),
                content=_encoded(request),
                headers=self._headers(),
                timeout=seconds,
            )
        except httpx.HTTPError as error:
            raise self._unreachable(_reason(error)) from None
        if response.status_code != httpx.codes.OK:
            raise self._failure(method, response.status_code, response.content)
        try:
            return msgspec.json.decode(response.content, type=kind, strict=False)
        except (msgspec.DecodeError, ValueError):
            raise self._unreachable("it answers something that is no JSON of etcd") from None

    async def _authenticate(self) -> None:
        if not self._access.user:
            return
        request = wire.Authenticate(name=self._access.user, password=self._access.password)
        self._token = (await self._ask_once("auth/authenticate", request, wire.Token, 5.0)).token

    def _headers(self) -> dict[str, str]:
        return {"Authorization": self._token} if self._token else {}

    def _url(self, method: str) -> str:
        return f"{self.endpoint}/v3/{method}"

    def _unreachable(self, what: str) -> EngineUnreachableError:
        return EngineUnreachableError(
            f"{self.endpoint}: {what}",
            advice="everything local goes on; see whether etcd runs there and has a leader",
        )

    def _failure(self, method: str, status: int, body: bytes) -> Exception:
        try:
            failure = msgspec.json.decode(body, type=wire.Failure, strict=False)
        except (msgspec.DecodeError, ValueError):
            failure = wire.Failure(message=f"HTTP status {status}")
        said = failure.message or failure.error
        if failure.code == _UNAUTHENTICATED or any(text in said for text in _STALE_TOKEN):
            return _StaleTokenError(said)
        if (
            failure.code in _RETRYABLE
            or status >= httpx.codes.INTERNAL_SERVER_ERROR
            or status == httpx.codes.TOO_MANY_REQUESTS
        ):
            return self._unreachable(said)
        advice = "see what the role of this host may do: certfs pool admit --publisher"
        return EngineRefusedError(
            f"{self.endpoint}: {method}: {said}", advice=advice if failure.code == _DENIED else ""
        )


@asynccontextmanager
async def reached(access: Access) -> AsyncIterator[Engine]:
    """Connect for a command, which ends before there would be a reason to rotate."""
    async with Engine(access) as engine:
        await engine.find()
        yield engine


class _StaleTokenError(Exception):
    """The token has expired; a new one is to be asked for."""


def _encoded(request: msgspec.Struct) -> bytes:
    return msgspec.json.encode(request)


def _reason(error: BaseException) -> str:
    """Return what is known of why a request failed: httpx on trio says it in the exceptions beneath."""
    said = str(error)
    beneath: BaseException | None = error
    while beneath is not None:
        said = str(beneath) or said
        beneath = beneath.__cause__ or beneath.__context__
    return said or type(error).__name__
