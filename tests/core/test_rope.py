"""The storage of a bundle's content, against a plain sorted list."""

from __future__ import annotations

from collections.abc import Iterator
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from certfs.core.rope import Rope, RopeView, Slot

_SLOTS = st.tuples(
    st.sampled_from([0, 1]), st.sampled_from([b"a", b"b", b"c"]), st.just(0), st.integers(0, 9)
)
_CHUNKS = st.binary(min_size=1, max_size=12)


class RopeMachine(RuleBasedStateMachine):
    """Any changes and snapshots; blocks of four, so that they split and vanish all the time."""

    @initialize()
    def start(self) -> None:
        """Begin with an empty rope."""
        self._blocks = patch("certfs.core.rope._BLOCK_LIMIT", 4)
        self._blocks.start()
        self.rope = Rope()
        self.model: dict[Slot, bytes] = {}
        self.frozen: list[tuple[RopeView, bytes]] = []

    def teardown(self) -> None:
        """Give the block size back."""
        if hasattr(self, "_blocks"):
            self._blocks.stop()

    def _content(self) -> bytes:
        return b"".join(self.model[slot] for slot in sorted(self.model))

    @rule(slot=_SLOTS, chunk=_CHUNKS)
    def put(self, slot: Slot, chunk: bytes) -> None:
        """Put in or replace a chunk."""
        self.rope.set(slot, chunk)
        self.model[slot] = chunk

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def take_out(self, data: st.DataObject) -> None:
        """Delete a chunk that is there."""
        slot = data.draw(st.sampled_from(sorted(self.model)))
        self.rope.delete(slot)
        del self.model[slot]

    @rule(slot=_SLOTS)
    def take_out_nothing(self, slot: Slot) -> None:
        """Deleting what is not there is an error and changes nothing."""
        if slot not in self.model:
            with pytest.raises(KeyError):
                self.rope.delete(slot)

    @rule()
    def freeze(self) -> None:
        """Keep a snapshot together with what it must go on to say."""
        self.frozen.append((self.rope.snapshot(), self._content()))

    @invariant()
    def holds_the_same(self) -> None:
        """The content is the sorted chunks, and the size is its length."""
        if hasattr(self, "rope"):
            view = self.rope.snapshot()
            assert b"".join(view) == self._content()
            assert view.size == self.rope.size == len(self._content())

    @invariant()
    def snapshots_stay(self) -> None:
        """I2: no snapshot ever changes, whatever is done to the rope later."""
        for view, content in getattr(self, "frozen", []):
            assert b"".join(view) == content
            assert view.read(0, view.size + 1) == content


TestRope = RopeMachine.TestCase


@pytest.fixture
def small_blocks() -> Iterator[None]:
    """Make blocks of three chunks."""
    with patch("certfs.core.rope._BLOCK_LIMIT", 3):
        yield


@given(
    chunks=st.lists(st.binary(min_size=1, max_size=9), max_size=30),
    offset=st.integers(0, 300),
    length=st.integers(0, 300),
)
@pytest.mark.usefixtures("small_blocks")
def test_a_view_reads_as_a_file_does(chunks: list[bytes], offset: int, length: int) -> None:
    """Reading by offset gives what slicing the whole gives, short only at the end (pread(2))."""
    rope = Rope()
    for index, chunk in enumerate(chunks):
        rope.set((0, b"", 0, index), chunk)
    whole = b"".join(chunks)
    assert rope.snapshot().read(offset, length) == whole[offset : offset + length]


def test_a_change_copies_one_block_of_a_snapshot() -> None:
    """I18: a change beside a snapshot costs one block, whatever the rope holds."""
    rope = Rope()
    for index in range(20_000):
        rope.set((0, b"", 0, index), b"x")
    before = rope.snapshot()
    rope.set((0, b"", 0, 10_000), b"y")
    after = rope.snapshot()
    shared = set(map(id, before._blocks)) & set(map(id, after._blocks))
    assert len(before._blocks) - len(shared) == 1
