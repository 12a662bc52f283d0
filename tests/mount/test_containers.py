"""What a container sees that has a part of the mount bound into it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support import mounts, pki
from tests.support.mounts import mounted, wait_until
from tests.support.tree import Tree

pytestmark = [pytest.mark.mount, pytest.mark.namespace]

FIRST, SECOND = pki.authority("container first"), pki.authority("container second")


class Container:
    """A mount namespace of its own with something bound at a place of its own."""

    def __init__(self, source: Path, target: Path) -> None:
        script = 'mount --bind "$1" "$2" && echo ready && exec cat'
        self.process = subprocess.Popen(
            [
                "unshare",
                "--mount",
                "--propagation",
                "slave",
                "sh",
                "-c",
                script,
                "sh",
                source,
                target,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"

    def count(self, path: Path) -> int:
        """Return how many certificates a file in the container has."""
        command = [
            "nsenter",
            f"--target={self.process.pid}",
            "--mount",
            "grep",
            "-c",
            "BEGIN",
            str(path),
        ]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
        return int(done.stdout or 0)

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.communicate()


def test_a_container_with_the_directory_follows_the_bundle(tmp_path: Path) -> None:
    """Each open in the container sees the certificates that are there now (I1)."""
    mounts.need_namespaces()

    def fill(tree: Tree) -> None:
        (tree.certs / "first.pem").write_bytes(FIRST.pem)

    target = tmp_path / "in-container"
    target.mkdir()
    with mounted(prepare=fill) as mount:
        container = Container(mount.tree.stunnel, target)
        try:
            bundle = target / mount.tree.user_bundle.name
            assert container.count(bundle) == 1
            (mount.tree.certs / "second.pem").write_bytes(SECOND.pem)
            assert container.count(bundle) == 2
            (mount.tree.certs / "first.pem").unlink()
            assert container.count(bundle) == 1
        finally:
            container.close()


def test_a_container_with_the_directory_follows_the_bundle_over_a_restart(tmp_path: Path) -> None:
    """What is bound in another mount namespace is the directory of the server before, which follows the store (I17)."""
    mounts.need_namespaces()

    def fill(tree: Tree) -> None:
        (tree.certs / "first.pem").write_bytes(FIRST.pem)

    target = tmp_path / "in-container"
    target.mkdir()
    with mounted(prepare=fill) as mount:
        container = Container(mount.tree.stunnel, target)
        try:
            bundle = target / mount.tree.user_bundle.name
            restart = (mounts.certfs_program(), "restart", str(mount.tree.root))
            subprocess.run(restart, check=True, env=mount.environment, timeout=60)
            (mount.tree.certs / "second.pem").write_bytes(SECOND.pem)
            # In the container it is the server before that goes on; to that one this is a change in the store (I13).
            wait_until(lambda: container.count(bundle) == 2, what="the second certificate")
        finally:
            container.close()


def test_a_container_with_the_directory_of_a_copy_follows_it_after_a_crash(tmp_path: Path) -> None:
    """A plain file does not depend on the server (I12)."""
    mounts.need_namespaces()

    def fill(tree: Tree) -> None:
        (tree.store / "trusted").mkdir()
        (tree.store / "trusted" / "first.pem").write_bytes(FIRST.pem)

    target, place, config = (tmp_path / name for name in ("in-container", "place", "certfs.toml"))
    target.mkdir()
    place.mkdir()
    config.write_text(
        f'[[bundle]]\nsource = "trusted"\nbundle = "ca.pem"\ncopy = "{place}/ca.pem"\n'
    )
    with mounted("--config", str(config), prepare=fill, standard=False) as mount:
        mount.expected_log += ["was killed"]
        container = Container(place, target)
        try:
            bundle = target / "ca.pem"
            wait_until(lambda: container.count(bundle) == 1, seconds=60, what="the copy")
            (state,) = mount.tree.root.with_name("run").glob("at-*/state.json")
            server = int(json.loads(state.read_bytes())["server"]["pid"])
            os.kill(server, signal.SIGKILL)
            (mount.tree.store / "trusted" / "second.pem").write_bytes(SECOND.pem)
            wait_until(lambda: container.count(bundle) == 2, seconds=60, what="the change")
        finally:
            container.close()
