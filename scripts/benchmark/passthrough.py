"""The rows about files that are only passed through, against the same through bindfs.

Each call goes to a file that was not touched for a while: what the kernel remembers of a name (for 50 ms with certfs,
for 1 s with bindfs) shall not be what is measured. What it remembers is measured beside it.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator

from scripts.benchmark.figures import Results
from scripts.benchmark.grounds import Ground, Grounds, Tree
from scripts.benchmark.timing import Operation, Plan, alternate

_FILES = 1000
_CONTENT = b"certfs" * 170
_BATCH = 10
_FORGOTTEN_SECONDS = 1.1
"""libfuse lets the kernel remember names and attributes for a second, unless a filesystem says otherwise."""


def measure_passthrough(grounds: Grounds, results: Results, seconds: float) -> None:
    """Measure stat, open and a file's short life."""
    ground = grounds[64]
    names = [f"file-{number:04}.conf" for number in range(_FILES)]
    for name in names:
        (ground.store.other / name).write_bytes(_CONTENT)
    _measure(ground, names, results, seconds)
    for name in names:
        (ground.store.other / name).unlink()


def _measure(ground: Ground, names: list[str], results: Results, seconds: float) -> None:
    trees = {"certfs": ground.certfs, "bindfs": ground.bindfs, "ext4": ground.store}
    for key, call in (("stat", _stat), ("open", _open), ("create", None)):
        subjects = {
            name: _each(tree, names, call) if call else _life(tree) for name, tree in trees.items()
        }
        medians = alternate(subjects, Plan(seconds, rounds=20, batch=_BATCH))
        again = {}
        if call:
            again = alternate(
                {
                    f"{name}-again": _each(tree, [names[0]] * _BATCH * 100, call)
                    for name, tree in trees.items()
                },
                Plan(seconds / 4, rounds=5, batch=_BATCH),
            )
        results.add(key, medians["certfs"] / medians["bindfs"], **medians, **again)


def _each(tree: Tree, names: list[str], call: Callable[[str], None]) -> Operation:
    paths = _in_turn([os.fspath(tree.other / name) for name in names])

    def operation() -> float:
        path = next(paths)
        started = time.perf_counter()
        call(path)
        return time.perf_counter() - started

    return operation


def _in_turn(paths: list[str]) -> Iterator[str]:
    """Yield the paths over and over, none of them before the kernel has forgotten it."""
    while True:
        begun = time.monotonic()
        yield from paths
        time.sleep(max(begun + _FORGOTTEN_SECONDS - time.monotonic(), 0))


def _stat(path: str) -> None:
    os.stat(path)


def _open(path: str) -> None:
    os.close(os.open(path, os.O_RDONLY))


def _life(tree: Tree) -> Operation:
    numbers = itertools.count()

    def operation() -> float:
        path = os.fspath(tree.other / f"short-{next(numbers)}.conf")
        started = time.perf_counter()
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.write(fd, _CONTENT)
        os.close(fd)
        os.unlink(path)
        return time.perf_counter() - started

    return operation
