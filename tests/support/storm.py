"""A user who asks for as much as possible: ``python storm.py TREE BUNDLE THREADS FILES UID SEED [CGROUP]``.

Owns what such a user does. Says ``ready``, goes on until its standard input ends. Imports nothing of ours, so that it
starts quickly.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import sys
import threading
from collections.abc import Callable


class User:
    """One thread of the user, in a directory that everybody may write to."""

    def __init__(self, tree: str, bundle: str, files: int, seed: str) -> None:
        self._random = random.Random(seed)  # noqa: S311 - a plan, no secret
        self._place = f"{tree}/shared"
        self._own = f"{self._place}/{seed}"
        self._bundle = bundle
        self._status = f"{os.path.dirname(os.path.dirname(bundle))}/.certfs/status.json"
        self._held: list[int] = []
        self._most_held = files
        self._actions: tuple[Callable[[], object], ...] = (
            lambda: os.statvfs(tree),
            lambda: os.stat(f"{self._own}-none"),
            lambda: os.listdir(self._place),
            lambda: self._read(self._bundle),
            lambda: self._read(self._status),
            self._hold,
            self._make,
            self._append,
            lambda: os.setxattr(self._own, "user.x", self._random.randbytes(100)),
            lambda: os.rename(self._own, f"{self._own}-b"),
            lambda: os.unlink(f"{self._own}-b"),
            lambda: os.truncate(self._own, self._random.randrange(100_000)),
        )

    def act(self) -> None:
        """Do one thing; errors are for whoever tries."""
        with contextlib.suppress(OSError):
            self._random.choice(self._actions)()

    @staticmethod
    def _read(path: str) -> None:
        handle = os.open(path, os.O_RDONLY)
        try:
            while os.read(handle, 1 << 16):
                pass
        finally:
            os.close(handle)

    def _hold(self) -> None:
        """Keep bundles, statuses and files open, up to a number."""
        self._keep(os.open(self._random.choice([self._bundle, self._status]), os.O_RDONLY))

    def _keep(self, handle: int) -> None:
        self._held.append(handle)
        if len(self._held) > self._most_held:
            os.close(self._held.pop(0))

    def _make(self) -> None:
        """Write to a file without a name, which is never complete."""
        handle = os.open(self._own, os.O_RDWR | os.O_CREAT, 0o600)
        os.write(handle, b"x" * 1000)
        self._keep(handle)

    def _append(self) -> None:
        handle = os.open(self._own, os.O_WRONLY | os.O_APPEND)
        os.write(handle, b"x" * 5000)
        os.close(handle)


def main() -> None:
    """Be the user."""
    tree, bundle, threads, files, uid, seed, *cgroup = sys.argv[1:]
    for group in cgroup:
        with open(f"{group}/cgroup.procs", "w", encoding="ascii") as members:
            members.write("0")
    os.setgroups([])
    os.setgid(int(uid))
    os.setuid(int(uid))

    def run(number: int) -> None:
        user = User(tree, bundle, int(files), f"{seed}-{number}")
        while True:
            user.act()

    threading.stack_size(256 << 10)
    for number in range(int(threads)):
        threading.Thread(target=run, args=(number,), daemon=True).start()
    print("ready", flush=True)
    select.select([sys.stdin], [], [])
    # Threads that wait for a file system do not keep it waiting.
    os._exit(0)


if __name__ == "__main__":
    main()
