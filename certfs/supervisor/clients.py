"""The commands that are connected to a supervisor.

Owns the listening socket, and for each connection what it asked for; what is done about it is the supervisor's.
"""

import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from certfs.protocol import control
from certfs.protocol.control import VERBS, Reply, Verb
from certfs.supervisor.event_loop import Reactor

MOST_CLIENTS: Final = 32
"""So many are heard at once; who comes then waits until one of them has gone."""


class Client:
    """One connection."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def fileno(self) -> int:
        """Return the descriptor to watch."""
        return self._connection.fileno()

    def hear(self) -> Verb | None:
        """Return what it asks for, None when it has gone away or makes no sense."""
        try:
            word = self._connection.recv(64).decode(errors="replace")
        except (BlockingIOError, ConnectionResetError):
            return None
        return next((verb for verb in VERBS if verb == word), None)

    def answer(self, reply: Reply) -> None:
        """Send the reply; a client that has gone away does not need it."""
        with suppress(OSError):
            self._connection.send(reply.to_json())

    def close(self) -> None:
        """Hang up."""
        self._connection.close()


class Clients:
    """All connections of one supervisor."""

    def __init__(
        self,
        directory: str,
        reactor: Reactor,
        *,
        asked: Callable[[Client, Verb], None],
        left: Callable[[Client], None],
    ) -> None:
        self._reactor = reactor
        self._asked = asked
        self._left = left
        self._connected: set[Client] = set()
        self._listener = control.listen(directory)
        self._let_in()

    def _let_in(self) -> None:
        if len(self._connected) < MOST_CLIENTS:
            self._reactor.watch(self._listener.fileno(), self._accept)
        else:
            self._reactor.forget(self._listener.fileno())

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except (
            OSError
        ):  # it went away meanwhile, or descriptors are short: the next call is another chance
            return
        connection.settimeout(0)
        client = Client(connection)
        self._connected.add(client)
        self._reactor.watch(client.fileno(), lambda: self._hear(client))
        self._let_in()

    def _hear(self, client: Client) -> None:
        verb = client.hear()
        if verb:
            self._asked(client, verb)
            return
        self._reactor.forget(client.fileno())
        self._connected.discard(client)
        client.close()
        self._let_in()
        self._left(client)
