"""The rows about bundles: reading one, and what a change of one costs its reader."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from scripts.benchmark.figures import Results
from scripts.benchmark.grounds import Ground, Grounds, Tree
from scripts.benchmark.pem import Pem
from scripts.benchmark.timing import Operation, Plan, alternate

_PIECE = 128 << 10
"""What cat(1) reads at once."""
_HEAD = 4 << 10
"""What OpenSSL reads at once."""

# What a host without certfs runs after every change: $1 is the directory, $2 the bundle.
REGENERATION = """
set -e
mkdir -p "$1"
new=$(find "$1" -name '*.new.pem')
others=$(find "$1" -not -name '*.new.pem' -name '*.pem')
rm -f "$2.tmp"
touch "$2.tmp"
for certificate in $new $others; do
    cat "$certificate" >> "$2.tmp"
    echo "" >> "$2.tmp"
done
mv "$2.tmp" "$2"
"""


def measure_reading(grounds: Grounds, results: Results, seconds: float) -> None:
    """Measure the warm reading of bundles of 64 and 1,000 certificates."""
    for count in (64, 1000):
        ground = grounds[count]
        subjects = {
            "certfs": _whole_reading(ground.certfs.bundle),
            "bindfs": _whole_reading(ground.bindfs.bundle),
            "ext4": _whole_reading(ground.ext4_copy()),
        }
        medians = alternate(subjects, Plan(seconds, rounds=20, batch=10))
        results.add(f"read-{count}", medians["certfs"] / medians["bindfs"], **medians)
    ground = grounds[1000]
    with (
        open(ground.certfs.bundle, "rb", buffering=0) as ours,
        open(ground.ext4_copy(), "rb", buffering=0) as ext4,
    ):
        subjects = {
            f"{name}-{piece >> 10}k": _pread(file.fileno(), piece)
            for piece in (_HEAD, _PIECE)
            for name, file in (("certfs", ours), ("ext4", ext4))
        }
        medians = alternate(subjects, Plan(seconds, rounds=50, batch=10))
    results.add("pread", medians["ext4-4k"] / medians["certfs-4k"], **medians)


def _whole_reading(path: Path) -> Operation:
    buffer = bytearray(_PIECE)

    def operation() -> float:
        started = time.perf_counter()
        fd = os.open(path, os.O_RDONLY)
        while os.readv(fd, [buffer]):
            pass
        os.close(fd)
        return time.perf_counter() - started

    return operation


def _pread(fd: int, piece: int) -> Operation:
    buffer = bytearray(piece)
    size = os.fstat(fd).st_size

    def operation() -> float:
        started = time.perf_counter()
        for offset in range(0, size, piece):
            os.preadv(fd, [buffer], offset)
        return time.perf_counter() - started

    return operation


def measure_changes(grounds: Grounds, results: Results, seconds: float, rounds: int) -> None:
    """Measure copying a certificate in and reading the bundle, against doing so with a regeneration."""
    pems = iter(grounds.template)
    for count in (64, 1000, 10000):
        ground = grounds[count]
        live, regenerated = Live(ground, pems), Regenerated(ground.plain, pems)
        subjects: dict[str, Operation] = {
            "certfs": partial(live.change, read_whole),
            "regeneration": regenerated.change,
        }
        plan = Plan(seconds, rounds=rounds, batch=4, slow="regeneration", warm=False)
        medians = alternate(subjects, plan)
        results.add(f"change-{count}", medians["regeneration"] / medians["certfs"], **medians)
        results.point("regeneration + read", count, medians["regeneration"])
        results.point("certfs, whole bundle", count, medians["certfs"])


def measure_growth(grounds: Grounds, results: Results, seconds: float) -> None:
    """Measure copying a certificate in and reading the bundle's first 4 KiB, in directories of all sizes."""
    pems = iter(grounds.template)
    lives = {count: Live(grounds[count], pems) for count in grounds.counts}
    subjects: dict[str, Operation] = {
        str(count): partial(live.change, _read_head) for count, live in lives.items()
    }
    medians = alternate(subjects, Plan(seconds, rounds=8))
    smallest, largest = str(grounds.counts[0]), str(grounds.counts[-1])
    results.add("growth", medians[largest] / medians[smallest], **medians)
    for count in grounds.counts:
        results.point("certfs, first 4 KiB", count, medians[str(count)])


class Live:
    """A bundle that follows its directory; every change is checked to be in what is read after it (promise I1)."""

    def __init__(self, ground: Ground, pems: Iterator[Pem]) -> None:
        self._ground = ground
        self._pems = pems

    def change(self, read: Callable[[Path], bytes]) -> float:
        """Copy a certificate in that comes first in the bundle, and ``read``; return the seconds for both."""
        self._ground.settle()
        pem = next(self._pems)
        tree = self._ground.certfs
        copy = tree.sources / f"0000-{pem.name}"
        started = time.perf_counter()
        copy.write_bytes(pem.text)
        content = read(tree.bundle)
        taken = time.perf_counter() - started
        if not content.startswith(pem.text):
            raise AssertionError(
                f"{tree.bundle} does not begin with the certificate just copied in"
            )
        copy.unlink()
        return taken


class Regenerated:
    """A bundle that is made anew by a script after every change."""

    def __init__(self, tree: Tree, pems: Iterator[Pem]) -> None:
        self._tree = tree
        self._pems = pems

    def change(self) -> float:
        """Copy a certificate in, regenerate and read the bundle; return the seconds for all three."""
        pem = next(self._pems)
        copy = self._tree.sources / f"0000-{pem.name}"
        started = time.perf_counter()
        copy.write_bytes(pem.text)
        subprocess.run(
            ["sh", "-c", REGENERATION, "sh", self._tree.sources, self._tree.bundle], check=True
        )
        content = read_whole(self._tree.bundle)
        taken = time.perf_counter() - started
        if pem.text not in content:
            raise AssertionError(f"{self._tree.bundle} lacks the certificate just copied in")
        copy.unlink()
        return taken


def read_whole(path: Path) -> bytes:
    """Open, read to the end, close."""
    fd = os.open(path, os.O_RDONLY)
    try:
        pieces = []
        while piece := os.read(fd, _PIECE):
            pieces.append(piece)
    finally:
        os.close(fd)
    return b"".join(pieces)


def _read_head(path: Path) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.read(fd, _HEAD)
    finally:
        os.close(fd)
