"""The log of changes of trust, apart from the log of everything else, with a share for each user.

Owns the files beside the log: ``LOG.trust-UID`` for what a user has changed, ``LOG.trust-store`` for a change in
the store itself. Each is bounded by itself and moves to ``….1`` when it is full, so that no user can push the lines of
another, or of root, out of it by changing much. A log that cannot be written is no reason to stop.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from certfs.linux.log_file import open_log
from certfs.safe_open import closing

BYTES: Final = 256 << 10
"""Of one file; there are two of each user."""
ROOT_BYTES: Final = 4 << 20
MOST_USERS: Final = 64
"""Who comes after so many shares one file with the others who do."""


class TrustLog:
    """The files beside the log ``path``."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._users = self._known()

    def _known(self) -> set[int]:
        directory, name = os.path.split(self._path)
        prefix = f"{name}.trust-"
        found: set[int] = set()
        with suppress(OSError):
            for each in os.listdir(directory or "."):
                user = each.removeprefix(prefix)
                if each.startswith(prefix) and user.isascii() and user.isdecimal():
                    found.add(int(user))
        return found

    def write(self, user: int | None, lines: Sequence[str]) -> None:
        """Add lines about what ``user`` has changed, None for a change in the store itself."""
        if not lines:
            return
        path = f"{self._path}.trust-{self._share(user)}"
        with suppress(OSError), closing(open_log(path)) as descriptor:
            text = "".join(f"{line}\n" for line in lines)
            os.write(descriptor, text.encode(errors="backslashreplace"))
            limit = ROOT_BYTES if user == 0 else BYTES
            if os.fstat(descriptor).st_size > limit:
                os.rename(path, f"{path}.1")

    def _share(self, user: int | None) -> str:
        if user is None:
            return "store"
        if user not in self._users and user != 0 and len(self._users) >= MOST_USERS:
            return "others"
        self._users.add(user)
        return str(user)
