"""Node numbers of our own are told apart by every program, and are nobody else's."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from certfs.fuse.inodes import ROOT, InodeTable
from certfs.fuse.numbers import END, FIRST, FIXED, Numbers
from certfs.fuse.synthetic import SyntheticFiles
from tests.support.mounts import need_program


def test_a_double_tells_them_apart() -> None:
    """JavaScript, which knows numbers as doubles, sees another file for each."""
    numbers = Numbers()
    given = [numbers.own() for _ in range(1000)]
    assert len({float(number) for number in [FIRST, *given]}) == 1001
    assert float(END - 1) != float(END - 2)


def test_node_tells_them_apart() -> None:
    """The same in a real JavaScript."""
    need_program("node")
    program = f"console.log(new Set([{FIRST}, {FIRST + 1}, {END - 2}, {END - 1}]).size)"
    shown = subprocess.run(["node", "-e", program], check=True, capture_output=True, timeout=60)
    assert shown.stdout.strip() == b"4"


def test_a_number_comes_back_only_after_all_others() -> None:
    """A number that was given back is not the next; at the end of the range it begins anew without those taken."""
    numbers = Numbers()
    first = numbers.own()
    numbers.release(first)
    assert numbers.own() == first + 1
    numbers._next = END - 2
    assert numbers.own() == END - 1
    assert numbers.own() == first
    assert numbers.own() == first + 2


def status_with(path: Path, number: int) -> os.stat_result:
    """Give the status of a file as if the store had given it this inode number."""
    fields = list(path.lstat())
    fields[1] = number
    return os.stat_result(fields)


def test_a_store_s_number_that_is_ours_already_is_told_apart(tmp_path: Path) -> None:
    """The file of the store gets another number; ours stays what the kernel knows."""
    numbers = Numbers()
    table = InodeTable(limit=10, numbers=numbers)
    root = table.add_root(os.open(tmp_path, os.O_PATH), ROOT)
    files = SyntheticFiles(lambda: b"status", numbers=numbers)
    ours = files.of_status()
    theirs = table.remember(root, b"x", status_with(tmp_path, ours.number))
    assert theirs.number != ours.number
    assert FIRST < theirs.number < END
    assert table[theirs.number] is theirs
    assert files.find(ours.number) is ours
    table.close()


def test_a_number_that_the_store_uses_is_not_given_to_ours(tmp_path: Path) -> None:
    """I11: a file of the store keeps its number, also in the range that is ours, as long as the kernel remembers it."""
    numbers = Numbers()
    table = InodeTable(limit=10, numbers=numbers)
    root = table.add_root(os.open(tmp_path, os.O_PATH), ROOT)
    files = SyntheticFiles(lambda: b"status", numbers=numbers)
    theirs = table.remember(root, b"x", status_with(tmp_path, FIXED.stop))
    assert theirs.number == FIXED.stop
    assert files.of_status().number == FIXED.stop + 1
    table.forget(theirs.number, 1)
    assert numbers.claim(FIXED.stop)
    table.close()


@pytest.mark.parametrize("number", [2, FIRST - 1, END, END + 5, (1 << 64) - 1])
def test_any_other_number_of_the_store_is_kept(tmp_path: Path, number: int) -> None:
    """I11: also one that is above the range, which stores with 64-bit numbers have."""
    table = InodeTable(limit=10)
    root = table.add_root(os.open(tmp_path, os.O_PATH), ROOT)
    assert table.remember(root, b"x", status_with(tmp_path, number)).number == number
    table.close()
