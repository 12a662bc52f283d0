"""What a symbolic link leads to is judged with the user and group of the link itself (I19)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from certfs.store import backing, cached
from tests.store.scenes import Store, spec, store
from tests.support import liar, pki
from tests.support.mounts import need_root

SECRET, PUBLIC = (pki.authority(f"owner {name}") for name in ("secret", "public"))
USER = 65534


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Give a user's store; beside it a directory that only root may look into, and one for everybody."""
    need_root()
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_uid == 0 and parent != Path("/tmp"):
            parent.chmod(parent.stat().st_mode | 0o011)
    (tmp_path / "store" / "certs").mkdir(parents=True)
    for name, mode, ca in (("secret", 0o700, SECRET), ("public", 0o755, PUBLIC)):
        (tmp_path / name).mkdir(mode=mode)
        (tmp_path / name / "ca.pem").write_bytes(ca.pem)
    (tmp_path / "public" / "root-only.pem").write_bytes(SECRET.pem)
    (tmp_path / "public" / "root-only.pem").chmod(0o600)
    return tmp_path / "store"


@pytest.fixture
def opened(root: Path) -> Iterator[Store]:
    """Read the store as root."""
    found = store(root, [spec("certs", "ca.pem")])
    yield found
    found.close()


def link(path: Path, target: str, uid: int) -> None:
    """Make a link of this user and group."""
    path.symlink_to(target)
    os.chown(path, uid, uid, follow_symlinks=False)


async def test_a_link_shows_nobody_what_its_owner_may_not_read(opened: Store, root: Path) -> None:
    """I19: a user's link into a directory of root's, or to a file of root's, gives a reason and no certificate."""
    link(root / "certs" / "a.pem", "../../secret/ca.pem", USER)
    link(root / "certs" / "b.pem", "../../public/root-only.pem", USER)
    link(root / "certs" / "c.pem", "../../public/ca.pem", USER)
    await opened.trust.poll_events()
    assert opened.content("ca.pem") == PUBLIC.pem
    bundle = opened.bundle("ca.pem")
    assert bundle is not None
    reasons = {name: source.content.remarks for name, source in bundle.catalog.sources()}
    for name in (b"a.pem", b"b.pem"):
        (remark,) = reasons[name]
        assert "Permission denied" in remark.reason


async def test_a_link_of_root_leads_where_root_may_read(opened: Store, root: Path) -> None:
    """I6: the admin's own links work as before."""
    link(root / "certs" / "a.pem", "../../secret/ca.pem", 0)
    await opened.trust.poll_events()
    assert opened.content("ca.pem") == SECRET.pem


async def test_a_user_s_link_behind_root_s_is_the_user_s(opened: Store, root: Path) -> None:
    """I19: from the user's link on the way is the user's, whoever owns the one before."""
    link(root / "hop", "../secret/ca.pem", USER)
    link(root / "certs" / "a.pem", "../hop", 0)
    await opened.trust.poll_events()
    assert opened.content("ca.pem") == b""


@pytest.mark.parametrize("target, expected", [("secret", b""), ("public", PUBLIC.pem)])
async def test_a_source_directory_behind_a_user_s_link(
    root: Path, target: str, expected: bytes
) -> None:
    """I19: of a directory that a user's link leads to, what the user may list and read counts."""
    (root / "certs").rmdir()
    link(root / "certs", f"../{target}", USER)
    found = store(root, [spec("certs", "ca.pem")])
    assert found.content("ca.pem") == expected
    found.close()


async def test_a_link_is_its_server_s_whatever_that_says(root: Path) -> None:
    """I19: a file system of another user's says that a link is root's; what it leads to is for that user to see."""
    place = root.parent / "place"
    place.mkdir()
    link(root / "more", "../place/certs", 0)
    with liar.lying(place, root.parent / "secret/ca.pem"):
        found = store(root, [spec("more", "more.pem")])
        await found.trust.poll_events()
        bundle = found.bundle("more.pem")
        assert bundle is not None
        ((name, source),) = bundle.catalog.sources()
        found.close()
    assert name == b"link.pem"
    assert not source.content.certificates
    assert "Permission denied" in source.content.remarks[0].reason


async def test_a_directory_without_an_end_is_not_listed(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I18: another user's file system makes up names for ever; nobody collects them for as long."""
    monkeypatch.setattr(cached, "MOST_NAMES", 10_000)
    place = root.parent / "place"
    place.mkdir()
    link(root / "more", "../place/endless", USER)
    with liar.lying(place, root):
        fd = os.open(place / "endless", os.O_RDONLY)
        for list_it in (cached.names_in, lambda directory: backing.list_names(directory, 0)):
            with pytest.raises(OSError, match="more than 10000 names"):
                list_it(fd)
        os.close(fd)
        found = store(root, [spec("more", "more.pem"), spec("certs", "ca.pem")])
        await found.trust.poll_events()
        assert found.content("more.pem") == b""
        found.close()
