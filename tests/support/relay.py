"""A relay between a client and a server, in the test's own process.

Owns passing bytes in both directions, keeping them, and losing them as a network does. Knows nothing of what they mean.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import trio

_TCP_REPAIR = 19  # linux/tcp.h


class Relay:
    """Passes on what comes for one server, until it is ``lost``: then nothing arrives any more, and nothing ends."""

    def __init__(self, address: str, port: int) -> None:
        self._target = (address, port)
        self.port = 0
        self.passed = bytearray()
        """Everything, in both directions."""
        self.lost = False
        self.open: list[trio.SocketStream] = []
        """Connections of clients, in their order."""

    async def forget(self, client: trio.SocketStream) -> None:
        """Let the kernel forget a connection without a word to the client, as a host that is restarted does."""
        client.socket.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)
        await client.aclose()

    async def _serve(self, client: trio.SocketStream) -> None:
        self.open.append(client)
        async with await trio.open_tcp_stream(*self._target) as server, trio.open_nursery() as both:
            both.start_soon(self._pass, client, server, both.cancel_scope)
            both.start_soon(self._pass, server, client, both.cancel_scope)

    async def _pass(
        self, one: trio.SocketStream, other: trio.SocketStream, scope: trio.CancelScope
    ) -> None:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async for piece in one:
                if self.lost:
                    await trio.sleep_forever()
                self.passed += piece
                await other.send_all(piece)
        scope.cancel()


@asynccontextmanager
async def relayed(address: str, port: int) -> AsyncIterator[Relay]:
    """Run a relay to a server, on a port of the loopback."""
    relay = Relay(address, port)
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, host="127.0.0.1"), relay._serve, 0)
        relay.port = listeners[0].socket.getsockname()[1]
        yield relay
        nursery.cancel_scope.cancel()
