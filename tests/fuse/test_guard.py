"""Whatever a handler raises, the mount lives on (I16)."""

from __future__ import annotations

import errno
import inspect
import logging

import pyfuse3
import pytest
import trio

from certfs.fuse.guard import guarded
from certfs.fuse.operations import Operations
from certfs.fuse.requests import Requests


class PanicError(BaseException):
    """What a Rust extension raises: no Exception."""


class Handlers:
    """Handlers that do what they are told."""

    def __init__(self) -> None:
        self.requests = Requests()

    @guarded
    async def handler(self, error: BaseException | None) -> str:
        """Raise what it is given."""
        await trio.lowlevel.checkpoint()
        if error is not None:
            raise error
        return "answer"

    @guarded
    async def forever(self, _inode: int) -> None:
        """Answer nobody."""
        await trio.sleep_forever()


async def handler(error: BaseException | None) -> str:
    """Let a handler raise what it is given."""
    handlers = Handlers()
    try:
        return await handlers.handler(error)
    finally:
        assert len(handlers.requests) == 0


async def code_of(error: BaseException) -> int:
    """Give the errno that the kernel is answered."""
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await handler(error)
    answered: int = caught.value.errno
    return answered


async def test_an_answer_passes() -> None:
    """The guard is not in the way."""
    assert await handler(None) == "answer"


@pytest.mark.parametrize("code", [errno.ENOENT, errno.EACCES, errno.ENOTEMPTY, errno.EDQUOT])
async def test_an_error_of_the_store_keeps_its_number(code: int) -> None:
    """I11: an OSError becomes its errno, and is nothing for the log."""
    assert await code_of(OSError(code, "x")) == code


async def test_an_error_of_the_filesystem_passes() -> None:
    """A FUSEError is an answer already."""
    assert await code_of(pyfuse3.FUSEError(errno.ENOSYS)) == errno.ENOSYS


async def test_an_error_without_a_number_is_eio() -> None:
    """An OSError that was made by hand has none."""
    assert await code_of(OSError("odd")) == errno.EIO


@pytest.mark.parametrize(
    "error", [ValueError("x"), KeyError("x"), RecursionError(), MemoryError(), PanicError("x")]
)
async def test_a_bug_is_logged_once_and_answered_eio(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """I16: one traceback that names the request, even for what is no Exception."""
    assert await code_of(error) == errno.EIO
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "handler" in record.getMessage()
    assert record.exc_info is not None
    assert record.exc_info[1] is error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1)])
async def test_a_wish_to_end_passes(error: BaseException) -> None:
    """Who ends the server is not answered with EIO."""
    with pytest.raises(type(error)):
        await handler(error)


async def test_a_cancelled_request_is_cancelled(caplog: pytest.LogCaptureFixture) -> None:
    """Trio's own exception must come through, or the nursery would never end."""
    with trio.move_on_after(0.01) as scope:
        await Handlers().forever(1)
    assert scope.cancelled_caught
    assert not caplog.records


def test_every_handler_is_guarded() -> None:
    """I16: a handler that somebody forgot would end the mount with its first bug."""
    unguarded = [
        name
        for name, method in inspect.getmembers(Operations, inspect.iscoroutinefunction)
        if hasattr(pyfuse3.Operations, name)
        and method is not getattr(pyfuse3.Operations, name)
        and not hasattr(method, "__wrapped__")
    ]
    # FLUSH answers ENOSYS and does nothing else.
    assert unguarded == ["flush"]
