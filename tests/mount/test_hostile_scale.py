"""I18: a directory with very many certificates is served with bounded memory and descriptors."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import mounts, peer, pki
from tests.support.mounts import CertfsMount
from tests.support.peer import Peer
from tests.support.tree import Tree

# In one process: the mount that the tests share takes long.
pytestmark = [pytest.mark.mount, pytest.mark.slow]

SOURCES = int(os.environ.get("CERTFS_TEST_SOURCES", "20000"))
"""The nightly run has 300,000."""
BYTES_PER_CERTIFICATE = 4_000
"""What the server may use for each, of which the PEM text itself is some 600."""


def _memory(pids: list[int]) -> int:
    """Give the resident memory of the largest of some processes, in bytes."""
    sizes = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids]
    return max(sizes) * os.sysconf("SC_PAGESIZE")


@dataclass(frozen=True, slots=True)
class Crowd:
    """A mount with very many sources, and what an empty mount needs."""

    mount: CertfsMount
    size: int
    """Bytes of the bundle."""
    base_memory: int


@contextmanager
def _mounted_crowd(count: int) -> Iterator[Crowd]:
    """Mount a store with so many certificates, each in a file of its own."""
    with mounts.mounted() as empty:
        base_memory = _memory(empty.pids)
    pems = pki.crowd(count)

    def fill(store: Tree) -> None:
        for number, pem in enumerate(pems):
            handle = os.open(store.certs / f"{number:07}.pem", os.O_CREAT | os.O_WRONLY, 0o644)
            os.write(handle, pem)
            os.close(handle)

    with mounts.mounted(prepare=fill) as mount:
        yield Crowd(mount, sum(map(len, pems)), base_memory)


@pytest.fixture(scope="module")
def crowd() -> Iterator[Crowd]:
    """Mount a store with SOURCES certificates."""
    with _mounted_crowd(SOURCES) as crowd:
        yield crowd


@pytest.mark.timeout(600)
def test_the_bundle_has_all_of_them(crowd: Crowd, other_process: Peer) -> None:
    """Every source is in the bundle, in order, once."""
    seen = other_process.call(peer.read_or_none, str(crowd.mount.tree.user_bundle))
    assert seen is not None
    assert len(seen) == crowd.size
    assert len(set(pki.certificates_in(seen))) == SOURCES


def test_memory_and_descriptors_are_bounded(crowd: Crowd) -> None:
    """The server needs few bytes for each certificate, and no descriptor for any."""
    used = _memory(crowd.mount.pids) - crowd.base_memory
    assert used / SOURCES < BYTES_PER_CERTIFICATE
    assert mounts.descriptors_of(crowd.mount.pids).total() < 200


def test_a_change_is_quick(crowd: Crowd, other_process: Peer) -> None:
    """One more, one less: each is seen at once, in milliseconds, not in a time that grows."""
    tree = crowd.mount.tree
    extra = pki.authority("one more")
    durations = []
    for turn in range(10):
        name = tree.certs / f"extra-{turn}.pem"
        begin = time.monotonic()
        name.write_bytes(extra.pem)
        assert other_process.call(os.stat, str(tree.user_bundle)).st_size == crowd.size + len(
            extra.pem
        )
        durations.append(time.monotonic() - begin)
        name.unlink()
        assert other_process.call(os.stat, str(tree.user_bundle)).st_size == crowd.size
    assert min(durations) < 0.05  # this machine may hold up the others


def test_reading_does_not_hold_up_others(crowd: Crowd) -> None:
    """While four processes read the whole bundle, a fifth's small requests are answered soon."""
    tree = crowd.mount.tree
    durations = []
    with peer.peers(4) as readers:
        for reader in readers:
            reader.send(peer.look, str(tree.user_bundle))
        for _ in range(50):
            begin = time.monotonic()
            assert tree.pool_bundle.read_bytes()
            durations.append(time.monotonic() - begin)
        sizes = [reader.receive().size for reader in readers]
    assert sizes == [crowd.size] * 4
    assert sorted(durations)[-3] < 0.5
    assert max(durations) < 5.0


def test_changes_in_a_row_stay_cheap(crowd: Crowd) -> None:
    """I12, I18: a thousand changes in a row do not write a thousand copies of a large bundle."""
    tree = crowd.mount.tree

    def written() -> int:
        counters = [Path(f"/proc/{pid}/io").read_text() for pid in crowd.mount.pids]
        return sum(int(text.split("\nwrite_bytes: ")[1].split()[0]) for text in counters)

    before = written()
    text = pki.authority("again").pem
    for turn in range(500):
        name = tree.certs / f"again-{turn}.pem"
        name.write_bytes(text)
        name.unlink()
    assert written() - before < 20 * crowd.size


def test_a_crowd_comes_and_goes(other_process: Peer) -> None:
    """One rename takes all certificates out, another brings them back; `rm` of all empties."""
    with _mounted_crowd(SOURCES // 20) as crowd:
        tree = crowd.mount.tree
        tree.certs.rename(tree.stunnel / "away")
        assert other_process.call(peer.read_or_none, str(tree.user_bundle)) is None
        (tree.stunnel / "away").rename(tree.certs)
        assert other_process.call(os.stat, str(tree.user_bundle)).st_size == crowd.size
        for name in os.listdir(tree.certs):
            os.unlink(tree.certs / name)
        assert other_process.call(peer.read_or_none, str(tree.user_bundle)) is None
