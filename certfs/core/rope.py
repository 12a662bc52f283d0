"""A sorted sequence of chunks of bytes that is cheap to change and cheap to freeze.

Owns the storage of a bundle's content: a change costs one block of it, a snapshot costs one reference per block,
so that neither grows with what a bundle holds (measured in ``docs/performance.md``).
Must not know what the chunks mean.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from itertools import accumulate
from typing import Protocol

Slot = tuple[int, bytes, int, int]
"""A certificate's place in the order of a bundle: (rank, file name, ghost, index within the file)."""

_BLOCK_LIMIT = 512


class _Block:
    """Up to ``_BLOCK_LIMIT`` neighbouring chunks; never changed once a snapshot refers to it."""

    __slots__ = ("chunks", "shared", "size", "slots")

    def __init__(self, slots: list[Slot], chunks: list[bytes]) -> None:
        self.slots = slots
        self.chunks = chunks
        self.size = sum(map(len, chunks))
        self.shared = False


class Part(Protocol):
    """A part of a snapshot's content, which others may have as well."""

    size: int


class RopeView:
    """An immutable snapshot of a rope's content, read by offset like a file."""

    __slots__ = ("_blocks", "_ends", "size")

    def __init__(self, blocks: tuple[_Block, ...], size: int) -> None:
        self._blocks = blocks
        self._ends: list[int] | None = None
        self.size = size

    def __iter__(self) -> Iterator[bytes]:
        """Yield the chunks in order."""
        for block in self._blocks:
            yield from block.chunks

    @property
    def parts(self) -> tuple["Part", ...]:
        """What is kept in memory for it, and shared with other snapshots: each of a ``size``, compared by identity."""
        return self._blocks

    def read(self, offset: int, length: int) -> bytes:
        """Return up to ``length`` bytes from ``offset``, short only at the end (as pread(2))."""
        end = min(offset + length, self.size)
        if offset >= end:
            return b""
        if self._ends is None:
            self._ends = list(accumulate(block.size for block in self._blocks))
        index = bisect_right(self._ends, offset)
        position = self._ends[index] - self._blocks[index].size
        pieces = []
        while position < end:
            block = self._blocks[index]
            for chunk in block.chunks:
                next_position = position + len(chunk)
                if next_position > offset:
                    pieces.append(chunk[max(offset - position, 0) : end - position])
                position = next_position
                if position >= end:
                    break
            index += 1
        return b"".join(pieces)


class Rope:
    """The mutable sequence: ``set`` and ``delete`` chunks by slot, ``snapshot`` what is there."""

    __slots__ = ("_blocks", "_firsts", "size")

    def __init__(self) -> None:
        self._blocks: list[_Block] = []
        self._firsts: list[Slot] = []
        self.size = 0

    def _writable(self, index: int) -> _Block:
        block = self._blocks[index]
        if block.shared:
            block = _Block(list(block.slots), list(block.chunks))
            self._blocks[index] = block
        return block

    def set(self, slot: Slot, chunk: bytes) -> None:
        """Put ``chunk`` at ``slot``, replacing what is there."""
        if not self._blocks:
            self._blocks.append(_Block([slot], [chunk]))
            self._firsts.append(slot)
            self.size += len(chunk)
            return
        index = max(bisect_right(self._firsts, slot) - 1, 0)
        block = self._writable(index)
        at = bisect_left(block.slots, slot)
        if at < len(block.slots) and block.slots[at] == slot:
            grown = len(chunk) - len(block.chunks[at])
            block.chunks[at] = chunk
        else:
            grown = len(chunk)
            block.slots.insert(at, slot)
            block.chunks.insert(at, chunk)
            self._firsts[index] = block.slots[0]
        block.size += grown
        self.size += grown
        if len(block.slots) > _BLOCK_LIMIT:
            self._split(index)

    def _split(self, index: int) -> None:
        block = self._blocks[index]
        half = len(block.slots) // 2
        self._blocks[index : index + 1] = [
            _Block(block.slots[:half], block.chunks[:half]),
            _Block(block.slots[half:], block.chunks[half:]),
        ]
        insort(self._firsts, block.slots[half])

    def delete(self, slot: Slot) -> None:
        """Remove the chunk at ``slot``; KeyError where there is none."""
        index = bisect_right(self._firsts, slot) - 1
        if index < 0:
            raise KeyError(slot)
        block = self._writable(index)
        at = bisect_left(block.slots, slot)
        if at == len(block.slots) or block.slots[at] != slot:
            raise KeyError(slot)
        shrunk = len(block.chunks[at])
        del block.slots[at], block.chunks[at]
        block.size -= shrunk
        self.size -= shrunk
        if block.slots:
            self._firsts[index] = block.slots[0]
        else:
            del self._blocks[index], self._firsts[index]

    def snapshot(self) -> RopeView:
        """Freeze the content as it is now."""
        for block in self._blocks:
            block.shared = True
        return RopeView(tuple(self._blocks), self.size)
