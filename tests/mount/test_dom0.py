"""Dom0 mode: over /etc/xensource and /etc/stunnel of a private mount namespace (I12, I13, I17)."""

from __future__ import annotations

import json
import os
import signal
import stat
import time
from pathlib import Path

import pytest

from tests.support import pki
from tests.support.host import Host, host, kill
from tests.support.mounts import wait_until

pytestmark = [pytest.mark.mount, pytest.mark.namespace, pytest.mark.counted]


def certificates(path: Path) -> int:
    """Count the certificates of a file."""
    return path.read_bytes().count(b"-----BEGIN CERTIFICATE-----")


def test_the_hosts_own_directories_are_presented(dom0: Host) -> None:
    """`certfs mount` without arguments presents /etc/xensource and /etc/stunnel with live bundles (I1)."""
    (dom0.tree.certs_pool / "third.pem").write_bytes(pki.issue("third").pem)
    assert dom0.presented()
    assert certificates(dom0.tree.pool_bundle) == 3
    assert (dom0.store.certs_pool / "third.pem").exists()


def test_a_listing_asks_nothing_above_itself(dom0: Host) -> None:
    """I15: the way up from a directory of the store leads onto our own mount, and asking it is a deadlock."""
    script = "cd /etc/stunnel/certs && touch ../changed && ls -a . && rm ../changed && ls -ai ."
    for _ in range(3):
        assert dom0.run("sh", "-c", script, seconds=5).returncode == 0
    assert dom0.state()["events"] == []


def test_only_one_tree_can_be_presented() -> None:
    """A configuration with /etc/stunnel alone leaves /etc/xensource as it is."""
    with host() as made:
        (made.store.root / "certfs.toml").write_text('[dom0]\ntrees = ["/etc/stunnel"]\n')
        made.certfs("mount")
        assert "/etc/stunnel" in made.certfs_mounts()
        assert "/etc/xensource" not in made.certfs_mounts()


def test_unmounting_leaves_an_ordinary_host(dom0: Host) -> None:
    """After `certfs unmount` nothing is mounted, nothing runs, and the bundles are plain files (I12)."""
    served = dom0.tree.pool_bundle.read_bytes()
    dom0.certfs("unmount")
    assert dom0.certfs_mounts() == []
    assert dom0.tree.pool_bundle.read_bytes() == served
    wait_until(lambda: dom0.daemons() == [], what="the end of the daemon")


def test_a_tree_that_comes_later_is_presented(dom0: Host) -> None:
    """What XAPI makes when it first needs it has its bundles without a restart; crashes do not lose it (I14)."""
    authority = pki.authority("by purpose")
    trusted = dom0.inside("/etc/trusted-certs")
    before, supervisor = dom0.server(), dom0.supervisor()
    (trusted / "ca-general").mkdir(parents=True)
    (trusted / "ca-general/first.pem").write_bytes(pki.authority("first").pem)
    bundle = trusted / "ca-bundle-general.pem"
    wait_until(lambda: "/etc/trusted-certs" in dom0.certfs_mounts(), seconds=30, what="the tree")
    assert bundle.read_bytes().count(b"BEGIN") == 1
    (trusted / "ca-general/second.pem").write_bytes(authority.pem)
    assert authority.pem in bundle.read_bytes()
    wait_until(lambda: len(dom0.state()["targets"]) == 3, what="what the supervisor says of it")
    assert dom0.supervisor() == supervisor
    (restarted,) = dom0.state()["events"]
    assert restarted["detail"] == "/etc/trusted-certs came after the mount"
    assert restarted["live_seconds"] > 0
    assert "trusted-certs/ca-general/second.pem" in dom0.certfs("list")
    assert "TREE_NOT_PRESENTED" not in dom0.command("check").stdout
    server = dom0.server()
    assert server != before
    dom0.live_again(kill(dom0.server()), not_pid=server)
    wait_until(lambda: authority.pem in bundle.read_bytes(), what="the bundle")
    kill(dom0.supervisor())
    wait_until(lambda: dom0.supervisor() != supervisor, what="another supervisor")
    dom0.certfs("restart")
    assert authority.pem in bundle.read_bytes()
    dom0.certfs("unmount")
    assert dom0.certfs_mounts() == []
    assert (dom0.store.root / "trusted-certs/ca-bundle-general.pem").read_bytes().count(
        b"BEGIN"
    ) == 2


@pytest.mark.parametrize("when", ["before a restart", "in a restart"])
def test_a_restart_presents_a_tree_that_has_come(dom0: Host, when: str) -> None:
    """Nobody has to wait for it who restarts certfs, and the restart has nothing to warn of."""
    trusted = dom0.inside("/etc/trusted-certs")
    if when == "before a restart":
        trusted.mkdir()
        assert dom0.certfs("restart") == ""
        assert "/etc/trusted-certs" in dom0.certfs_mounts()
        return
    command = dom0.start(*dom0.program(), "restart")
    trusted.mkdir()
    said, _ = command.communicate(timeout=60)
    assert (command.returncode, said) == (0, "")
    wait_until(lambda: "/etc/trusted-certs" in dom0.certfs_mounts(), seconds=30, what="the tree")
    assert dom0.presented()


@pytest.mark.parametrize("target", ["/etc/stunnel", "/etc/xensource"])
def test_a_plain_umount_of_one_tree_ends_everything(dom0: Host, target: str) -> None:
    """`umount` of one of the two directories is understood as the wish to end the mount (I14: no crash)."""
    assert dom0.run("umount", target).returncode == 0
    wait_until(lambda: dom0.certfs_mounts() == [], what="the end of the mount")
    wait_until(lambda: dom0.daemons() == [], what="the end of the daemon")
    assert certificates(dom0.tree.pool_bundle) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_mount_cleanly(dom0: Host, number: signal.Signals) -> None:
    """A signal to the supervisor ends the mount, and the plain bundles are there."""
    os.kill(dom0.supervisor(), number)
    wait_until(lambda: dom0.daemons() == [], what="the end of the daemon")
    assert dom0.certfs_mounts() == []
    assert certificates(dom0.tree.pool_bundle) == 2


@pytest.mark.parametrize("milliseconds", [0, 10, 20, 40])
def test_a_signal_right_after_a_restart_ends_the_mount_cleanly(
    dom0: Host, milliseconds: int
) -> None:
    """A supervisor that is becoming another program keeps a signal until it can follow it (I14, I17)."""
    dom0.certfs("restart")
    time.sleep(milliseconds / 1000)
    os.kill(dom0.supervisor(), signal.SIGTERM)
    wait_until(lambda: dom0.daemons() == [], what="the end of the daemon")
    assert dom0.certfs_mounts() == []


def test_a_second_instance_is_refused(dom0: Host) -> None:
    """A second `certfs mount` ends with 8 and names the process that is there, and since when."""
    said = dom0.certfs("mount", expect=8)
    assert str(dom0.supervisor()) in said
    assert "since" in said
    assert said.count("\n") == 1
    assert dom0.presented()


def test_files_that_are_open_survive_unmounting(dom0: Host) -> None:
    """Unmounting with open files detaches at once, says so, and the files stay readable until they are closed."""
    with dom0.tree.pool_bundle.open("rb") as bundle:
        content = bundle.read()
        said = dom0.certfs("unmount")
        assert "still open" in said
        assert dom0.certfs_mounts() == []
        bundle.seek(0)
        assert bundle.read() == content
    wait_until(lambda: dom0.daemons() == [], what="the end of the lingering server")


def test_a_change_in_the_store_is_seen(dom0: Host) -> None:
    """A file that is put into the store beneath the mount is in the bundle within 100 ms, without polling (I13)."""
    took = []
    for number in range(3, 6):  # the quickest counts: this machine may hold up the others
        pem = pki.issue(f"below {number}").pem

        def seen(expected: int = number) -> bool:
            return certificates(dom0.tree.pool_bundle) == expected

        began = time.monotonic()
        (dom0.store.certs_pool / f"below-{number}.pem").write_bytes(pem)
        wait_until(seen, what="the change")
        took.append(time.monotonic() - began)
    assert min(took) < 0.1


def test_a_source_directory_may_go_and_come_back(dom0: Host) -> None:
    """A source directory that is removed and made again in the store is followed, and so is one in the mount."""
    for base in (dom0.store, dom0.tree):
        for pem in base.certs_pool.iterdir():
            pem.unlink()
        base.certs_pool.rmdir()
        wait_until(lambda: not dom0.tree.pool_bundle.exists(), what="the end of the bundle")
        base.certs_pool.mkdir()
        (base.certs_pool / "new.pem").write_bytes(pki.issue("new").pem)
        wait_until(dom0.tree.pool_bundle.exists, what="the bundle of the new directory")
        assert certificates(dom0.tree.pool_bundle) == 1


def test_a_stale_mount_is_cleaned_up_at_start(dom0: Host) -> None:
    """The dead mounts of an instance of which every process was killed do not hinder the next start."""
    kill(*dom0.processes())
    wait_until(lambda: dom0.processes() == [], what="the end of all processes")
    assert "/etc/stunnel" in dom0.certfs_mounts()
    dom0.certfs("mount")
    assert dom0.certfs_mounts().count("/etc/stunnel") == 1
    assert certificates(dom0.tree.pool_bundle) == 2


def test_dead_mounts_are_called_dead(dom0: Host) -> None:
    """With every process killed, each command says so and what to do, and `certfs unmount` takes the mounts away."""
    kill(*dom0.processes())
    wait_until(lambda: "DEAD" in dom0.certfs("status", expect=9), what="the end of the mount")
    assert json.loads(dom0.certfs("status", "--json", expect=9))["phase"] == "dead"
    for command, code in (("list", 9), ("check", 2)):
        said = dom0.certfs(command, expect=code)
        assert "/etc/xensource: Transport endpoint is not connected" in said
        assert "certfs mount serves it again" in said
    assert "does not answer" in dom0.certfs("restart", expect=9)
    dom0.certfs("unmount")
    assert dom0.certfs_mounts() == []
    dom0.certfs("status", expect=7)


def test_a_crash_without_a_runtime_directory_is_a_blip(dom0: Host) -> None:
    """It is made again where the whole of it was removed, and the instance can be managed again (I14)."""
    server, supervisor = dom0.server(), dom0.supervisor()
    assert dom0.run("umount", dom0.state()["mountpoint"]).returncode == 0
    assert dom0.run("rm", "-r", "/run/certfs").returncode == 0
    began = time.monotonic()
    kill(server)
    dom0.live_again(began, not_pid=server)
    assert dom0.supervisor() == supervisor
    directory = dom0.inside("/run/certfs/dom0").stat()
    assert stat.S_IMODE(directory.st_mode) == 0o711
    assert "serving" in dom0.certfs("status")
    dom0.certfs("unmount")
    assert dom0.certfs_mounts() == []
    wait_until(lambda: dom0.processes() == [], what="the end of all processes")


@pytest.mark.parametrize("lost", [["state.json"], ["state.json", "control", "lock", "log"]])
def test_a_runtime_directory_that_was_cleaned(dom0: Host, lost: list[str]) -> None:
    """Whoever removes files from the runtime directory does not make the mount invisible to the commands."""
    for name in lost:
        dom0.inside(f"/run/certfs/dom0/{name}").unlink()
    assert "serving" in dom0.certfs("status")
    dom0.certfs("unmount")
    assert dom0.certfs_mounts() == []
    wait_until(lambda: dom0.processes() == [], what="the end of all processes")


def test_without_a_runtime_directory_there_is_a_way_out(dom0: Host) -> None:
    """With the whole directory gone, a refusal leads to a command, and that ends the mount."""
    assert dom0.run("umount", dom0.state()["mountpoint"]).returncode == 0
    assert dom0.run("rm", "-r", "/run/certfs/dom0").returncode == 0
    assert "end it with: certfs unmount /etc/xensource\n" in dom0.certfs("mount", expect=8)
    said = dom0.certfs("unmount", "/etc/xensource", expect=7)
    assert said.endswith(" end it with: umount -l /etc/xensource\n")
    assert dom0.run("umount", "-l", "/etc/xensource").returncode == 0
    wait_until(lambda: dom0.certfs_mounts() == [], what="the end of the mount")
    wait_until(lambda: dom0.processes() == [], what="the end of all processes")
    dom0.certfs("mount")


def test_a_command_runs_detached(dom0: Host) -> None:
    """`certfs detached` shows a command the plain directories; the host keeps the live ones and follows (I13)."""
    pem = dom0.store.root / "later"
    pem.write_bytes(pki.issue("later").pem)
    script = "grep -c fuse.certfs /proc/self/mounts; cp /etc/later /etc/stunnel/certs-pool/later.pem; exit 7"
    detached = dom0.detached(script)
    assert dom0.presented()
    assert detached.finish() == (7, "go0\n")
    wait_until(lambda: certificates(dom0.tree.pool_bundle) == 3, what="the change")


def test_a_command_starts_where_its_caller_is(dom0: Host) -> None:
    """A working directory that certfs presents is the plain one for the command."""
    script = (
        "cd /etc/stunnel/certs-pool && exec $0 detached -- sh -c 'stat -f -c %T . && ls && pwd'"
    )
    said = dom0.run("sh", "-c", script, *dom0.program()).stdout
    assert said.endswith("0.pem\n1.pem\n/etc/stunnel/certs-pool\n")
    assert not said.startswith("fuse")


def test_a_detached_command_is_a_command_like_any_other(dom0: Host) -> None:
    """What signals it gets, how it ends and what becomes of a broken pipe is between it and its caller."""
    command = dom0.start(
        *dom0.program(), "detached", "--", "sh", "-c", "touch /run/ready; exec cat /dev/zero"
    )
    wait_until(dom0.inside("/run/ready").exists, what="the command")
    command.terminate()
    command.communicate(timeout=10)
    assert command.returncode == -signal.SIGTERM
    piped = f"{dom0.program()[0]} detached -- cat /dev/zero | head -c 1 >/dev/null; echo ${{PIPESTATUS[0]}}"
    assert dom0.run("bash", "-c", piped).stdout == f"{128 + signal.SIGPIPE}\n"
    assert "cannot run nothing" in dom0.certfs("detached", "--", "nothing", expect=127)


@pytest.mark.parametrize("change", ["restart", "crash"])
def test_a_detached_command_keeps_no_server(dom0: Host, change: str) -> None:
    """A server that is replaced or killed meanwhile ends, and what the command sees stays plain (I17)."""
    detached = dom0.detached("ls /etc/stunnel/certs-pool")
    server = dom0.server()
    if change == "restart":
        dom0.certfs("restart")
    else:
        kill(server)
        dom0.live_again(time.monotonic(), not_pid=server)
    wait_until(lambda: not os.path.exists(f"/proc/{server}"), what="the end of the old server")
    assert detached.finish() == (0, "go0.pem\n1.pem\n")


@pytest.mark.parametrize("state", ["unmounted", "dead", "stopped"])
def test_a_backup_does_not_fail_because_certfs_does(dom0: Host, state: str) -> None:
    """`certfs detached --if-mounted` runs its command also if nothing is mounted, or nothing answers (I12)."""
    if state == "unmounted":
        dom0.certfs("unmount")
        assert "not mounted" in dom0.certfs("detached", "--", "true", expect=7)
    elif state == "dead":
        kill(*dom0.processes())
    else:
        os.kill(dom0.server(), signal.SIGSTOP)
    said = dom0.certfs("detached", "--if-mounted", "--", "cat", "/etc/stunnel/certs-pool/0.pem")
    assert "BEGIN CERTIFICATE" in said
    assert ("any may lack the last changes" in said) == (state != "unmounted")


def test_a_backup_sees_plain_files_also_if_nothing_is_noted_of_the_mount(dom0: Host) -> None:
    """`certfs detached --if-mounted` takes away also what is mounted without a runtime directory (I12)."""
    assert dom0.run("umount", dom0.state()["mountpoint"]).returncode == 0
    assert dom0.run("rm", "-r", "/run/certfs").returncode == 0
    script = "grep -c fuse.certfs /proc/self/mounts; cat /etc/stunnel/certs-pool/0.pem"
    said = dom0.certfs("detached", "--if-mounted", "--", "sh", "-c", script)
    assert "BEGIN CERTIFICATE" in said
    assert "0\n" in said
    assert "any may lack the last changes" in said
    assert dom0.run("umount", "-l", "/etc/stunnel").returncode == 0
    wait_until(lambda: dom0.processes() == [], what="the end of all processes")


def test_a_backup_of_an_ordinary_user(dom0: Host) -> None:
    """It fails where it would see what root has mounted, which it would archive as empty; it runs where nothing is."""
    run = (
        "setpriv",
        "--reuid=65534",
        "--clear-groups",
        *dom0.program(),
        "detached",
        "--if-mounted",
    )
    for where in ((), ("--mountpoint", "/etc/stunnel")):
        refused = dom0.run(*run, *where, "--", "echo", "ran")
        assert (refused.returncode, refused.stdout) == (10, "")
        assert "not yours to take away, and the command would see it" in refused.stderr
    dom0.certfs("unmount")
    for where in ((), ("--mountpoint", "/etc/stunnel")):
        ran = dom0.run(*run, *where, "--", "echo", "ran")
        assert (ran.returncode, ran.stdout, ran.stderr) == (0, "ran\n", "")


def test_unmounting_while_a_command_runs_detached(dom0: Host) -> None:
    """`certfs unmount` ends the instance, not the command."""
    detached = dom0.detached()
    dom0.certfs("unmount")
    wait_until(lambda: dom0.daemons() == [], what="the end of the processes")
    assert detached.finish() == (0, "go")


def test_backups_see_the_files(dom0: Host) -> None:
    """`tar --one-file-system` of /etc holds the certificates when it runs detached, the bundle included."""
    listing = dom0.certfs(
        "detached", "--", "sh", "-c", "tar --one-file-system -cf - /etc/stunnel | tar -tf -"
    )
    assert "etc/stunnel/certs-pool/0.pem" in listing
    assert "etc/stunnel/xapi-pool-ca-bundle.pem" in listing


def test_a_mount_waits_for_one_that_ends(dom0: Host) -> None:
    """`umount` of one of the host's directories ends all; a mount right after it waits for that end."""
    for number in range(int(os.environ.get("CERTFS_TEST_REMOUNTS", "2"))):
        assert dom0.run("umount", ("/etc/stunnel", "/etc/xensource")[number % 2]).returncode == 0
        dom0.certfs("mount")
        assert dom0.presented()
        assert certificates(dom0.tree.pool_bundle) == 2
