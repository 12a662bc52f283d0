"""Keeping the store's plain copies up to date while serving (promise I12).

Owns when they are written: soon after a change, never by a server that is not the active one, again after a failure.
"""

from collections.abc import Iterator

import trio

from certfs.core.text import printable
from certfs.safe_open import closing
from certfs.server import audit
from certfs.store.bundle import LiveBundle
from certfs.store.bundles import Trust
from certfs.store.plain import PlainCopy, PlainState

_PAUSE_SECONDS = 0.03
"""Between a change and the copy, so that a burst of changes becomes few copies; well within the 100 ms of I12."""

_COSTLY_SECONDS = 0.05
_REST = 10
"""After a round that took longer than ``_COSTLY_SECONDS`` the next one is not begun before this many times as long.

With a bundle of many thousand certificates a burst of changes would otherwise be spent on writing it again and again.
"""

_RETRY_SECONDS = 5.0
_REPORT_SECONDS = 60.0
"""Between two lines in the log on one copy: who owns the directory may make it fail as often as it likes."""


class PlainCopies:
    """The copies of all bundles of a mount; ``active`` while this server is the one to write them."""

    def __init__(self, trust: Trust, *, active: bool) -> None:
        self.active = active
        self._trust = trust
        self._wanted = trio.Event()
        self.changed = trio.Event()
        """Something was published, or a copy was written or could not be: whoever waits for that replaces it."""
        self._lock = trio.Lock()

    def wake(self) -> None:
        """Take note that something may have changed."""
        self._wanted.set()
        self.changed.set()

    def state(self, bundle: LiveBundle) -> PlainState:
        """Return how the copy of a bundle stands."""
        copy = self._trust.plain.get(bundle)
        return copy.state if copy is not None else PlainState()

    def is_current(self, bundle: LiveBundle) -> bool:
        """Whether the store holds what a reader of the mount gets."""
        copy = self._trust.plain.get(bundle)
        return copy is not None and copy.is_current

    def stale(self) -> Iterator[str]:
        """Yield, for people, which copies are not what a reader of the mount gets, and why."""
        for bundle, copy in self._trust.plain.items():
            if not copy.is_current:
                name = printable(b"/".join(bundle.spec.bundle))
                yield f"{name}: {copy.state.error or 'not written in time'}"

    async def keep(self) -> None:
        """Write copies whenever they are wanted, for ever."""
        self.wake()
        rest, ended = 0.0, trio.current_time()
        while True:
            with trio.move_on_after(_RETRY_SECONDS if self._is_waiting() else float("inf")):
                await self._wanted.wait()
            # Whoever opens the bundle next is answered first: the writing thread would be in the loop's way.
            await trio.sleep(max(_PAUSE_SECONDS, rest - (trio.current_time() - ended)))
            # Set again by whatever happens from here on: a change while a copy is written gets its own round.
            self._wanted = trio.Event()
            began = trio.current_time()
            await self.flush()
            self.changed.set()
            ended = trio.current_time()
            rest = _REST * (ended - began) if ended - began > _COSTLY_SECONDS else 0.0

    def _is_waiting(self) -> bool:
        """Whether something failed or did not answer that nobody will tell of when it goes on."""
        return self.active and any(
            copy.state.error or bundle.is_waiting for bundle, copy in self._trust.plain.items()
        )

    async def flush(self) -> None:
        """Bring every copy up to date now, if this server is the active one."""
        if not self.active:
            return
        async with self._lock:
            # A target that was exchanged while nobody read the bundle must not stay trusted in the copy.
            await self._trust.compare()
            for bundle, copy in list(self._trust.plain.items()):
                before = copy.state.error
                await trio.to_thread.run_sync(self._write, bundle, copy)
                if copy.kept_aside:
                    audit.report_kept_aside(bundle.spec, copy.kept_aside)
                    copy.kept_aside = ()
                now = trio.current_time()
                # A directory that was exchanged or removed a moment ago is news only if it is so the next time, too.
                is_news = (
                    (copy.state.error == before)
                    if copy.is_passing
                    else (copy.state.error != before)
                )
                if copy.state.error and is_news and now >= copy.report_after:
                    copy.report_after = now + _REPORT_SECONDS
                    audit.store_problem(b"/".join(bundle.spec.bundle), copy.state.error)

    def _write(self, bundle: LiveBundle, copy: PlainCopy) -> None:
        try:
            directory = self._trust.open_place(bundle)
        except OSError as e:
            copy.has_no_place(e)
            return
        with closing(directory):
            copy.write(directory)
