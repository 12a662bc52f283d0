"""An ordinary user's mount and the user's own service manager, started by a real systemd as user@.service is (I21)."""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import machine as machines
from tests.support import mounts, pki
from tests.support.machine import Machine
from tests.support.mounts import wait_until

pytestmark = [pytest.mark.mount, pytest.mark.namespace, pytest.mark.slow]

UID = 20_001
NAME = "ada"
HOME = "/run/ada"
RUNTIME = f"/run/user/{UID}"
# Debian's user@.service without PAM, which a machine without logind has no use for.
MANAGER = f"""
[Service]
User={NAME}
Type=notify
Environment=HOME={HOME} XDG_RUNTIME_DIR={RUNTIME}
RuntimeDirectory=user/{UID}
RuntimeDirectoryMode=0700
ExecStart=/lib/systemd/systemd --user
Slice=user-{UID}.slice
KillMode=mixed
Delegate=pids memory cpu
"""
READER = """
[Service]
ExecStart=/bin/sleep infinity
ExecReload=/bin/sh -c 'echo reload >>%h/reloads'
"""
CONFIGURATION = f"""
[[bundle]]
source = "trusted"
bundle = "ca.pem"
[[notify]]
systemd_unit = "reader.service"
delay = 0.05
min_interval = 0.1
[[notify]]
command = ["{HOME}/hook", "$HOME"]
delay = 0.05
min_interval = 0.1
"""
HOOK = f"""#!/bin/sh
echo "$(id -un) $(grep -o '[^/]*[.]service$' /proc/self/cgroup | tail -1) $1 $CERTFS_CERTIFICATES" >>{HOME}/calls
"""


@dataclass(slots=True)
class User:
    """Somebody on a machine, with a store and a mountpoint, and a service manager if it was started."""

    machine: Machine

    def run(self, *command: str | Path, **environment: str) -> str:
        """Run a command as this user; without further variables as cron(8) would.

        Then certfs keeps its state in /tmp, which the machine shares with this one: the state has a place of its own.
        """
        who = (f"--reuid={UID}", f"--regid={UID}", "--clear-groups", "--reset-env")
        places = {"HOME": HOME, "CERTFS_RUNTIME_DIR": "" if environment else f"{HOME}/state"}
        variables = [f"{name}={value}" for name, value in {**places, **environment}.items()]
        path = f"PATH={os.environ['PATH']}"
        return self.machine.run("setpriv", *who, "env", path, *variables, *command)

    def in_session(self, *command: str | Path) -> str:
        """Run a command as in a session that was logged into."""
        return self.run(*command, XDG_RUNTIME_DIR=RUNTIME)

    def write(self, name: str, content: str | bytes, *, mode: int = 0o644) -> None:
        """Put a file into the home directory."""
        path = self.inside(name)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        os.chown(path, UID, UID)
        path.chmod(mode)

    def inside(self, name: str) -> Path:
        """Return the path by which this process reaches a file of the home directory."""
        return self.machine.inside(f"{HOME}/{name}")

    def lines(self, name: str) -> list[str]:
        """Return what a file of the home directory says; nothing where it is not there."""
        path = self.inside(name)
        return path.read_text().splitlines() if path.exists() else []

    def has_notifier(self) -> bool:
        """Whether the notifier runs."""
        found = f"pgrep -u {UID} -f '[c]ertfs.notifier.main' || true"
        return self.machine.run("sh", "-c", found) != ""

    def add(self, name: str) -> None:
        """Copy a certificate into the mount."""
        self.write(f"{name}.pem", pki.authority(f"user {name}").pem)
        self.run("cp", f"{HOME}/{name}.pem", f"{HOME}/mnt/trusted/")

    def start_manager(self) -> None:
        """Start the user's service manager, and in it the reader."""
        self.machine.run("systemctl", "start", "manager.service")
        self.in_session("systemctl", "--user", "start", "dbus.socket", "reader.service")


@pytest.fixture
def user() -> Iterator[User]:
    """Give a user of a machine where everybody may use FUSE."""
    mounts.need_fuse()
    mounts.need_program("setpriv")
    mounts.need_program_for_all()
    if reason := machines.why_not():
        pytest.skip(reason)
    if not Path("/usr/lib/systemd/user/dbus.socket").exists():
        mounts.missing("dbus-user-session")
    with machines.directory_of_a_machine() as directory:
        for name, line in (
            ("passwd", f"{NAME}:x:{UID}:{UID}::{HOME}:/bin/sh"),
            ("group", f"{NAME}:x:{UID}:"),
        ):
            file = directory / "etc" / name
            text = file.read_text()
            file.unlink()  # it is a link to the file of all machines
            file.write_text(f"{text}{line}\n")
        (directory / "units" / "manager.service").write_text(MANAGER)
        (directory / "units" / "idle.service").write_text(
            "[Service]\nExecStart=/bin/sleep infinity\n"
        )
        node = directory / "fuse"
        os.mknod(node, stat.S_IFCHR | 0o666, os.stat("/dev/fuse").st_rdev)
        node.chmod(0o666)
        with machines.booted(directory, "idle.service") as machine:
            machine.run("mount", "--bind", node, "/dev/fuse")
            made = User(machine)
            for name in (
                "",
                "state",
                "store",
                "store/trusted",
                "mnt",
                ".config",
                ".config/systemd",
                ".config/systemd/user",
            ):
                made.inside(name).mkdir()
                os.chown(made.inside(name), UID, UID)
            made.write("certfs.toml", CONFIGURATION)
            made.write("hook", HOOK, mode=0o755)
            made.write("store/trusted/first.pem", pki.authority("user first").pem)
            made.write(".config/systemd/user/reader.service", READER)
            yield made


def test_the_readers_of_a_user_are_told_by_the_users_manager(user: User) -> None:
    """From a unit of the user's own: a unit is reloaded, and a command runs as a unit of its own."""
    user.start_manager()
    program = mounts.certfs_program()
    user.in_session(
        program, "install-units", "--user", "--enable", "--store", f"{HOME}/store",
        "--config", f"{HOME}/certfs.toml", f"{HOME}/mnt",
    )  # fmt: skip
    user.in_session("systemctl", "--user", "start", "certfs-run-ada-mnt.service")
    wait_until(user.has_notifier, seconds=60, what="the notifier")
    user.add("second")
    wait_until(lambda: user.lines("reloads") == ["reload"], seconds=60, what="the reload")
    wait_until(lambda: user.lines("calls") != [], seconds=60, what="the call")
    (call,) = user.lines("calls")
    name, unit, argument, certificates = shlex.split(call)
    assert (name, argument, certificates) == (NAME, "$HOME", "2")
    assert unit.startswith("certfs-notify-")
    user.in_session("systemctl", "--user", "stop", "certfs-run-ada-mnt.service")
    # As at the next boot, for a user who lingers.
    user.machine.run("systemctl", "restart", "manager.service")
    wait_until(lambda: "certfs.server" in user.machine.run("ps", "-eo", "args"), what="the server")
    user.in_session("systemctl", "--user", "start", "certfs-run-ada-mnt.service")
    assert user.run("grep", "-c", "BEGIN", f"{HOME}/mnt/ca.pem") == "2\n"
    user.in_session("systemctl", "--user", "stop", "certfs-run-ada-mnt.service")


def test_a_mount_without_a_session_finds_the_manager_that_comes(user: User) -> None:
    """Mounted by cron before the user has logged in: a command runs all the same, a unit once there is a manager."""
    program = mounts.certfs_program()
    user.run(
        program,
        "mount",
        "--store",
        f"{HOME}/store",
        "--config",
        f"{HOME}/certfs.toml",
        f"{HOME}/mnt",
    )
    wait_until(user.has_notifier, seconds=60, what="the notifier")
    user.add("second")
    wait_until(lambda: user.lines("calls") != [], seconds=60, what="the call")
    assert user.lines("calls")[-1].endswith(" $HOME 2")
    assert user.lines("reloads") == []
    user.start_manager()
    wait_until(lambda: user.lines("reloads") == ["reload"], seconds=90, what="the reload")
    user.add("third")
    wait_until(lambda: len(user.lines("calls")) > 1, seconds=60, what="the next call")
    assert "certfs-notify-" in user.lines("calls")[-1]
    user.run(program, "unmount", f"{HOME}/mnt")
