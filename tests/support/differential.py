"""The same random operations on two directories, every result compared.

Owns the claim "a program cannot tell the two apart" (I11). Several users work
in rounds, each round in fresh subdirectories, with one process for each user
that does every operation first on the one and then on the other side. A
difference ends the run with the seed, the operation, and a shorter sequence
that still shows it.

    python -m tests.support.differential --operations 100000 DIRECTORY DIRECTORY
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import random
import reprlib
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support import snapshot
from tests.support.peer import Peer, User
from tests.support.posix_actor import Actor
from tests.support.posix_calls import Observed, Op
from tests.support.posix_plan import SHARED_GROUP, USERS, Planner

_ROUND = 1_000
_SHRINK_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Difference:
    """Where the two sides parted."""

    index: int
    """Number of the operation in the sequence; its length for the final trees."""
    expected: object
    seen: object

    def describe(self, ops: list[Op]) -> str:
        """Write it down for people, the operation first."""
        what = _line(ops[self.index]) if self.index < len(ops) else "the final trees"
        return f"{what}\n  expected: {self.expected}\n  seen:     {self.seen}"


class DifferenceFoundError(AssertionError):
    """The two directories are not the same; the message says how to see it again."""


@dataclass(slots=True)
class Comparison:
    """Two directories under comparison: the first is right by definition."""

    expected: Path
    seen: Path
    actors: list[Peer]
    rounds: int = 0

    def run(self, *, operations: int, seed: int) -> Counter[str]:
        """Do that many operations in rounds.

        Raises DifferenceFoundError. Gives how often each call ended how.
        """
        for start in range(0, operations, _ROUND):
            round_seed = seed + start // _ROUND
            planner = Planner(
                seed=round_seed, users=len(self.actors), default_acls=bool(round_seed % 2)
            )
            ops = planner.plan(min(_ROUND, operations - start))
            difference = self.replay(ops)
            if difference is not None:
                raise DifferenceFoundError(self._report(ops, difference, round_seed))
        total: Counter[str] = Counter()
        for actor in self.actors:
            total.update(actor.ask("count"))
        return total

    def replay(self, ops: list[Op]) -> Difference | None:
        """Do a sequence in fresh directories and compare everything."""
        with self._arenas() as (expected, seen):
            for actor in self.actors:
                actor.ask("enter", os.fsencode(expected), os.fsencode(seen))
            position = 0
            for user, group in itertools.groupby(ops, key=lambda op: op.user):
                batch = list(group)
                found = self.actors[user].ask("perform", batch)
                if found is not None:
                    return Difference(position + found[0], *_shortened(found[1], found[2]))
                if self.actors[user].ask("has_diverged"):
                    return None
                position += len(batch)
            for actor in self.actors:
                actor.ask("leave")
            _open_up(expected, seen)
            lines = snapshot.differences(
                snapshot.take(os.fsencode(expected)), snapshot.take(os.fsencode(seen))
            )
            return Difference(len(ops), "equal trees", lines) if lines else None

    @contextlib.contextmanager
    def _arenas(self) -> Iterator[tuple[Path, Path]]:
        self.rounds += 1
        arenas = [side / f"arena-{self.rounds}" for side in (self.expected, self.seen)]
        for arena in arenas:
            _furnish(arena)
        try:
            yield arenas[0], arenas[1]
        finally:
            for actor in self.actors:
                actor.ask("leave")
            _open_up(*arenas)
            for arena in arenas:
                shutil.rmtree(arena)

    def _report(self, ops: list[Op], difference: Difference, seed: int) -> str:
        shorter, found = self.shrink(ops[: difference.index + 1], difference)
        listing = "\n".join(f"  {_line(op)}" for op in shorter)
        return (
            f"seed {seed}, operation {difference.index}: {difference.describe(ops)}\n"
            f"the same with {len(shorter)} operations:\n{listing}\n{found.describe(shorter)}"
        )

    def shrink(self, ops: list[Op], difference: Difference) -> tuple[list[Op], Difference]:
        """Leave out what is not needed to see a difference, for at most a minute."""
        deadline = time.monotonic() + _SHRINK_SECONDS
        size = len(ops) // 2
        while size:
            start = 0
            while start < len(ops) and time.monotonic() < deadline:
                candidate = ops[:start] + ops[start + size :]
                found = self.replay(candidate)
                if found is None:
                    start += size
                else:
                    ops, difference = candidate[: found.index + 1], found
            size //= 2
        return ops, difference


def _furnish(arena: Path) -> None:
    """Make the directories that every round starts with: shared, sticky, setgid, root's."""
    arena.mkdir()
    arena.chmod(0o777)
    for name, mode in (("a", 0o1777), ("b", 0o2777), ("c", 0o755)):
        (arena / name).mkdir()
        if os.geteuid() == 0:
            os.chown(arena / name, 0, SHARED_GROUP)
        (arena / name).chmod(mode)
    for number, name in enumerate(("d", "a/d", "a/e", "a/f", "b/d", "b/e", "c/f", "x.pem")):
        (arena / name).write_bytes(name.encode() * 100 * number)
        (arena / name).chmod((0o644, 0o666, 0o4755, 0o600)[number % 4])
        if os.geteuid() == 0:
            user = USERS[number % len(USERS)]
            os.chown(arena / name, user.uid, user.gid)


def _open_up(*arenas: Path) -> None:
    """Give ourselves back what the operations took away; root needs nothing."""
    if os.geteuid() == 0:
        return
    for arena in arenas:
        arena.chmod(0o700)
        for directory, names, files in os.walk(os.fsencode(arena)):
            for name in names:
                path = os.path.join(directory, name)
                if not os.path.islink(path):
                    os.chmod(path, 0o700)
            for name in files:
                path = os.path.join(directory, name)
                if os.path.isfile(path) and not os.path.islink(path):
                    os.chmod(path, 0o600)


def _line(op: Op) -> str:
    """Write an operation in one line; long bytes are cut, the seed has them in full."""
    cut = reprlib.Repr()
    cut.maxother = cut.maxstring = cut.maxlong = 120
    arguments = [cut.repr(value) for value in (*op.paths, *op.values)]
    slots = [f"slot {slot}" for slot in op.slots]
    watched = ["watched"] if op.watch else []
    return f"user {op.user}: {op.call}({', '.join(arguments + slots + watched)})"


def _shortened(*results: Observed) -> list[str]:
    return [
        text if len(text := repr(result)) < 2_000 else f"{text[:2_000]}..." for result in results
    ]


@contextlib.contextmanager
def comparison(expected: Path, seen: Path) -> Iterator[Comparison]:
    """Start one process for each user; without root there is only the caller."""
    users: tuple[User | None, ...] = USERS if os.geteuid() == 0 else (None,)
    with contextlib.ExitStack() as stack:
        actors = [stack.enter_context(Peer(user=user)) for user in users]
        for actor in actors:
            actor.make(Actor)
        yield Comparison(expected, seen, actors)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    """Compare two directories from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--operations", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--counts", action="store_true", help="print how each call ended")
    parser.add_argument("expected", type=Path, help="an ordinary directory")
    parser.add_argument("seen", type=Path, help="the directory under test")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    begin = time.monotonic()
    with comparison(options.expected, options.seen) as two:
        _say(f"seed {seed}")
        try:
            counts = two.run(operations=options.operations, seed=seed)
        except DifferenceFoundError as error:
            sys.exit(f"{error}")
    seconds = time.monotonic() - begin
    _say(f"{options.operations} operations without a difference in {seconds:.1f} s")
    if options.counts:
        for what, times in sorted(counts.items()):
            _say(f"{times:8} {what}")


if __name__ == "__main__":
    main()
