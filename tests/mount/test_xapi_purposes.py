"""The newer layout: trusted certificates by purpose, each directory with its own bundle."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import mounts, peer, pki
from tests.support.mounts import CertfsMount
from tests.support.peer import Peer
from tests.support.tree import Tree
from tests.support.xapi import Xapi

pytestmark = pytest.mark.mount

_ONE = pki.authority("purpose one").pem
_TWO = pki.authority("purpose two").pem


@pytest.fixture(scope="module")
def shared_mount() -> Iterator[CertfsMount]:
    """Mount once for the module."""
    with mounts.mounted() as mount:
        yield mount


@pytest.fixture
def trusted(shared_mount: CertfsMount) -> Iterator[Path]:
    """Give `trusted-certs`, made through the mount."""
    directory = shared_mount.tree.root / "trusted-certs"
    directory.mkdir()
    yield directory
    for path in directory.iterdir():  # with its last source a bundle goes by itself
        if path.is_dir():
            shutil.rmtree(path)
    directory.rmdir()


def _add(directory: Path, name: str, text: bytes) -> None:
    directory.mkdir(exist_ok=True)
    (directory / name).write_bytes(text)


@pytest.mark.parametrize(
    "directory,bundle",
    [
        ("ca-general", "ca-bundle-general.pem"),
        ("ca-licensing", "ca-bundle-licensing.pem"),
        ("pinned-general", "pinned-bundle-general.pem"),
        ("pinned-a-b.c", "pinned-bundle-a-b.c.pem"),
    ],
)
def test_a_purpose_needs_no_configuration(
    trusted: Path, other_process: Peer, directory: str, bundle: str
) -> None:
    """A directory that is made while mounted has its bundle with its first certificate."""
    (trusted / directory).mkdir()
    assert not (trusted / bundle).exists()
    (trusted / directory / "one.pem").write_bytes(_ONE)
    assert other_process.call(peer.read_or_none, str(trusted / bundle)) == _ONE
    assert sorted(path.name for path in trusted.iterdir()) == sorted([directory, bundle])
    (trusted / directory / "one.pem").unlink()
    assert other_process.call(peer.read_or_none, str(trusted / bundle)) is None


@pytest.mark.parametrize("name", ["ca-", "pinned-", "other-general", "xca-general", "general"])
def test_another_directory_has_no_bundle(trusted: Path, name: str) -> None:
    """Only the two patterns make bundles, and their purpose has at least one character."""
    _add(trusted / name, "one.pem", _ONE)
    assert [path.name for path in trusted.iterdir()] == [name]


def test_purposes_do_not_mix(trusted: Path, other_process: Peer) -> None:
    """Each purpose's bundle holds its own certificates only."""
    _add(trusted / "ca-one", "a.pem", _ONE)
    _add(trusted / "ca-two", "a.pem", _TWO)
    _add(trusted / "pinned-one", "a.pem", _TWO)
    seen = [
        other_process.call(peer.read_or_none, str(trusted / name))
        for name in ("ca-bundle-one.pem", "ca-bundle-two.pem", "pinned-bundle-one.pem")
    ]
    assert seen == [_ONE, _TWO, _TWO]


def test_a_renamed_purpose_takes_its_bundle_along(trusted: Path, other_process: Peer) -> None:
    """After a rename of the directory the old bundle is gone and the new one is there."""
    _add(trusted / "ca-old", "a.pem", _ONE)
    (trusted / "ca-old").rename(trusted / "ca-new")
    assert other_process.call(peer.read_or_none, str(trusted / "ca-bundle-old.pem")) is None
    assert other_process.call(peer.read_or_none, str(trusted / "ca-bundle-new.pem")) == _ONE


def test_the_whole_tree_can_be_renamed(trusted: Path, other_process: Peer) -> None:
    """Moving trusted-certs away takes the bundles out of the configured place, and back."""
    _add(trusted / "ca-x", "a.pem", _ONE)
    away = trusted.with_name("away")
    trusted.rename(away)
    assert other_process.call(peer.read_or_none, str(trusted / "ca-bundle-x.pem")) is None
    away.rename(trusted)
    assert other_process.call(peer.read_or_none, str(trusted / "ca-bundle-x.pem")) == _ONE


def test_a_purpose_that_is_removed_has_no_bundle(trusted: Path, other_process: Peer) -> None:
    """`rm -r` of a purpose removes its bundle; making it again starts empty."""
    _add(trusted / "ca-x", "a.pem", _ONE)
    shutil.rmtree(trusted / "ca-x")
    assert other_process.call(peer.read_or_none, str(trusted / "ca-bundle-x.pem")) is None
    _add(trusted / "ca-x", "b.pem", _TWO)
    assert other_process.call(peer.read_or_none, str(trusted / "ca-bundle-x.pem")) == _TWO


def test_a_distribution_of_a_purpose_is_a_swap(
    shared_mount: CertfsMount, trusted: Path, other_process: Peer
) -> None:
    """I10: a purpose's directory that is swapped through D.bk keeps its trust meanwhile."""
    directory, bundle = trusted / "ca-x", str(trusted / "ca-bundle-x.pem")
    _add(directory, "a.pem", _ONE)
    seen: list[bytes | None] = []
    xapi = Xapi(shared_mount.tree)
    xapi.observe = lambda _: seen.append(other_process.call(peer.read_or_none, bundle))
    xapi.erase_old(directory, {"b.pem": _TWO})
    assert set(seen) == {_ONE, _ONE + _TWO, _TWO}
    assert seen[-1] == _TWO
    assert sorted(path.name for path in trusted.iterdir()) == ["ca-bundle-x.pem", "ca-x"]


def test_purposes_of_the_store_are_there_from_the_start(other_process: Peer) -> None:
    """What is in the store before the mount has its bundle, and a plain one after it."""

    def prepare(store: Tree) -> None:
        (store.root / "trusted-certs").mkdir()
        _add(store.root / "trusted-certs" / "ca-general", "one.pem", _ONE)

    with mounts.mounted(prepare=prepare) as mount:
        bundle = "trusted-certs/ca-bundle-general.pem"
        seen = other_process.call(peer.read_or_none, str(mount.tree.root / bundle))
        assert seen == _ONE
        mount.stop()
        assert (mount.tree.store / bundle).read_bytes() == _ONE
        mount.start()
