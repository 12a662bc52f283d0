"""The store beneath a mount: its directories by path, whether it is one directory or the host's own two.

Owns which descriptor a path begins at. Paths are resolved beneath descriptors that were taken before the mount covered
them, so that this process never asks the mount for what is in the store.
"""

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass

from certfs.safe_open import make_beneath, open_beneath

Path = tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Store:
    """``trees`` has descriptors by the first component of a path, or one for all of them by an empty name."""

    trees: Mapping[bytes, int]

    def open(self, path: Path) -> int:
        """Open a directory with O_PATH; OSError."""
        root, rest = self._beginning(path)
        return open_beneath(root, rest)

    def make(self, path: Path, mode: int) -> None:
        """Make a directory and those on the way that are missing; OSError."""
        root, rest = self._beginning(path)
        os.close(make_beneath(root, rest, mode))

    def _beginning(self, path: Path) -> tuple[int, Path]:
        if b"" in self.trees:
            return self.trees[b""], path
        if path[0] not in self.trees:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path[0])
        return self.trees[path[0]], path[1:]
