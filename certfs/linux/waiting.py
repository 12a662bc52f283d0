"""Waiting for something that is no file system, such as a person or another program.

Owns how a command says so to who looks whether it gets on (`certfs.cli.silence`): it uses a little processor time.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_TICK_SECONDS: Final = 0.25


@contextmanager
def waiting() -> Iterator[None]:
    """Say, for the time of the context, that this process gets on although it waits."""
    over = threading.Event()

    def tick() -> None:
        while not over.wait(_TICK_SECONDS):
            pass

    threading.Thread(target=tick, daemon=True).start()
    try:
        yield
    finally:
        over.set()
