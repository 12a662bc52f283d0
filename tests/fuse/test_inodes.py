"""The inodes that the kernel remembers: numbers, descriptors, and reaching them again (I11, I18)."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from certfs.fuse.inodes import ROOT, Inode, InodeTable
from certfs.fuse.numbers import FIRST
from tests.support.examples import examples
from tests.support.mounts import scratch_directory


class Tree:
    """A table over a real directory, used as the operations use it."""

    def __init__(self, path: Path, *, limit: int = 1000) -> None:
        self.path = path
        self.table = InodeTable(limit=limit)
        self.root = self.table.add_root(os.open(path, os.O_PATH), ROOT)

    def look(self, name: str, parent: Inode | None = None) -> Inode:
        """Do as a LOOKUP does."""
        parent = parent or self.root
        with self.table.using(parent) as fd:
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        return self.table.remember(parent, name.encode(), status)

    def before_removal(self, name: str, parent: Inode) -> Inode | None:
        """Do as the operations do with a name that is about to go."""
        try:
            status = os.stat(name, dir_fd=self.table.fd(parent), follow_symlinks=False)
        except FileNotFoundError:
            return None
        inode = self.table.before_removal(parent, name.encode(), status)
        if inode is not None:
            self.table.fd(inode)
        return inode

    def unlink(self, name: str, parent: Inode | None = None) -> None:
        """Do as an UNLINK does."""
        parent = parent or self.root
        removed = self.before_removal(name, parent)
        with self.table.using(parent) as fd:
            os.unlink(name, dir_fd=fd)
        if removed is not None:
            self.table.lost_name(removed, parent, name.encode())

    def rename(self, old: str, new: str) -> None:
        """Do as a RENAME within the root does."""
        moved = self.before_removal(old, self.root)
        replaced = self.before_removal(new, self.root)
        (self.path / old).rename(self.path / new)
        if moved is not None and moved is not replaced:
            self.table.moved(moved, self.root, new.encode())
        if replaced is not None and moved is not replaced:
            self.table.lost_name(replaced, self.root, new.encode())

    def same(self, inode: Inode) -> int:
        """Give the inode number of the file that the table reaches."""
        return os.stat(self.table.fd(inode)).st_ino

    def open_descriptors(self) -> int:
        """Count the descriptors that the table holds."""
        return sum(inode.fd >= 0 for inode in self.table._by_number.values())


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    """Give a table over an empty directory."""
    made = Tree(tmp_path)
    yield made
    made.table.close()


def make_file(path: Path, text: str = "") -> int:
    """Make a file and give its inode number."""
    path.write_text(text)
    return path.stat().st_ino


def test_a_program_sees_the_store_s_numbers(tree: Tree) -> None:
    """I11: st_ino is that of the file beneath."""
    number = make_file(tree.path / "a")
    assert tree.look("a").number == number


def test_hard_links_are_one_inode(tree: Tree) -> None:
    """I11: two names of one file are one node, whichever is looked up."""
    make_file(tree.path / "a")
    (tree.path / "b").hardlink_to(tree.path / "a")
    assert tree.look("a") is tree.look("b")


def test_a_number_that_two_filesystems_share_is_told_apart(tree: Tree) -> None:
    """I11: the second file of the same number gets one of ours, and is still itself."""
    number = make_file(tree.path / "a")
    status = (tree.path / "a").lstat()
    fields = list(status)
    fields[2] += 1  # st_dev
    other = os.stat_result(fields)
    first = tree.look("a")
    second = tree.table.remember(tree.root, b"other", other)
    assert first.number == number
    assert second.number >= FIRST
    assert tree.table[second.number] is second
    assert tree.table.remember(tree.root, b"other", other) is second


def test_the_root_s_number_is_not_given_twice(tree: Tree) -> None:
    """FUSE's root is number 1, whatever file has that number beneath."""
    fields = list(tree.path.stat())
    fields[1] = ROOT  # st_ino
    assert tree.table.remember(tree.root, b"one", os.stat_result(fields)).number != ROOT


def test_lookups_are_counted(tree: Tree) -> None:
    """What the kernel has forgotten as often as it looked is no longer remembered."""
    make_file(tree.path / "a")
    inode = tree.look("a")
    tree.look("a")
    tree.table.fd(inode)
    tree.table.forget(inode.number, 1)
    assert tree.table[inode.number] is inode
    tree.table.forget(inode.number, 1)
    with pytest.raises(OSError, match="Stale") as caught:
        tree.table[inode.number]
    assert caught.value.errno == errno.ESTALE
    assert tree.open_descriptors() == 1  # the root


def test_forgetting_what_nobody_knows_is_nothing(tree: Tree) -> None:
    """A FORGET for a number of a former life does no harm."""
    tree.table.forget(12345, 1)


def test_an_inode_in_use_outlives_its_lookups(tree: Tree) -> None:
    """An open file stays reachable when the kernel has forgotten its name."""
    make_file(tree.path / "a")
    inode = tree.look("a")
    tree.table.hold(inode)
    tree.table.forget(inode.number, 1)
    assert tree.table[inode.number] is inode
    tree.table.release(inode)
    assert len(tree.table) == 1


def test_an_unlinked_inode_is_still_reached(tree: Tree) -> None:
    """I11: an unlinked file that is open stays what it was."""
    number = make_file(tree.path / "a", "content")
    inode = tree.look("a")
    tree.unlink("a")
    make_file(tree.path / "a", "another")
    assert tree.same(inode) == number
    assert os.stat(tree.table.fd(inode)).st_nlink == 0


def test_an_inode_moves_with_its_file(tree: Tree) -> None:
    """I11: after a rename the node is reached by the new name; the replaced one by itself."""
    first, second = make_file(tree.path / "a"), make_file(tree.path / "b")
    moved, replaced = tree.look("a"), tree.look("b")
    tree.rename("a", "b")
    assert tree.same(moved) == first
    assert tree.same(replaced) == second
    tree.table.shrink(10)
    assert tree.same(moved) == first


def test_a_file_replaced_beneath_is_stale(tree: Tree) -> None:
    """I13: a node whose name leads to another file now is ESTALE, and the kernel looks again."""
    make_file(tree.path / "a")
    inode = tree.look("a")
    (tree.path / "a").rename(tree.path / "kept")
    make_file(tree.path / "a")
    with pytest.raises(OSError, match="Stale"):
        tree.table.fd(inode)
    assert tree.look("a") is not inode


def test_a_file_removed_beneath_is_stale(tree: Tree) -> None:
    """I13: the same for a name that is gone."""
    make_file(tree.path / "a")
    inode = tree.look("a")
    (tree.path / "a").unlink()
    with pytest.raises(OSError, match="Stale"):
        os.stat(tree.table.fd(inode))


def test_a_renamed_directory_takes_its_files_along(tree: Tree) -> None:
    """I10: XAPI's swap renames a directory; what was in it is reached under its new name."""
    (tree.path / "d").mkdir()
    number = make_file(tree.path / "d" / "a")
    directory = tree.look("d")
    inode = tree.look("a", directory)
    tree.rename("d", "d.bk")
    (tree.path / "d").mkdir()
    tree.table.shrink(100)
    assert tree.same(inode) == number


def test_descriptors_are_bounded(tmp_path: Path) -> None:
    """I18: beyond the limit the least recently used are closed, and opened again when needed."""
    tree = Tree(tmp_path, limit=10)
    numbers = {name: make_file(tmp_path / name) for name in map(str, range(100))}
    inodes = {name: tree.look(name) for name in numbers}
    for name, inode in [*inodes.items(), *inodes.items()]:
        assert tree.same(inode) == numbers[name]
        assert tree.open_descriptors() <= 12
    tree.table.close()


def test_recently_used_descriptors_stay(tmp_path: Path) -> None:
    """I18: what is used all the time is not opened all the time."""
    tree = Tree(tmp_path, limit=10)
    for name in map(str, range(50)):
        make_file(tmp_path / name)
    favourite = tree.look("0")
    fd = tree.table.fd(favourite)
    for name in map(str, range(1, 50)):
        tree.table.fd(tree.look(name))
        assert tree.table.fd(favourite) == fd
    tree.table.close()


def test_descriptors_in_use_do_not_keep_others_open(tmp_path: Path) -> None:
    """I18: many files that are open for long must not stop the rest from being closed."""
    tree = Tree(tmp_path, limit=10)
    for name in map(str, range(300)):
        make_file(tmp_path / name)
    for name in map(str, range(40)):
        inode = tree.look(name)
        assert tree.same(inode) == inode.id.inode
        tree.table.hold(inode)
    for name in map(str, range(40, 300)):
        inode = tree.look(name)
        assert tree.same(inode) == inode.id.inode
    assert tree.open_descriptors() < 40 + 2 * 10 + 20
    tree.table.close()


def test_an_unlinked_inode_keeps_its_descriptor(tmp_path: Path) -> None:
    """I11: it has no name to be reached by again, so it is never closed for want of room."""
    tree = Tree(tmp_path, limit=2)
    number = make_file(tmp_path / "a")
    inode = tree.look("a")
    tree.unlink("a")
    for name in map(str, range(20)):
        make_file(tmp_path / name)
        tree.table.fd(tree.look(name))
    assert tree.same(inode) == number
    tree.table.close()


def test_the_root_is_never_given_up(tmp_path: Path) -> None:
    """A store that is bind-mounted into itself has its root under a name, too."""
    tree = Tree(tmp_path, limit=2)
    assert tree.table.remember(tree.root, b"itself", tmp_path.stat()) is tree.root
    for name in map(str, range(20)):
        make_file(tmp_path / name)
        tree.table.fd(tree.look(name))
    tree.table.shrink(100)
    assert tree.same(tree.root) == tmp_path.stat().st_ino
    tree.table.close()


def test_closing_lets_go_of_everything(tmp_path: Path) -> None:
    """I18: no descriptor is left when the session is over."""
    before = len(os.listdir("/proc/self/fd"))
    tree = Tree(tmp_path)
    for name in "abc":
        make_file(tmp_path / name)
        tree.table.fd(tree.look(name))
    tree.table.close()
    assert len(os.listdir("/proc/self/fd")) == before


_NAMES = st.sampled_from("abcd")


class InodeMachine(RuleBasedStateMachine):
    """Lookups, changes and forgetting in any order, with room for three descriptors."""

    @initialize()
    def start(self) -> None:
        """Begin with an empty directory."""
        self.directory = scratch_directory()
        self.tree = Tree(self.directory, limit=3)
        self.known: dict[Inode, int] = {}
        """What the kernel remembers: each node and how often it looked it up."""
        self.files: dict[int, Path] = {}

    def teardown(self) -> None:
        """Remove what was made."""
        if hasattr(self, "tree"):
            self.tree.table.close()
            for path in self.directory.iterdir():
                path.unlink()
            self.directory.rmdir()

    @rule(name=_NAMES)
    def make(self, name: str) -> None:
        """Make a file unless there is one."""
        if not (self.directory / name).exists():
            make_file(self.directory / name)

    @rule(name=_NAMES)
    def look(self, name: str) -> None:
        """Look a name up."""
        if (self.directory / name).exists():
            inode = self.tree.look(name)
            assert inode.id.inode == (self.directory / name).stat().st_ino
            self.known[inode] = self.known.get(inode, 0) + 1

    @rule(name=_NAMES)
    def unlink(self, name: str) -> None:
        """Remove a name."""
        if (self.directory / name).exists():
            self.tree.unlink(name)

    @rule(old=_NAMES, new=_NAMES)
    def rename(self, old: str, new: str) -> None:
        """Rename, over another file or not."""
        if (self.directory / old).exists():
            self.tree.rename(old, new)

    @rule(old=_NAMES, new=_NAMES)
    def link(self, old: str, new: str) -> None:
        """Give a file one more name."""
        if (self.directory / old).exists() and not (self.directory / new).exists():
            (self.directory / new).hardlink_to(self.directory / old)

    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        """Let the kernel forget a node."""
        if self.known:
            inode = data.draw(st.sampled_from(sorted(self.known, key=lambda each: each.number)))
            self.tree.table.forget(inode.number, self.known.pop(inode))

    @rule()
    def close_descriptors(self) -> None:
        """Let the table close what it can."""
        self.tree.table.shrink(10)

    @invariant()
    def every_remembered_inode_is_reached(self) -> None:
        """I11: whatever happened to its names, a node is the file that it was."""
        for inode in getattr(self, "known", {}):
            if inode.fd >= 0 or inode.parent is not None:
                assert self.tree.same(inode) == inode.id.inode


InodeMachine.TestCase.settings = examples(60)
TestInodes = InodeMachine.TestCase
