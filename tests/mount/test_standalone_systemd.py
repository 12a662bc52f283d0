"""Stores of one's own at boot: a line of fstab and a unit, with a real systemd (I12, I14)."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from certfs.cli.units import install_units, render, template
from tests.support import machine as machines
from tests.support import mounts, pki
from tests.support.machine import Machine
from tests.support.mounts import certfs_program, wait_until

pytestmark = [pytest.mark.mount, pytest.mark.namespace, pytest.mark.slow]

GENERATOR = Path("/lib/systemd/system-generators/systemd-fstab-generator")
CONFIG = '[[bundle]]\nsource = "certs"\nbundle = "ca.pem"\n'
STARTED = """
[Unit]
Requires=local-fs.target
Wants=multi-user.target
After=local-fs.target {unit}
[Service]
ExecStart=/bin/sleep infinity
"""
HELPERS = """
[Unit]
Before=local-fs.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/mount -t overlay -o lowerdir={helpers}:{sbin} none {sbin}
"""


@pytest.fixture
def directory() -> Iterator[Path]:
    """A machine's directory with two stores and their mountpoints, one mounted by fstab and one by a unit."""
    mounts.need_fuse()
    if reason := machines.why_not():
        pytest.skip(reason)
    if not GENERATOR.exists():
        pytest.skip("there is no systemd-fstab-generator")
    with machines.directory_of_a_machine() as made:
        for name in ("by-fstab", "by-unit"):
            (made / name / "store/certs").mkdir(parents=True)
            (made / name / "store/certs/one.pem").write_bytes(pki.issue(name).pem)
            (made / name / "mnt").mkdir()
        (made / "certfs.toml").write_text(CONFIG)
        (made / "helpers").mkdir()
        (made / "helpers/mount.fuse.certfs").symlink_to(certfs_program())
        _write_units(made)
        yield made


def _write_units(made: Path) -> None:
    units = made / "units"
    helpers = HELPERS.format(helpers=made / "helpers", sbin=os.path.realpath("/sbin"))
    (units / "helpers.service").write_text(helpers)
    (made / "fstab").write_text(
        f"{made}/by-fstab/store {made}/by-fstab/mnt fuse.certfs "
        f"config={made}/certfs.toml,allow_other,noexec,x-systemd.requires=helpers.service 0 0\n"
    )
    environment = {**os.environ, "SYSTEMD_FSTAB": str(made / "fstab")}
    subprocess.run([GENERATOR, units, units, units], check=True, env=environment, timeout=60)
    store = ["--store", f"{made}/by-unit/store", "--config", f"{made}/certfs.toml"]
    result = CliRunner().invoke(
        install_units, ["--directory", str(units), *store, f"{made}/by-unit/mnt"]
    )
    assert result.exit_code == 0, result.output
    (unit,) = units.glob("certfs-*.service")
    (units / "started.service").write_text(STARTED.format(unit=unit.name))
    (units / "multi-user.target.wants").mkdir(exist_ok=True)
    (units / "multi-user.target.wants" / unit.name).symlink_to(unit)


def bundle(machine: Machine, name: str) -> bytes:
    """Return what a program of the machine reads from the bundle of a mount; nothing where it is not there."""
    path = machine.inside(f"{machine.directory}/{name}/mnt/ca.pem")
    with contextlib.suppress(OSError):  # a server may have been killed a moment ago
        return path.read_bytes()
    return b""


def is_served(machine: machines.Machine, name: str) -> bool:
    """Whether a server answers there."""
    with contextlib.suppress(OSError):
        return machine.inside(f"{machine.directory}/{name}/mnt/.certfs/summary.json").exists()
    return False


def test_a_line_of_fstab_and_a_unit_are_mounted_at_boot(directory: Path) -> None:
    """Both are there when the boot is done, follow their sources and come back by themselves; stopping ends them."""
    with machines.booted(directory, "started.service") as machine:
        for name in ("by-fstab", "by-unit"):
            assert bundle(machine, name).count(b"BEGIN") == 1
            (directory / name / "store/certs/two.pem").write_bytes(pki.issue("two").pem)
            wait_until(lambda: bundle(machine, name).count(b"BEGIN") == 2, what="the change")  # noqa: B023  waited for here
        assert "noexec" in machine.run(
            "findmnt", "--noheadings", "--output=OPTIONS", f"{directory}/by-fstab/mnt"
        )
        # Also helpers of theirs that come and go: one that has gone is no error to pkill.
        machine.run("pkill", "-9", "-f", "certfs.server")
        for name in ("by-fstab", "by-unit"):
            wait_until(lambda: is_served(machine, name), what="the next server")  # noqa: B023  waited for here

        def active() -> list[str]:
            units = machine.run("systemctl", "list-units", "--plain", "--no-legend").split()
            ours = ("by\\x2dfstab-mnt.mount", "by\\x2dunit-mnt.service")
            return [unit for unit in units if unit.endswith(ours)]

        # systemd has seen the mount go, and hears of the new one a moment later.
        wait_until(lambda: len(active()) == 2, what="both units")
        for unit in active():
            machine.run("systemctl", "stop", unit)
        table = machine.run("cat", "/proc/self/mountinfo")
        assert f"{directory}/by-" not in table
        for name in ("by-fstab", "by-unit"):
            assert (directory / name / "store/ca.pem").read_bytes().count(b"BEGIN") == 2


def test_a_unit_whose_program_was_removed_does_not_fail(directory: Path) -> None:
    """It is enabled and its program is gone: the boot has no failed unit for it, and with the program it starts."""
    program, units = directory / "gone/certfs", directory / "units"
    mount = render.Standalone(
        store=f"{directory}/by-unit/store",
        mountpoint=f"{directory}/by-unit/mnt",
        options=("--config", f"{directory}/certfs.toml"),
    )
    name = render.unit_name(mount)
    (units / name).write_text(render.unit_text(template(), str(program), mount=mount))
    pool = render.pool_unit_text(template("pool.in"), str(program), mount)
    (units / render.POOL_UNIT).write_text(pool)
    wanted = units / "multi-user.target.wants" / render.POOL_UNIT
    wanted.symlink_to(units / render.POOL_UNIT)
    # Nothing starts that makes a network here.
    (units / "network-online.target").write_text("[Unit]\n")
    with machines.booted(directory, "started.service") as machine:

        def told(unit: str) -> dict[str, str]:
            asked = "ActiveState,ConditionResult,ConditionTimestampMonotonic,Result"
            said = machine.run("systemctl", "show", f"--property={asked}", unit)
            return dict(line.split("=", 1) for line in said.splitlines())

        skipped = {"ActiveState": "inactive", "ConditionResult": "no", "Result": "success"}
        for unit in (name, render.POOL_UNIT):
            wait_until(
                lambda: told(unit)["ConditionTimestampMonotonic"] != "0",  # noqa: B023  waited for here
                what="the start",
            )
            assert told(unit).items() >= skipped.items()
        program.parent.mkdir()
        program.symlink_to(certfs_program())
        machine.run("systemctl", "start", name)
        assert told(name)["ActiveState"] == "active"
        assert bundle(machine, "by-unit").count(b"BEGIN") == 1
        machine.run("systemctl", "stop", name)
