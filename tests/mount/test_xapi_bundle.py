"""I8: a bundle is read-only by nature, and the end of the regeneration script changes nothing."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import mounts, peer, pki
from tests.support.mounts import CertfsMount
from tests.support.peer import Peer
from tests.support.syscalls import Rename, renameat2
from tests.support.tree import Tree

pytestmark = [pytest.mark.mount, pytest.mark.counted]

_TEXT = pki.authority("in the bundle").pem
_OTHER = pki.authority("other").pem


@pytest.fixture(scope="module")
def shared_mount() -> Iterator[CertfsMount]:
    """Mount once for the module."""
    with mounts.mounted() as mount:
        yield mount


@pytest.fixture
def tree(shared_mount: CertfsMount) -> Iterator[Tree]:
    """Give the tree with one certificate in `certs`; whatever a test left is removed."""
    tree = shared_mount.tree
    (tree.certs / "a.pem").write_bytes(_TEXT)
    yield tree
    for name in os.listdir(tree.stunnel):
        path = tree.stunnel / name
        if path.is_file() and path not in (tree.user_bundle, tree.pool_bundle):
            path.unlink()
    for name in os.listdir(tree.certs):
        (tree.certs / name).unlink()


def _result(function: Callable[..., object], *arguments: object) -> str:
    try:
        function(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "ok"


def _rename(source: Path, target: Path, flags: int = 0) -> str:
    return _result(renameat2, os.fsencode(source), os.fsencode(target), flags)


REFUSED: dict[str, Callable[[Path, Path], object]] = {
    "open for writing": lambda bundle, _: os.open(bundle, os.O_WRONLY),
    "open for reading and writing": lambda bundle, _: os.open(bundle, os.O_RDWR),
    "open for appending": lambda bundle, _: os.open(bundle, os.O_WRONLY | os.O_APPEND),
    "open with O_TRUNC": lambda bundle, _: os.open(bundle, os.O_WRONLY | os.O_TRUNC),
    "open with O_CREAT": lambda bundle, _: os.open(bundle, os.O_WRONLY | os.O_CREAT, 0o644),
    "read only with O_TRUNC": lambda bundle, _: os.open(bundle, os.O_RDONLY | os.O_TRUNC),
    "truncate": lambda bundle, _: os.truncate(bundle, 0),
    "unlink": lambda bundle, _: os.unlink(bundle),
    "link": os.link,
    "rename away": os.rename,
    "chmod to another mode": lambda bundle, _: os.chmod(bundle, 0o600),
    "chown to somebody": lambda bundle, _: os.chown(bundle, 20_001, 20_001),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_change_of_the_bundle_is_refused(tree: Tree, other_process: Peer, what: str) -> None:
    """I8: whatever would change the bundle is EPERM, and it is what it was."""
    place = tree.stunnel / "place"
    assert _result(REFUSED[what], tree.user_bundle, place) == "EPERM"
    assert other_process.call(peer.read_or_none, str(tree.user_bundle)) == _TEXT
    assert not place.exists()


def test_what_an_existing_file_answers_the_bundle_answers(tree: Tree) -> None:
    """I8: exclusive creation, mkdir, rmdir and symlink give what they give on any file."""
    bundle = tree.user_bundle
    exclusive = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    assert _result(os.open, bundle, exclusive, 0o644) == "EEXIST"
    assert _result(os.mkdir, bundle) == "EEXIST"
    assert _result(os.symlink, "x", bundle) == "EEXIST"
    assert _result(os.mkfifo, bundle) == "EEXIST"
    assert _result(os.rmdir, bundle) == "ENOTDIR"
    assert _result(os.listdir, bundle) == "ENOTDIR"
    assert _result(os.readlink, bundle) == "EINVAL"
    assert _result(os.link, tree.certs / "a.pem", bundle) == "EEXIST"


def test_chmod_to_its_own_mode_succeeds(tree: Tree) -> None:
    """I8: XAPI's chmod 0644 succeeds, and the bundle has that mode."""
    os.chmod(tree.user_bundle, 0o644)
    status = tree.user_bundle.stat()
    assert oct(status.st_mode) == "0o100644"
    assert (status.st_uid, status.st_gid, status.st_nlink) == (os.geteuid(), os.getegid(), 1)
    assert status.st_size == len(_TEXT)


@pytest.mark.parametrize("name", ["xapi-stunnel-ca-bundle.pem.tmp", "xapi-stunnel-ca-bundle.tmp"])
@pytest.mark.parametrize("content", [b"", _OTHER, b"junk"], ids=["empty", "other", "junk"])
def test_the_scripts_last_rename_succeeds_and_changes_nothing(
    tree: Tree, other_process: Peer, content: bytes, name: str
) -> None:
    """I8: the script's last rename, of older releases too, consumes its file; the bundle stays true."""
    temporary = tree.stunnel / name
    temporary.write_bytes(content)
    assert temporary.read_bytes() == content
    assert _rename(temporary, tree.user_bundle, Rename.NOREPLACE) == "EEXIST"
    assert temporary.exists()
    assert _rename(temporary, tree.user_bundle) == "ok"
    assert not temporary.exists()
    assert other_process.call(peer.read_or_none, str(tree.user_bundle)) == _TEXT
    beneath = tree.store / "stunnel" / temporary.name
    assert not beneath.exists()


def test_the_last_rename_onto_an_absent_bundle_leaves_it_absent(
    tree: Tree, other_process: Peer
) -> None:
    """I7, I8: with no sources the script's result is consumed, and there is still no bundle."""
    (tree.certs / "a.pem").unlink()
    temporary = tree.user_bundle.with_name(tree.user_bundle.name + ".tmp")
    for flags in (Rename.NONE, Rename.NOREPLACE):
        temporary.write_bytes(_OTHER)
        assert _rename(temporary, tree.user_bundle, flags) == "ok"
        assert not temporary.exists()
        assert other_process.call(peer.read_or_none, str(tree.user_bundle)) is None
    assert tree.user_bundle.name not in os.listdir(tree.stunnel)


def test_the_script_of_older_releases_sees_no_error(tree: Tree, other_process: Peer) -> None:
    """I8: they do not put .tmp behind the bundle's name but in the place of its .pem."""
    script = """
        set -e
        mkdir -p "$1/certs"
        cat "$1"/certs/*.pem > "$1/xapi-stunnel-ca-bundle.tmp"
        mv "$1/xapi-stunnel-ca-bundle.tmp" "$1/xapi-stunnel-ca-bundle.pem"
    """
    subprocess.run(["sh", "-c", script, "sh", tree.stunnel], check=True, timeout=30)
    assert other_process.call(peer.read_or_none, str(tree.user_bundle)) == _TEXT
    (tree.certs / "b.pem").write_bytes(_OTHER)
    # The name that the rename left in the kernel's memory must not outlive the change (I1).
    assert other_process.call(peer.read_or_none, str(tree.user_bundle)) == _TEXT + _OTHER


def test_any_other_rename_onto_the_bundle_is_refused(tree: Tree, other_process: Peer) -> None:
    """I8: another file cannot take the bundle's name, and it stays where it is."""
    for name in (
        "other",
        "xapi-pool-ca-bundle.pem.tmp",
        "xapi-pool-ca-bundle.tmp",
        f"{tree.user_bundle.name}.tmp2",
    ):
        source = tree.stunnel / name
        source.write_bytes(_OTHER)
        assert _rename(source, tree.user_bundle) == "EPERM"
        assert source.read_bytes() == _OTHER
    assert _rename(tree.pool_bundle, tree.user_bundle) == "EPERM"
    assert other_process.call(peer.read_or_none, str(tree.user_bundle)) == _TEXT


def test_an_exchange_with_the_bundle_is_refused(tree: Tree, other_process: Peer) -> None:
    """I8: RENAME_EXCHANGE would move the bundle away: EPERM, both stay."""
    temporary = tree.user_bundle.with_name(tree.user_bundle.name + ".tmp")
    temporary.write_bytes(_OTHER)
    assert _rename(temporary, tree.user_bundle, Rename.EXCHANGE) == "EPERM"
    assert _rename(tree.user_bundle, temporary, Rename.EXCHANGE) == "EPERM"
    assert temporary.read_bytes() == _OTHER
    assert other_process.call(peer.read_or_none, str(tree.user_bundle)) == _TEXT


def test_the_bundles_own_temporary_file_is_a_file_like_any(tree: Tree) -> None:
    """I8: BUNDLE.tmp can be created, written, linked, renamed and removed."""
    temporary = tree.user_bundle.with_name(tree.user_bundle.name + ".tmp")
    temporary.write_bytes(b"1")
    with temporary.open("ab") as file:
        file.write(b"2")
    os.link(temporary, tree.stunnel / "second")
    assert (tree.stunnel / "second").read_bytes() == b"12"
    temporary.rename(tree.stunnel / "third")
    (tree.stunnel / "third").rename(temporary)
    temporary.unlink()
    assert not temporary.exists()


def test_the_bundle_is_listed_when_it_exists(tree: Tree) -> None:
    """I7: readdir names the bundle exactly while it has a certificate, and never twice."""
    assert os.listdir(tree.stunnel).count(tree.user_bundle.name) == 1
    (tree.certs / "a.pem").unlink()
    assert tree.user_bundle.name not in os.listdir(tree.stunnel)
    (tree.certs / "a.pem").write_bytes(_TEXT)
    assert os.listdir(tree.stunnel).count(tree.user_bundle.name) == 1


def test_no_name_of_its_own_is_in_any_directory(tree: Tree) -> None:
    """A CRLpath that is not empty but has no CRL fails every connection: certfs adds no name."""
    (tree.stunnel / "crls").mkdir()
    assert os.listdir(tree.stunnel / "crls") == []
    assert sorted(os.listdir(tree.certs)) == ["a.pem"]
    assert sorted(os.listdir(tree.stunnel)) == [
        "certs",
        "certs-pool",
        "crls",
        tree.pool_bundle.name,
        tree.user_bundle.name,
    ]
    (tree.stunnel / "crls").rmdir()


def test_directories_with_a_bundle_are_not_removed(tree: Tree) -> None:
    """I8: rmdir of a directory that shows a bundle is ENOTEMPTY, as with any file in it."""
    assert _result(os.rmdir, tree.stunnel) == "ENOTEMPTY"
