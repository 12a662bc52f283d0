"""What another user mounts, and calls it, changes nothing for certfs."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support import pki
from tests.support.host import Host, host, kill
from tests.support.mounts import wait_until
from tests.support.stranger import strange_mounts

pytestmark = [pytest.mark.mount, pytest.mark.namespace]

NAMES = [
    b"a\rb",
    b"a\r30 27 0:40 / /etc/stunnel rw - fuse.certfs x rw,user_id=0",
    b"a\xc2\xa0b\xe2\x80\xa8c\x85\x0b\x0c\x1c",
    b"\xff\\012\n1 1 0:1 ",
]


@pytest.fixture
def dom0() -> Iterator[Host]:
    """A host with one source in its pool."""
    with host() as made:
        (made.store.certs_pool / "0.pem").write_bytes(pki.issue("host 0").pem)
        made.let_users_mount()
        made.certfs("mount")
        yield made


def test_nobody_ends_the_supervisor_by_a_name(dom0: Host) -> None:
    """Whatever another user mounts, server and supervisor live, and so do those that follow them (I14)."""
    server, supervisor = dom0.server(), dom0.supervisor()
    with ExitStack() as stack:
        for subtype in (b"\xff", b"certfs", b"a\rb"):
            stack.enter_context(strange_mounts(dom0, *NAMES, subtype=subtype))
        began = time.monotonic()
        kill(server)
        dom0.live_again(began, not_pid=server)
        assert dom0.supervisor() == supervisor
        kill(supervisor)
        wait_until(lambda: dom0.supervisor() != supervisor, what="the next supervisor")
        wait_until(lambda: dom0.state()["events"][-1]["kind"] == "adopted", what="its first note")
        (dom0.tree.certs_pool / "more.pem").write_bytes(pki.issue("more").pem)
        assert dom0.tree.pool_bundle.read_bytes().count(b"BEGIN") == 2
        (dom0.tree.certs_pool / "more.pem").unlink()
        dom0.certfs("restart")
        assert dom0.presented()


def test_a_name_makes_no_mount_of_ours() -> None:
    """A removed certificate is not trusted any more, whatever a mountpoint pretends to be mounted."""
    with host() as made:
        made.let_users_mount()
        (made.directory / "ca.pem").write_bytes(pki.issue("removed", ca=True).pem)
        made.certfs("pool-install-ca-certificate", made.directory / "ca.pem")
        assert made.store.user_bundle.exists()
        device = os.stat(made.store.user_bundle.parent).st_dev
        number = f"{os.major(device)}:{os.minor(device)}".encode()
        # What a lenient reader takes for a line that says: the directory is on a certfs.
        names = [b"a" + end + b"1\xc2\xa02\xc2\xa0" + number for end in (b"\r", b"\xe2\x80\xa8")]
        with strange_mounts(made, *names, subtype=b"certfs"):
            made.certfs("pool-uninstall-ca-certificate", "ca.pem")
            assert not made.store.user_bundle.exists()


def test_a_path_of_many_megabytes_costs_little(dom0: Host) -> None:
    """I14, I18: a user moves a mount of theirs deep into directories; who reads the table goes on as before."""
    deep = dom0.directory / "deep"
    deep.mkdir()
    try:
        with strange_mounts(dom0, b"m/point", subtype=b"certfs"):
            (home,) = dom0.directory.glob("stranger-*")
            top = os.open(deep, os.O_PATH)
            directory = os.dup(top)
            for _ in range(4000):
                os.mkdir(" " * 250, dir_fd=directory)
                inner = os.open(" " * 250, os.O_PATH, dir_fd=directory)
                os.close(directory)
                directory = inner
            os.rename(home / "m", "m", dst_dir_fd=directory)
            try:
                server, supervisor = dom0.server(), dom0.supervisor()
                began = time.monotonic()
                kill(server)
                dom0.live_again(began, not_pid=server)
                status = Path(f"/proc/{supervisor}/status").read_bytes()
                most = int(status.split(b"VmHWM:")[1].split()[0])
                assert most < 40 << 10  # KiB
                server = dom0.server()
                began = kill(supervisor, server)
                wait_until(lambda: not dom0.in_view(), seconds=5, what="plain files")
            finally:
                os.rename("m", home / "m", src_dir_fd=directory)
                os.close(directory)
                os.close(top)
    finally:
        subprocess.run(["rm", "-rf", deep], check=True, timeout=60)
