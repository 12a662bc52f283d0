"""What a mount finds in the place of a bundle: its time stays, and what only it held is not lost (I12, I17)."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest

from certfs.core.certificate import parse_source
from certfs.server.plain_copies import PlainCopies
from tests.store.scenes import Store, spec, store
from tests.support import pki

KNOWN, HAND_ADDED, NEW = (pki.authority(f"first {name}") for name in ("known", "hand", "new"))
ASIDE = "ca.pem.before-certfs"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Give a store with one source."""
    (tmp_path / "store" / "certs").mkdir(parents=True)
    (tmp_path / "store" / "certs" / "a.pem").write_bytes(KNOWN.pem)
    return tmp_path / "store"


async def serve(root: Path, notes: Path | None = None) -> Store:
    """Start as a server does: read, go on from the last one, write the plain copies."""
    found = store(root, [spec("certs", "ca.pem")], undo_log=notes)
    await found.trust.recover()
    found.trust.record()
    await PlainCopies(found.trust, active=True).flush()
    return found


async def test_a_restart_without_a_change_moves_no_time(root: Path, tmp_path: Path) -> None:
    """I17: caches, rsync and monitoring see the file of before, through the mount and without it."""
    times = set()
    for _ in range(3):
        found = await serve(root, tmp_path / "notes")
        bundle = found.bundle("ca.pem")
        assert bundle is not None
        times |= {bundle.generation.changed_ns, (root / "ca.pem").stat().st_mtime_ns}
        found.close()
    assert len(times) == 1
    (root / "certs" / "b.pem").write_bytes(NEW.pem)
    found = await serve(root, tmp_path / "notes")
    bundle = found.bundle("ca.pem")
    assert bundle is not None
    assert bundle.generation.changed_ns > max(times)
    assert bundle.generation.changed_ns == (root / "ca.pem").stat().st_mtime_ns
    found.close()


async def test_an_empty_bundle_was_last_changed_when_its_directory_was(root: Path) -> None:
    """I17: also a bundle without a certificate, which has no copy to keep the time, has that of before a restart."""
    (root / "certs" / "a.pem").unlink()
    os.utime(root / "certs", ns=(10**18, 10**18))
    for _ in range(2):
        found = await serve(root)
        bundle = found.bundle("ca.pem")
        assert bundle is not None
        assert bundle.generation.changed_ns == 10**18
        found.close()
    os.rmdir(root / "certs")
    (await serve(root)).close()


@pytest.mark.parametrize("sources", [1, 0], ids=["some sources", "no source"])
async def test_what_only_the_former_bundle_held_is_kept_aside(
    root: Path, sources: int, caplog: pytest.LogCaptureFixture
) -> None:
    """I12: it is said which certificate is not trusted any more, and the file as it was stays beside the bundle."""
    former = b"# by hand\r\n" + KNOWN.pem.replace(b"\n", b"\r\n") + HAND_ADDED.pem
    (root / "ca.pem").write_bytes(former)
    if not sources:
        (root / "certs" / "a.pem").unlink()
    found = await serve(root)
    assert (root / ASIDE).read_bytes() == former
    assert f"sha256={HAND_ADDED.sha256}" in caplog.text
    assert (f"sha256={KNOWN.sha256}" in caplog.text) == (not sources)
    bundle = found.bundle("ca.pem")
    assert bundle is not None
    kept = {one.fingerprint.hex() for one in found.trust.kept_aside(bundle)}
    assert HAND_ADDED.sha256 in kept
    # It is settled when the certificate is trusted again, or the file is gone.
    await found.put("certs/hand.pem", HAND_ADDED.pem)
    await found.put("certs/a.pem", KNOWN.pem)
    assert found.trust.kept_aside(bundle) == ()
    found.close()


async def test_what_a_later_mount_finds_joins_what_was_kept(root: Path) -> None:
    """I12: the file of the first mount stays as it was, and no certificate that comes later is lost beside it."""
    first = b"# by hand\n" + NEW.pem.rstrip()
    (root / ASIDE).write_bytes(first)
    (root / ASIDE).chmod(0o600)
    for _ in range(2):
        (root / "ca.pem").unlink(missing_ok=True)
        (root / "ca.pem").write_bytes(NEW.pem + HAND_ADDED.pem)
        (await serve(root)).close()
    kept = (root / ASIDE).read_bytes()
    assert kept.startswith(first)
    found = [one.fingerprint.hex() for one in parse_source(kept).certificates]
    assert found == [NEW.sha256, HAND_ADDED.sha256]
    assert stat.S_IMODE((root / ASIDE).stat().st_mode) == 0o600


async def test_what_a_link_in_the_place_of_the_bundle_led_to_is_kept(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """I12: a bundle that was a link to another file loses its certificates no more silently than a file."""
    elsewhere = tmp_path / "elsewhere.pem"
    elsewhere.write_bytes(HAND_ADDED.pem)
    (root / "ca.pem").symlink_to(elsewhere)
    found = await serve(root)
    assert f"sha256={HAND_ADDED.sha256}" in caplog.text
    assert (root / ASIDE).read_bytes() == elsewhere.read_bytes() == HAND_ADDED.pem
    bundle = found.bundle("ca.pem")
    assert bundle is not None
    assert [one.fingerprint.hex() for one in found.trust.kept_aside(bundle)] == [HAND_ADDED.sha256]
    found.close()


async def test_a_copy_of_certfs_is_kept_where_its_source_directory_has_gone(root: Path) -> None:
    """I12: who removes certificates removes files; a directory that is gone altogether was lost, as in an upgrade."""
    (await serve(root)).close()
    shutil.rmtree(root / "certs")
    (await serve(root)).close()
    assert (root / ASIDE).read_bytes() == KNOWN.pem


@pytest.mark.parametrize("former", [b"", KNOWN.pem, b"junk"])
async def test_a_bundle_of_known_certificates_leaves_nothing(root: Path, former: bytes) -> None:
    """I12: what the script of the platform made is replaced without a word."""
    (root / "ca.pem").write_bytes(former)
    (await serve(root)).close()
    assert sorted(os.listdir(root)) == ["ca.pem", "certs"]


async def test_a_copy_of_certfs_itself_is_no_other_s(root: Path) -> None:
    """I12: what was removed while nothing was mounted was meant to go."""
    (await serve(root)).close()
    if not os.listxattr(root / "ca.pem"):
        pytest.skip("no extended attributes here")
    (root / "certs" / "a.pem").unlink()
    (await serve(root)).close()
    assert os.listdir(root) == ["certs"]
    (root / "certs" / "a.pem").write_bytes(KNOWN.pem)
    (await serve(root)).close()
    with (root / "ca.pem").open("ab") as file:
        file.write(HAND_ADDED.pem)
    (await serve(root)).close()
    assert (root / ASIDE).read_bytes() == KNOWN.pem + HAND_ADDED.pem
