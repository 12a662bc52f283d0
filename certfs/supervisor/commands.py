"""The commands that are connected to a supervisor, and what they have asked for; each has a line in the log (I20).

Owns the listening socket, for each connection what it asked for, and who waits for a restart; what is done about it is
the supervisor's.
"""

import json
import socket
import struct
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final

from certfs import procfs
from certfs.protocol import codec, control
from certfs.protocol.control import VERBS, Reply, Verb
from certfs.protocol.messages import Failure
from certfs.supervisor.event_loop import EventLoop

MOST_CLIENTS: Final = 32
"""So many are heard at once; who comes then waits until one of them has gone."""
_ASKED: Final[dict[Verb, str]] = {
    "flush": "detached: a command is to see the plain directories",
    "store": "store: a process is to have the directories beneath the mount",
}
"""What the log says of a verb that does not say all by itself."""
_CREDENTIALS: Final = struct.Struct("3i")
"""Process, user and group (unix(7), SO_PEERCRED)."""
_BUSY: Final = Failure(8, "another restart is under way", "wait for its end")


class Client:
    """One connection."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, uid, _ = _CREDENTIALS.unpack(raw)
        login = procfs.login_of(pid)
        command = json.dumps(procfs.command_of(pid).decode(errors="backslashreplace"))
        self.who = (
            f"uid={uid} login={'none' if login is None else login} pid={pid} command={command}"
        )
        """Who has connected, in the words of every line on a change of trust."""

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
            socket.send_fds(self._connection, [codec.to_json(reply)], reply.descriptors)

    def close(self) -> None:
        """Hang up."""
        self._connection.close()


class Commands:
    """All connections of one supervisor, and what it can do for them.

    ``answers`` has what answers a verb at once. ``restart`` begins to replace the server; `restarted` is called when
    that is done. ``log`` writes a line to the log.
    """

    def __init__(
        self,
        loop: EventLoop,
        answers: Mapping[Verb, Callable[[], Reply]],
        *,
        restart: Callable[[], None],
        log: Callable[[str], None],
    ) -> None:
        self._loop = loop
        self._answers = answers
        self._restart = restart
        self._log = log
        self._connected: set[Client] = set()
        self._restarting: Client | None = None
        self._restart_began: float | None = None

    def listen(self, directory: str) -> None:
        """Take requests from now on."""
        self._listener = control.listen(directory)
        self._let_in()

    @property
    def restart_began(self) -> float | None:
        """Since when (time.monotonic) a restart is under way that was asked for; None if none is."""
        return self._restart_began

    def restarted(self, failure: Failure | None) -> None:
        """Tell whoever waits for a restart what came of it."""
        if self._restarting:
            self._restarting.answer(Reply(failure))
        self._restarting = self._restart_began = None

    def _let_in(self) -> None:
        if len(self._connected) < MOST_CLIENTS:
            self._loop.watch(self._listener.fileno(), self._accept)
        else:
            self._loop.forget(self._listener.fileno())

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except (
            OSError
        ):  # it went away meanwhile, or descriptors are short: there will be another chance
            return
        connection.settimeout(0)
        client = Client(connection)
        self._connected.add(client)
        self._loop.watch(client.fileno(), lambda: self._hear(client))
        self._let_in()

    def _hear(self, client: Client) -> None:
        verb = client.hear()
        if verb is not None:
            self._log(f"{_ASKED.get(verb, verb)}: {client.who}")
        if verb is not None and verb in self._answers:
            client.answer(self._answers[verb]())
        elif verb == "restart" and self._restart_began is not None:
            client.answer(Reply(_BUSY))
        elif verb == "restart":
            self._restarting, self._restart_began = client, time.monotonic()
            self._restart()
        else:
            self._loop.forget(client.fileno())
            self._connected.discard(client)
            client.close()
            self._let_in()
            if client is self._restarting:
                self._restarting = None
