"""Requests that the kernel was told to check again.

Owns which they were. The kernel looks a path up anew once when it is answered ESTALE (path_resolution in fs/namei.c);
when the same thread asks the same again after that, another answer is due.
"""

from collections import OrderedDict

Request = tuple[int, int, bytes]
"""Who asks for what: a thread, the node number of a directory, a name in it."""

_REMEMBERED = 1024
"""How many are remembered; each is asked again at once or never.

One that stays, because the repeated request found no file, saves a later one its second look: that is then made with
the caller's own rights alone, so nobody gains by it, nor by pushing others out.
"""


class HandedBack:
    """The last requests that were answered ESTALE."""

    def __init__(self) -> None:
        self._requests: OrderedDict[Request, None] = OrderedDict()

    def is_first(self, request: Request) -> bool:
        """Whether this request was not answered so before; it is from now on."""
        if request in self._requests:
            del self._requests[request]
            return False
        self._requests[request] = None
        if len(self._requests) > _REMEMBERED:
            self._requests.popitem(last=False)
        return True
