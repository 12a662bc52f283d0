"""The systemd unit: valid, in the right order, as locked up as a service can be that mounts for the whole host."""

from __future__ import annotations

import ctypes
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from certfs.cli.units import install_units, modules_directory, render, template, unit_text
from tests.support import mounts, pki
from tests.support.host import Host, host
from tests.support.identity import run_certfs
from tests.support.mounts import certfs_program, need_fuse

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


@pytest.fixture
def pool_unit(tmp_path: Path) -> Path:
    """The unit of the pool's process beside that of a store."""
    command = ["--pool", "--store", "/srv/a b", "/srv/50%"]
    result = CliRunner().invoke(install_units, ["--directory", str(tmp_path), *command])
    assert result.exit_code == 0, result.output
    return tmp_path / "certfs-pool.service"


def setting(unit: str, name: str) -> str:
    """Return the value of one setting."""
    (value,) = re.findall(rf"^{name}=(.*)$", unit, re.MULTILINE)
    return str(value)


@pytest.mark.parametrize("which", ["unit", "pool_unit"])
def test_systemd_accepts_the_unit(which: str, request: pytest.FixtureRequest) -> None:
    """`systemd-analyze verify` has nothing to say about the installed unit."""
    unit: Path = request.getfixturevalue(which)
    mounts.need_program("systemd-analyze")
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(unit)]
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert "certfs" not in result.stderr


@pytest.mark.parametrize("which", ["unit", "pool_unit"])
def test_the_unit_is_locked_up(which: str, request: pytest.FixtureRequest) -> None:
    """The exposure that `systemd-analyze security` finds stays below its "OK" threshold."""
    unit: Path = request.getfixturevalue(which)
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
    assert set(" ".join(re.findall(r"^Before=(.*)$", text, re.MULTILINE)).split()) == {
        "gencert.service",
        "stunnel@xapi.service",
        "xapi.service",
        "forkexecd.service",
        "xcp-networkd.service",
        "save-boot-info.service",
        "xcp-rrdd.service",
        "xenopsd-xc.service",
        "xapi-nbd.path",
    }
    assert "local-fs.target" in setting(text, "After")
    assert setting(text, "Type") == "notify"
    assert int(setting(text, "OOMScoreAdjust")) < 0


OLDEST = 219
VERSIONS = (OLDEST, 229, 230, 231, 233, 235, 238, 239, render.NEWEST)
KNOWN_TO_219 = frozenset(
    (
        "After", "Before", "CapabilityBoundingSet", "ConditionFileIsExecutable", "Description",
        "Documentation", "ExecReload", "ExecStart",
        "ExecStopPost", "KillMode", "LimitNOFILE", "NoNewPrivileges", "NotifyAccess", "OOMScoreAdjust",
        "RequiresMountsFor", "Restart", "RestartPreventExitStatus", "RestartSec", "RestrictAddressFamilies",
        "StartLimitBurst", "SystemCallArchitectures", "TimeoutStartSec", "TimeoutStopSec", "Type", "UMask",
        "WantedBy",
    )
)  # fmt: skip


def directives(text: str) -> dict[str, list[str]]:
    """Return the names that a unit sets, by section."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("["):
            section = found.setdefault(line.strip("[]"), [])
        elif line and not line.startswith("#"):
            section.append(line.partition("=")[0])
    return found


@pytest.mark.parametrize("version", VERSIONS)
def test_each_systemd_gets_what_it_knows(version: int) -> None:
    """No directive is newer than the systemd it is for, and every one is known to be old or has its version."""
    text = render.unit_text(template(), "/usr/bin/certfs", systemd=version)
    for section, names in directives(text).items():
        for name in names:
            if (section, name) == ("Service", "StartLimitInterval"):
                assert version < 230
            else:
                assert name in KNOWN_TO_219 or render.SINCE[name] <= version, name


def test_the_newest_systemd_gets_everything() -> None:
    """Nothing of the template is lost on the way to a systemd that knows all of it."""
    names = {name for section in directives(unit_text("/x")).values() for name in section}
    assert names == {name for section in directives(template()).values() for name in section}


@pytest.mark.parametrize("version,section", [(219, "Service"), (229, "Service"), (230, "Unit")])
def test_the_start_limit_is_where_it_is_looked_for(version: int, section: str) -> None:
    """Before systemd 230 the limit is in [Service]: elsewhere it would be ignored, and five failures be the end."""
    text = render.unit_text(template(), "/usr/bin/certfs", systemd=version)
    for name, where in directives(text).items():
        assert any(one.startswith("StartLimit") for one in where) == (name == section)


@pytest.mark.parametrize("version", VERSIONS)
def test_no_systemd_gets_groups_or_prefixes_that_it_does_not_know(version: int) -> None:
    """A group of system calls that is not known is dropped from the allow-list, and `+` would be part of a path."""
    text = render.unit_text(template(), "/usr/bin/certfs", systemd=version)
    assert not re.search(r"^Exec\w+=-?\+", text, re.MULTILINE)
    assert ("@system-service" in text) == (version >= 239)


def test_a_comment_goes_with_what_it_is_about() -> None:
    """A unit does not explain what it does not say."""
    text = render.unit_text("# a\nA=1\n\n# b\n# c\nKeyringMode=private\n\n[X]\n", "/x", systemd=219)
    assert "# a\nA=1" in text
    assert "# b" not in text
    assert "# c" not in text


def test_a_unit_for_a_store(tmp_path: Path) -> None:
    """A standalone mount has a unit of its own, named after the mountpoint; it is ordered after what it needs only."""
    command = [
        "--directory",
        str(tmp_path),
        "--store",
        "/srv/a b",
        "--config",
        "/srv/c.toml",
        "/srv/50%",
    ]
    result = CliRunner().invoke(install_units, command)
    assert result.exit_code == 0, result.output
    text = (tmp_path / "certfs-srv-50\\x25.service").read_text()
    assert setting(text, "ExecStart").endswith(
        'mount --foreground --store "/srv/a b" --config /srv/c.toml "/srv/50%%"'
    )
    assert setting(text, "RequiresMountsFor").startswith('"/srv/a b" "/srv/50%%" /')
    assert setting(text, "ExecStopPost").endswith('unmount --if-mounted --own-unit "/srv/50%%"')
    assert "Before=" not in text


def test_a_unit_names_its_program_as_a_condition() -> None:
    """The path of a condition is written as it is, without quotes; one that cannot stand there has no condition."""
    mount = render.Standalone(store="/s", mountpoint="/m")
    for which in (
        render.unit_text(template(), "/srv/50% a/certfs"),
        render.pool_unit_text(template("pool.in"), "/srv/50% a/certfs", mount),
    ):
        assert setting(which, "ConditionFileIsExecutable") == "/srv/50%% a/certfs"
        assert setting(which, "RequiresMountsFor").endswith(' "/srv/50%% a/certfs"')
    for program in ("/a\nb/certfs", "/a/certfs ", "/a/certfs\\"):
        assert "ConditionFile" not in unit_text(program)


def test_a_unit_for_the_pool(pool_unit: Path) -> None:
    """The pool's process starts after the mount, may use the network, and is always started again (I22)."""
    text = pool_unit.read_text()
    assert setting(text, "ExecStart").endswith('pool run --store "/srv/a b" "/srv/50%%"')
    assert "certfs-srv-50\\x25.service" in setting(text, "After")
    assert pool_unit.with_name("certfs-srv-50\\x25.service").exists()
    assert setting(text, "Restart") == "always"
    assert "AF_INET6" in setting(text, "RestrictAddressFamilies")
    assert "AF_INET" not in setting(unit_text("/x"), "RestrictAddressFamilies")
    assert NAMESPACING.findall(text) == []


@pytest.mark.parametrize("version", VERSIONS)
def test_each_systemd_gets_what_it_knows_of_the_pool(version: int) -> None:
    """In the pool's unit, too, no directive is newer than the systemd it is for."""
    mount = render.Standalone(store="/s", mountpoint="/m")
    text = render.pool_unit_text(template("pool.in"), "/x", mount, systemd=version)
    names = {name for section in directives(text).values() for name in section}
    for name in names - KNOWN_TO_219 - {"Wants", "StartLimitInterval"}:
        assert render.SINCE[name] <= version, name


def test_a_unit_for_the_pool_of_the_hosts_own(tmp_path: Path) -> None:
    """Without a store the pool's process is that of the host's own directories; a user has none (I22)."""
    result = CliRunner().invoke(install_units, ["--directory", str(tmp_path), "--pool"])
    assert result.exit_code == 0, result.output
    text = (tmp_path / "certfs-pool.service").read_text()
    assert setting(text, "ExecStart").endswith("certfs pool run")
    assert "certfs.service" in setting(text, "After").split()
    refused = ["--directory", str(tmp_path), "--pool", "--user", "--store", "/s", "/m"]
    assert CliRunner().invoke(install_units, refused).exit_code == 2


def test_a_unit_of_a_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's unit forbids no new privileges: fusermount3 has its rights from its set-user-ID bit."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr("certfs.cli.units._systemd_runs", lambda: False)
    result = CliRunner().invoke(
        install_units, ["--user", "--store", "/home/ada/tls", "/home/ada/tls"]
    )
    assert result.exit_code == 0, result.output
    text = (tmp_path / "systemd/user/certfs-home-ada-tls.service").read_text()
    assert setting(text, "WantedBy") == "default.target"
    for name in ("NoNewPrivileges", "SystemCallFilter", "OOMScoreAdjust", "CapabilityBoundingSet"):
        assert name not in text


@pytest.mark.parametrize("option", ["--store", "--config", "mountpoint"])
def test_a_path_that_no_unit_can_hold_is_refused(tmp_path: Path, option: str) -> None:
    """What is no UTF-8 cannot stand in a unit: it is named, and nothing is written."""
    given = {"--store": "/s", "--config": "/c", "mountpoint": "/m"} | {option: "/caf\udce9"}
    words = ["--store", given["--store"], "--config", given["--config"], given["mountpoint"]]
    done = CliRunner().invoke(install_units, ["--directory", str(tmp_path / "units"), *words])
    assert (done.exit_code, "only paths in UTF-8: /caf\\udce9" in done.output) == (2, True)
    assert not (tmp_path / "units").exists()


def test_what_a_unit_lacks_on_this_host_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I9: a store, a mountpoint and a configuration that are not there are named; the unit is written all the same."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr("certfs.cli.units._systemd_runs", lambda: False)
    lacking = [str(tmp_path / name) for name in ("store", "config.toml", "mnt-1")]
    store, config, mountpoint = lacking
    words = ["--user", "--store", store, "--config", config, mountpoint]
    result = CliRunner().invoke(install_units, words)
    assert result.exit_code == 0, result.output
    warnings = [line for line in result.stderr.splitlines() if line.startswith("certfs: warning: ")]
    assert all(any(path in line for line in warnings) for path in lacking), result.stderr
    # A hyphen of a path is a backslash in the unit's name, which a shell would take for its own.
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("start it now")]
    (unit,) = (tmp_path / "systemd/user").glob("certfs-*.service")
    assert shlex.split(line)[-1] == unit.stem
    for name in ("store", "mnt-1"):
        (tmp_path / name).mkdir()
    Path(config).touch()
    assert "warning" not in CliRunner().invoke(install_units, words).stderr


@pytest.mark.parametrize(
    "arguments", [["--user"], ["--store", "/a"], ["/a"], ["--config", "/a"], ["--systemd", "12"]]
)
def test_half_an_order_is_a_usage_error(arguments: list[str]) -> None:
    """What does not go together is refused before anything is written."""
    assert CliRunner().invoke(install_units, arguments).exit_code == 2


def test_the_kernel_module_is_loaded_at_boot(tmp_path: Path) -> None:
    """Beside a directory of units, modules-load.d names fuse; a directory of another kind gets no second one."""
    units = tmp_path / "etc/systemd/system"
    assert CliRunner().invoke(install_units, ["--directory", str(units)]).exit_code == 0
    assert "fuse" in (tmp_path / "etc/modules-load.d/certfs.conf").read_text().splitlines()
    assert modules_directory("/srv/units") is None


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


# --- what an admin has edited ----------------------------------------------------------------------


def _install(directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return run_certfs("install-units", "--directory", directory, *words)


def test_the_same_unit_again_changes_nothing(tmp_path: Path) -> None:
    """A unit that is up to date is not written, and no edit is suspected."""
    _install(tmp_path)
    before = (tmp_path / "certfs.service").stat()
    done = _install(tmp_path)
    assert "is up to date" in done.stdout
    assert (tmp_path / "certfs.service").stat().st_ino == before.st_ino


def test_an_older_unit_is_replaced(tmp_path: Path) -> None:
    """What an earlier version wrote, and nobody edited, becomes what this one writes."""
    _install(tmp_path, "--systemd", "219")
    done = _install(tmp_path, "--systemd", "252")
    assert done.stdout.startswith("replaced ")
    assert "StartLimitIntervalSec" in (tmp_path / "certfs.service").read_text()


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text.replace("200ms", "5s"),
        lambda text: text + "# mine\n",
        lambda _: "[Unit]\n",
    ],
)
def test_an_edited_unit_is_kept(tmp_path: Path, edit: Callable[[str], str]) -> None:
    """A unit that an admin has changed stays, what would be lost is shown, and --force overwrites it."""
    _install(tmp_path)
    unit = tmp_path / "certfs.service"
    edited = edit(unit.read_text())
    unit.write_text(edited)
    done = _install(tmp_path)
    assert unit.read_text() == edited
    assert "was edited" in done.stderr
    assert "systemctl edit certfs.service" in done.stderr
    assert any(line.startswith("  -") for line in done.stderr.splitlines())
    _install(tmp_path, "--force")
    assert "200ms" in unit.read_text()


def test_a_masked_unit_stays_masked(tmp_path: Path) -> None:
    """The link by which systemctl masks a unit is an admin's wish."""
    unit = tmp_path / "certfs.service"
    unit.symlink_to("/dev/null")
    assert "it is kept" in _install(tmp_path).stderr
    assert os.readlink(unit) == "/dev/null"


def test_drop_ins_stay_and_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    """Drop-ins are left alone and mentioned; a dry run says what it would do."""
    assert "would be installed" in _install(tmp_path, "--dry-run").stdout
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "certfs.service.d").mkdir()
    (tmp_path / "certfs.service.d/mine.conf").write_text("[Service]\nNice=5\n")
    assert "certfs.service.d stays and counts" in _install(tmp_path).stdout
    assert (tmp_path / "certfs.service.d/mine.conf").read_text() == "[Service]\nNice=5\n"


def test_no_file_of_certfs_is_writable_by_all(tmp_path: Path) -> None:
    """Without a umask no file that a command, a supervisor or a server makes can be written by other users (I19)."""
    need_fuse()
    (tmp_path / "store/stunnel/certs").mkdir(parents=True)
    (tmp_path / "store/stunnel/certs/one.pem").write_bytes(pki.authority("modes").pem)
    (tmp_path / "mount").mkdir()
    run = tmp_path / "run"
    script = (
        'umask 0; certfs=$1; cd "$2"; $certfs mount --store store mount; '
        "cp store/stunnel/certs/one.pem mount/stunnel/certs/two.pem; $certfs restart mount; "
        "$certfs install-units --directory units >/dev/null"
    )
    words = ["sh", "-c", script, "sh", certfs_program(), str(tmp_path)]
    environment = {**os.environ, "CERTFS_RUNTIME_DIR": str(run)}
    try:
        subprocess.run(words, check=True, env=environment, capture_output=True, timeout=60)
        made = [
            path for path in tmp_path.rglob("*") if path.is_file() and "mount" not in path.parts
        ]
        assert {"state.json", "settings.json", "log", "certfs.service"} <= {
            path.name for path in made
        }
        loose = [path for path in made if path.stat().st_mode & 0o022]
        # What a caller makes on the mount has the mode that it asked for.
        assert [path.name for path in loose if path.name != "two.pem"] == []
    finally:
        subprocess.run(
            [certfs_program(), "unmount", tmp_path / "mount"], check=False, env=environment
        )
