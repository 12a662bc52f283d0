"""I6, I18: no kind of file in a source directory hangs, slows or ends anything."""

from __future__ import annotations

import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import listing, mounts, peer, pki
from tests.support.mounts import CertfsMount
from tests.support.peer import Peer
from tests.support.tree import Tree

pytestmark = pytest.mark.mount

QUICK = 2.0
"""Seconds that no reader may have to wait, whatever lies in the directory."""


@pytest.fixture(scope="module")
def hostile_mount() -> Iterator[CertfsMount]:
    """Mount once; strange files are what these tests are about, so warnings are expected."""
    with mounts.mounted() as mount:
        # On a busy machine a large source may be read for longer than an answer waits for it.
        mount.expected_log += ["stunnel/certs/", "the store does not answer"]
        yield mount


@pytest.fixture
def tree(hostile_mount: CertfsMount) -> Iterator[Tree]:
    """Give the tree with one good certificate in `certs`, and nothing else."""
    tree = hostile_mount.tree
    (tree.certs / "m-good.pem").write_bytes(GOOD.pem)
    yield tree
    for path in sorted(tree.certs.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


GOOD = pki.authority("the good one", key=pki.ec_key(200))


def _bundle(tree: Tree, process: Peer) -> list[str]:
    begin = time.monotonic()
    seen = process.call(peer.read_or_none, str(tree.user_bundle)) or b""
    assert time.monotonic() - begin < QUICK
    return pki.certificates_in(seen)


def _reason(tree: Tree, name: str) -> str:
    (reason,) = [
        row.reason or ""
        for row in listing.rows_of(tree)
        if row.source.endswith(f"/{name}") and not row.included
    ]
    return reason


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.write(GOOD.pem)
        file.truncate(10 << 30)


def _directory(path: Path) -> None:
    path.mkdir()
    (path / "inside.pem").write_bytes(pki.issue("inside").pem)


def _device(path: Path) -> None:
    mounts.need_root()
    os.mknod(path, stat.S_IFCHR | 0o644, os.makedev(1, 5))


STRANGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "fifo": (os.mkfifo, "FIFO"),
    "socket": (_socket, "socket"),
    "device": (_device, "device"),
    "directory": (_directory, "directory"),
    "dangling symlink": (lambda path: path.symlink_to("nowhere"), "link"),
    "symlink to itself": (lambda path: path.symlink_to(path.name), "link"),
    "symlink to a directory": (lambda path: path.symlink_to(".."), "directory"),
    "symlink to a terminal": (lambda path: path.symlink_to("/dev/tty"), ""),
    "symlink to endless zeros": (lambda path: path.symlink_to("/dev/zero"), "device"),
    "sparse 10 GiB": (_sparse, "limit"),
    "0 bytes": (Path.touch, "empty"),
}


@pytest.mark.parametrize("kind", STRANGE)
@pytest.mark.parametrize("name", ["a.pem", "z.new.pem"])
def test_a_strange_file_is_left_out_and_listed(
    tree: Tree, other_process: Peer, kind: str, name: str
) -> None:
    """I6, I9: the good certificate is read at once, and the strange file has a reason."""
    make, word = STRANGE[kind]
    make(tree.certs / name)
    assert _bundle(tree, other_process) == [GOOD.sha256]
    assert word in _reason(tree, name)


@pytest.mark.parametrize(
    "name",
    ["x.tmp", "x.bak", "1a2b3c4d.0", "x.pem~", "x.PEM", "pem", ".pem.swp", "x.pem.new", "x.crt"],
)
def test_a_name_that_does_not_end_in_pem_is_no_source(
    tree: Tree, other_process: Peer, name: str
) -> None:
    """I6: only `*.pem` contributes."""
    (tree.certs / name).write_bytes(pki.issue("other").pem)
    assert _bundle(tree, other_process) == [GOOD.sha256]


def test_names_of_any_bytes_are_sources(tree: Tree, other_process: Peer) -> None:
    """I6: a name that is not UTF-8, has a newline, or is 255 bytes long is a source like others."""
    directory = os.fsencode(tree.certs)
    names = [b"\xff\xfe.pem", b"new\nline.pem", b"n" * 251 + b".pem", b" .pem", b".pem"]
    identities = {}
    for name in names:
        identities[name] = pki.issue(repr(name)[:60])
        with open(directory + b"/" + name, "wb") as file:
            file.write(identities[name].pem)
    expected = {GOOD.sha256} | {one.sha256 for one in identities.values()}
    assert set(_bundle(tree, other_process)) == expected
    assert {row.sha256 for row in listing.rows_of(tree) if "certs/" in row.source} == expected


def test_an_unreadable_file_is_a_matter_of_permissions(tree: Tree, other_process: Peer) -> None:
    """I6: mode 0000 stops nobody who is root, and is a reason for everybody else."""
    other = pki.issue("other")
    (tree.certs / "x.pem").write_bytes(other.pem)
    (tree.certs / "x.pem").chmod(0)
    if os.geteuid() == 0:
        assert _bundle(tree, other_process) == [GOOD.sha256, other.sha256]
    else:
        assert _bundle(tree, other_process) == [GOOD.sha256]
        assert "ermission" in _reason(tree, "x.pem")


def test_a_symlink_to_elsewhere_is_followed_and_looked_at_again(
    tree: Tree, other_process: Peer, tmp_path: Path
) -> None:
    """I1: the target outside of the store may change, vanish and come back; the next open sees it."""
    one, two = pki.many(2)
    target = tmp_path / "target"
    target.write_bytes(one.pem)
    (tree.certs / "x.pem").symlink_to(target)
    assert _bundle(tree, other_process) == [GOOD.sha256, one.sha256]
    for _ in range(10):
        target.write_bytes(two.pem)
        assert _bundle(tree, other_process) == [GOOD.sha256, two.sha256]
        target.unlink()
        assert _bundle(tree, other_process) == [GOOD.sha256]
        target.write_bytes(one.pem)
        assert _bundle(tree, other_process) == [GOOD.sha256, one.sha256]
        replacement = tmp_path / "replacement"
        replacement.write_bytes(two.pem)
        replacement.rename(target)
        assert _bundle(tree, other_process) == [GOOD.sha256, two.sha256]


def test_a_symlink_chain_is_followed_to_its_end(
    tree: Tree, other_process: Peer, tmp_path: Path
) -> None:
    """I6: a link to a link to a file is a source; a change in the middle shows."""
    one, two = pki.many(2)
    (tmp_path / "one").write_bytes(one.pem)
    (tmp_path / "two").write_bytes(two.pem)
    (tmp_path / "middle").symlink_to("one")
    (tree.certs / "x.pem").symlink_to(tmp_path / "middle")
    assert _bundle(tree, other_process) == [GOOD.sha256, one.sha256]
    (tmp_path / "middle").unlink()
    (tmp_path / "middle").symlink_to("two")
    assert _bundle(tree, other_process) == [GOOD.sha256, two.sha256]


@pytest.mark.parametrize("target", ["file", "bundle", "directory", "other bundle"])
def test_a_symlink_back_into_the_mount_does_not_deadlock(
    tree: Tree, other_process: Peer, target: str
) -> None:
    """I6: a link that leads through the mount itself works or has a reason, and nobody hangs."""
    other = pki.issue("other")
    (tree.xensource / "other.pem").write_bytes(other.pem)
    place = {
        "file": tree.xensource / "other.pem",
        "bundle": tree.user_bundle,
        "directory": tree.certs,
        "other bundle": tree.pool_bundle,
    }[target]
    (tree.certs / "x.pem").symlink_to(place)
    found = _bundle(tree, other_process)
    assert found[0] == GOOD.sha256
    if found != [GOOD.sha256, other.sha256]:
        assert _reason(tree, "x.pem")
    (tree.xensource / "other.pem").unlink()


def test_a_file_that_grows_while_it_is_read_is_never_half_in(
    tree: Tree, other_process: Peer
) -> None:
    """I3: a file beneath the mount that somebody keeps appending to is a whole number of certificates."""
    identities = pki.many(40, prefix="grown")
    stop = threading.Event()

    def grow() -> None:
        while not stop.is_set():
            with (tree.store / "stunnel" / "certs" / "grown.pem").open("wb") as file:
                for identity in identities:
                    file.write(identity.pem)
                    file.flush()

    known = {GOOD.sha256} | {one.sha256 for one in identities}
    writer = threading.Thread(target=grow)
    writer.start()
    try:
        deadline = time.monotonic() + 1.0
        while time.monotonic() < deadline:
            found = _bundle(tree, other_process)
            assert GOOD.sha256 in found
            assert set(found) <= known
    finally:
        stop.set()
        writer.join()
    mounts.wait_until(lambda: set(_bundle(tree, other_process)) == known)


def test_the_size_limit_is_per_file(tree: Tree, other_process: Peer) -> None:
    """I18: a file over 1 MiB is not read and has a reason; one just below is, and comes back."""
    other = pki.issue("other")
    source = tree.certs / "x.pem"
    filler = b"x" * 79 + b"\n"
    limit = 1 << 20
    padding = (limit - len(other.pem)) // len(filler)
    source.write_bytes(filler * padding + other.pem)
    assert _bundle(tree, other_process) == [GOOD.sha256, other.sha256]
    source.write_bytes(filler * (padding + 2) + other.pem)
    assert _bundle(tree, other_process) == [GOOD.sha256]
    assert "limit" in _reason(tree, "x.pem")
    source.write_bytes(other.pem)
    assert _bundle(tree, other_process) == [GOOD.sha256, other.sha256]


def test_a_file_with_many_broken_blocks_is_read_in_time(tree: Tree, other_process: Peer) -> None:
    """I18: a megabyte of BEGIN lines, dashes or empty blocks delays no reader."""
    begin, end = b"-----BEGIN CERTIFICATE-----\n", b"-----END CERTIFICATE-----\n"
    for content in (begin, begin + end, b"-", b"-----BEGIN ", end, b"-----\n", b"\n", b"\0"):
        (tree.certs / "x.pem").write_bytes((content * (1 << 20))[: 1 << 20])
        assert _bundle(tree, other_process) == [GOOD.sha256]
    assert len(listing.text_of(tree)) < 1 << 20
