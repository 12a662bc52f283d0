"""XAPI's sequences do on a plain directory what the design says they do."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable

import pytest

from tests.support import mounts, pki, snapshot
from tests.support.tree import Tree
from tests.support.xapi import Xapi

HOST = str(uuid.UUID(int=1))


def _bundle(tree: Tree) -> set[str]:
    data = tree.pool_bundle.read_bytes() if tree.pool_bundle.exists() else b""
    return set(pki.certificates_in(data.replace(b"\n\n", b"\n")))


def test_install_and_uninstall(plain_directory: Tree) -> None:
    """Installing makes file, bundle and hash link; uninstalling leaves nothing of them."""
    xapi = Xapi(plain_directory)
    authority = pki.authority()
    xapi.install_ca("mine.pem", authority.pem)
    assert plain_directory.user_bundle.read_bytes() == authority.pem + b"\n"
    links = [name for name in plain_directory.certs.iterdir() if name.is_symlink()]
    assert [os.readlink(link) for link in links] == ["mine.pem"]
    xapi.uninstall_ca("mine.pem")
    assert list(plain_directory.certs.iterdir()) == []
    assert not plain_directory.user_bundle.exists()


def test_erase_old_replaces_and_merge_adds(plain_directory: Tree) -> None:
    """After a distribution the directory holds the new files, or old and new ones."""
    xapi = Xapi(plain_directory)
    old, new, more = pki.many(3)
    xapi.erase_old(plain_directory.certs_pool, {"old.pem": old.pem})
    xapi.erase_old(plain_directory.certs_pool, {"new.pem": new.pem})
    assert {name.name for name in plain_directory.certs_pool.iterdir()} == {"new.pem"}
    xapi.merge(plain_directory.certs_pool, {"more.pem": more.pem})
    xapi.regenerate(plain_directory.certs_pool, plain_directory.pool_bundle)
    assert _bundle(plain_directory) == {new.sha256, more.sha256}
    assert {name.name for name in plain_directory.stunnel.iterdir()} == {
        "certs",
        "certs-pool",
        "xapi-pool-ca-bundle.pem",
    }


def test_a_left_over_backup_does_not_stop_a_distribution(plain_directory: Tree) -> None:
    """With a non-empty D.bk the rename fails with ENOTEMPTY and the certificates arrive."""
    xapi = Xapi(plain_directory)
    backup = plain_directory.stunnel / "certs-pool.bk"
    backup.mkdir()
    (backup / "left.pem").write_bytes(b"left")
    xapi.erase_old(plain_directory.certs_pool, {"new.pem": pki.authority().pem})
    results = {step.name: step.result for step in xapi.steps}
    assert results["mkdir stunnel/certs-pool.bk"] == "EEXIST"
    assert results["rename stunnel/certs-pool stunnel/certs-pool.bk"] == "ENOTEMPTY"
    assert (plain_directory.certs_pool / "new.pem").exists()
    assert not backup.exists()


def test_a_refresh_has_both_certificates_in_between(plain_directory: Tree) -> None:
    """During a refresh the old and the new certificate are trusted, afterwards the new one."""
    xapi = Xapi(plain_directory)
    old, new = pki.pool_certificate(), pki.pool_certificate()
    xapi.generate_key(plain_directory.pool_host_certificate, old.host_pem)
    xapi.merge(plain_directory.certs_pool, {f"{HOST}.pem": old.pem})
    xapi.refresh_start(HOST, new.host_pem, new.pem)
    assert _bundle(plain_directory) == {old.sha256, new.sha256}
    xapi.refresh_switch()
    xapi.refresh_finish(HOST)
    assert _bundle(plain_directory) == {new.sha256}
    assert plain_directory.pool_host_certificate.read_bytes() == new.host_pem


def test_the_script_by_hand_is_the_script(plain_directory: Tree) -> None:
    """The script's calls made one by one leave the bytes that the script leaves."""
    xapi = Xapi(plain_directory)
    one, two = pki.many(2)
    (plain_directory.certs_pool / "b.pem").write_bytes(one.pem)
    (plain_directory.certs_pool / "a.new.pem").write_bytes(two.pem)
    arguments = (plain_directory.certs_pool, plain_directory.pool_bundle)
    xapi.script(*arguments)
    by_script = plain_directory.pool_bundle.read_bytes()
    xapi.script_by_hand(*arguments)
    assert (
        plain_directory.pool_bundle.read_bytes() == by_script == two.pem + b"\n" + one.pem + b"\n"
    )


def test_eject_removes_the_pool(plain_directory: Tree) -> None:
    """An ejected host has neither bundles nor sources nor its pool key."""
    xapi = Xapi(plain_directory)
    identity = pki.pool_certificate()
    xapi.generate_key(plain_directory.pool_host_certificate, identity.host_pem, mode=0o440)
    xapi.merge(plain_directory.certs_pool, {f"{HOST}.pem": identity.pem})
    xapi.eject_self()
    left = snapshot.take(os.fsencode(plain_directory.root))
    assert sorted(left) == [b"stunnel", b"xensource"]


def test_two_runs_on_plain_directories_are_the_same() -> None:
    """The recorded steps and the final tree do not depend on where the directory is."""
    with mounts.plain() as one, mounts.plain() as two:
        runs = []
        for tree in (one, two):
            xapi = Xapi(tree)
            xapi.install_ca("mine.pem", b"junk")
            xapi.write_token(tree.certs / "mine.pem", b"JU")
            runs.append((xapi.steps, snapshot.take(os.fsencode(tree.root))))
        assert runs[0][0] == runs[1][0]
        assert not snapshot.differences(runs[0][1], runs[1][1])


def test_a_snapshot_sees_every_kind_of_difference(plain_directory: Tree) -> None:
    """Content, mode, links, targets and attributes each make two trees different."""
    root = plain_directory.root
    (root / "file").write_bytes(b"x")
    (root / "link").symlink_to("file")
    before = snapshot.take(os.fsencode(root))
    changes: dict[str, Callable[[], object]] = {
        "content": lambda: (root / "file").write_bytes(b"y"),
        "mode": lambda: (root / "file").chmod(0o600),
        "links": lambda: os.link(root / "file", root / "hard"),
        "attributes": lambda: os.setxattr(root / "file", "user.a", b"1"),
    }
    for what, change in changes.items():
        change()
        after = snapshot.take(os.fsencode(root))
        assert any(what in line for line in snapshot.differences(before, after)), what
        before = after


@pytest.mark.parametrize("result", ["ENOENT"])
def test_an_error_is_recorded_and_raised(plain_directory: Tree, result: str) -> None:
    """Uninstalling what is not there is an error, recorded with its errno."""
    xapi = Xapi(plain_directory)
    with pytest.raises(FileNotFoundError):
        xapi.uninstall_ca("none.pem")
    assert xapi.steps[-1].result == result
