"""What commands have asked for and is not over yet: a restart, the plain directories in view.

Owns who waits for what, and who is refused; what is done about it is the supervisor's.
"""

import time
from collections.abc import Callable
from typing import Final

from certfs.protocol.control import Reply, Verb
from certfs.protocol.link import Failure
from certfs.supervisor.clients import Client, Clients
from certfs.supervisor.event_loop import Reactor

_BUSY: Final = Failure(8, "another restart or detached command is under way", "wait for its end")


class Requests:
    """The requests of one supervisor, and what it can do for them.

    - ``end``: end everything, and say what is still there
    - ``replace``: begin to replace the server; the failure if that cannot even be begun
    - ``step_aside``: bring the plain directories into view, and say how current they are
    - ``come_back``: bring the server into view again
    """

    def __init__(
        self,
        *,
        end: Callable[[], Reply],
        replace: Callable[[], Failure | None],
        step_aside: Callable[[], Reply],
        come_back: Callable[[], None],
    ) -> None:
        self._end = end
        self._replace = replace
        self._step_aside = step_aside
        self._come_back = come_back
        self._holds: set[Client] = set()
        self._restarting: Client | None = None
        self._restart_began = 0.0

    def listen(self, directory: str, reactor: Reactor) -> None:
        """Take requests from now on."""
        Clients(directory, reactor, asked=self._asked, left=self._left)

    @property
    def held(self) -> bool:
        """Whether the plain directories are to stay in view."""
        return bool(self._holds)

    @property
    def restarting(self) -> float | None:
        """For how many seconds somebody has waited for a restart; None if nobody does."""
        return time.monotonic() - self._restart_began if self._restarting else None

    def restarted(self, failure: Failure | None) -> None:
        """Tell whoever waits for a restart what came of it."""
        if self._restarting:
            self._restarting.answer(Reply(failure))
        self._restarting = None

    def _asked(self, client: Client, verb: Verb) -> None:
        if verb == "unmount":
            client.answer(self._end())
        elif self._restarting or (self._holds and verb == "restart"):
            client.answer(Reply(_BUSY))
        elif verb == "restart":
            self._restarting, self._restart_began = client, time.monotonic()
            failure = self._replace()
            if failure:
                self.restarted(failure)
        else:
            first = not self._holds
            self._holds.add(client)
            client.answer(self._step_aside() if first else Reply())

    def _left(self, client: Client) -> None:
        if client is self._restarting:
            self._restarting = None
        if client in self._holds:
            self._holds.discard(client)
            if not self._holds:
                self._come_back()
