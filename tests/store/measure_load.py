"""A program that reads one source directory and says what that took, in a process of its own.

Owns measuring memory, descriptors and time of ``Trust.load``; prints JSON.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time

from certfs.core.bundle import BundleSpec
from certfs.store.bundles import Trust
from certfs.store.directories import Roots

# Measured without what only a later step needs.
import cryptography.x509  # isort: skip  # noqa: F401


def resident() -> int:
    """Give the resident memory of this process in bytes."""
    gc.collect()
    with open("/proc/self/statm", encoding="ascii") as sizes:
        return int(sizes.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def descriptors() -> int:
    """Count the open descriptors of this process."""
    return len(os.listdir("/proc/self/fd"))


def trust_of(store: str) -> Trust:
    """Open a store whose sources are in ``certs``."""
    return Trust(
        Roots({b"": os.open(store, os.O_PATH)}),
        [BundleSpec((b"certs",), (b"bundle.pem",))],
        is_busy=lambda _: False,
        observer=lambda _: None,
    )


def main() -> None:
    """Read the store that the command line names."""
    warm = trust_of(sys.argv[1])
    warm.close()
    memory, opened = resident(), descriptors()
    started = time.monotonic()
    trust = trust_of(sys.argv[1])
    trust.load()
    seconds = time.monotonic() - started
    (bundle,) = trust.bundles
    json.dump(
        {
            "certificates": bundle.generation.certificates,
            "size": bundle.generation.size,
            "seconds": seconds,
            "bytes": resident() - memory,
            "descriptors": descriptors() - opened,
        },
        sys.stdout,
    )


if __name__ == "__main__":
    main()
