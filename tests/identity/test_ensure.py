"""Tests of the identity that a standalone store gets when it has none."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from certfs.errors import StoreError
from certfs.identity.ensure import ensure_identity, host_uuid
from tests.support import snapshot
from tests.support.identity import UUID
from tests.support.openssl import OpenSsl


@pytest.fixture
def store_fd(tmp_path: Path) -> Iterator[int]:
    """Give a descriptor of an empty store, opened as the daemon opens it."""
    fd = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_empty_store_gets_an_identity(openssl: OpenSsl, store_fd: int, tmp_path: Path) -> None:
    """An empty store gets both keys with mode 0400, and the pool certificate where the pool looks."""
    report = ensure_identity(store_fd, host_uuid=UUID)
    server, pool = tmp_path / "xensource/xapi-ssl.pem", tmp_path / "xensource/xapi-pool-tls.pem"
    public = tmp_path / f"stunnel/certs-pool/{UUID}.pem"
    assert [tmp_path / made for made in report.created] == [server, pool, public]
    assert [_mode(path) for path in (server, pool, public)] == [0o400, 0o400, 0o644]
    assert openssl.is_pair(server)
    assert openssl.is_pair(pool)
    assert openssl.fingerprint(public) == openssl.fingerprint(pool)
    assert b"PRIVATE" not in public.read_bytes()
    assert report.problems == ()


def test_second_run_changes_nothing(store_fd: int, tmp_path: Path) -> None:
    """What is there stays as it is, whatever it is."""
    ensure_identity(store_fd, host_uuid=UUID)
    (tmp_path / "xensource/xapi-ssl.pem").unlink()
    (tmp_path / "xensource/xapi-ssl.pem").write_bytes(b"mine")
    before = snapshot.take(os.fsencode(tmp_path), times=True, inodes=True)
    assert ensure_identity(store_fd, host_uuid=UUID).created == ()
    assert snapshot.take(os.fsencode(tmp_path), times=True, inodes=True) == before


def test_only_what_is_missing_is_made(store_fd: int, tmp_path: Path) -> None:
    """After a loss only the missing file is made."""
    ensure_identity(store_fd, host_uuid=UUID)
    (tmp_path / "xensource/xapi-ssl.pem").unlink()
    assert ensure_identity(store_fd, host_uuid=UUID).created == ("xensource/xapi-ssl.pem",)


def test_interruption_before_the_key_makes_both_anew(
    openssl: OpenSsl, store_fd: int, tmp_path: Path
) -> None:
    """The public part is written first: without its key both are made again, and fit."""
    ensure_identity(store_fd, host_uuid=UUID)
    pool = tmp_path / "xensource/xapi-pool-tls.pem"
    pool.unlink()
    ensure_identity(store_fd, host_uuid=UUID)
    public = tmp_path / f"stunnel/certs-pool/{UUID}.pem"
    assert openssl.fingerprint(public) == openssl.fingerprint(pool)


def test_removed_trust_stays_removed(store_fd: int, tmp_path: Path) -> None:
    """Who removes the host's certificate from the pool's (rm, eject) is not overruled (I12)."""
    ensure_identity(store_fd, host_uuid=UUID)
    (tmp_path / f"stunnel/certs-pool/{UUID}.pem").unlink()
    assert ensure_identity(store_fd, host_uuid=UUID).created == ()


def test_broken_pool_key_is_left_alone(store_fd: int, tmp_path: Path) -> None:
    """A pool key file that cannot be read is certfs check's business; the rest is made."""
    (tmp_path / "xensource").mkdir()
    (tmp_path / "xensource/xapi-pool-tls.pem").write_bytes(b"nothing")
    assert ensure_identity(store_fd, host_uuid=UUID).created == ("xensource/xapi-ssl.pem",)


def test_dangling_link_is_left_alone(store_fd: int, tmp_path: Path) -> None:
    """A link that leads nowhere in the place of a key is somebody's decision: it stays."""
    (tmp_path / "xensource").mkdir()
    (tmp_path / "xensource/xapi-pool-tls.pem").symlink_to("nowhere")
    assert ensure_identity(store_fd, host_uuid=UUID).created == ("xensource/xapi-ssl.pem",)


def test_interrupted_refresh_is_not_papered_over(store_fd: int, tmp_path: Path) -> None:
    """Between the two renames of the platform's refresh no third key is made."""
    ensure_identity(store_fd, host_uuid=UUID)
    (tmp_path / "xensource/xapi-pool-tls.pem").rename(tmp_path / "xensource/xapi-pool-tls.new")
    report = ensure_identity(store_fd, host_uuid=UUID)
    assert report.created == ()
    assert "run certfs repair" in report.problems[0]


def test_uuid_is_kept(store_fd: int, tmp_path: Path) -> None:
    """A store's host UUID is made once and kept in the store."""
    made = host_uuid(store_fd)
    assert host_uuid(store_fd) == made
    assert (tmp_path / ".certfs/host-uuid").read_text() == f"{made}\n"


def test_uuid_of_an_existing_pool_certificate_is_taken(store_fd: int) -> None:
    """A store that was a host's already keeps that host's UUID."""
    ensure_identity(store_fd, host_uuid=UUID)
    assert host_uuid(store_fd) == UUID


def test_uuid_file_with_something_else(store_fd: int, tmp_path: Path) -> None:
    """A file that holds no UUID is an error that names it, not silently replaced."""
    (tmp_path / ".certfs").mkdir()
    (tmp_path / ".certfs/host-uuid").write_text("my host\n")
    with pytest.raises(StoreError, match=r"\.certfs/host-uuid .* does not hold a UUID"):
        host_uuid(store_fd)
