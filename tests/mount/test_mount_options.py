"""The options of mount(8) on a real mount: what each forbids, what a remount changes, and what survives a crash."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from certfs.client import instances
from certfs.protocol.state_file import read_state
from tests.support import mounts
from tests.support.forked import run_forked
from tests.support.mounts import certfs_program, wait_until

pytestmark = [pytest.mark.mount, pytest.mark.counted]


@dataclass(slots=True)
class Mounted:
    """A store, and where it is mounted."""

    store: Path
    point: Path

    def certfs(self, *arguments: str | Path, expect: int = 0) -> str:
        """Run certfs; return what it said."""
        result = run_forked(arguments)
        assert result.returncode == expect, result.stdout + result.stderr
        return result.stdout + result.stderr

    def mount(self, options: str) -> None:
        """Mount with options."""
        self.certfs("mount", "--store", self.store, self.point, "-o", options)

    def flags(self) -> int:
        """Return the mount's flags (statvfs(3))."""
        return os.statvfs(self.point).f_flag

    def source(self) -> str:
        """Return what the mount table names as the source."""
        command = (
            "findmnt",
            "--noheadings",
            "--nofsroot",
            "--output=SOURCE",
            "--types=fuse.certfs",
        )
        return subprocess.run(
            (*command, self.point), check=True, capture_output=True, text=True
        ).stdout.strip()


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mounted]:
    """A store that is not mounted yet, with a runtime directory of its own."""
    mounts.need_fuse()
    directory = mounts.scratch_directory()
    for name in ("store", "mnt"):
        (directory / name).mkdir()
    monkeypatch.setenv("CERTFS_RUNTIME_DIR", str(directory / "run"))
    yield Mounted(directory / "store", directory / "mnt")
    subprocess.run([certfs_program(), "unmount", "--all"], check=False, capture_output=True)
    shutil.rmtree(directory, ignore_errors=True)


def refused(code: int) -> contextlib.AbstractContextManager[pytest.ExceptionInfo[OSError]]:
    """Expect an error with this number."""
    return pytest.raises(OSError, check=lambda error: error.errno == code)


def test_a_read_only_mount(place: Mounted) -> None:
    """`ro`: nothing can be changed through the mount (EROFS), and the store is as before."""
    (place.store / "file").write_text("x")
    place.mount("ro")
    with refused(errno.EROFS):
        (place.point / "new").touch()
    with refused(errno.EROFS):
        (place.point / "file").unlink()
    with refused(errno.EROFS):
        (place.point / "file").chmod(0o600)
    assert (place.point / "file").read_text() == "x"


def test_options_that_forbid(place: Mounted) -> None:
    """`noexec`, `nosuid`, `nodev`, `sync` and `strictatime` are the kernel's, as on any mount."""
    mounts.need_root()
    (place.store / "program").write_text("#!/bin/sh\nexit 0\n")
    (place.store / "program").chmod(0o755)
    place.mount("noexec,nosuid,nodev,sync,strictatime,_netdev,nofail,x-systemd.automount")
    wanted = os.ST_NOEXEC | os.ST_NOSUID | os.ST_NODEV | os.ST_SYNCHRONOUS
    assert place.flags() & (wanted | os.ST_RELATIME) == wanted
    with pytest.raises(PermissionError):
        subprocess.run([place.point / "program"], check=False)


@pytest.mark.parametrize(
    "option,kept",
    [
        ("noatime", {"directory", "directory/file"}),
        ("ro", {"directory", "directory/file"}),
        ("nodiratime", {"directory"}),
        ("noatime,relatime", set()),
        ("strictatime,diratime", set()),
    ],
)
def test_times_of_access(place: Mounted, option: str, kept: set[str]) -> None:
    """Reading changes no time of access with `noatime` or `ro`, also not beneath; without, as the store does it."""
    (place.store / "directory").mkdir()
    (place.store / "directory" / "file").write_text("x")
    old = 86400 * 365 * 10**9
    for path in (place.store / "directory" / "file", place.store / "directory"):
        os.utime(path, ns=(old, old + 10**9))
    place.mount(option)
    assert (place.point / "directory" / "file").read_text() == "x"
    assert os.listdir(place.point / "directory") == ["file"]
    for name in ("directory", "directory/file"):
        assert ((place.store / name).stat().st_atime_ns == old) == (name in kept)


def test_remounting(place: Mounted) -> None:
    """`remount` changes what it names and nothing else; a server that comes later has it as well."""
    mounts.need_root()
    place.mount("noexec")
    place.certfs("mount", "-o", "remount,ro", place.point)
    with refused(errno.EROFS):
        (place.point / "new").touch()
    assert place.flags() & os.ST_NOEXEC
    (directory,) = instances.every()
    state = read_state(directory)
    assert state is not None
    assert state.server is not None
    os.kill(state.server.pid, signal.SIGKILL)

    def back() -> bool:
        now = read_state(directory)
        return bool(now and now.server and now.server != state.server and now.phase == "serving")

    wait_until(back, what="the next server")
    assert place.flags() & (os.ST_RDONLY | os.ST_NOEXEC) == os.ST_RDONLY | os.ST_NOEXEC
    place.certfs("mount", "-o", "remount,rw", place.point)
    (place.point / "new").touch()
    assert place.flags() & os.ST_NOEXEC


def test_an_unknown_option_mounts_nothing(place: Mounted) -> None:
    """A misspelt word is one clear line, and status 2."""
    said = place.certfs("mount", "--store", place.store, place.point, "-o", "noexce", expect=2)
    assert "noexce" in said
    assert not os.path.ismount(place.point)


def test_the_mount_table_names_the_store(place: Mounted) -> None:
    """The source is the store, as of other file systems that show a directory: df and findmnt tell mounts apart."""
    named = place.store.rename(place.store.with_name("a store, with a comma"))
    place.store = named
    place.mount("rw")
    assert place.source() == str(named)
    command = ("findmnt", "--noheadings", "--output=TARGET", "--source", named)
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\n")
    assert str(place.point) in map(str.strip, found)


@pytest.mark.namespace
def test_mount_and_fstab(place: Mounted) -> None:
    """`mount -t fuse.certfs` and a line of fstab mount by the helper, remount, and umount ends it."""
    mounts.need_namespaces()
    config = place.store.with_name("certfs.toml")
    config.write_text('[[bundle]]\nsource = "certs"\nbundle = "ca.pem"\n')
    (place.store / "certs").mkdir()
    fstab = place.store.with_name("fstab")
    fstab.write_text(
        f"{place.store} {place.point} fuse.certfs config={config},allow_other,_netdev,nofail,"
        "x-systemd.requires=network.target,noauto 0 0\n"
    )
    helpers = place.store.with_name("helpers")
    helpers.mkdir()
    (helpers / "mount.fuse.certfs").symlink_to(certfs_program())
    with helped(helpers) as holder:
        point = Path(f"/proc/{holder}/root{place.point}")

        def run(*command: str | Path) -> str:
            entering = ["nsenter", f"--mount=/proc/{holder}/ns/mnt", "--", *command]
            return subprocess.run(
                entering, check=True, timeout=60, capture_output=True, text=True
            ).stdout

        options = ("-t", "fuse.certfs", "-o", f"ro,config={config}")
        assert run("mount", *options, place.store, place.point) == ""
        assert os.statvfs(point).f_flag & os.ST_RDONLY
        run("umount", place.point)
        wait_until(lambda: not instances.every(), what="the end of the first mount")
        run("mount", "--fstab", fstab, place.point)
        (point / "file").write_text("x")
        run("mount", "-o", "remount,ro", place.point)
        with refused(errno.EROFS):
            (point / "file").unlink()
        run(certfs_program(), "unmount", place.point)


@contextlib.contextmanager
def helped(helpers: Path) -> Iterator[int]:
    """Have mount helpers where mount(8) looks for them, in the mount namespace of the process whose pid this gives."""
    script = 'mount -t overlay -o "lowerdir=$1:$2" none "$2" && echo ready && exec cat'
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"]
    command += [str(helpers), os.path.realpath("/sbin")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        yield holder.pid
        holder.kill()


def test_what_mount_fuse_calls(place: Mounted) -> None:
    """Without the helper, mount(8) runs mount.fuse, which runs `certfs STORE MOUNTPOINT -o OPTIONS`."""
    place.certfs(place.store, place.point, "-o", "ro,nosuid")
    assert place.flags() & os.ST_RDONLY
