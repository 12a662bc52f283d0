"""An ordinary user's mount, through fusermount3: no right to bind, to slide one mount under another, to umount(8)."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support import load, mounts, pki
from tests.support.host import Host, host, kill
from tests.support.mounts import wait_until

pytestmark = [pytest.mark.mount, pytest.mark.namespace, pytest.mark.counted]

NOBODY = 65534
RENEWALS = int(os.environ.get("CERTFS_TEST_RENEWALS", "3"))
"""Restarts under readers; the nightly run makes more."""


class User:
    """Somebody who is not root, with a store and a mountpoint on a host where everybody may use FUSE."""

    def __init__(self, made: Host) -> None:
        self.host = made
        self.home = made.directory / "home"
        for path in (self.home, self.store, self.mountpoint, self.home / "run"):
            path.mkdir()
            os.chown(path, NOBODY, NOBODY)
        made.let_users_mount()

    @property
    def store(self) -> Path:
        """The store."""
        return self.home / "store"

    @property
    def mountpoint(self) -> Path:
        """The mountpoint."""
        return self.home / "mnt"

    def command(self, *command: str | Path) -> list[str | Path]:
        """Return the command line that runs ``command`` as this user."""
        who = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        runtime = f"CERTFS_RUNTIME_DIR={self.home}/run"
        return self.host.entering(
            "setpriv", *who, "env", runtime, f"HOME={self.home}", "XDG_RUNTIME_DIR=", *command
        )

    def run(self, *command: str | Path, expect: int = 0) -> str:
        """Run a command and return what it said."""
        result = subprocess.run(
            self.command(*command),
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            env=self.host.environment,
        )
        assert result.returncode == expect, result.stdout
        return result.stdout

    def certfs(self, *arguments: str | Path, expect: int = 0) -> str:
        """Run certfs."""
        return self.run(mounts.certfs_program(), *arguments, expect=expect)

    def state(self) -> dict[str, Any]:
        """Return the state file."""
        (path,) = (self.home / "run").glob("*/state.json")
        state: dict[str, Any] = json.loads(path.read_text())
        return state

    def mounted(self) -> list[bytes]:
        """Return the lines of the mount table that are certfs's."""
        table = Path(f"/proc/{self.host.holder.pid}/mountinfo").read_bytes()
        return [line for line in table.splitlines() if b" - fuse.certfs " in line]

    def names(self) -> set[str]:
        """Return what the user sees at the mountpoint."""
        return set(self.run("ls", self.mountpoint).split())


@pytest.fixture
def user() -> Iterator[User]:
    """An ordinary user with a mounted store."""
    mounts.need_program("setpriv", "fusermount3")
    mounts.need_readable_checkout()
    with host() as made:
        somebody = User(made)
        somebody.certfs("mount", "--store", somebody.store, somebody.mountpoint)
        yield somebody
        somebody.certfs("unmount", "--if-mounted", somebody.mountpoint)
        wait_until(lambda: made.daemons() == [], what="the end of the daemon")


def test_mounting_and_unmounting(user: User) -> None:
    """Mounting, `status` and unmounting work without root, and the mountpoint is empty afterwards."""
    assert user.names() == {"stunnel", "xensource"}
    assert "serving" in user.certfs("status")
    user.certfs("unmount", user.mountpoint)
    assert user.names() == set()


def test_only_root_presents_the_hosts_directories(user: User) -> None:
    """`certfs mount` without arguments needs root: exit code 10."""
    assert "only root" in user.certfs("mount", expect=10)


def test_what_could_not_be_unmounted_is_not_mounted(user: User) -> None:
    """Without /etc/mtab, as in a small container, fusermount3 never unmounts: exit code 6, and what to do."""
    mtab = user.host.directory / "etc" / "mtab"
    mtab.rename(mtab.with_name("mtab.away"))
    said = user.run("fusermount3", "-u", user.mountpoint, expect=1)
    assert "/etc/mtab" in said
    mtab.with_name("mtab.away").rename(mtab)
    user.certfs("unmount", user.mountpoint)
    mtab.unlink()
    said = user.certfs("mount", "--store", user.store, user.mountpoint, expect=6)
    assert "ln -s /proc/self/mounts /etc/mtab" in said
    assert user.names() == set()
    mtab.symlink_to("/proc/self/mounts")
    user.certfs("mount", "--store", user.store, user.mountpoint)
    user.certfs("unmount", user.mountpoint)


@pytest.mark.parametrize("words", [("unmount",), ("restart",), ("detached", "--mountpoint")])
def test_a_mount_of_another_user_is_called_that(user: User, words: tuple[str, ...]) -> None:
    """Who names the mount of somebody else is told whose it is, not that it is none or has lost its files (I19)."""
    command = ["--", "true"] if words[0] == "detached" else []
    user.host.certfs("mount")
    assert "is mounted by root" in user.certfs(*words, "/etc/stunnel", *command, expect=10)
    said = user.host.certfs(*words, user.mountpoint, *command, expect=10)
    assert f"is mounted by the user {NOBODY}" in said
    user.host.certfs("unmount")


def test_a_crash_and_a_hang_are_overcome(user: User) -> None:
    """After SIGKILL of the server, and of the supervisor too, no path stays at ENOTCONN (I14)."""
    killed = user.state()["server"]["pid"]
    began = time.monotonic()
    os.kill(killed, signal.SIGKILL)

    def live() -> bool:
        state = user.state()
        return bool(state["phase"] == "serving" and state["server"]["pid"] != killed)

    wait_until(live, what="the live mount")
    print(f"live again after {time.monotonic() - began:.2f} s")
    assert user.names() == {"stunnel", "xensource"}
    state = user.state()
    kill(*(state[name]["pid"] for name in ("supervisor", "server")))
    wait_until(lambda: user.host.certfs_mounts() == [], what="the janitor's work")
    assert user.names() == {"stunnel", "xensource"}  # links to the store
    user.certfs("unmount", user.mountpoint)
    assert user.names() == set()


def test_restarts_under_readers(user: User) -> None:
    """Restarts while others read: not one failed open or read (I17)."""
    program = user.home / "load.py"  # the user need not be able to read our checkout
    shutil.copy(Path(load.__file__), program)
    readers = [
        subprocess.Popen(
            user.command(sys.executable, program, "read", user.mountpoint),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=user.host.environment,
        )
        for _ in range(2)
    ]
    for _ in range(RENEWALS):
        user.certfs("restart", user.mountpoint)
    for reader in readers:
        notes = json.loads(reader.communicate(timeout=30)[0].splitlines()[-1])
        assert notes["errors"] == {}
        assert notes["torn"] == []
        assert notes["held_failures"] == 0


@pytest.mark.parametrize("how", ["restart", "crash"])
def test_what_root_has_bound_of_it_goes_with_its_server_and_the_log_says_so(
    user: User, how: str
) -> None:
    """I14: this user may not bind, so nothing can come back there; it is never left dead."""
    place = user.home / "bound"
    place.mkdir()
    assert user.host.run("mount", "--bind", user.mountpoint, place).returncode == 0
    assert str(place) in user.host.certfs_mounts()
    server = user.state()["server"]["pid"]
    if how == "restart":
        user.certfs("restart", user.mountpoint)
    else:
        kill(server)
    wait_until(lambda: str(place) not in user.host.certfs_mounts(), what="the end of the bind")

    def is_live() -> bool:
        # Right after a crash the place itself may be dead, for 100 ms, and then plain.
        with suppress(AssertionError):
            return user.names() == {"stunnel", "xensource"}
        return False

    wait_until(is_live, what="the live mount")
    assert os.listdir(place) == []
    (log,) = (user.home / "run").glob("*/log")
    wait_until(lambda: f"detached {place}" in log.read_text(), what="a line of the log")


def test_a_restart_that_fails_leaves_the_mount(user: User) -> None:
    """I17: where the next server cannot start, the one that serves goes on."""
    config = user.home / "certfs.toml"
    config.write_text("")
    user.certfs("unmount", user.mountpoint)
    user.certfs("mount", "--store", user.store, "--config", config, user.mountpoint)
    server = user.state()["server"]["pid"]
    config.write_text("nonsense")
    user.certfs("restart", user.mountpoint, expect=3)
    assert user.names() == {"stunnel", "xensource"}
    assert "serving" in user.certfs("status")
    assert user.state()["server"]["pid"] == server


@pytest.mark.parametrize("kills", [False, True], ids=["restarted", "killed"])
def test_a_source_that_is_overwritten_and_a_swap_outlive_the_server(
    user: User, *, kills: bool
) -> None:
    """The next server knows what counts, though the store shows something else (I3, I10, I17)."""
    pool, certs = (user.mountpoint / "stunnel" / name for name in ("certs-pool", "certs"))
    seen = {}
    for directory, bundle in ((pool, "xapi-pool-ca"), (certs, "xapi-stunnel-ca")):
        text = pki.issue(bundle).pem.decode()
        user.run("sh", "-c", f"cat > {directory}/one.pem <<'END'\n{text}END")
        seen[user.mountpoint / "stunnel" / f"{bundle}-bundle.pem"] = text

    def holds() -> bool:
        return all(text in user.run("cat", bundle) for bundle, text in seen.items())

    writer = subprocess.Popen(
        user.command("sh", "-c", f"exec 3> {certs}/one.pem; echo half >&3; read -r _"),
        stdin=subprocess.PIPE,
    )
    wait_until(lambda: (user.store / "stunnel/certs/one.pem").stat().st_size == 5, what="a half")
    user.run("mkdir", f"{pool}.bk")
    user.run("mv", "-T", pool, f"{pool}.bk")
    assert holds()
    if kills:
        before = user.state()["server"]["pid"]
        os.kill(before, signal.SIGKILL)
        wait_until(
            lambda: user.state()["phase"] == "serving" and user.state()["server"]["pid"] != before,
            what="the live mount",
        )
    else:
        user.certfs("restart", user.mountpoint)
    assert holds()
    writer.communicate(b"\n")


@pytest.mark.parametrize("milliseconds", [0, 5, 10, 15])
def test_a_supervisor_killed_in_a_restart(user: User, milliseconds: int) -> None:
    """I14: whichever server is in charge at that moment gets another supervisor, though files are still open."""
    opened = user.mountpoint / "xensource/xapi-ssl.pem"
    holder = subprocess.Popen(user.command("sh", "-c", 'exec sleep 60 <"$0"', opened))
    try:
        wait_until(lambda: reads(holder.pid, opened), what="the open file")
        supervisor, mount = user.state()["supervisor"]["pid"], user.mounted()
        restarting = subprocess.Popen(
            user.command(mounts.certfs_program(), "restart", user.mountpoint),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=user.host.environment,
        )
        deadline = time.monotonic() + 20
        # Without a pause: there is nothing between two mounts for some milliseconds only.
        while user.mounted() == mount:
            assert time.monotonic() < deadline
        time.sleep(milliseconds / 1000)
        kill(supervisor)
        restarting.wait(60)

        def served() -> bool:
            state = user.state()
            return bool(state["phase"] == "serving" and state["supervisor"]["pid"] != supervisor)

        wait_until(served, seconds=20, what="another supervisor")
        assert user.names() == {"stunnel", "xensource"}
    finally:
        holder.kill()
        holder.wait()


def reads(pid: int, path: Path) -> bool:
    """Whether the standard input of a process is this file."""
    try:
        return os.readlink(f"/proc/{pid}/fd/0").endswith(path.name)
    except OSError:
        return False


def test_a_detached_command(user: User) -> None:
    """`certfs detached` runs a command with plain files and mounts again with what it changed, also after SIGTERM."""
    pem = user.home / "new.pem"
    pem.write_bytes(pki.issue("new").pem)
    script = (
        'trap "exit 7" TERM; test -L "$0/stunnel" && cp "$1" "$0/stunnel/certs/new.pem";'
        " kill -TERM $PPID; while :; do sleep 0.05; done"
    )
    command = ("sh", "-c", script, user.mountpoint, pem)
    user.certfs("detached", "--mountpoint", user.mountpoint, "--", *command, expect=7)
    assert user.state()["phase"] == "serving"
    bundle = user.mountpoint / "stunnel" / "xapi-stunnel-ca-bundle.pem"
    assert "BEGIN CERTIFICATE" in user.run("cat", bundle)


def test_fusermount_ends_it(user: User) -> None:
    """`fusermount3 -u` ends the daemon as well."""
    user.run("fusermount3", "-u", user.mountpoint)
    wait_until(lambda: user.host.daemons() == [], what="the end of the daemon")
    assert user.names() == set()


def test_a_mountpoint_of_somebody_else(user: User) -> None:
    """A mountpoint that the user may not write to is refused with 5, before anything is started."""
    (user.host.directory / "foreign").mkdir()
    said = user.certfs("mount", "--store", user.store, user.host.directory / "foreign", expect=5)
    assert "not writable" in said


def test_allow_other_needs_permission(user: User) -> None:
    """`--allow-other` without user_allow_other in fuse.conf fails with 6 and leaves nothing."""
    other = user.home / "other"
    other.mkdir()
    os.chown(other, NOBODY, NOBODY)
    user.certfs("mount", "--allow-other", "--store", user.store, other, expect=6)
    assert str(other) not in user.host.certfs_mounts()
