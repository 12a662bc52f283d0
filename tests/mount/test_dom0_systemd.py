"""The unit under a real systemd, booted as the first process of namespaces of its own (I14, I17).

The root mount is shared there, as systemd has it, and /etc is a bind mount in the peer group of its origin: what is
mounted over one appears over the other as well.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from certfs.cli.units import install_units
from tests.support import mounts, pki
from tests.support.mounts import wait_until
from tests.support.tree import Tree

pytestmark = [pytest.mark.mount, pytest.mark.namespace, pytest.mark.slow]

SYSTEMD = Path("/lib/systemd/systemd")
_SAID = "boot.log"
"""In the machine's directory: what its first process and systemd said."""
TARGETS = ("sysinit", "basic", "local-fs", "multi-user", "shutdown", "umount", "final", "network")
READER = """
[Unit]
Wants=certfs.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/grep -q " /etc/stunnel .* - fuse.certfs " /proc/self/mountinfo
"""
BOOT = """
set -e
umount --all --lazy --types fuse.certfs || true
mount --make-rshared /
mount -t proc proc /proc
mount -t tmpfs run /run
mount --bind "$1/boot.log" /dev/kmsg
mount --bind "$1/etc" /etc
umount -l /sys/fs/cgroup
mount -t cgroup2 none /sys/fs/cgroup
export container=other SYSTEMD_UNIT_PATH="$1/units"
exec "$2" --system --unit=xapi.service --log-target=kmsg
"""


@dataclass(slots=True)
class Machine:
    """A booted systemd."""

    init: int
    """The pid of its first process, as seen from here."""
    directory: Path

    def run(self, *command: str | Path) -> str:
        """Run a command on the machine and return its standard output."""
        result = subprocess.run(
            ["nsenter", f"--target={self.init}", "--mount", "--pid", "--cgroup", *command],
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    def inside(self, path: str) -> Path:
        """Return the path by which this process reaches ``path`` of the machine."""
        return Path(f"/proc/{self.init}/root{path}")

    def show(self, setting: str) -> str:
        """Return a property of the service."""
        return self.run("systemctl", "show", "--value", f"--property={setting}", "certfs").strip()

    def state(self) -> dict[str, Any]:
        """Return the state file; its pids are those of the machine."""
        content = self.inside("/run/certfs/dom0/state.json").read_bytes()
        state: dict[str, Any] = json.loads(content)
        return state

    def kill(self, *names: str) -> None:
        """Kill processes of the mount, all at once."""
        wait_until(lambda: all(self.state()[name] for name in names), what=f"{names} to kill")
        state = self.state()
        self.run("kill", "-9", *(str(state[name]["pid"]) for name in names))

    def targets(self) -> list[str]:
        """Return where certfs is mounted over a host's directory, sorted."""
        table = Path(f"/proc/{self.init}/mountinfo").read_text()
        points = [line.split()[4] for line in table.splitlines() if " - fuse.certfs " in line]
        return sorted(point for point in points if "/etc/" in point)

    def serves(self) -> bool:
        """Whether the service is up and presents both trees, each once and once in the peer of /etc."""
        peers = (f"{self.directory}/etc", "/etc")
        expected = sorted(f"{etc}/{tree}" for etc in peers for tree in ("stunnel", "xensource"))
        if self.targets() != expected or self.show("ActiveState") != "active":
            return False
        with contextlib.suppress(OSError):  # a server may have been killed a moment ago
            return b"BEGIN" in self.inside("/etc/stunnel/xapi-pool-ca-bundle.pem").read_bytes()
        return False


@pytest.fixture
def machine() -> Iterator[Machine]:
    """A machine on which certfs.service was started because something that needs it was."""
    mounts.need_fuse()
    mounts.need_namespaces()
    if not SYSTEMD.exists():
        mounts.missing("systemd")
    directory = mounts.scratch_directory()
    etc, units = directory / "etc", directory / "units"
    shutil.copytree("/etc", etc, symlinks=True, ignore_dangling_symlinks=True)
    for name in ("stunnel", "xensource"):
        shutil.rmtree(etc / name, ignore_errors=True)
    tree = Tree(root=etc, store=etc)
    tree.make()
    (tree.certs_pool / "one.pem").write_bytes(pki.issue("one").pem)
    units.mkdir()
    for name in TARGETS:
        (units / f"{name}.target").write_text("[Unit]\nDefaultDependencies=no\n")
    (units / "xapi.service").write_text(READER)
    assert CliRunner().invoke(install_units, ["--directory", str(units)]).exit_code == 0
    with _cgroup() as cgroup:
        booted = _boot(directory, cgroup)
        try:
            made = Machine(_first_process(booted, directory), directory)
            _wait_for(lambda: _booted(made), booted, directory)
            yield made
        finally:
            booted.kill()
            booted.wait()
            shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def _cgroup() -> Iterator[Path]:
    """Make a cgroup (of version 2) for the machine; skip where there is no such thing."""
    found = re.search(r"^\S+ \S+ \S+ \S+ (\S+) .* - cgroup2 ", _mountinfo(), re.MULTILINE)
    if not found or not os.access(found[1], os.W_OK):
        pytest.skip("no cgroup2 here that systemd could run in")
    cgroup = Path(found[1]) / f"certfs-test-{os.getpid()}"
    cgroup.mkdir()
    try:
        yield cgroup
    finally:
        wait_until(lambda: _removed(cgroup), seconds=30, what="the end of the machine's processes")


def _removed(cgroup: Path) -> bool:
    """Remove a cgroup with all below it; impossible while a killed process is not quite dead."""
    for directory, _, _ in os.walk(cgroup, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(directory)
    return not cgroup.exists()


def _mountinfo() -> str:
    return Path("/proc/self/mountinfo").read_text(errors="surrogateescape")


def _boot(directory: Path, cgroup: Path) -> subprocess.Popen[bytes]:
    enter = 'echo $$ > "$1/cgroup.procs" && shift && exec "$@"'
    namespaces = ["unshare", "--cgroup", "--pid", "--mount", "--fork", "--kill-child"]
    boot: list[str | Path] = ["sh", "-c", BOOT, "sh", directory, SYSTEMD]
    with (directory / _SAID).open("wb") as said:
        return subprocess.Popen(
            ["sh", "-c", enter, "sh", cgroup, *namespaces, *boot],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            env={k: v for k, v in os.environ.items() if k != "CERTFS_RUNTIME_DIR"},
        )


def _wait_for(
    reached: Callable[[], object], booted: subprocess.Popen[bytes], directory: Path
) -> None:
    """Wait for a step of the boot; where it does not come, fail with what the machine said."""
    deadline = time.monotonic() + 120
    while not reached():
        if booted.poll() is not None or time.monotonic() > deadline:
            said = (directory / _SAID).read_text(errors="backslashreplace")
            pytest.fail(f"the machine did not boot (exit {booted.poll()}); it said:\n{said}")
        time.sleep(0.1)


def _first_process(booted: subprocess.Popen[bytes], directory: Path) -> int:
    def children() -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            return Path(f"/proc/{booted.pid}/task/{booted.pid}/children").read_text().split()
        return []

    _wait_for(children, booted, directory)
    return int(children()[0])


def _booted(made: Machine) -> bool:
    with contextlib.suppress(AssertionError):
        return made.run("systemctl", "is-active", "xapi.service").strip() == "active"
    return False


def test_the_service_through_good_and_bad_days(machine: Machine) -> None:
    """Started before xapi; live again after every kill; reload and restart go on; after stop an ordinary host."""
    assert machine.serves()
    supervisor = machine.show("MainPID")

    machine.kill("server")
    wait_until(lambda: machine.state()["phase"] == "serving" and machine.serves(), what="recovery")
    assert machine.show("MainPID") == supervisor

    machine.run("systemctl", "reload", "certfs")
    assert machine.serves()
    assert machine.show("MainPID") == supervisor

    machine.kill("supervisor")
    wait_until(lambda: machine.show("MainPID") not in {"0", supervisor}, what="another supervisor")
    wait_until(machine.serves, what="the restarted service")
    assert len(machine.run("pgrep", "-f", "certfs.server").split()) == 1

    with machine.inside("/etc/stunnel/xapi-pool-ca-bundle.pem").open("rb") as bundle:
        machine.run("systemctl", "restart", "certfs")
        assert machine.serves()
        assert b"BEGIN" in bundle.read()

    machine.kill("supervisor", "server", "janitor")
    wait_until(lambda: machine.show("NRestarts") == "1", what="the restart by systemd")
    wait_until(machine.serves, what="the restarted service")

    machine.run("systemctl", "stop", "certfs")
    assert machine.targets() == []
    assert machine.show("Result") == "success"
    assert b"BEGIN" in machine.inside("/etc/stunnel/xapi-pool-ca-bundle.pem").read_bytes()


def test_a_signal_to_everything_in_the_service(machine: Machine) -> None:
    """`systemctl kill` with SIGKILL leaves no path at ENOTCONN: systemd cleans up and starts again."""
    machine.run("systemctl", "kill", "--signal=KILL", "certfs")
    wait_until(lambda: machine.show("NRestarts") == "1", what="the restart by systemd")
    wait_until(machine.serves, what="the restarted service")


RELOADED = """
[Service]
ExecStart=/bin/sleep infinity
ExecReload=/bin/sh -c 'echo reload >>/run/reloads'
"""
NOTIFY = """
[[notify]]
systemd_unit = "reader.service"
delay = 0.05
min_interval = 0.1
[[notify]]
command = ["/run/hook"]
user = "nobody"
delay = 0.05
min_interval = 0.1
"""


def test_readers_are_told_from_within_the_service(machine: Machine) -> None:
    """The unit's hardening keeps it neither from having a unit reloaded nor from changing the user (I21)."""
    (machine.directory / "units" / "reader.service").write_text(RELOADED)
    (machine.directory / "etc" / "certfs.toml").write_text(NOTIFY)
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "start", "reader.service")
    machine.run("mkdir", "-m", "0777", "/run/told")
    hook = "#!/bin/sh\nid -un >>/run/told/calls\n"
    machine.run("sh", "-c", 'printf %s "$1" >/run/hook; chmod 0755 /run/hook', "sh", hook)
    machine.run("systemctl", "reload", "certfs")
    wait_until(
        lambda: "certfs.notifier" in machine.run("ps", "ax"), seconds=60, what="the notifier"
    )
    machine.inside("/etc/stunnel/certs-pool/two.pem").write_bytes(pki.issue("two").pem)
    wait_until(machine.inside("/run/reloads").exists, seconds=60, what="the reload")
    wait_until(machine.inside("/run/told/calls").exists, seconds=60, what="the call")
    assert machine.run("cat", "/run/told/calls").splitlines() == ["nobody"]
