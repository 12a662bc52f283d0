"""Node numbers of our own, and which numbers of the store they must not be.

Owns the range [2^52, 2^53): high, so that hardly a file system counts that far, and below what a double can tell apart,
because a program in JavaScript knows inode numbers as doubles and takes two files of one number for the same. A store
may use such numbers all the same; one that is ours at the time is not given to a file of the store as well, and the
other way round.
"""

FIRST = 1 << 52
END = 1 << 53
FIXED = range(FIRST, FIRST + 2)
"""Those of directories that are there for good."""


class Numbers:
    """The numbers of the range that are in use, whoever has them."""

    def __init__(self) -> None:
        self._taken = set(FIXED)
        self._next = FIXED[-1]

    def __len__(self) -> int:
        return len(self._taken)

    def own(self) -> int:
        """Return a number of our own that nobody has, and none of the last ones."""
        while True:
            self._next = self._next + 1 if self._next + 1 < END else FIXED.stop
            if self._next not in self._taken:
                self._taken.add(self._next)
                return self._next

    def claim(self, number: int) -> bool:
        """Take this number, of the store or once our own; False if somebody has it."""
        if not FIRST <= number < END:
            return True
        if number in self._taken:
            return False
        self._taken.add(number)
        return True

    def release(self, number: int) -> None:
        """Give a number back."""
        self._taken.discard(number)
