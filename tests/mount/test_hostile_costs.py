"""I18: certificates that are dear to verify or to put in order do not keep other callers waiting."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from certfs.core.pem import render
from tests.support import mounts, pki, pki_raw
from tests.support.mounts import CertfsMount

pytestmark = pytest.mark.mount

_PATIENCE = 2.0
"""Seconds more for an open beside such a source; 4 s passed when all was verified on the event loop."""
_MEBIBYTE = 1 << 20


def _dear_files() -> dict[str, bytes]:
    """Make sources of nearly a MiB each: keys of 10,000 and 16,384 bits, one subject, many subjects, one date."""
    makers: dict[str, Callable[[int], bytes]] = {
        "dsa-one-subject": lambda number: pki_raw.large_dsa("one", number),
        "dsa-many-subjects": lambda number: pki_raw.large_dsa(f"many {number // 8}", number),
        "rsa-one-subject": lambda number: pki_raw.large_rsa("one", number),
    }
    files = {}
    for name, make in makers.items():
        size = len(render(make(0))) + 8
        files[name] = b"".join(render(make(number)) for number in range(_MEBIBYTE // size))
    small = pki.authority("small").der
    size = len(render(small))
    files["small-one-subject"] = b"".join(
        render(small[:-3] + number.to_bytes(3)) for number in range(_MEBIBYTE // size)
    )
    return files


def _longest_open(bundle: Path, until: Callable[[], bool]) -> float:
    """Read a bundle again and again, and give the longest time that one reading took."""
    longest = 0.0
    while not until():
        begin = time.monotonic()
        bundle.read_bytes()
        longest = max(longest, time.monotonic() - begin)
    return longest


def test_dear_certificates_keep_no_caller_waiting(certfs_mount: CertfsMount) -> None:
    """I15, I18: while they are copied in, an open of another bundle takes no 2 s longer, and the server lives."""
    certfs_mount.expected_log.append("the store does not answer")
    tree = certfs_mount.tree
    (tree.certs_pool / "host.pem").write_bytes(pki.authority("host").pem)
    files = _dear_files()
    servers = certfs_mount.daemon()
    end = time.monotonic() + 1
    # On a busy machine the reader itself waits for its turn.
    usual = _longest_open(tree.pool_bundle, lambda: time.monotonic() > end)

    def copy() -> None:
        for name, data in files.items():
            (tree.certs / f"{name}.pem").write_bytes(data)
        tree.user_bundle.read_bytes()

    copying = threading.Thread(target=copy)
    copying.start()
    longest = _longest_open(tree.pool_bundle, lambda: not copying.is_alive())
    copying.join()
    assert longest < _PATIENCE + 10 * usual
    assert set(servers) <= set(certfs_mount.daemon())
    expected = sum(data.count(b"BEGIN") for data in files.values())
    # There, too, reading may take longer than an answer waits for it; then what was there before is served.
    mounts.wait_until(
        lambda: tree.user_bundle.read_bytes().count(b"BEGIN") == expected,
        seconds=60,
        what="all of them in the bundle",
    )
