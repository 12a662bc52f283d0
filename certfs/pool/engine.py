"""A client of etcd (3.4.23 or later) through its JSON gateway, on httpx and trio.

Owns the connection: which endpoint is asked, the token, what an error means, and a watch that cannot fall silent
unnoticed. Must not know what the keys mean.
"""

import math
import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from http.cookiejar import CookieJar
from itertools import count
from typing import Final, Self, TypeVar

import httpx
import msgspec
import trio

from certfs.core.certificate import parse_source
from certfs.core.text import printable
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
_OLD_REVISION: Final = "revision of auth store is old"
_OLD_ATTEMPTS: Final = 4
_STALE_TOKEN: Final = ("invalid auth token", "user name is empty", _OLD_REVISION)
_LARGER_THAN_MAX: Final = "received message larger than max"
_NO_CLIENT_CERTIFICATE: Final = re.compile("(?i)certificate[_ ]required|bad[_ ]certificate")
_TOO_LATE: Final = "no answer in time"
_CUT_OFF: Final = "the connection was ended without an answer"
_LARGEST_ANSWER: Final = 8 << 20
"""Of a request, and of a line of a watch. etcd splits what is over 2 MiB (`fragment`), which is 2.7 MiB in base64."""
_MOST_CHUNKS: Final = 1024
"""Of a watch that were not taken in yet; a chunk has up to 64 KiB."""
_MOST_SAID: Final = 300
"""Characters of what an engine says that are shown and logged."""
MOST_KEYS: Final = 1 << 17
MOST_BYTES: Final = 256 << 20
"""Of a range that is kept in memory."""
_SNAPSHOT_SECONDS: Final = 120.0
_KEEPALIVE: Final = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 3),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)
"""The heartbeat asks on another connection than the watch's, of which a firewall may have lost track alone."""


class EngineUnreachableError(CertfsError):
    """No endpoint answers, or the engine has no leader; whether a change was made is not known."""

    exit_code = 51


class EngineRefusedError(CertfsError):
    """The engine refused a request: user or password, rights, a limit; nothing was changed."""

    exit_code = 52


class TooLargeError(EngineUnreachableError):
    """The request or its answer is larger than the engine's gateway, or this client, takes."""


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
        self._client = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(
                verify=verify, trust_env=False, socket_options=_KEEPALIVE
            ),
            cookies=_NoCookies(),
            trust_env=False,
            timeout=None,  # noqa: S113 - `_receive` has the deadline, of a whole answer
        )
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
        renewed = False
        for attempt in count(1):
            try:
                return await self._ask_once(method, request, kind, seconds)
            except _StaleTokenError as error:
                # A change of any user makes the requests old that are under way, not their tokens; a new token costs
                # the engine a hash that is slow by design.
                if _OLD_REVISION in str(error) and attempt < _OLD_ATTEMPTS:
                    continue
                self._token = ""
                if renewed:
                    raise EngineRefusedError(
                        f"{self.endpoint}: {error}",
                        advice="the user or its password was changed: certfs pool admit makes a new join file",
                    ) from None
                renewed = True
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
        """Read a range as it is at one revision, in pages; EngineRefusedError where it is too large to be kept."""
        try:
            with trio.fail_after(_SNAPSHOT_SECONDS):
                return await self._pages(key, end)
        except trio.TooSlowError:
            raise self._unreachable(f"not all was read within {_SNAPSHOT_SECONDS:g} s") from None

    async def _pages(self, key: bytes, end: bytes) -> Snapshot:
        keys: list[KeyValue] = []
        size, limit, revision = 0, _PAGE, 0
        while True:
            asked = wire.Range(key=key, range_end=end, limit=limit, revision=revision)
            try:
                answer = await self.read(asked)
            except TooLargeError:
                if limit == 1:
                    raise
                limit = max(limit // 4, 1)
                continue
            revision = revision or answer.header.revision
            keys.extend(answer.kvs)
            size += sum(len(one.value) for one in answer.kvs)
            check_size(max(len(keys), answer.count), size)
            if not answer.more:
                return Snapshot(answer.header.cluster_id, revision, tuple(keys))
            if not answer.kvs or answer.kvs[-1].key < key:
                raise self._unreachable("its pages do not go on")
            key = keys[-1].key + b"\0"

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
        """Pass on what comes from the engine until it ends the stream."""
        if not self._token:
            await self._authenticate()
        body = wire.Watch(
            create_request=wire.WatchRange(
                key=key, range_end=end, start_revision=start, fragment=True
            )
        )
        # Without this header a member that has lost its leader keeps the stream open and says nothing.
        headers = {**self._headers(), "Grpc-Metadata-hasleader": "true"}
        scope = trio.CancelScope(deadline=trio.current_time() + CALL_SECONDS)
        failed = bytearray()

        def take(status: int, piece: bytes) -> bool:
            if status != httpx.codes.OK:
                failed.extend(piece)
                return len(failed) <= _LARGEST_ANSWER
            scope.deadline = math.inf  # etcd says at once that the watch is made
            fill.send_nowait(piece)
            return fill.statistics().current_buffer_used <= _MOST_CHUNKS

        status = await self._receive("watch", body, headers, scope, take)
        if status == httpx.codes.OK:
            fill.close()
            return
        failure = self._failure("watch", status, bytes(failed))
        if isinstance(failure, _StaleTokenError):
            self._token = ""
            raise self._unreachable(str(failure))
        raise failure

    async def _follow(
        self, chunks: trio.MemoryReceiveChannel[bytes], send: trio.MemorySendChannel[Change]
    ) -> None:
        """Make changes of what comes from the engine until that ends, which is an error."""
        rest = bytearray()
        pending: dict[bytes, KeyValue | None] = {}
        revision, size = 0, 0
        async for chunk in chunks:
            rest += chunk
            if b"\n" not in chunk and len(rest) <= _LARGEST_ANSWER:
                continue
            *lines, last = bytes(rest).split(b"\n")
            rest = bytearray(last)
            if max(map(len, [*lines, last])) > _LARGEST_ANSWER:
                raise self._too_large("watch", "a line is too large")
            for line in filter(bytes.strip, lines):
                watched = self._watched(line)
                size += len(line)
                check_size(len(pending), size)
                for event in watched.events:
                    at = event.kv.mod_revision
                    if pending and at != revision:
                        await send.send(Change(revision, pending))
                        pending, size = {}, 0
                    revision = at
                    pending[event.kv.key] = None if event.type == "DELETE" else event.kv
                if not watched.fragment:
                    if pending:
                        await send.send(Change(revision, pending))
                    pending, size = {}, 0
        if rest.strip():  # etcd 3.4 gives the reason without a line feed
            self._watched(bytes(rest))
        raise self._unreachable("the watch ended")

    def _watched(self, line: bytes) -> wire.Watched:
        decoded = wire.decoded(line, wire.WatchLine)
        if decoded is None:
            raise self._unreachable("its watch answers something that is no JSON of etcd")
        watched = decoded.result
        if bytes(decoded.error):
            said = bytes(decoded.error).decode(errors="replace")
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
        status, body = await self._exchange(method, request, seconds)
        if status != httpx.codes.OK:
            raise self._failure(method, status, body)
        answer = wire.decoded(body, kind)
        if answer is None:
            raise self._unreachable("it answers something that is no JSON of etcd")
        return answer

    async def _exchange(
        self, method: str, request: msgspec.Struct, seconds: float
    ) -> tuple[int, bytes]:
        """Return the status and the body of an answer, which takes no more time and memory than is meant."""
        body = bytearray()

        def take(_: int, piece: bytes) -> bool:
            body.extend(piece)
            return len(body) <= _LARGEST_ANSWER

        scope = trio.CancelScope(deadline=trio.current_time() + seconds)
        status = await self._receive(method, request, self._headers(), scope, take)
        return status, bytes(body)

    async def _receive(
        self,
        method: str,
        request: msgspec.Struct,
        headers: Mapping[str, str],
        scope: trio.CancelScope,
        take: Callable[[int, bytes], bool],
    ) -> int:
        """Have ``take`` the status and each piece of an answer until it says that it is too much; return the status.

        ``scope`` has the deadline. The loop neither waits nor raises: left in any other place than the innermost read,
        the generators that httpx nests would not be closed by their own order.
        """
        status, too_large = 0, False
        # A handshake that is cancelled would leave its socket to the garbage collector: httpcore ends it itself before.
        timeout = httpx.Timeout(None, connect=0.8 * (scope.deadline - trio.current_time()))
        content = msgspec.json.encode(request)
        try:
            with scope:
                async with self._client.stream(
                    "POST", self._url(method), content=content, headers=headers, timeout=timeout
                ) as response:
                    status = response.status_code
                    # As it is: unpacked, it could be a thousand times as large.
                    async for piece in response.aiter_raw():
                        if not too_large and not take(status, piece):
                            too_large = True
                            scope.cancel()
        except httpx.TimeoutException:
            raise self._unreachable(_TOO_LATE) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._unreachable(_reason(error)) from None
        if too_large:
            raise self._too_large(method, "the answer is too large")
        if scope.cancelled_caught:
            raise self._unreachable(_TOO_LATE)
        return status

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
        advice = "everything local goes on; see whether etcd runs there and has a leader"
        if _NO_CLIENT_CERTIFICATE.search(what):
            advice = (
                "certfs has no client certificate, but users: run etcd without --client-cert-auth"
            )
        elif what == _CUT_OFF:
            advice = (
                "see whether etcd runs there, and without --client-cert-auth: certfs has no client certificate,"
                " but users"
            )
        return EngineUnreachableError(f"{self.endpoint}: {_shown(what)}", advice=advice)

    def _too_large(self, method: str, said: str) -> TooLargeError:
        return TooLargeError(
            f"{self.endpoint}: {method}: {_shown(said)}",
            advice="certfs writes nothing that large: etcdctl shows who else writes there",
        )

    def _failure(self, method: str, status: int, body: bytes) -> Exception:
        failure = wire.decoded(body, wire.Failure) or wire.Failure()
        said = failure.message or failure.error or f"HTTP status {status}"
        if failure.code == _UNAUTHENTICATED or any(text in said for text in _STALE_TOKEN):
            return _StaleTokenError(_shown(said))
        if _LARGER_THAN_MAX in said:
            return self._too_large(method, said)
        if (
            failure.code in _RETRYABLE
            or status >= httpx.codes.INTERNAL_SERVER_ERROR
            or status == httpx.codes.TOO_MANY_REQUESTS
        ):
            return self._unreachable(said)
        advice = (
            "the role of this host does not allow it: see certfs pool admit --help for --publisher"
        )
        return EngineRefusedError(
            f"{self.endpoint}: {method}: {_shown(said)}",
            advice=advice if failure.code == _DENIED else "",
        )


def check_size(keys: int, size: int) -> None:
    """Raise EngineRefusedError where a range of so many keys and bytes is too large to be kept."""
    if keys > MOST_KEYS or size > MOST_BYTES:
        raise EngineRefusedError(
            f"the pool has {keys} keys and {size} bytes; {MOST_KEYS} and {MOST_BYTES} are followed at most",
            advice="certfs pool audit names who has published; remove what is not meant from the engine",
        )


@asynccontextmanager
async def reached(access: Access) -> AsyncIterator[Engine]:
    """Connect for a command, which ends before there would be a reason to rotate."""
    async with Engine(access) as engine:
        await engine.find()
        yield engine


class _NoCookies(CookieJar):
    """Keeps none, and does not parse them: an engine could send new ones without end."""

    def extract_cookies(self, response: object, request: object) -> None:
        """Do nothing."""


class _StaleTokenError(Exception):
    """The token has expired; a new one is to be asked for."""


def _shown(said: str) -> str:
    """Return what an engine says as it may be logged."""
    return printable(said[:_MOST_SAID])


def _reason(error: BaseException) -> str:
    """Return what is known of why a request failed: httpx on trio says it in the exceptions beneath."""
    said = str(error)
    beneath: BaseException | None = error
    while beneath is not None:
        said = str(beneath) or said
        beneath = beneath.__cause__ or beneath.__context__
    return said or _CUT_OFF
