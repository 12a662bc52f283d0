"""Asking after the targets of symbolic links, which may be on a file system that answers slowly or never.

Owns the patience. Links are asked after by *place*, the directory that they lead to. Of each place one question is
under way at a time, in a thread of its own, so that a slow place delays no other. What has not been answered in time is
left to its thread, and its place is *silent* until that thread is back: it is not waited for again (promises I4, I18).
Knows nothing of what is asked.
"""

import os
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from certfs.store.patience import STEP_SECONDS, Waited

PATIENCE_SECONDS: Final = 1.0
"""How long an asker waits without an answer, where nobody waits for it in turn."""
MOST_SECONDS: Final = 5.0
"""How long at most where answers keep coming: very many links take long without any of them hanging."""
_THREADS: Final = 8
_MOST_THREADS: Final = 64
"""How many threads may wait for silent places; beyond, only places that have answered before are asked."""

T = TypeVar("T")


class LinkProbe:
    """The places that links of one directory lead to; ``silent`` are those that do not answer."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answering: set[bytes] = set()
        self.silent: set[bytes] = set()

    def ask(
        self,
        directory: int,
        names: Iterable[bytes],
        question: Callable[[int, bytes], T],
        *,
        patience: float = PATIENCE_SECONDS,
        most: float = MOST_SECONDS,
    ) -> dict[bytes, T]:
        """Ask ``question(directory, name)`` for each name; return the answers that came in time.

        Blocks for ``most`` seconds at most, and for ``patience`` without an answer or a thread that could go on. The
        question gets a descriptor of its own, because it may outlive this call.
        """
        places: dict[bytes, list[bytes]] = {}
        for name in names:
            places.setdefault(_place_of(directory, name), []).append(name)
        with self._lock:
            is_full = len(self.silent) >= _MOST_THREADS
            asked = [
                place
                for place in places
                if place not in self.silent and (not is_full or place in self._answering)
            ]
            # Those that are known to answer first: whatever else there is, they are waited for.
            asked.sort(key=lambda place: place not in self._answering)
        if not asked:
            return {}
        inquiry = _Inquiry(directory, {place: places[place] for place in asked}, question)
        inquiry.wait(patience, most)
        return self._end(inquiry)

    def _end(self, inquiry: "_Inquiry[T]") -> dict[bytes, T]:
        with self._lock, inquiry.lock:
            inquiry.abandoned = True
            self.silent |= inquiry.current
            self._answering -= inquiry.current
            self._answering |= inquiry.done
            inquiry.on_return = self._returned
            if inquiry.error is not None:
                raise inquiry.error
            return dict(inquiry.answers)

    def _returned(self, place: bytes) -> None:
        with self._lock:
            self.silent.discard(place)


@dataclass(slots=True, eq=False)
class _Inquiry(Generic[T]):
    """Questions that are under way, and what is known of them; ``lock`` guards all but the first three fields."""

    directory: int
    places: dict[bytes, list[bytes]]
    question: Callable[[int, bytes], T]
    lock: threading.Condition = field(default_factory=threading.Condition)
    current: set[bytes] = field(default_factory=set)
    done: set[bytes] = field(default_factory=set)
    answers: dict[bytes, T] = field(default_factory=dict)
    error: Exception | None = None
    abandoned: bool = False
    on_return: Callable[[bytes], None] = lambda _: None
    _waiting: list[bytes] = field(default_factory=list)

    def wait(self, patience: float, most: float) -> None:
        """Return when all is answered, the time is over, or no answer has come for a while."""
        self._waiting = list(reversed(self.places))
        heard, silent, total = -1, Waited(for_threads=True), Waited()
        with self.lock:
            while self.current or self._waiting:
                total.step()
                if len(self.answers) > heard:
                    heard = len(self.answers)
                    silent.restart()
                since = silent.step()
                if total.seconds >= most or since >= patience or self.error is not None:
                    return
                busy = len(self.current)
                if self._waiting and (busy < _THREADS or since >= STEP_SECONDS):
                    for _ in range(min(_THREADS, _MOST_THREADS - busy, len(self._waiting))):
                        self._start(self._waiting.pop())
                self.lock.wait(STEP_SECONDS)

    def _start(self, place: bytes) -> None:
        self.current.add(place)
        directory = os.dup(self.directory)
        threading.Thread(
            target=self._run, args=(directory, place), name="certfs-link-probe", daemon=True
        ).start()

    def _run(self, directory: int, place: bytes) -> None:
        returned: list[bytes] = []
        try:
            while True:
                self._ask(directory, place)
                with self.lock:
                    if self.abandoned:
                        returned.append(place)
                        break
                    self.current.discard(place)
                    self.done.add(place)
                    if not self._waiting:
                        break
                    place = self._waiting.pop()
                    self.current.add(place)
        except Exception as e:  # noqa: BLE001 - raised again by whoever waits
            with self.lock:
                self.error = e
                self.current.discard(place)
                returned.append(place)
        finally:
            os.close(directory)
            with self.lock:
                self.lock.notify_all()
                on_return = self.on_return
            for each in returned:
                on_return(each)

    def _ask(self, directory: int, place: bytes) -> None:
        for name in self.places[place]:
            if self.abandoned:
                return
            answer = self.question(directory, name)
            with self.lock:
                self.answers[name] = answer


def _place_of(directory: int, name: bytes) -> bytes:
    with suppress(OSError):
        return os.readlink(name, dir_fd=directory).rpartition(b"/")[0]
    return b""
