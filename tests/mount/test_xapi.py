"""XAPI's sequences on a mount: the same results as on a plain directory, the right bundle always.

I7, I8, I10 and the section "What XAPI does to these directories" of the design.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support import mounts, peer, pki, snapshot
from tests.support.mounts import CertfsMount
from tests.support.peer import Peer
from tests.support.tree import Tree
from tests.support.xapi import Step, Xapi

pytestmark = pytest.mark.mount

HOSTS = [str(uuid.UUID(int=number)) for number in range(1, 9)]


@dataclass(slots=True)
class Watch:
    """Looks at both bundles after every step, and knows what they must hold by I10.

    While a swap lasts, a bundle is the union of what it held at the `mkdir` and what its
    directory holds now.
    """

    tree: Tree
    process: Peer
    wrong: list[str] = field(default_factory=list)
    held: dict[str, set[str]] = field(default_factory=dict)
    last: dict[str, set[str]] = field(default_factory=dict)

    def _pairs(self) -> list[tuple[Path, Path]]:
        tree = self.tree
        return [(tree.certs, tree.user_bundle), (tree.certs_pool, tree.pool_bundle)]

    def start(self) -> None:
        """Take what the bundles hold before the first step."""
        for directory, bundle in self._pairs():
            self.last[directory.name] = self._seen(bundle)

    def __call__(self, step: Step) -> None:
        """Compare after a step."""
        for directory, bundle in self._pairs():
            name = directory.name
            backup = directory.with_name(f"{name}.bk")
            if step == Step(f"mkdir stunnel/{name}.bk", "ok"):
                self.held[name] = self.last[name]
            ended = step.name == f"rename stunnel/{bundle.name}.tmp stunnel/{bundle.name}"
            scripted = step.name.startswith("sh ") and step.name.endswith(bundle.name)
            if ended or scripted or not backup.exists():
                self.held.pop(name, None)
            expected = self._sources(directory) | self.held.get(name, set())
            seen = self._seen(bundle)
            if seen != expected:
                self.wrong.append(f"{step}: {len(seen)} in {bundle.name}, not {len(expected)}")
            self.last[name] = seen

    def _seen(self, bundle: Path) -> set[str]:
        return set(pki.certificates_in(self.process.call(peer.read_or_none, str(bundle)) or b""))

    def _sources(self, directory: Path) -> set[str]:
        beneath = self.tree.store / directory.relative_to(self.tree.root)
        if not beneath.is_dir():
            return set()
        texts = [path.read_bytes() for path in beneath.iterdir() if path.name.endswith(".pem")]
        return {one for text in texts for one in pki.certificates_in(text)}


@functools.cache
def _authority(name: str) -> bytes:
    """Give a certificate, the same one in both runs of a sequence."""
    return pki.authority(name).pem


@functools.cache
def _host(number: int, key: int = 0) -> pki.Identity:
    """Give a host's pool certificate, the same one in both runs of a sequence."""
    return pki.pool_certificate(uuid.UUID(HOSTS[number]), key=pki.rsa_key(key))


def _install(xapi: Xapi) -> None:
    xapi.install_ca("one.pem", _authority("one"))
    xapi.install_ca("two.pem", _authority("two"))


def _uninstall(xapi: Xapi) -> None:
    _install(xapi)
    xapi.uninstall_ca("one.pem")
    xapi.uninstall_ca("two.pem")
    with contextlib.suppress(FileNotFoundError):
        xapi.uninstall_ca("two.pem")


def _files(numbers: range) -> dict[str, bytes]:
    return {f"{HOSTS[number]}.pem": _host(number).pem for number in numbers}


def _erase_old(xapi: Xapi) -> None:
    pool, bundle = xapi.tree.certs_pool, xapi.tree.pool_bundle
    for hosts in (range(4), range(2, 8), range(1), range(3)):
        xapi.erase_old(pool, _files(hosts))
        xapi.regenerate(pool, bundle)


def _merge(xapi: Xapi) -> None:
    pool, bundle = xapi.tree.certs_pool, xapi.tree.pool_bundle
    for hosts in (range(4), range(2, 8)):
        xapi.merge(pool, _files(hosts))
        xapi.regenerate(pool, bundle)


def _both_at_once(xapi: Xapi) -> None:
    xapi.mkdir_p(xapi.tree.stunnel / "certs.bk", 0o700)
    _erase_old(xapi)
    xapi.rename(xapi.tree.certs, xapi.tree.stunnel / "certs.bk")
    xapi.mkdir_p(xapi.tree.certs, 0o700)
    xapi.atomic_write(xapi.tree.certs / "one.pem", _authority("one"))
    xapi.remove_tree(xapi.tree.stunnel / "certs.bk")
    xapi.regenerate(xapi.tree.certs, xapi.tree.user_bundle, chmod=True)


def _script_by_hand(xapi: Xapi) -> None:
    xapi.erase_old(xapi.tree.certs_pool, _files(range(3)))
    for _ in range(2):
        xapi.script_by_hand(xapi.tree.certs_pool, xapi.tree.pool_bundle)


def _script_in_a_swap(xapi: Xapi) -> None:
    pool = xapi.tree.certs_pool
    backup = pool.with_name("certs-pool.bk")
    xapi.erase_old(pool, _files(range(3)))
    xapi.mkdir_p(backup, 0o700)
    xapi.rename(pool, backup)
    xapi.mkdir_p(pool, 0o700)
    xapi.atomic_write(pool / "a.pem", _authority("a"))
    xapi.script_by_hand(pool, xapi.tree.pool_bundle)
    xapi.remove_tree(backup)


def _refresh(xapi: Xapi) -> None:
    old, new = _host(0), _host(0, 1)
    xapi.generate_key(xapi.tree.pool_host_certificate, old.host_pem)
    xapi.merge(xapi.tree.certs_pool, {f"{HOSTS[0]}.pem": old.pem, **_files(range(1, 4))})
    xapi.regenerate(xapi.tree.certs_pool, xapi.tree.pool_bundle)
    xapi.refresh_start(HOSTS[0], new.host_pem, new.pem)
    xapi.refresh_switch()
    xapi.refresh_finish(HOSTS[0])


def _eject_other(xapi: Xapi) -> None:
    _merge(xapi)
    for host in HOSTS:
        xapi.eject_other(host)
    xapi.eject_other(HOSTS[0])


def _eject_self(xapi: Xapi) -> None:
    _install(xapi)
    _merge(xapi)
    xapi.eject_self()


def _keys(xapi: Xapi) -> None:
    identity = _host(0)
    group = os.getegid() if os.geteuid() else 7
    xapi.generate_key(xapi.tree.api_certificate, identity.host_pem, mode=0o440, gid=group)
    xapi.generate_key(xapi.tree.pool_host_certificate, identity.host_pem, gid=group)


def _token(xapi: Xapi) -> None:
    token = xapi.tree.xensource / "ptoken"
    xapi.atomic_write(token, b"the old and long token", mode=0o600)
    xapi.write_token(token, b"THE NEW")


def _crls(xapi: Xapi) -> None:
    xapi.install_crl("a.pem", b"no list at all\n")


SEQUENCES: dict[str, Callable[[Xapi], None]] = {
    "install": _install,
    "uninstall": _uninstall,
    "erase old": _erase_old,
    "merge": _merge,
    "both directories at once": _both_at_once,
    "script by hand": _script_by_hand,
    "script in a swap": _script_in_a_swap,
    "refresh": _refresh,
    "eject another": _eject_other,
    "eject this one": _eject_self,
    "key generation": _keys,
    "token": _token,
    "crls": _crls,
}


@pytest.fixture
def twins(certfs_mount: CertfsMount) -> Iterator[tuple[Tree, Tree]]:
    """Give a plain copy of the mount's store, and the mount."""
    beneath = certfs_mount.tree.store / "stunnel" / certfs_mount.tree.pool_bundle.name
    mounts.wait_until(beneath.exists, seconds=60, what="the plain copy of the pool's bundle")
    with mounts.plain() as plain:
        for name in ("xensource", "stunnel"):
            shutil.rmtree(plain.root / name)
            source = certfs_mount.tree.store / name
            subprocess.run(["cp", "-a", source, plain.root / name], check=True, timeout=10)
        yield plain, certfs_mount.tree


def _comparable(xapi: Xapi) -> list[Step]:
    """Leave out how the bundles themselves are treated: I7 and I8 say what differs there.

    An empty bundle is absent, so its stat is ENOENT and XAPI need not unlink it; the unlink
    of a bundle with sources is refused.
    """
    bundles = [path.relative_to(xapi.tree.root) for path in _bundles(xapi.tree)]
    apart = {f"{call} {bundle}" for call in ("stat", "unlink") for bundle in bundles}
    return [step for step in xapi.steps if step.name not in apart]


def _bundles(tree: Tree) -> list[Path]:
    return [tree.user_bundle, tree.pool_bundle]


def _certificates(tree: Tree) -> list[set[str]]:
    """Give what the bundles of a tree hold, whoever wrote them."""
    return [
        set(pki.certificates_in(bundle.read_bytes().replace(b"\n\n", b"\n")))
        if bundle.exists()
        else set()
        for bundle in _bundles(tree)
    ]


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_a_sequence_is_the_same_as_on_a_plain_directory(
    twins: tuple[Tree, Tree], other_process: Peer, sequence: str
) -> None:
    """Every call ends as on a plain directory, the trees are the same, the bundle always right."""
    plain, mounted = Xapi(twins[0]), Xapi(twins[1])
    SEQUENCES[sequence](plain)
    watch = Watch(twins[1], other_process)
    watch.start()
    mounted.observe = watch
    SEQUENCES[sequence](mounted)
    assert _comparable(mounted) == _comparable(plain)
    assert watch.wrong == []
    assert _certificates(twins[1]) == _certificates(twins[0])
    bundles = {os.fsencode(path.name) for path in _bundles(twins[0])}
    for name in ("xensource", "stunnel"):
        trees = [snapshot.take(os.fsencode(tree.root / name)) for tree in twins]
        different = snapshot.differences(
            trees[0], trees[1], ignore=lambda path: os.path.basename(path) in bundles
        )
        assert different == []


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_afterwards_the_store_is_an_ordinary_host(sequence: str) -> None:
    """I12: after a sequence and an unmount the store holds the bundles as plain files."""
    with mounts.mounted() as mount:
        SEQUENCES[sequence](Xapi(mount.tree))
        expected = _certificates(mount.tree)
        mount.check_descriptors()
        mount.stop()
        assert _certificates(Tree(root=mount.tree.store, store=mount.tree.store)) == expected
        ejected = not (mount.tree.store / "xensource" / "xapi-pool-tls.pem").exists()
        mount.start()
        after = _certificates(mount.tree)
        assert after[0] == expected[0]
        # A host without a key gets a new one, and trusts itself.
        assert len(after[1]) == 1 if ejected else after[1] == expected[1]


def test_a_backup_that_was_there_at_mount_time_starts_no_swap(other_process: Peer) -> None:
    """I10: with a left-over D.bk the bundle is what D holds, through the failing rename too."""

    def leave(store: Tree) -> None:
        backup = store.stunnel / "certs-pool.bk"
        backup.mkdir(mode=0o700)
        (backup / "old.pem").write_bytes(_authority("left over"))

    with mounts.mounted(prepare=leave) as mount:
        xapi = Xapi(mount.tree)
        watch = Watch(mount.tree, other_process)
        watch.start()
        xapi.observe = watch
        xapi.erase_old(mount.tree.certs_pool, _files(range(3)))
        results = {step.name: step.result for step in xapi.steps}
        assert results["mkdir stunnel/certs-pool.bk"] == "EEXIST"
        assert results["rename stunnel/certs-pool stunnel/certs-pool.bk"] == "ENOTEMPTY"
        assert watch.wrong == []


def test_a_swap_is_visible_in_the_status(certfs_mount: CertfsMount) -> None:
    """I10: while a directory is swapped the status says so, for that bundle only."""
    tree = certfs_mount.tree

    def swapping() -> list[str]:
        status = json.loads((tree.root / ".certfs" / "status.json").read_bytes())
        return [bundle["source"] for bundle in status["bundles"] if bundle["swap"]]

    assert swapping() == []
    (tree.stunnel / "certs-pool.bk").mkdir(mode=0o700)
    assert swapping() == ["stunnel/certs-pool"]
    (tree.stunnel / "certs-pool.bk").rmdir()
    assert swapping() == []


def test_a_swap_ends_with_an_unmount(other_process: Peer) -> None:
    """I10: a D.bk that is there at the mount begins nothing, whatever it was before; the bundle is what D holds."""
    with mounts.mounted() as mount:
        tree = mount.tree
        xapi = Xapi(tree)
        xapi.erase_old(tree.certs_pool, _files(range(4)))
        backup = tree.certs_pool.with_name("certs-pool.bk")
        xapi.mkdir_p(backup, 0o700)
        xapi.rename(tree.certs_pool, backup)
        xapi.mkdir_p(tree.certs_pool, 0o700)
        (one,) = _files(range(7, 8)).items()
        xapi.atomic_write(tree.certs_pool / one[0], one[1])
        during = other_process.call(peer.read_or_none, str(tree.pool_bundle))
        assert len(pki.certificates_in(during or b"")) == 5
        mount.stop()
        mount.start()
        assert other_process.call(peer.read_or_none, str(tree.pool_bundle)) == one[1]


def test_a_swap_ends_after_its_time(other_process: Peer, tmp_path: Path) -> None:
    """I10: a swap that nobody ends is over after the configured time."""
    config = tmp_path / "certfs.toml"
    config.write_text("swap_timeout = 5.0\n")
    with mounts.mounted("--config", str(config)) as mount:
        tree = mount.tree
        old, new = _files(range(3)), _files(range(5, 6))
        xapi = Xapi(tree)
        xapi.erase_old(tree.certs_pool, old)
        backup = tree.certs_pool.with_name("certs-pool.bk")
        xapi.mkdir_p(backup, 0o700)
        xapi.rename(tree.certs_pool, backup)
        xapi.mkdir_p(tree.certs_pool, 0o700)
        for name, content in new.items():
            xapi.atomic_write(tree.certs_pool / name, content)

        def count() -> int:
            seen = other_process.call(peer.read_or_none, str(tree.pool_bundle)) or b""
            return len(pki.certificates_in(seen))

        assert count() == 4
        mounts.wait_until(lambda: count() == 1, seconds=30)
