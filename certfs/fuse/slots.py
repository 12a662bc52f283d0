"""Who may make how many calls at once: shares by user, with a reserve for root (promise I18).

Owns the queues of calls that wait for a thread. A user has a few threads, so that a store which is slow for one of its
files does not take those of everybody; what is more waits in the user's own queue, and users take turns. A queue has an
end: each call that waits keeps a task of the session, and root's requests need some of them, too.
"""

import errno
import os
from collections import OrderedDict, deque
from dataclasses import dataclass

import trio

from certfs.fuse.requests import ROOT_USER


@dataclass(frozen=True, slots=True)
class Limits:
    """How many calls may be made, and how many may wait: of a user, of all users but root, of root.

    What waits is counted by its weight: a write keeps its data in memory.
    """

    user_calls: int = 16
    all_calls: int = 128
    root_calls: int = 64
    user_waiting: int = 768
    all_waiting: int = 1536


class Slots:
    """Calls under way and calls that wait for their turn."""

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._made: dict[int, int] = {}
        self._made_by_users = 0
        self._queues: OrderedDict[int, deque[tuple[trio.Event, int]]] = OrderedDict()
        self._weights: dict[int, int] = {}
        self._waiting_users = 0

    def try_enter(self, user: int) -> bool:
        """Take a slot for this user's call if one is free and nobody of the same user waits for it."""
        if user in self._queues or not self._has_room(user):
            return False
        self._count(user, 1)
        return True

    async def enter(self, user: int, weight: int = 1) -> None:
        """Wait for a slot; EAGAIN if too many calls of this user, or of all users, wait already."""
        if self.try_enter(user):
            return
        queue = self._queues.get(user)
        if user != ROOT_USER:
            limits = self._limits
            heavy = self._weights.get(user, 0) + weight > limits.user_waiting
            if heavy or self._waiting_users + weight > limits.all_waiting:
                raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        if queue is None:
            queue = self._queues[user] = deque()
        turn = trio.Event()
        queue.append((turn, weight))
        self._weigh(user, weight)
        # Who gives the turn has counted the slot, so cancelling in between would lose it.
        with trio.CancelScope(shield=True):
            await turn.wait()

    def leave(self, user: int) -> None:
        """Give a slot back; whose turn it is gets it."""
        self._count(user, -1)
        for waiting in list(self._queues):
            if not self._has_room(waiting):
                continue
            queue = self._queues[waiting]
            self._count(waiting, 1)
            turn, weight = queue.popleft()
            self._weigh(waiting, -weight)
            turn.set()
            if queue:
                # The next turn is another user's.
                self._queues.move_to_end(waiting)
            else:
                del self._queues[waiting]
            return

    def waiting(self, user: int) -> int:
        """Return how many calls of this user wait."""
        return len(self._queues.get(user, ()))

    def _weigh(self, user: int, weight: int) -> None:
        total = self._weights.get(user, 0) + weight
        if total:
            self._weights[user] = total
        else:
            self._weights.pop(user, None)
        if user != ROOT_USER:
            self._waiting_users += weight

    def _has_room(self, user: int) -> bool:
        made = self._made.get(user, 0)
        if user == ROOT_USER:
            return made < self._limits.root_calls
        return made < self._limits.user_calls and self._made_by_users < self._limits.all_calls

    def _count(self, user: int, change: int) -> None:
        made = self._made.get(user, 0) + change
        if made:
            self._made[user] = made
        else:
            self._made.pop(user, None)
        if user != ROOT_USER:
            self._made_by_users += change
