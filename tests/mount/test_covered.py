"""Somebody mounts over a directory that certfs presents: theirs is left alone, and ours never stays dead (I14)."""

from __future__ import annotations

import os
import signal
import time
from functools import partial

import pytest

from tests.support import pki
from tests.support.host import Host, kill
from tests.support.mounts import wait_until

pytestmark = [pytest.mark.mount, pytest.mark.namespace, pytest.mark.counted]

POOL = ["0.pem", "1.pem"]
GONE_SECONDS = 1.0


@pytest.fixture
def covered(dom0: Host) -> Host:
    """A host on which certfs is mounted, and over /etc/stunnel another file system."""
    assert dom0.run("mount", "-t", "tmpfs", "theirs", "/etc/stunnel").returncode == 0
    return dom0


def stunnel(made: Host) -> list[str]:
    """List /etc/stunnel; it answers always, with what is in view."""
    listing = made.run("ls", "/etc/stunnel")
    assert listing.returncode == 0, listing.stderr
    return listing.stdout.split()


def kinds(made: Host) -> list[str]:
    """Return the types of the mounts at /etc/stunnel, the lowest first."""
    table = made.run("cat", "/proc/self/mountinfo").stdout.splitlines()
    here = [line for line in table if line.split()[4] == "/etc/stunnel"]
    return [line.partition(" - ")[2].split()[0] for line in here]


def uncover(made: Host) -> None:
    """Take the other file system away."""
    assert made.run("umount", "/etc/stunnel").returncode == 0


def kill_server(made: Host) -> None:
    """Kill the server and wait for the next one."""
    server = made.server()
    kill(server)

    def serves() -> bool:
        state = made.state()
        return bool(state["phase"] == "serving" and state["server"]["pid"] != server)

    wait_until(serves, what="the next server")


def served(made: Host) -> None:
    """Wait for the live directory; print for how long what came into view was dead."""
    began = time.monotonic()
    dead = 0.0

    def answers() -> bool:
        nonlocal dead
        try:
            return made.tree.pool_bundle.exists()
        except OSError:
            dead = time.monotonic() - began
            return False

    wait_until(lambda: answers() and made.presented(), seconds=GONE_SECONDS, what="the live mount")
    print(f"a dead mount was in view for {dead * 1000:.0f} ms")
    (made.tree.certs_pool / "later.pem").write_bytes(pki.issue("later").pem)
    assert made.tree.pool_bundle.read_bytes().count(b"BEGIN") == 3


def gone(made: Host) -> None:
    """Wait until nothing of certfs is mounted: plain files are there, and no process is left."""
    # The janitor looks at least once a second: a change of the table between two looks may pass it by.
    wait_until(lambda: made.certfs_mounts() == [], seconds=5, what="the last mount")
    assert stunnel(made) == ["certs", "certs-pool", "xapi-pool-ca-bundle.pem"]
    wait_until(lambda: made.processes() == [], what="the end of all processes")


@pytest.mark.parametrize("change", ["crash", "restart", "supervisor killed"])
def test_what_covers_is_left_alone_and_the_live_directory_comes_back(
    covered: Host, change: str
) -> None:
    """The other mount stays in view through every change of servers; when it goes, the live one is there."""
    if change == "crash":
        kill_server(covered)
    elif change == "restart":
        covered.certfs("restart")
    else:
        supervisor = covered.supervisor()
        kill(supervisor)
        wait_until(lambda: covered.supervisor() != supervisor, what="another supervisor")
        kill_server(covered)
    assert stunnel(covered) == []
    assert kinds(covered) == ["fuse.certfs", "tmpfs"]
    assert covered.tree.xensource.is_dir()
    uncover(covered)
    served(covered)
    wait_until(lambda: kinds(covered) == ["fuse.certfs"], what="the end of the mount beneath")
    covered.certfs("unmount")
    gone(covered)


def test_unmounting_all_of_it_leaves_an_ordinary_host(covered: Host) -> None:
    """Whoever unmounts theirs, and then certfs, has plain files, whatever crashed meanwhile."""
    kill_server(covered)
    uncover(covered)
    served(covered)
    assert covered.run("umount", "/etc/stunnel").returncode == 0
    wait_until(lambda: covered.certfs_mounts() == [], what="the end")
    assert "xapi-pool-ca-bundle.pem" in stunnel(covered)


def test_unmount_beneath_another_mount(covered: Host) -> None:
    """`certfs unmount` says what is in its way, and what it could not detach goes with that."""
    said = covered.certfs("unmount")
    assert "something else is mounted over /etc/stunnel" in said
    assert stunnel(covered) == []
    assert not covered.tree.xensource.joinpath(".certfs").exists()
    uncover(covered)
    gone(covered)


def test_both_killed_beneath_another_mount(covered: Host) -> None:
    """The janitor leaves the other mount alone, and detaches ours when that has gone."""
    kill(covered.supervisor(), covered.server())
    wait_until(lambda: covered.certfs_mounts() == ["/etc/stunnel"], what="the janitor's work")
    assert stunnel(covered) == []
    uncover(covered)
    gone(covered)


def test_all_killed_beneath_another_mount(covered: Host) -> None:
    """After the janitor, too, was killed, `certfs unmount` leaves somebody who does its work."""
    state = covered.state()
    pids = [state[name]["pid"] for name in ("janitor", "supervisor", "server")]
    kill(*pids)
    assert "supervisor was dead" in covered.certfs("unmount")
    assert stunnel(covered) == []
    uncover(covered)
    gone(covered)


def test_a_bind_mount_beneath_another_mount_comes_back(covered: Host) -> None:
    """A bind mount of ours that somebody covered is dead for nobody, and live again when it is uncovered."""
    uncover(covered)
    covered.run("mkdir", "/run/jail")
    covered.run("mount", "--bind", "/etc/stunnel/certs-pool", "/run/jail")
    covered.run("mount", "-t", "tmpfs", "theirs", "/run/jail")
    kill_server(covered)
    assert covered.run("umount", "/run/jail").returncode == 0
    wait_until(lambda: covered.run("ls", "/run/jail").stdout.split() == POOL, what="its content")
    wait_until(lambda: covered.certfs_mounts().count("/run/jail") == 1, what="one bind mount")


def test_a_supervisor_that_ends_by_a_signal_beneath_another_mount(covered: Host) -> None:
    """SIGTERM ends it as `certfs unmount` does."""
    os.kill(covered.supervisor(), signal.SIGTERM)
    wait_until(lambda: covered.certfs_mounts() == ["/etc/stunnel"], what="the end of the others")
    assert stunnel(covered) == []
    uncover(covered)
    gone(covered)


ABOVE = "/run/above/mount"
STATE = "at-run-above-mount"


@pytest.fixture
def beneath(dom0: Host) -> Host:
    """A host with a standalone mount, and another file system over the directory that this is in."""
    assert dom0.run("mkdir", "-p", ABOVE, "/run/plain/certs").returncode == 0
    dom0.certfs("mount", "--store", "/run/plain", ABOVE)
    assert dom0.run("mount", "-t", "tmpfs", "theirs", "/run/above").returncode == 0
    return dom0


def live(made: Host) -> bool:
    """Whether the standalone mount is in view and answers."""
    return made.run("test", "-e", f"{ABOVE}/.certfs/status.json").returncode == 0


def test_a_mount_that_nobody_can_see_keeps_no_command_from_plain_files(beneath: Host) -> None:
    """`certfs detached` runs its command although a mount lies beneath another one, over a directory above it."""
    assert beneath.certfs("detached", "--", "cat", "/etc/stunnel/certs-pool/0.pem")
    assert beneath.run("umount", "/run/above").returncode == 0
    assert live(beneath)


def test_a_crash_beneath_a_mount_over_a_directory_above(beneath: Host) -> None:
    """A server dies where nobody can see it: nothing is mounted elsewhere, and the next one is there afterwards."""
    server = beneath.state(STATE)["server"]["pid"]
    assert beneath.run("mkdir", ABOVE).returncode == 0
    kill(server)

    def has_another() -> bool:
        now = beneath.state(STATE)["server"]
        return now is not None and now["pid"] != server

    wait_until(has_another, what="the next server")
    assert beneath.run("ls", ABOVE).stdout == ""
    # Busy for a moment while the supervisor looks at what is there.
    unmount = partial(beneath.run, "umount", "/run/above")
    wait_until(lambda: unmount().returncode == 0, what="the end of the mount above")
    wait_until(lambda: live(beneath), what="the live mount")
    beneath.certfs("unmount", ABOVE)
    wait_until(lambda: ABOVE not in beneath.certfs_mounts(), what="the end of the mount")


def test_unmounting_what_lies_beneath_a_mount_over_a_directory_above(beneath: Host) -> None:
    """`certfs unmount` ends what nobody can see, and what it cannot reach goes when it is uncovered."""
    beneath.certfs("unmount", ABOVE)
    assert beneath.run("umount", "/run/above").returncode == 0
    wait_until(lambda: ABOVE not in beneath.certfs_mounts(), what="the end of the mount")
    assert beneath.run("ls", ABOVE).returncode == 0
