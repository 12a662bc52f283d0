"""What every handler passes through (promise I16).

Owns the translation of exceptions: an OSError becomes its errno, anything unexpected is logged once with its
traceback and answered EIO. Without it any exception but FUSEError ends the mount.
"""

import errno
import functools
import logging
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

import pyfuse3
import trio

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")


def guarded(handler: Callable[P, Coroutine[Any, Any, R]]) -> Callable[P, Coroutine[Any, Any, R]]:
    """Make ``handler`` raise FUSEError and nothing else."""

    @functools.wraps(handler)
    async def guard(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await handler(*args, **kwargs)
        except pyfuse3.FUSEError:
            raise
        except OSError as e:
            raise pyfuse3.FUSEError(e.errno or errno.EIO) from None
        except (trio.Cancelled, KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException:
            log.exception("request %s failed unexpectedly", handler.__name__)
            raise pyfuse3.FUSEError(errno.EIO) from None

    return guard
