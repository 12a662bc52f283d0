"""Asking after the targets of symbolic links, which may be on a filesystem that answers nobody.

Owns the patience: a question that is not answered in time is left to its thread, and no other one is asked of the same
place until that thread is back. So a hung filesystem costs a reader a second once, and no other link its answer
(promises I4, I18). Knows nothing of what is asked.
"""

import os
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Generic, TypeVar

_PATIENCE_SECONDS = 1.0
_IMPATIENCE_SECONDS = 0.25
"""How long the second place that does not answer is waited for, and every further one."""
_MOST_SECONDS = 5.0
"""How long all answers of one place together may take, if each of them comes in time."""
_MOST_SILENT = 8
"""How many places may keep a thread; beyond, nothing is asked any more until one of them answers."""

T = TypeVar("T")


class Targets:
    """The places that links of one directory lead to; a place is the directory part of what a link says."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._silent: set[bytes] = set()

    def ask(
        self, directory: int, names: Iterable[bytes], question: Callable[[int, bytes], T]
    ) -> dict[bytes, T]:
        """Ask ``question(directory, name)`` for each name; return the answers that came in time.

        Blocks for a few seconds at most, however many places do not answer. The question gets a descriptor of its own,
        because it may outlive this call.
        """
        waiting = {name: _place_of(directory, name) for name in names}
        answers: dict[bytes, T] = {}
        patience = _PATIENCE_SECONDS
        while waiting:
            with self._lock:
                silent = set(self._silent)
            waiting = {name: place for name, place in waiting.items() if place not in silent}
            if not waiting or len(silent) >= _MOST_SILENT:
                break
            errand = _Errand(os.dup(directory), waiting, question, self._silent, self._lock)
            answered = errand.run_for(patience)
            answers |= answered
            waiting = {name: place for name, place in waiting.items() if name not in answered}
            patience = _IMPATIENCE_SECONDS
        return answers


class _Errand(Generic[T]):
    """A thread that asks one question after another, and is left alone where it gets no answer.

    ``lock`` guards ``silent`` and all that both threads touch.
    """

    def __init__(
        self,
        directory: int,
        places: dict[bytes, bytes],
        question: Callable[[int, bytes], T],
        silent: set[bytes],
        lock: threading.Lock,
    ) -> None:
        self._directory = directory
        self._places = places
        self._question = question
        self._silent = silent
        self._lock = lock
        self._place: bytes | None = None
        self._abandoned = False
        self._answers: dict[bytes, T] = {}
        self._error: Exception | None = None

    def run_for(self, seconds: float) -> dict[bytes, T]:
        """Return the answers that came, each of them within ``seconds`` of the one before."""
        thread = threading.Thread(target=self._run, name="certfs-target", daemon=True)
        thread.start()
        deadline = time.monotonic() + _MOST_SECONDS
        heard = -1
        # Very many links take long without any of them hanging: it goes on while there are answers.
        while heard < len(self._answers) and time.monotonic() < deadline:
            heard = len(self._answers)
            thread.join(seconds)
            if not thread.is_alive():
                break
        with self._lock:
            if self._error is not None:
                raise self._error
            if self._place is not None:
                self._abandoned = True
                self._silent.add(self._place)
            return dict(self._answers)

    def _run(self) -> None:
        try:
            for name, place in self._places.items():
                with self._lock:
                    if self._abandoned:
                        return
                    self._place = place
                answer = self._question(self._directory, name)
                with self._lock:
                    self._answers[name] = answer
        except Exception as e:  # noqa: BLE001 - raised again by whoever waits
            self._error = e
        finally:
            with self._lock:
                if self._abandoned and self._place is not None:
                    self._silent.discard(self._place)
                self._place = None
            os.close(self._directory)


def _place_of(directory: int, name: bytes) -> bytes:
    with suppress(OSError):
        return os.readlink(name, dir_fd=directory).rpartition(b"/")[0]
    return b""
