"""What the announcer is answered: names that only it sees, and changes that change nothing (promise I21).

`certfs.server.announcer` makes the kernel report a change of a bundle by renaming ``.certfs/announce`` onto it, by
removing ``.certfs/gen-N`` for generations that are not current any more, and by removing a bundle that is gone. Owns
these names and the answers. Nothing here waits: while the announcer renames, the kernel holds the lock of the bundle's
directory, and every reader of the bundle stands behind it.
"""

import errno
from collections.abc import Callable

import pyfuse3

from certfs.fuse.synthetic import STATUS_DIRECTORY_NUMBER, Content, SyntheticFiles
from certfs.store.bundle import LiveBundle

ANNOUNCE = b"announce"
GENERATION = b"gen-"


class Announcements:
    """The answers; ``is_announcer`` says of a pid whether that is the process which may have them."""

    def __init__(self, synthetic: SyntheticFiles) -> None:
        self.is_announcer: Callable[[int], bool] = lambda _pid: False
        self._synthetic = synthetic

    def lookup(self, directory: int, name: bytes, bundle: LiveBundle | None) -> Content | None:
        """Return what the announcer finds under a name, None where it finds what everybody does.

        Not the bundle's present generation in the bundle's place: what is renamed over counts as removed.
        """
        if bundle is not None:
            return self._synthetic.blank()
        if directory == STATUS_DIRECTORY_NUMBER and name == ANNOUNCE:
            return self._synthetic.blank()
        return self._former(directory, name)

    def _former(self, directory: int, name: bytes) -> Content | None:
        number = name.removeprefix(GENERATION)
        if directory != STATUS_DIRECTORY_NUMBER or number == name or not number.isdigit():
            return None
        return self._synthetic.find(int(number))

    @staticmethod
    def rename(directory: int, name: bytes, bundle: LiveBundle | None) -> None:
        """Take the rename onto a bundle, and no other."""
        if directory != STATUS_DIRECTORY_NUMBER or name != ANNOUNCE or bundle is None:
            raise pyfuse3.FUSEError(errno.EPERM)

    def unlink(self, directory: int, name: bytes, bundle: LiveBundle | None) -> None:
        """Take the removal of a former generation, or of a bundle that is gone, and no other."""
        is_generation = directory == STATUS_DIRECTORY_NUMBER and name.startswith(GENERATION)
        is_gone = bundle is not None and not bundle.exists
        former = self._former(directory, name)
        if former is not None:
            former.is_removed = True
        if not (is_generation or is_gone):
            raise pyfuse3.FUSEError(errno.EPERM)
