"""A server whose loop runs, but of which a request waits for ever (I15)."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import pki
from tests.support.launching import mount_with
from tests.support.mounts import certfs_program, need_fuse, scratch_directory, wait_until
from tests.support.tree import Tree

pytestmark = pytest.mark.mount


def test_a_request_that_waits_for_ever_ends_its_server() -> None:
    """It is a hang like any other: plain files come into view, and who waits is released."""
    need_fuse()
    root = scratch_directory()
    tree, beneath = Tree(root / "mount", root / "store"), Tree(root / "store", root / "store")
    for directory in (tree.root, tree.store):
        directory.mkdir()
    beneath.make()
    runtime = root / "run"
    environment = mount_with("tests.support.stuck_server", tree.store, tree.root, runtime)
    (state,) = runtime.glob("at-*/state.json")

    def last_event() -> str:
        events = json.loads(state.read_bytes())["events"]
        return str(events[-1]["kind"]) if events else ""

    reader: subprocess.Popen[bytes] | None = None
    try:
        (tree.certs / "stuck.pem").write_bytes(pki.issue("stuck").pem)
        reader = subprocess.Popen(["cat", tree.user_bundle], stdout=subprocess.DEVNULL)
        wait_until(lambda: last_event() == "hung", seconds=60, what="the end of the server")
        reader.wait(timeout=60)
    finally:
        if reader is not None:
            reader.kill()
            reader.wait()
        # The next server hangs likewise, for everybody who asks for the bundle; an unmount asks for nothing.
        command = [certfs_program(), "unmount", str(tree.root)]
        subprocess.run(command, check=False, env=environment, timeout=60)
        wait_until(lambda: not Path(state).exists(), seconds=60, what="the end of the instance")
        shutil.rmtree(root, ignore_errors=True)
