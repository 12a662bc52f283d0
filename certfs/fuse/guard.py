"""What every handler passes through (promises I15, I16).

Owns the translation of exceptions: an OSError becomes its errno, anything unexpected is logged once with its
traceback and answered EIO. Without it any exception but FUSEError ends the mount. And it takes note of each request
while it is handled.
"""

import errno
import functools
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import pyfuse3
import trio

from certfs.fuse.requests import ROOT_USER, Requests

log = logging.getLogger(__name__)


class Handlers(Protocol):
    """What handlers are methods of."""

    requests: Requests


S = TypeVar("S", bound=Handlers)
P = ParamSpec("P")
R = TypeVar("R")


def guarded(
    handler: Callable[Concatenate[S, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, R]]:
    """Make ``handler`` raise FUSEError and nothing else."""

    @functools.wraps(handler)
    async def guard(operations: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        # The context of the request is the last argument, where there is one.
        request = operations.requests.begin(getattr(args[-1], "uid", ROOT_USER))
        try:
            return await handler(operations, *args, **kwargs)
        except pyfuse3.FUSEError:
            raise
        except OSError as e:
            raise pyfuse3.FUSEError(e.errno or errno.EIO) from None
        except (trio.Cancelled, KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException:
            log.exception("request %s failed unexpectedly", handler.__name__)
            raise pyfuse3.FUSEError(errno.EIO) from None
        finally:
            operations.requests.end(request)

    return guard
