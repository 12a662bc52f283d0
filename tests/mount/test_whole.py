"""I2: an open bundle is one generation, whatever happens between two reads."""

from __future__ import annotations

import hashlib
import mmap
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import oracle, peer, pki
from tests.support.mounts import CertfsMount

pytestmark = pytest.mark.mount

SECONDS = float(os.environ.get("CERTFS_TEST_SECONDS", "2"))
"""How long readers and writers run against each other; the nightly run sets more."""
_CONTENTS = 3
"""Every reader goes on until it has seen so many contents ..."""
_PATIENCE = 60.0
"""... but not for more seconds than this beyond its time."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What one reader saw in all its looks."""

    looks: int
    uneven: int
    """Looks whose size, content and mapping did not agree."""
    contents: frozenset[str]
    """The SHA-256 of every content."""


def keep_looking(path: str, seconds: float, chunk: int, pause: float) -> Seen:
    """Look at a bundle over and over, for so long and until several contents were seen."""
    looks = uneven = 0
    contents: set[str] = set()
    begin = time.monotonic()
    while (passed := time.monotonic() - begin) < seconds or len(contents) < _CONTENTS:
        if passed > seconds + _PATIENCE:
            break
        seen = peer.look(path, chunk=chunk, pause=pause)
        if seen is not None:
            looks += 1
            uneven += seen.size != len(seen.content) or seen.content != seen.mapped
            contents.add(_digest(seen.content))
    return Seen(looks, uneven, frozenset(contents))


def _digest(content: bytes | None) -> str:
    return hashlib.sha256(content or b"").hexdigest()


@pytest.mark.slow
def test_readers_get_whole_generations_while_the_sources_change(certfs_mount: CertfsMount) -> None:
    """I2: with readers of every pace and a busy writer, each look is exactly one generation."""
    tree = certfs_mount.tree
    base = pki.many(40, prefix="base")
    sources: dict[str, list[pki.Identity]] = {}
    for number, identity in enumerate(base):
        sources[f"{number:03}.pem"] = [identity]
        (tree.certs / f"{number:03}.pem").write_bytes(identity.pem)
    generations = {_digest(oracle.bundle_of(sources))}
    paces = [(4096, 0.0), (4096, 0.0005), (100, 0.0), (65_536, 0.002), (17, 0.0)]
    with peer.peers(len(paces)) as readers:
        for reader, pace in zip(readers, paces, strict=True):
            reader.send(keep_looking, str(tree.user_bundle), SECONDS, *pace)
        number = 0
        while not all(reader.has_answered() for reader in readers):
            name = f"{number * 7 % 40:03}.pem"
            if number % 3 == 2:
                (tree.certs / name).unlink(missing_ok=True)
                sources.pop(name, None)
                generations.add(_digest(oracle.bundle_of(sources)))
            else:
                fresh = pki.issue(f"generation {number}", ca=True)
                sources[name] = [fresh]
                generations.add(_digest(oracle.bundle_of(sources)))
                (tree.certs / name).write_bytes(fresh.pem)
            number += 1
        seen = [reader.receive() for reader in readers]
    assert sum(one.uneven for one in seen) == 0
    contents = frozenset[str]().union(*(one.contents for one in seen))
    assert min(len(one.contents) for one in seen) >= _CONTENTS
    assert contents <= generations, f"{len(contents - generations)} contents are no generation"


def test_an_open_bundle_stays_what_it_was(certfs_mount: CertfsMount) -> None:
    """I2: size, reads and mapping of an open bundle are the generation at its open."""
    tree = certfs_mount.tree
    old, new = pki.many(60, prefix="old"), pki.many(90, prefix="new")
    source = tree.certs / "all.pem"
    source.write_bytes(b"".join(identity.pem for identity in old))
    expected = source.read_bytes()
    with tree.user_bundle.open("rb", buffering=0) as opened:
        start = opened.read(4096)
        source.write_bytes(b"".join(identity.pem for identity in new))
        assert tree.user_bundle.read_bytes() == source.read_bytes()
        assert os.fstat(opened.fileno()).st_size == len(expected)
        assert start + opened.read() == expected
        with mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as area:
            assert area[:] == expected
        source.unlink()
        assert not tree.user_bundle.exists()
        assert os.pread(opened.fileno(), len(expected) + 1, 0) == expected
        assert os.fstat(opened.fileno()).st_size == len(expected)


def test_an_open_bundle_survives_hundreds_of_generations(certfs_mount: CertfsMount) -> None:
    """I2: however many generations pass, the first reader still has the first one."""
    tree = certfs_mount.tree
    one, two = (identity.pem for identity in pki.many(2))
    source = tree.certs / "one.pem"
    source.write_bytes(one)
    with tree.user_bundle.open("rb", buffering=0) as opened:
        for _ in range(300):
            source.write_bytes(two)
            source.write_bytes(one)
        assert opened.read() == one
        assert os.fstat(opened.fileno()).st_size == len(one)


@pytest.mark.slow
def test_status_and_content_agree_by_path(certfs_mount: CertfsMount) -> None:
    """I2: a stat of an open bundle through /proc agrees with its content while it changes."""
    tree = certfs_mount.tree
    source = tree.certs / "a.pem"
    texts = [
        b"".join(pki.issue(f"{turn} {number}").pem for number in range(turn))
        for turn in range(1, 9)
    ]
    source.write_bytes(texts[0])
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            for text in texts:
                source.write_bytes(text)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        deadline = time.monotonic() + SECONDS / 2
        while time.monotonic() < deadline:
            with tree.user_bundle.open("rb", buffering=0) as opened:
                through_proc = Path("/proc/self/fd", str(opened.fileno())).stat().st_size
                content = opened.read()
                assert through_proc == len(content)
                assert content in texts
    finally:
        stop.set()
        writer.join()
