"""The systemd unit: valid, in the right order, as locked up as a service can be that mounts for the whole host."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from certfs.cli.units import install_units, unit_text
from tests.support import mounts, pki
from tests.support.host import Host, host

PACKAGED = Path(__file__).parents[2] / "scripts" / "systemd" / "certfs.service"
EXPOSURE = 50
"""Tenths of systemd's exposure level, 0 (best) to 100. Root that mounts cannot be much better; below 50 is "OK"."""
NAMESPACING = re.compile(
    r"^(Protect(System|Home|Kernel\w+|ControlGroups|Proc|Hostname)|ProcSubset|Private(Tmp|Devices|Mounts|IPC)"
    r"|MountFlags|(ReadOnly|ReadWrite|Inaccessible|Exec|NoExec)Paths|Bind(ReadOnly)?Paths"
    r"|TemporaryFileSystem|RootDirectory|RootImage|DynamicUser)=",
    re.MULTILINE,
)
_PR_SET_MDWE = 65
_PR_MDWE_REFUSE_EXEC_GAIN = 1


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit as `certfs install-units` writes it."""
    result = CliRunner().invoke(install_units, ["--directory", str(tmp_path)])
    assert result.exit_code == 0, result.output
    return tmp_path / "certfs.service"


def setting(unit: str, name: str) -> str:
    """Return the value of one setting."""
    (value,) = re.findall(rf"^{name}=(.*)$", unit, re.MULTILINE)
    return str(value)


def test_systemd_accepts_the_unit(unit: Path) -> None:
    """`systemd-analyze verify` has nothing to say about the installed unit."""
    mounts.need_program("systemd-analyze")
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(unit)]
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert "certfs" not in result.stderr


def test_the_unit_is_locked_up(unit: Path) -> None:
    """The exposure that `systemd-analyze security` finds stays below its "OK" threshold."""
    mounts.need_program("systemd-analyze")
    subprocess.run(
        [
            "systemd-analyze",
            "security",
            "--offline=true",
            f"--threshold={EXPOSURE}",
            "--no-pager",
            unit,
        ],
        check=True,
        capture_output=True,
        timeout=60,
    )


def test_the_unit_stays_in_the_hosts_mount_namespace() -> None:
    """No setting gives the service a mount namespace of its own: its mounts would be seen by nobody else."""
    assert NAMESPACING.findall(unit_text("/usr/bin/certfs")) == []


def test_the_order_at_boot() -> None:
    """The unit starts before everything that reads the host's certificates, and after local file systems."""
    text = unit_text("/usr/bin/certfs")
    assert set(setting(text, "Before").split()) == {
        "gencert.service",
        "stunnel@xapi.service",
        "xapi.service",
        "forkexecd.service",
        "xcp-networkd.service",
    }
    assert "local-fs.target" in setting(text, "After")
    assert setting(text, "Type") == "notify"
    assert int(setting(text, "OOMScoreAdjust")) < 0


def test_the_packaged_unit_is_the_installed_one() -> None:
    """scripts/systemd holds the unit for a certfs in /usr/bin."""
    assert PACKAGED.read_text() == unit_text("/usr/bin/certfs")


def test_a_unit_of_another_root_is_not_enabled_here(tmp_path: Path) -> None:
    """`--directory` is somebody else's place: nothing of this host is changed, and the way to do it is said."""
    result = CliRunner().invoke(install_units, ["--directory", str(tmp_path), "--enable"])
    assert result.exit_code == 2
    assert "systemctl --root" in result.output
    assert not list(tmp_path.iterdir())


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    """A unit directory that is a file is one clear error."""
    (tmp_path / "file").touch()
    result = CliRunner().invoke(install_units, ["--directory", str(tmp_path / "file" / "x")])
    assert result.exit_code != 0
    assert "cannot write" in str(result.exception)


@pytest.fixture
def dom0() -> Iterator[Host]:
    """A host with one source."""
    with host() as made:
        (made.store.certs_pool / "one.pem").write_bytes(pki.issue("one").pem)
        yield made


def refuse_executable_memory() -> None:
    """Do what MemoryDenyWriteExecute= does (prctl(2), Linux 6.3)."""
    ctypes.CDLL(None).prctl(_PR_SET_MDWE, _PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0)


@pytest.mark.mount
@pytest.mark.namespace
def test_the_mount_works_with_the_units_rights(dom0: Host) -> None:
    """With the unit's capabilities and memory protection alone everything works: mount, crash, restart, unmount."""
    mounts.need_program("setpriv")
    names = setting(unit_text("/usr/bin/certfs"), "CapabilityBoundingSet").lower().split()
    bounding = ",".join(["-all", *("+" + name.removeprefix("cap_") for name in names)])
    confined = ("setpriv", f"--bounding-set={bounding}", "--no-new-privs")
    command = dom0.entering(*confined, *dom0.program(), "mount")
    subprocess.run(
        command,
        check=True,
        preexec_fn=refuse_executable_memory,
        env=dom0.environment,
        timeout=60,
    )
    state = dom0.server()
    (dom0.tree.certs_pool / "two.pem").write_bytes(pki.issue("two").pem)
    assert dom0.tree.pool_bundle.read_bytes().count(b"BEGIN") == 2
    with open(f"/proc/{dom0.supervisor()}/status", encoding="utf-8") as stream:
        assert "NoNewPrivs:\t1" in stream.read()
    os.kill(state, signal.SIGKILL)
    mounts.wait_until(
        lambda: dom0.server() not in {0, state} and dom0.presented(), what="the mount"
    )
    dom0.certfs("restart")
    dom0.certfs("unmount")
