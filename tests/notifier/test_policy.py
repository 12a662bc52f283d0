"""When a reader is told: every rule by itself, and their sum against any order of events (I21)."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from certfs.notifier.policy import Progress, Record, Timing, begun, due, ended, resumed, seen

TIMING = Timing(delay=0.5, max_delay=5, min_interval=10)
SETTLED = Progress(told="a", wanted="a")


def test_what_is_there_at_the_first_start_is_the_baseline() -> None:
    """Without a record nothing is owed."""
    assert due(resumed(None, "a", 0), TIMING) is None


def test_a_run_waits_for_quiet() -> None:
    """Each further change puts it off by the delay."""
    progress = seen(SETTLED, "b", 100)
    assert due(progress, TIMING) == 100.5
    assert due(seen(progress, "c", 100.4), TIMING) == 100.9


def test_under_constant_change_a_run_waits_for_max_delay_only() -> None:
    """The first change that was not told bounds the wait."""
    progress = SETTLED
    for tenth in range(100):
        progress = seen(progress, f"content {tenth}", 100 + tenth / 10)
    assert due(progress, TIMING) == 105


def test_two_runs_are_min_interval_apart() -> None:
    """The interval counts from the beginning of a run."""
    progress = ended(begun(seen(SETTLED, "b", 100), 101), 102, well=True)
    assert due(seen(progress, "c", 103), TIMING) == 111


def test_a_change_that_is_undone_before_anything_ran_runs_nothing() -> None:
    """The reader has what there is."""
    assert due(seen(seen(SETTLED, "b", 100), "a", 100.1), TIMING) is None


def test_a_change_that_is_undone_while_a_run_is_under_way_is_told() -> None:
    """The reader may have read what was in between."""
    progress = ended(seen(begun(seen(SETTLED, "b", 100), 101), "a", 102), 103, well=True)
    assert due(progress, TIMING) == 111


def test_retries_double_up_to_a_minute_for_ever() -> None:
    """1, 2, 4, ... 60 s after each failure."""
    progress, waits = begun(seen(SETTLED, "b", 0), 0), []
    for _ in range(40):
        progress = ended(progress, 1000, well=False)
        assert progress.retry_at is not None
        waits.append(progress.retry_at - 1000)
        progress = begun(progress, 1000)
    assert waits[:8] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert waits[-1] == 60


def test_a_newer_content_replaces_a_failing_order() -> None:
    """It is tried after the usual delay and not after the back-off."""
    progress = SETTLED
    progress = begun(seen(progress, "b", 0), 0)
    for _ in range(8):
        progress = begun(ended(progress, 0, well=False), 0)
    progress = seen(ended(progress, 0, well=False), "c", 20)
    assert due(progress, TIMING) == 20.5
    assert progress.failures == 0


def test_a_crash_in_the_middle_of_a_run_is_told_again() -> None:
    """Also where the content is by then what was told before."""
    record = begun(seen(SETTLED, "b", 0), 1).record
    assert record == Record(told="a", dirty=True, last_run=1)
    assert resumed(record, "a", 50).is_waiting


class AnyOrder(RuleBasedStateMachine):
    """Changes, runs, failures, crashes and time in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.content = "a"
        self.reader = "a"
        """What the reader was told last; None if it may be anything."""
        self.progress = resumed(None, "a", 0)
        self.disk = self.progress.record
        self.begins: list[float] = []

    @rule(seconds=st.sampled_from([0.1, 0.6, 3.0, 11.0, 70.0]))
    def time_passes(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds

    @rule(content=st.sampled_from("abc"))
    def change(self, content: str) -> None:
        """Let the bundle change."""
        self.content = content
        self.progress = seen(self.progress, content, self.now)

    @precondition(lambda self: (due(self.progress, TIMING) or 1e9) <= self.now)
    @rule()
    def begin(self) -> None:
        """Begin a run that is due."""
        self.progress = begun(self.progress, self.now)
        self.disk = self.progress.record
        self.begins.append(self.now)
        self.reader = self.content

    @precondition(lambda self: self.progress.running is not None)
    @rule(well=st.booleans())
    def end(self, well: bool) -> None:  # noqa: FBT001 - hypothesis passes it by name
        """End the run."""
        if not well:
            self.reader = "?"  # told or not, nobody knows
        self.progress = ended(self.progress, self.now, well=well)
        self.disk = self.progress.record

    @rule()
    def crash(self) -> None:
        """Kill the process and start it again."""
        if self.progress.running is not None:
            self.reader = "?"
        self.progress = resumed(self.disk, self.content, self.now)

    @invariant()
    def a_reader_that_does_not_have_the_last_content_is_owed_a_run(self) -> None:
        """Until the reader has the last content, a run is under way or owed."""
        if self.reader != self.content:
            assert self.progress.running is not None or due(self.progress, TIMING) is not None

    @invariant()
    def runs_are_apart(self) -> None:
        """Two runs keep their interval, whatever crashes in between."""
        for before, after in pairwise(self.begins):
            assert after - before >= TIMING.min_interval

    @invariant()
    def what_is_owed_is_due_within_a_bound(self) -> None:
        """No run is put off without limit."""
        if (at := due(self.progress, TIMING)) is not None:
            assert at <= self.now + 60

    @invariant()
    def the_last_content_is_told_in_the_end(self) -> None:
        """With runs that succeed, the reader is told of what there is, and it ends there."""
        progress, now = self.progress, self.now
        for _ in range(3):
            if progress.running is not None:
                progress = ended(progress, now, well=True)
            if (at := due(progress, TIMING)) is not None:
                now = max(now, at)
                progress = begun(progress, now)
        assert (progress.told, progress.running, progress.dirty) == (self.content, None, False)


TestAnyOrder = AnyOrder.TestCase
