"""I18: what very many sources cost: bytes, descriptors and steps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

from certfs.core.bundle import BundleSpec
from certfs.store.bundles import Trust
from certfs.store.directories import Roots
from tests.support import mounts, pki
from tests.support.counting import calls_of
from tests.support.pki_forms import block
from tests.support.tree import Tree

SOURCES = int(os.environ.get("CERTFS_TEST_SOURCES", "20000"))
"""The nightly run reads 300,000."""
BYTES_PER_CERTIFICATE = 4096
"""Resident memory that one more source may take, its PEM text included."""
DESCRIPTORS = 20


@dataclass(frozen=True, slots=True)
class Cost:
    """What reading a store took."""

    certificates: int
    size: int
    seconds: float
    bytes: int
    descriptors: int


def write_sources(store: Path, pems: Iterable[bytes]) -> None:
    """Write each PEM into a file of its own."""
    certs = store / "certs"
    certs.mkdir()
    directory = os.open(certs, os.O_RDONLY)
    for number, pem in enumerate(pems):
        file = os.open(f"{number:07}.pem", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=directory)
        os.write(file, pem)
        os.close(file)
    os.close(directory)


def cost_of(store: Path) -> Cost:
    """Read a store in a process of its own."""
    program = Path(__file__).with_name("measure_load.py")
    project = Path(__file__).resolve().parents[2]
    environment = {name: value for name, value in os.environ.items() if "COV" not in name}
    ended = subprocess.run(
        [sys.executable, str(program), str(store)],
        check=True,
        capture_output=True,
        cwd=project,
        env={**environment, "PYTHONPATH": str(project)},
        timeout=400,
    )
    return Cost(**json.loads(ended.stdout))


def pool_certificates(count: int) -> Iterable[bytes]:
    """Give so many pool certificates as XAPI makes them: RSA 2048, no extensions, 1.1 KB of PEM."""
    host = uuid.UUID("00000000-0000-4000-8000-000000000000")
    template = pki.pool_certificate(host)
    digits = b"-8000-000000000000"
    parts = template.der.split(digits)
    for number in range(count):
        yield block(b"CERTIFICATE", (b"-8000-%012d" % number).join(parts))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_very_many_sources_fit(tmp_path: Path) -> None:
    """I18: at most 4 KiB of memory for each, a handful of descriptors for all."""
    write_sources(tmp_path, pool_certificates(SOURCES))
    cost = cost_of(tmp_path)
    per_certificate = cost.bytes / SOURCES
    print(
        f"{SOURCES} sources: {cost.seconds:.1f} s, {per_certificate:.0f} bytes each,"
        f" of them {cost.size / SOURCES:.0f} of PEM; {cost.descriptors} descriptors"
    )
    assert cost.certificates == SOURCES
    assert per_certificate < BYTES_PER_CERTIFICATE
    assert cost.descriptors < DESCRIPTORS


def _copies(count: int) -> list[bytes]:
    return [pki.authority("the only one", key=pki.ec_key()).pem] * count


def _junk(count: int) -> list[bytes]:
    return [b"junk"] * count


@pytest.mark.parametrize("pems", [pki.crowd, _copies, _junk])
def test_memory_grows_by_the_source(tmp_path: Path, pems: object) -> None:
    """I18: the same bound where all sources are one certificate, or none is any."""
    assert callable(pems)
    write_sources(tmp_path, pems(3000))
    cost = cost_of(tmp_path)
    assert cost.bytes / 3000 < BYTES_PER_CERTIFICATE
    assert cost.descriptors < DESCRIPTORS


def _load_calls(store: Path) -> int:
    fd = os.open(store, os.O_PATH)
    trust = Trust(
        Roots({b"": fd}),
        [BundleSpec((b"certs",), (b"bundle.pem",))],
        is_busy=lambda _: False,
        observer=lambda _: None,
    )
    try:
        return calls_of(trust.load)
    finally:
        trust.close()
        os.close(fd)


@pytest.mark.parametrize("pems", [pki.crowd, _copies, _junk])
def test_reading_a_directory_takes_steps_in_proportion(tmp_path: Path, pems: object) -> None:
    """I18: ten times the sources take ten times the calls, from the directory to the generation."""
    assert callable(pems)
    counts = {}
    for count in (100, 1000):
        (tmp_path / str(count)).mkdir()
        write_sources(tmp_path / str(count), pems(count))
        counts[count] = _load_calls(tmp_path / str(count))
    assert counts[1000] < 11 * counts[100]


@pytest.mark.mount
@pytest.mark.slow
def test_ten_thousand_sources_are_served_in_time() -> None:
    """I18: `certfs mount` returns within half a minute, and the first reader has all of them."""
    pems = pki.crowd(10_000)

    filled = time.monotonic()

    def fill(store: Tree) -> None:
        nonlocal filled
        for number, pem in enumerate(pems):
            (store.certs / f"{number:05}.pem").write_bytes(pem)
        filled = time.monotonic()

    with mounts.mounted(prepare=fill) as mount:
        assert time.monotonic() - filled < 30
        assert mount.tree.user_bundle.read_bytes() == b"".join(pems)
        started = time.monotonic()
        (mount.tree.certs / "00000.pem").unlink()
        assert mount.tree.user_bundle.stat().st_size == sum(map(len, pems[1:]))
        assert time.monotonic() - started < 1
