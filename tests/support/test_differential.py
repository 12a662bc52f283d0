"""The differential tester finds what is different, and nothing else."""

from __future__ import annotations

import pytest

from tests.support import differential, mounts
from tests.support.posix_plan import Planner


def test_two_plain_directories_are_the_same() -> None:
    """Thousands of operations on two ordinary directories show no difference."""
    with (
        mounts.plain() as one,
        mounts.plain() as two,
        differential.comparison(one.root, two.root) as comparison,
    ):
        counts = comparison.run(operations=6_000, seed=1)
    assert counts.total() == 6_000
    assert sum(times for what, times in counts.items() if what.endswith(" ok")) > 1_200


@pytest.mark.mount
def test_a_difference_is_found_and_shortened() -> None:
    """A filesystem that is known to differ is caught, with few operations to show it."""
    mounts.need_root()
    with (
        mounts.plain() as one,
        mounts.bindfs() as two,
        differential.comparison(one.root, two.root) as comparison,
        pytest.raises(differential.DifferenceFoundError) as caught,
    ):
        comparison.run(operations=2_000, seed=1)
    assert "seed 1" in str(caught.value)
    assert "the same with 1 operations" in str(caught.value)


def test_a_plan_is_a_function_of_its_seed() -> None:
    """The same seed gives the same operations, another seed gives others."""
    assert Planner(seed=5).plan(100) == Planner(seed=5).plan(100)
    assert Planner(seed=5).plan(100) != Planner(seed=6).plan(100)


def test_no_path_leads_out_of_the_directory() -> None:
    """Neither a path nor a link target is absolute or climbs above where it begins."""
    for op in Planner(seed=1).plan(5_000):
        for path in op.paths:
            parts = path.split(b"/")
            assert parts[0] != b".."
            assert parts.count(b"..") <= 1
            assert not path.startswith(b"/")
        if op.call == "symlink" and isinstance(op.values[0], bytes):
            assert not {b".", b".."} & set(op.values[0].split(b"/"))
