"""The unit under a real systemd, booted as the first process of namespaces of its own (I14, I17)."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from certfs.cli.units import install_units
from tests.support import machine as machines
from tests.support import mounts, pki
from tests.support.mounts import wait_until
from tests.support.tree import Tree

pytestmark = [pytest.mark.mount, pytest.mark.namespace, pytest.mark.slow]

READER = """
[Unit]
Wants=certfs.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/grep -q " /etc/stunnel .* - fuse.certfs " /proc/self/mountinfo
"""


@dataclass(slots=True)
class Machine(machines.Machine):
    """A machine on which certfs.service runs."""

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
    if reason := machines.why_not():
        pytest.skip(reason)
    with machines.directory_of_a_machine() as directory:
        etc, units = directory / "etc", directory / "units"
        (Tree(root=etc, store=etc).certs_pool / "one.pem").write_bytes(pki.issue("one").pem)
        (units / "xapi.service").write_text(READER)
        assert CliRunner().invoke(install_units, ["--directory", str(units)]).exit_code == 0
        with machines.booted(directory, "xapi.service") as made:
            yield Machine(made.init, made.directory)


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

    # What an admin has mounted by hand is none of the unit's: it is neither taken over nor taken away.
    machine.run(mounts.certfs_program(), "mount")
    by_hand, presented = machine.state()["supervisor"]["pid"], machine.targets()
    machine.run("sh", "-c", "! systemctl start certfs")
    assert machine.show("ActiveState") == "failed"
    assert machine.targets() == presented != []
    assert machine.state()["supervisor"]["pid"] == by_hand
    machine.run(mounts.certfs_program(), "unmount")
    machine.run("systemctl", "start", "certfs")
    wait_until(machine.serves, what="the service")


def test_the_page_from_a_broken_start_to_an_ordinary_host(machine: Machine) -> None:
    """What docs/operations.md says of a service that systemd gave up, and of the way back, works as it stands there."""
    page = (Path(__file__).parents[2] / "docs/operations.md").read_text()
    (again,) = re.findall(r"then `(systemctl reset-failed [^`]*)`", page)
    machine.run("systemctl", "stop", "certfs")
    configuration = machine.directory / "etc" / "certfs.toml"
    configuration.write_text("no_such_key = 1\n")
    for _ in range(11):
        machine.run("sh", "-c", "! systemctl start certfs")
    assert machine.show("ActiveState") == "failed"
    assert machine.targets() == []
    configuration.unlink()
    machine.run("sh", "-c", "! systemctl start certfs")
    machine.run("sh", "-ec", again)
    wait_until(machine.serves, what="the service")
    machine.run("systemctl", "disable", "--now", "certfs")
    machine.run(mounts.certfs_program(), "unmount", "--all")
    assert machine.targets() == []
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
command = ["/run/hook", "$HOME"]
user = "nobody"
delay = 0.05
min_interval = 0.1
"""


def has_notifier(machine: Machine) -> bool:
    """Whether the notifier runs; ps(1) would cut its command line at 80 columns."""
    found = machine.run("sh", "-c", "pgrep -f '[c]ertfs.notifier.main' || true")
    return found != ""


TOLD = r"""#!/bin/sh
{
    id -un
    id -Gn
    grep -o 'certfs[^/]*[.]service' /proc/self/cgroup
    grep -E '^(Umask|NoNewPrivs|CapBnd)' /proc/self/status
    echo "$(nice) $(cat /proc/self/oom_score_adj) $1 $CERTFS_CERTIFICATES $LANG"
} >>/run/told/calls
"""


def test_readers_are_told_from_within_the_service(machine: Machine) -> None:
    """The unit's hardening keeps it neither from having a unit reloaded nor from changing the user (I21).

    Without a message bus a command is its child and inherits the hardening; with one it is a unit of its own.
    """
    (machine.directory / "units" / "reader.service").write_text(RELOADED)
    etc = machine.directory / "etc"
    (etc / "certfs.toml").write_text(NOTIFY)
    groups = (etc / "group").read_text()
    (etc / "group").unlink()  # it is a link to the file of all machines
    (etc / "group").write_text(f"{groups}readers:x:20002:nobody\n")
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "start", "reader.service")
    machine.run("mkdir", "-m", "0777", "/run/told")
    machine.run("sh", "-c", 'printf %s "$1" >/run/hook; chmod 0755 /run/hook', "sh", TOLD)
    machine.run("systemctl", "reload", "certfs")
    wait_until(lambda: has_notifier(machine), seconds=60, what="the notifier")
    machine.inside("/etc/stunnel/certs-pool/two.pem").write_bytes(pki.issue("two").pem)
    wait_until(machine.inside("/run/reloads").exists, seconds=60, what="the reload")
    user, its_groups, unit, umask, bounding, privileges, last = told(machine)
    assert (user, its_groups, unit, umask, privileges) == (
        "nobody",
        "nogroup readers",
        "certfs.service",
        "Umask:\t0022",
        "NoNewPrivs:\t1",
    )
    assert last == "0 0 $HOME 2 C.UTF-8"

    for name in ("dbus.service", "dbus.socket"):
        shutil.copy(f"/lib/systemd/system/{name}", machine.directory / "units" / name)
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "start", "dbus.service")
    machine.run("rm", "/run/told/calls")
    machine.run("systemctl", "reload", "certfs")
    machine.inside("/etc/stunnel/certs-pool/three.pem").write_bytes(pki.issue("three").pem)
    user, its_groups, unit, umask, unbounded, privileges, last = told(machine)
    assert (user, its_groups) == ("nobody", "nogroup readers")
    assert (umask, privileges) == ("Umask:\t0022", "NoNewPrivs:\t0")
    assert unit.startswith("certfs-notify-")
    assert unbounded != bounding
    assert last == "0 0 $HOME 3 C.UTF-8"


def told(machine: Machine) -> list[str]:
    """Return what the hook has noted of its only call."""
    calls = machine.inside("/run/told/calls")
    wait_until(lambda: calls.exists() and "UTF-8" in calls.read_text(), seconds=60, what="the call")
    return calls.read_text().splitlines()


SLOW = """
[[notify]]
command = ["/run/hook"]
delay = 0.05
min_interval = 0.1
"""
NOTES_BOTH_ENDS = """#!/bin/sh
echo "begins $CERTFS_SHA256" >>/run/calls
sleep 2
echo "ends $CERTFS_SHA256" >>/run/calls
"""
VICTIMS = ("certfs[.]notifier[.]main", "^systemd-run ", "^/bin/sh /run/hook")


def test_kills_around_a_command_that_is_a_unit_of_its_own(machine: Machine) -> None:
    """Whatever is killed while it runs, a run for the last content comes to its end (I21)."""
    (machine.directory / "etc" / "certfs.toml").write_text(SLOW)
    for name in ("dbus.service", "dbus.socket"):
        shutil.copy(f"/lib/systemd/system/{name}", machine.directory / "units" / name)
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "start", "dbus.service")
    script = 'printf %s "$1" >/run/hook; chmod 0755 /run/hook'
    machine.run("sh", "-c", script, "sh", NOTES_BOTH_ENDS)
    machine.run("systemctl", "reload", "certfs")
    wait_until(lambda: has_notifier(machine), seconds=60, what="the notifier")
    for number, victim in enumerate(VICTIMS):
        pem = pki.issue(f"kills {number}").pem
        machine.inside(f"/etc/stunnel/certs-pool/kills-{number}.pem").write_bytes(pem)
        bundle = machine.inside("/etc/stunnel/xapi-pool-ca-bundle.pem").read_bytes()
        sha256 = hashlib.sha256(bundle).hexdigest()
        wait_until(partial(has_noted, machine, f"begins {sha256}"), seconds=60, what="the command")
        machine.run("pkill", "-KILL", "-f", victim)
        wait_until(partial(has_noted, machine, f"ends {sha256}"), seconds=60, what="its end")


def has_noted(machine: Machine, line: str) -> bool:
    """Whether a hook has noted this of a call."""
    calls = machine.inside("/run/calls")
    return calls.exists() and line in calls.read_text().splitlines()


WATCHING = """
[Path]
{setting}=/etc/stunnel/xapi-pool-ca-bundle.pem
"""
WATCHED = """
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'sha256sum </etc/stunnel/xapi-pool-ca-bundle.pem >>/run/{name}'
"""


def test_path_units_follow_the_bundle_through_a_burst(machine: Machine) -> None:
    """A burst starts neither unit so often that systemd fails it, and the last content reaches both (I21)."""
    settings = ("PathChanged", "PathModified")
    for name in settings:
        (machine.directory / "units" / f"{name}.path").write_text(WATCHING.format(setting=name))
        (machine.directory / "units" / f"{name}.service").write_text(WATCHED.format(name=name))
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "start", *(f"{name}.path" for name in settings))
    for number in range(40):
        pem = pki.issue(f"burst {number}").pem
        machine.inside(f"/etc/stunnel/certs-pool/burst{number}.pem").write_bytes(pem)
        time.sleep(0.3)  # twelve seconds: systemd counts the starts of ten
    bundle = machine.inside("/etc/stunnel/xapi-pool-ca-bundle.pem").read_bytes()
    last = hashlib.sha256(bundle).hexdigest()

    def has_last(name: str) -> bool:
        seen = machine.inside(f"/run/{name}")
        return seen.exists() and seen.read_text().split()[-2:-1] == [last]

    for name in settings:
        wait_until(partial(has_last, name), seconds=60, what=f"the last content in {name}")
        assert machine.run("systemctl", "is-active", f"{name}.path") == "active\n"
