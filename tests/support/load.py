"""Readers and writers that work on a directory while its server dies or is replaced: ``python load.py KIND TREE``.

Owns what such a program notes: how often it succeeded, what went wrong for how long, and what was acknowledged to it.
Says ``ready`` when it has begun, runs until its standard input ends, then prints a JSON object. Imports nothing of
ours, so that it starts quickly.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import select
import sys
import time
from collections.abc import Callable

MARKER = b"-----END CERTIFICATE-----\n"
NAMES = 16
"""Files that each writer replaces in turn."""


def told_to_stop() -> bool:
    """Whether standard input has ended."""
    return bool(select.select([sys.stdin], [], [], 0)[0])


class Trouble:
    """What went wrong, and for how long at a time."""

    def __init__(self) -> None:
        self.errors: dict[str, int] = {}
        self.longest = 0.0
        self._since: float | None = None

    def attempt(self, action: Callable[[], None]) -> bool:
        """Carry out one operation; whether it succeeded."""
        began = time.monotonic()
        try:
            action()
        except OSError as error:
            name = errno.errorcode.get(error.errno or 0, str(error))
            self.errors[name] = self.errors.get(name, 0) + 1
            self._since = began if self._since is None else self._since
            return False
        if self._since is not None:
            self.longest = max(self.longest, time.monotonic() - self._since)
            self._since = None
        return True


def read(tree: str) -> dict[str, object]:
    """Read the bundle, a listing and a held descriptor, again and again."""
    trouble, rounds = Trouble(), 0
    torn: list[str] = []
    bundle = f"{tree}/stunnel/xapi-pool-ca-bundle.pem"
    held = os.open(bundle, os.O_RDONLY)
    content = os.pread(held, 1 << 20, 0)
    print("ready", flush=True)
    held_failures = 0

    def once() -> None:
        with open(bundle, "rb", buffering=0) as stream:
            status = os.fstat(stream.fileno())
            # To its end: where the server dies in the middle, read(2) gives what it has, and the next one the error.
            got = stream.readall()
        if len(got) != status.st_size or not got.endswith(MARKER):
            torn.append(
                f"inode {status.st_ino} of {status.st_dev}: {len(got)} bytes of {status.st_size}"
            )
        os.listdir(f"{tree}/stunnel/certs-pool")
        os.stat(f"{tree}/xensource")

    while not told_to_stop():
        rounds += trouble.attempt(once)
        try:
            held_failures += os.pread(held, 1 << 20, 0) != content
        except OSError:
            held_failures += 1
    return {
        "rounds": rounds,
        "torn": torn,
        "errors": trouble.errors,
        "longest": trouble.longest,
        "held_failures": held_failures,
    }


def write(tree: str) -> dict[str, object]:
    """Replace files atomically, with fsync, again and again; note what was acknowledged and what was attempted."""
    trouble, rounds = Trouble(), 0
    pool = f"{tree}/stunnel/certs-pool"
    with open(f"{pool}/0.pem", "rb") as stream:
        pem = stream.read()
    print("ready", flush=True)
    acknowledged: dict[str, int] = {}
    attempted: dict[str, int] = {}

    def replace(name: str, serial: int) -> None:
        fresh = f"{pool}/{name}.{serial}.tmp"
        with open(fresh, "wb", buffering=0) as target:
            target.write(b"serial %d\n" % serial + pem)
            os.fsync(target.fileno())
        attempted[name] = serial
        os.rename(fresh, f"{pool}/{name}")

    for serial in itertools.count(1):
        if told_to_stop():
            break
        name = f"w{os.getpid()}-{serial % NAMES}.pem"
        if trouble.attempt(lambda name=name, serial=serial: replace(name, serial)):  # type: ignore[misc]
            acknowledged[name] = serial
            rounds += 1
        time.sleep(0.002)
    lost = 0
    for name, serial in acknowledged.items():
        found = -1
        with contextlib.suppress(OSError, ValueError), open(f"{pool}/{name}", "rb") as stream:
            found = int(stream.readline().split()[1])
        lost += found not in {serial, attempted[name]}
    return {
        "rounds": rounds,
        "errors": trouble.errors,
        "longest": trouble.longest,
        "acknowledged": len(acknowledged),
        "lost": lost,
    }


if __name__ == "__main__":
    print(json.dumps({"read": read, "write": write}[sys.argv[1]](sys.argv[2])))
