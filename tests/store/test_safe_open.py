"""Root in directories of other users: which links it follows, and that no race makes it follow another (I19)."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from certfs.errors import CertfsError
from certfs.identity import repair
from certfs.identity.authorities import Purpose, install_authority
from certfs.identity.ensure import ensure_identity
from certfs.identity.paths import HostPaths
from certfs.identity.validate import Document
from certfs.safe_open import LinkRefusedError, make_beneath, open_beneath, open_trusted
from certfs.server.plain_copies import PlainCopies
from certfs.store.layout import make_directories
from tests.store.scenes import spec, store
from tests.support import mounts, pki
from tests.support.mounts import need_root

MINE, PLANTED = (pki.authority(name) for name in ("mine", "planted"))
USER = 65534
UUID = "6fdb9f34-5f0a-4f6c-9f4e-6f6e3b7d0f11"
BUNDLE = spec("stunnel/certs", "stunnel/ca.pem")

_EXCHANGER = """
import ctypes, sys
libc = ctypes.CDLL(None)
one, other = (name.encode() for name in sys.argv[1:])
print(flush=True)
while True:
    libc.renameat2(-100, one, -100, other, 2)
"""


@contextmanager
def exchanging(one: Path, other: Path) -> Iterator[None]:
    """Exchange two names as fast as a process can, all the time."""
    attacker = subprocess.Popen(
        [sys.executable, "-c", _EXCHANGER, str(one), str(other)], stdout=subprocess.PIPE
    )
    try:
        assert attacker.stdout is not None
        attacker.stdout.readline()
        yield
    finally:
        attacker.kill()
        attacker.communicate()


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """Give a directory outside of the store, such as /etc/stunnel, with a bundle of its own."""
    path = tmp_path / "victim"
    (path / "certs").mkdir(parents=True)
    (path / "ca.pem").write_bytes(MINE.pem)
    return path


@pytest.fixture
def root(tmp_path: Path, victim: Path) -> Path:
    """Give a user's store with one source, and beside ``stunnel`` a link that leads out of the store."""
    need_root()
    path = tmp_path / "store"
    (path / "stunnel" / "certs").mkdir(parents=True)
    (path / "stunnel" / "certs" / "a.pem").write_bytes(PLANTED.pem)
    (path / "evil").symlink_to(victim)
    for entry in (path, *path.rglob("*")):
        os.chown(entry, USER, USER, follow_symlinks=False)
    return path


def untouched(victim: Path) -> bool:
    """Tell whether the directory outside is as it was."""
    return (
        sorted(os.listdir(victim)) == ["ca.pem", "certs"]
        and (victim / "ca.pem").read_bytes() == MINE.pem
        and os.listdir(victim / "certs") == []
    )


async def test_no_race_writes_a_plain_copy_outside_of_the_store(root: Path, victim: Path) -> None:
    """I12, I19: whatever the owner of a store exchanges meanwhile, root writes beneath the store."""
    opened = store(root, [BUNDLE])
    copies = PlainCopies(opened.trust, active=True)
    certs = root / "stunnel" / "certs"
    with exchanging(root / "stunnel", root / "evil"):
        deadline = time.monotonic() + 1.5
        while time.monotonic() < deadline:
            await opened.trust.poll_events()
            await opened.trust.changed(opened.id(), b"stunnel", None)
            await copies.flush()
    assert untouched(victim)
    if (root / "stunnel").is_symlink():
        (root / "stunnel").rename(root / "out")
        (root / "evil").rename(root / "stunnel")
    await opened.trust.changed(opened.id(), b"stunnel", None)
    (certs / "b.pem").write_bytes(MINE.pem)
    await opened.changed("stunnel/certs/b.pem")
    await copies.flush()
    assert (root / "stunnel" / "ca.pem").read_bytes() == opened.content("stunnel/ca.pem")
    opened.close()


async def test_a_bundle_whose_directory_is_a_link_says_so(root: Path, victim: Path) -> None:
    """I9: the plain copy of such a bundle is not written, and the reason names the link."""
    (root / "stunnel").rename(root / "real")
    (root / "stunnel").symlink_to("real")
    opened = store(root, [BUNDLE])
    copies = PlainCopies(opened.trust, active=True)
    await copies.flush()
    assert list(copies.stale()) == ["stunnel/ca.pem: stunnel: a symbolic link is not followed"]
    assert not (root / "real" / "ca.pem").exists()
    assert untouched(victim)
    opened.close()


async def test_a_directory_that_left_the_store_is_not_written_to(
    root: Path, tmp_path: Path
) -> None:
    """I12: each write looks for the place anew: only where the bundle was resolved, a copy is written."""
    opened = store(root, [BUNDLE])
    copies = PlainCopies(opened.trust, active=True)
    (root / "stunnel").rename(tmp_path / "moved")
    (root / "stunnel" / "certs").mkdir(parents=True)
    bundle = opened.bundle("stunnel/ca.pem")
    assert bundle is not None
    with pytest.raises(OSError, match="exchanged a moment ago"):
        opened.trust.open_place(bundle)
    (root / "stunnel" / "certs" / "b.pem").write_bytes(MINE.pem)
    await copies.flush()
    assert not (tmp_path / "moved" / "ca.pem").exists()
    assert (root / "stunnel" / "ca.pem").read_bytes() == MINE.pem
    opened.close()


@pytest.mark.parametrize("linked", ["stunnel", "stunnel/certs", "a"])
def test_no_directory_is_made_through_a_link(root: Path, victim: Path, linked: str) -> None:
    """I19: what a store lacks is made in the store, never where a link of its owner leads."""
    (root / "stunnel" / "certs" / "a.pem").unlink()
    for name in ("stunnel/certs", "stunnel"):
        if name.startswith(linked):
            (root / name).rmdir()
    (root / linked).symlink_to(victim / "certs")
    fd = os.open(root, os.O_PATH)
    make_directories(fd, [spec("stunnel/certs/deep", "a/b/out.pem")], platform=True)
    os.close(fd)
    assert untouched(victim)


@pytest.mark.parametrize("linked", ["xensource", "stunnel", "stunnel/certs-pool"])
def test_no_identity_is_made_through_a_link(root: Path, victim: Path, linked: str) -> None:
    """I19: root makes keys in the store that it serves, or none."""
    need_root()
    if (root / linked).exists():
        (root / linked).rename(root / "away")
    (root / linked).symlink_to(victim)
    os.chown(root / linked, USER, USER, follow_symlinks=False)
    fd = os.open(root, os.O_PATH)
    with pytest.raises(LinkRefusedError):
        ensure_identity(fd, host_uuid=UUID)
    os.close(fd)
    assert untouched(victim)


@pytest.mark.parametrize("linked", ["xensource", "stunnel", "stunnel/certs-pool", "stunnel/certs"])
def test_a_repair_by_root_stays_in_the_store(root: Path, victim: Path, linked: str) -> None:
    """I19: `repair --store` in a user's store follows none of the user's links."""
    need_root()
    fd = os.open(root, os.O_PATH)
    ensure_identity(fd, host_uuid=UUID)
    os.close(fd)
    (root / "stunnel" / "certs-pool" / f"{UUID}.pem").unlink()
    (root / "xensource" / "xapi-ssl.pem").unlink()
    (root / linked).rename(root / "away")
    (root / linked).symlink_to(victim)
    os.chown(root / linked, USER, USER, follow_symlinks=False)
    with suppress(CertfsError):
        repair.repair(HostPaths.of_store(root))
    assert untouched(victim)


def test_no_directory_for_a_purpose_is_made_through_a_link(root: Path, victim: Path) -> None:
    """I19: a store that its owner has exchanged for a link gets no trusted-certs where that leads."""
    document = Document(Path("x.pem"), PLANTED.pem)
    with pytest.raises(CertfsError, match="link"):
        install_authority(
            HostPaths.of_store(root / "evil"), document, name="x.pem", purpose=Purpose("general")
        )
    assert untouched(victim)


def test_a_file_with_another_name_keeps_its_mode(root: Path, victim: Path) -> None:
    """I19: a hard link of a user must not make root change the mode of any file of the host."""
    need_root()
    (root / "xensource").mkdir()
    os.link(victim / "ca.pem", root / "xensource" / "xapi-ssl.pem")
    mode = (victim / "ca.pem").stat().st_mode
    with pytest.raises(Exception, match="another name"):
        repair.repair(HostPaths.of_store(root))
    assert (victim / "ca.pem").stat().st_mode == mode


def test_beneath_means_beneath(tmp_path: Path) -> None:
    """I19: neither a link nor `..` nor a path in one component leads out of a directory."""
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "link").symlink_to("deep")
    root = os.open(tmp_path / "in", os.O_PATH)
    os.close(open_beneath(root, (b"deep",)))
    for path, code in (
        ((b"link",), errno.ELOOP),
        ((b"deep", b".."), errno.EXDEV),
        ((b"deep/../..",), errno.EXDEV),
        ((b"none",), errno.ENOENT),
    ):
        for opening in (open_beneath, lambda at, names: make_beneath(at, names, 0o700)):
            if code == errno.ENOENT and opening is not open_beneath:
                continue
            with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is compared
                opening(root, path)
            assert caught.value.errno == code
    os.close(root)


def test_a_link_is_followed_by_root_where_no_other_user_can_exchange_it(tmp_path: Path) -> None:
    """I19: an admin's own links work; a user's, and those in a directory that others may change, do not."""
    need_root()
    tmp_path.chmod(0o755)
    (tmp_path / "target").write_text("content")
    link = tmp_path / "link"
    link.symlink_to("target")
    os.close(open_trusted(str(link), os.O_RDONLY))
    os.chown(link, USER, USER, follow_symlinks=False)
    with pytest.raises(LinkRefusedError):
        open_trusted(str(link), os.O_RDONLY)
    os.chown(link, 0, 0, follow_symlinks=False)
    tmp_path.chmod(0o777)
    with pytest.raises(LinkRefusedError):
        open_trusted(str(link), os.O_RDONLY)
    tmp_path.chmod(0o1777)
    os.close(open_trusted(str(link), os.O_RDONLY))


def test_a_loop_of_links_ends(tmp_path: Path) -> None:
    """I18: links that lead to each other are ELOOP, as with open(2)."""
    (tmp_path / "one").symlink_to("two/x")
    (tmp_path / "two").symlink_to("one/x")
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is compared
        open_trusted(str(tmp_path / "one"), os.O_RDONLY)
    assert caught.value.errno == errno.ELOOP


@pytest.mark.mount
def test_no_race_makes_a_mount_write_outside_of_a_user_s_store(victim: Path) -> None:
    """I12, I19: a real server of root's, whose user exchanges a directory for a link to another host directory."""
    need_root()
    with mounts.mounted() as mount:
        mount.expected_log += ["plain copy", "symbolic link", "does not answer", "stunnel"]
        path = mount.tree.store
        (path / "evil").symlink_to(victim)
        for entry in (path, *path.rglob("*")):
            os.chown(entry, USER, USER, follow_symlinks=False)
        with exchanging(path / "stunnel", path / "evil"):
            deadline = time.monotonic() + 1.5
            while time.monotonic() < deadline:
                for place in ("stunnel", "evil"):
                    with suppress(OSError):
                        fd = os.open(path / place, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
                        certs = os.open("certs", os.O_PATH | os.O_DIRECTORY, dir_fd=fd)
                        source = os.open("x.pem", os.O_WRONLY | os.O_CREAT, dir_fd=certs)
                        os.write(source, PLANTED.pem)
                        for each in (source, certs, fd):
                            os.close(each)
                time.sleep(0.01)
        if (path / "stunnel").is_symlink():
            (path / "stunnel").rename(path / "out")
            (path / "evil").rename(path / "stunnel")
        mounts.wait_until(mount.tree.user_bundle.exists, what="the bundle")
        plain = path / "stunnel" / mount.tree.user_bundle.name
        mounts.wait_until(plain.exists, what="the plain copy in the store")
        assert untouched(victim)
