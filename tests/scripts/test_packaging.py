"""What `scripts/package` decides: which inputs, from where, and what may be in a package. Building is for the night."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from scripts.packaging import elf, suite, tree
from scripts.packaging.debian import (
    Pin,
    Repository,
    own_release,
    read_groups,
    read_lock,
    sources,
    write_lock,
)
from scripts.packaging.elf import Elf
from scripts.packaging.shell import BuildError, run
from scripts.packaging.wheels import PYTHONS, STABLE, pins
from tests.support import mounts

ROOT = Path(__file__).resolve().parents[2]
PACKAGING = ROOT / "scripts" / "packaging"
LOCK = read_lock((PACKAGING / "debian.lock.toml").read_text())


def test_every_input_is_pinned_by_version_and_hash() -> None:
    """Each package that is wanted is in the lock file, and nothing else is."""
    groups = read_groups()
    assert LOCK.keys() == groups.keys()
    for name, group in groups.items():
        wanted = set(group.packages) if group.source is None else {group.source}
        assert {pin.name for pin in LOCK[name]} == wanted
        for pin in LOCK[name]:
            assert re.fullmatch(r"[0-9a-f]{64}", pin.sha256)
            assert pin.version.split(":")[-1].split("-")[0] in pin.file


@pytest.mark.parametrize(
    "name", ["requirements.txt", "requirements-build.txt", "scripts/packaging/requirements.txt"]
)
def test_every_requirement_is_pinned_by_version_and_hash(name: str) -> None:
    """A line of a lock file names one version and at least one hash."""
    found = dict(pins((ROOT / name).read_text()))
    assert found
    for requirement, text in found.items():
        assert text.startswith(f"{requirement}=="), text
        assert "--hash=sha256:" in text


def test_no_file_of_the_build_names_a_server() -> None:
    """Where inputs come from is the machine's configuration."""
    for path in [ROOT / "scripts/package", *PACKAGING.iterdir()]:
        if path.is_file():
            assert "://" not in path.read_text(), path


def test_what_is_written_to_the_lock_file_is_read_again() -> None:
    """The lock file is written by one function and read by another."""
    pin = Pin(name="libc6", version="1:2.36-9", file="libc6_1%3a2.36-9_amd64.deb", sha256="0" * 64)
    assert read_lock(write_lock({"tree": [pin], "headers": [pin, pin]})) == {
        "tree": (pin,),
        "headers": (pin, pin),
    }


MACHINE = (
    Repository("a:debian/", "bookworm"),
    Repository("a:debian/", "bookworm-updates"),
    Repository("a:security/", "bookworm-security"),
    Repository("b:other/", "nodistro"),
)


def test_another_release_comes_from_the_same_servers() -> None:
    """Only the release's name is replaced, and repositories of others are left out."""
    lines = sources(MACHINE, "bookworm", "trixie").splitlines()
    assert len(lines) == 6
    assert {tuple(line.split()[2:4]) for line in lines} == {
        ("a:debian/", "trixie"),
        ("a:debian/", "trixie-updates"),
        ("a:security/", "trixie-security"),
    }
    assert all("signed-by=" in line for line in lines)


def test_a_machine_that_was_just_made_has_its_updates_beside() -> None:
    """With the release alone, updates and security fixes are looked for where mirrors have them."""
    lines = sources(MACHINE[:1], "bookworm", "bookworm").splitlines()
    assert {tuple(line.split()[2:4]) for line in lines} == {
        ("a:debian/", "bookworm"),
        ("a:debian/", "bookworm-updates"),
        ("a:debian-security", "bookworm-security"),
    }


def test_a_machine_of_another_kind_is_refused(tmp_path: Path) -> None:
    """Without a repository of its own release, or a release at all, the build says what it needs."""
    with pytest.raises(BuildError, match="Debian 12"):
        sources(MACHINE, "noble", "trixie")
    (tmp_path / "os-release").write_text("ID=void\n")
    with pytest.raises(BuildError, match="Debian 12"):
        own_release(tmp_path / "os-release")


@pytest.mark.parametrize(
    "versions,wrong",
    [
        (["GLIBC_2.17", "GLIBC_2.2.5", "GLIBC_PRIVATE", "FUSE_3.14"], []),
        (["GLIBC_2.18"], ["GLIBC_2.18"]),
        (["GLIBC_2.17.1", "GLIBC_2.4"], ["GLIBC_2.17.1"]),
        (["GLIBC_3"], ["GLIBC_3"]),
    ],
)
def test_which_symbols_an_old_c_library_lacks(versions: list[str], wrong: list[str]) -> None:
    """Versions are compared as numbers: 2.4 is older than 2.17."""
    assert elf.too_new(Elf(path="x", versions=frozenset(versions)), glibc=(2, 17)) == wrong


def test_what_a_self_contained_tree_lacks() -> None:
    """A library counts under its soname or under its file's name."""
    found = [
        Elf(path="bin/python", needed=("libc.so.6", "libz.so.1", "liblost.so.1")),
        Elf(path="lib/libc-2.36.so", soname="libc.so.6"),
        Elf(path="lib/libz.so.1"),
    ]
    assert elf.unresolved(found) == ["bin/python: liblost.so.1"]


def test_elf_files_are_found_by_what_they_are(tmp_path: Path) -> None:
    """Neither the name nor the mode counts, and a link is not a second file."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a/odd name").write_bytes(b"\x7fELF...")
    (tmp_path / "lib.so").write_bytes(b"#!/bin/sh\n")
    (tmp_path / "link.so").symlink_to("a/odd name")
    assert list(elf.files(tmp_path)) == [tmp_path / "a/odd name"]


def test_a_failing_program_ends_the_build_with_what_it_said() -> None:
    """The message has the command, the status and the output."""
    with pytest.raises(BuildError, match=r"(?s)status 3.*trouble"):
        run(["sh", "-c", "echo trouble >&2; exit 3"])


def test_each_version_has_a_directory_of_its_own() -> None:
    """I17: an upgrade replaces no file of the version that runs."""
    one, two = (tree.Release(version="1.0", release=number) for number in ("1", "2"))
    assert one.prefix == "/opt/certfs/1.0-1"
    assert one.prefix != two.prefix


def test_there_is_a_wheel_for_each_python_that_debian_has() -> None:
    """The versions that wheels are made for have their packages in the lock file."""
    assert set(PYTHONS) == {"3.11", "3.13"}
    assert STABLE not in PYTHONS
    for version, groups in PYTHONS.items():
        names = {pin.name for group in groups for pin in LOCK[group]}
        assert {f"python{version}-minimal", f"libpython{version}-dev"} <= names


# --- the scripts that run on hosts


def answer(path: Path, text: str) -> None:
    """Make a program that prints its name, its arguments and ``text``, and ends with status 7."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\necho "${{0##*/}} $* {text}"\nexit 7\n')
    path.chmod(0o755)


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    """The backup program as it is installed, with a stand-in for the platform's."""
    program = tmp_path / "libexec/host-backup"
    program.parent.mkdir()
    program.write_bytes((PACKAGING / "host-backup").read_bytes())
    program.chmod(0o755)
    answer(tmp_path / "original", "archive")
    return program


def back_up(program: Path, **variables: str) -> tuple[int, str]:
    """Run the backup program; return its status and its standard output."""
    environment = {
        **os.environ,
        "CERTFS_HOST_BACKUP": str(program.parents[1] / "original"),
        **variables,
    }
    result = subprocess.run(
        [program, "a b"], check=False, capture_output=True, text=True, env=environment
    )
    return result.returncode, result.stdout


def test_the_hosts_backup_runs_with_the_plain_directories(backup: Path) -> None:
    """The original gets the arguments, and its output and status are what the caller sees."""
    answer(backup.parents[1] / "bin/certfs", "")
    status, said = back_up(backup)
    assert status == 7
    assert said.split() == [
        "certfs",
        "detached",
        "--if-mounted",
        "--",
        str(backup.parents[1] / "original"),
        "a",
        "b",
    ]


def test_the_hosts_backup_works_without_certfs(backup: Path) -> None:
    """Where certfs is gone, it is just the original; where the original is gone, that is said and fails."""
    assert back_up(backup) == (7, "original a b archive\n")
    assert back_up(backup, CERTFS_HOST_BACKUP="/missing") == (127, "")


@pytest.mark.namespace
def test_a_removal_deletes_no_file_that_is_mounted_in_run(tmp_path: Path) -> None:
    """I12: `lifecycle removing` leaves nothing in /run, and does not reach through a mount that stayed."""
    mounts.need_namespaces()
    version, precious = tmp_path / "version", tmp_path / "precious"
    for directory in (version / "libexec", version / "bin", precious, tmp_path / "units"):
        directory.mkdir(parents=True)
    shutil.copy(PACKAGING / "lifecycle", version / "libexec")
    (version / "bin" / "certfs").symlink_to("/bin/true")
    (precious / "key").write_text("the only one")
    script = """
        set -e
        mount -t tmpfs tmpfs /run
        mkdir -p /run/certfs/dom0/mount-1
        echo line > /run/certfs/dom0/log
        mount --bind "$1/precious" /run/certfs/dom0/mount-1
        "$1/version/libexec/lifecycle" removing
        cat /run/certfs/dom0/mount-1/key
        umount /run/certfs/dom0/mount-1
        "$1/version/libexec/lifecycle" removing
        test ! -e /run/certfs
    """
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", tmp_path],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "CERTFS_ETC": str(tmp_path), "CERTFS_UNITS": str(tmp_path / "units")},
    )
    assert done.stdout == "the only one"
    assert "something is mounted there" in done.stderr
    assert (precious / "key").exists()


@pytest.mark.namespace
def test_a_removal_ends_what_runs_the_program() -> None:
    """`lifecycle removing` ends supervisors, of whichever user, and pool processes; other programs and roots stay."""
    mounts.need_namespaces()
    mounts.need_program("setpriv")
    tmp_path = mounts.scratch_directory()
    tmp_path.chmod(0o755)
    version = tmp_path / "opt" / "1.0-1"
    for directory in ("systemd/system", "root", version / "libexec", version / "bin"):
        (tmp_path / directory).mkdir(parents=True)
    shutil.copy(PACKAGING / "lifecycle", version / "libexec")
    (version / "bin/certfs").symlink_to("/bin/true")
    (version / "bin/python3").symlink_to("/bin/sh")
    unit = tmp_path / "systemd/system/certfs-srv-a\\x2db.service"
    unit.write_text(f"[Service]\nExecStart={tmp_path}/opt/current/bin/certfs mount\n")
    unit.with_name("other.service").write_text("[Service]\nExecStart=/usr/bin/certfs mount\n")
    removal = 'mount -t tmpfs tmpfs /run && exec "$1/opt/1.0-1/libexec/lifecycle" removing'
    container = """
        set -e
        root=$1/root
        mount -t tmpfs none "$root"
        mkdir -p "$root$1" "$root/usr" "$root/dev"
        : >"$root/dev/null"
        mount --bind "$1" "$root$1"
        mount --bind /usr "$root/usr"
        ln -s usr/bin usr/lib usr/lib64 "$root"
        shift
        exec chroot "$root" "$@"
    """
    idle = ("-c", "sleep 60 & trap 'kill $!' TERM; echo ready; wait", "certfs")
    program = version / "bin/python3"
    wanted: dict[str, list[str | Path]] = {
        "supervisor": [
            "setpriv",
            "--reuid=20001",
            "--",
            program,
            *idle,
            "certfs.supervisor.supervisor",
        ],
        "pool": [program, *idle, "pool", "run"],
        "server": [program, *idle, "certfs.server.main"],
        "other": ["/bin/sh", *idle, "certfs.supervisor.supervisor"],
        "container": [
            *("unshare", "--mount", "sh", "-c", container, "sh", tmp_path),
            *(program, *idle, "certfs.supervisor.supervisor"),
        ],
    }
    running = {
        name: subprocess.Popen(command, stdout=subprocess.PIPE) for name, command in wanted.items()
    }
    try:
        for process in running.values():
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", removal, "sh", tmp_path],
            check=True,
            capture_output=True,
            text=True,
            env={
                **os.environ,
                "CERTFS_ETC": str(tmp_path),
                "CERTFS_UNITS": str(tmp_path / "units"),
            },
        )
        ended = {name for name, process in running.items() if process.poll() is not None}
    finally:
        for process in running.values():
            process.terminate()
            process.communicate()
        shutil.rmtree(tmp_path)
    assert ended == {"supervisor", "pool"}
    assert done.stdout == f"certfs: {unit} stays; it starts nothing while certfs is not installed\n"


@pytest.mark.namespace
def test_processes_of_the_tree_that_outlive_the_tests_are_named_and_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those whose program is on the tree's file system, in whatever namespace; one that ends in time is none."""
    mounts.need_namespaces()
    script = 'mount -t tmpfs none "$1"; cp /bin/sleep "$1"; stat -c %d "$1"; exec "$1/sleep" "$2"'

    def begin(seconds: int) -> tuple[subprocess.Popen[str], int]:
        command: list[str | Path] = ["unshare", "--mount", "sh", "-ec", script, "sh", tmp_path]
        process = subprocess.Popen([*command, str(seconds)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        device = int(process.stdout.readline())
        what = "the start of the program"
        mounts.wait_until(lambda: suite._processes_on(device) == [process.pid], what=what)
        return process, device

    process, device = begin(3)
    with process:
        assert suite._end_processes(device) == []
        assert process.wait() == 0
    monkeypatch.setattr(suite, "_PATIENCE", 0.0)
    process, device = begin(600)
    with process:
        assert suite._end_processes(device) == [f"{process.pid} {tmp_path}/sleep 600"]
        assert process.wait(30) == -signal.SIGKILL
