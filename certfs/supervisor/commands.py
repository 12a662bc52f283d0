"""What commands have asked for and is not over yet: a restart.

Owns who waits for what, and who is refused; what is done about it is the supervisor's.
"""

import time
from collections.abc import Callable
from typing import Final

from certfs.protocol.control import Reply, Verb
from certfs.protocol.link import Failure
from certfs.supervisor.clients import Client, Clients
from certfs.supervisor.event_loop import Reactor

_BUSY: Final = Failure(8, "another restart is under way", "wait for its end")


class Requests:
    """The requests of one supervisor, and what it can do for them.

    - ``end``: end everything, and say what is still there
    - ``replace``: begin to replace the server; the failure if that cannot even be begun
    - ``flush``: bring the plain copies up to date, and say how current they are
    """

    def __init__(
        self,
        *,
        end: Callable[[], Reply],
        replace: Callable[[], Failure | None],
        flush: Callable[[], Reply],
    ) -> None:
        self._end = end
        self._replace = replace
        self._flush = flush
        self._restarting: Client | None = None
        self._restart_began = 0.0

    def listen(self, directory: str, reactor: Reactor) -> None:
        """Take requests from now on."""
        Clients(directory, reactor, asked=self._asked, left=self._left)

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
        elif verb == "flush":
            client.answer(self._flush())
        elif self._restarting:
            client.answer(Reply(_BUSY))
        else:
            self._restarting, self._restart_began = client, time.monotonic()
            failure = self._replace()
            if failure:
                self.restarted(failure)

    def _left(self, client: Client) -> None:
        if client is self._restarting:
            self._restarting = None
