"""`certfs mount` and its fellows on a store of one's own: what they say, what they leave, and their exit codes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import pytest

from certfs.client import instances
from certfs.linux.processes import ProcessId
from certfs.protocol.state_file import read_state
from tests.support import mounts, pki
from tests.support.forked import run_forked
from tests.support.host import kill
from tests.support.mounts import wait_until

pytestmark = [pytest.mark.mount, pytest.mark.counted]

BUNDLE = "stunnel/xapi-stunnel-ca-bundle.pem"


@dataclass(slots=True)
class Scene:
    """A store, a mountpoint and a runtime directory of their own."""

    directory: Path

    @property
    def store(self) -> Path:
        """The store."""
        return self.directory / "store"

    @property
    def mountpoint(self) -> Path:
        """The mountpoint."""
        return self.directory / "mnt"

    @property
    def environment(self) -> dict[str, str]:
        """What every process of this scene has in its environment."""
        return {**os.environ, "CERTFS_RUNTIME_DIR": str(self.directory / "run")}

    def certfs(self, *arguments: str | Path, expect: int = 0) -> str:
        """Run certfs, expect this exit code, and return what it said."""
        result = run_forked(arguments, env=self.environment)
        said = result.stdout + result.stderr
        assert result.returncode == expect, said
        return said

    def mount(self, *options: str | Path) -> None:
        """Mount the store."""
        self.certfs("mount", "--store", self.store, self.mountpoint, *options)

    def start(self, *arguments: str | Path, **variables: str) -> subprocess.Popen[str]:
        """Start certfs and leave it running."""
        return subprocess.Popen(
            [mounts.certfs_program(), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**self.environment, **variables},
        )

    def state(self) -> dict[str, Any]:
        """Return the state file of the one instance."""
        (path,) = (self.directory / "run").glob("*/state.json")
        state: dict[str, Any] = json.loads(path.read_text())
        return state

    def mounted(self) -> bool:
        """Whether something is mounted in the scene."""
        return any(point.startswith(f"{self.directory}/") for point in mounts.mountpoints())

    def presented(self) -> bool:
        """Whether certfs is mounted in the scene, live or dead."""
        here = os.fsencode(self.directory)
        lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
        return any(here in line and b" - fuse.certfs " in line for line in lines)

    def is_clean(self) -> bool:
        """Whether nothing is mounted and no state is left."""
        left = list((self.directory / "run").glob("*/state.json"))
        left += (self.directory / "run").glob("*/mount-*")
        return not self.mounted() and left == []


@pytest.fixture
def scene() -> Iterator[Scene]:
    """A store with one certificate of a user's, not mounted."""
    mounts.need_fuse()
    made = Scene(mounts.scratch_directory())
    (made.store / "stunnel" / "certs").mkdir(parents=True)
    (made.store / "stunnel" / "certs" / "one.pem").write_bytes(pki.issue("one").pem)
    made.mountpoint.mkdir()
    yield made
    for _ in range(3):
        if not made.mounted():
            break
        for point in mounts.mountpoints():
            if point.startswith(f"{made.directory}/"):
                made.certfs("unmount", "--if-mounted", point)
                mounts.force_unmount(point)
    shutil.rmtree(made.directory, ignore_errors=True)


def read(path: Path) -> bytes:
    """Return the content, or nothing if the file is not there."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def test_mounting_and_unmounting(scene: Scene) -> None:
    """`mount` returns when the tree is served, `unmount` when it is gone, and nothing is left but the store."""
    began = time.monotonic()
    said = scene.certfs("mount", "--store", scene.store, scene.mountpoint)
    print(f"certfs mount took {time.monotonic() - began:.2f} s")
    assert str(scene.mountpoint) in said
    assert b"CERTIFICATE" in read(scene.mountpoint / BUNDLE)
    assert str(scene.mountpoint) in scene.certfs("unmount", scene.mountpoint)
    assert scene.is_clean()
    assert list(scene.mountpoint.iterdir()) == []
    assert b"CERTIFICATE" in read(scene.store / BUNDLE)


@pytest.mark.parametrize(
    "code,arguments",
    [
        (2, ["--store", "{store}"]),
        (2, ["{mnt}"]),
        (3, ["--store", "{store}", "{mnt}", "--config", "{dir}/missing.toml"]),
        (3, ["--store", "{store}", "{mnt}", "--config", "{dir}/bad.toml"]),
        (4, ["--store", "{dir}/missing", "{mnt}"]),
        (4, ["--store", "{dir}/file", "{mnt}"]),
        (5, ["--store", "{store}", "{dir}/missing"]),
        (5, ["--store", "{store}", "{dir}/file"]),
        (5, ["--store", "{store}", "{store}/stunnel"]),
        (5, ["--store", "{store}", "/proc"]),
        (5, ["--store", "{store}", "{mnt}", "--log", "{mnt}/log"]),
        (5, ["--store", "{store}", "{dir}"]),
        (3, ["--store", "{store}", "{mnt}", "--log", "{dir}/missing/log"]),
    ],
)
def test_what_prevents_a_mount_is_one_clear_line(
    scene: Scene, code: int, arguments: list[str]
) -> None:
    """Whatever is wrong is said in one line with its exit code, and nothing is left mounted or running."""
    (scene.directory / "file").touch()
    (scene.directory / "bad.toml").write_text("unknown = 1\n")
    places = {"store": scene.store, "mnt": scene.mountpoint, "dir": scene.directory}
    said = scene.certfs(
        "mount", *(argument.format(**places) for argument in arguments), expect=code
    )
    assert "Traceback" not in said
    if code != 2:
        assert said.startswith("certfs: ")
        assert said.count("\n") == 1
    assert scene.is_clean()


def test_a_failure_in_the_server_is_reported(scene: Scene) -> None:
    """What only the server can find out reaches the command: message, exit code, nothing left."""
    (scene.store / "xensource").write_text("a file where a directory belongs")
    said = scene.certfs("mount", "--store", scene.store, scene.mountpoint, expect=4)
    assert said.startswith("certfs: ")
    assert scene.is_clean()
    assert list(scene.mountpoint.iterdir()) == []


@pytest.mark.parametrize("command", ["unmount", "restart", "status"])
def test_nothing_mounted_is_said(scene: Scene, command: str) -> None:
    """The commands for a mount that is not there end with 7."""
    assert "not mounted" in scene.certfs(command, scene.mountpoint, expect=7)


def test_a_second_mount_is_refused(scene: Scene) -> None:
    """The same mountpoint again ends with 8 and names the process."""
    scene.mount()
    said = scene.certfs("mount", "--store", scene.store, scene.mountpoint, expect=8)
    assert str(scene.state()["supervisor"]["pid"]) in said


def test_a_store_has_one_configuration(scene: Scene) -> None:
    """A mount that would write other plain copies into the same store ends with 8 and names the first (I12)."""
    scene.mount()
    other = scene.directory / "other"
    other.mkdir()
    (scene.directory / "certfs.toml").write_text("swap_timeout = 20.0\n")
    configured = ("--config", scene.directory / "certfs.toml")
    said = scene.certfs("mount", "--store", scene.store, other, *configured, expect=8)
    assert f"the store {scene.store} is served already, at {scene.mountpoint}, with" in said
    scene.certfs("mount", "--store", scene.store, other)
    scene.certfs("unmount", other)


def test_what_a_mount_shows_is_no_store(scene: Scene) -> None:
    """It would be dead with the server of that mount: it ends with 8 and names it (I14)."""
    scene.mount()
    other = scene.directory / "other"
    other.mkdir()
    for store in (scene.mountpoint, scene.mountpoint / "stunnel"):
        said = scene.certfs("mount", "--store", store, other, expect=8)
        assert f"the store {store} is served already, at {scene.mountpoint}" in said


def has_ended(pid: int) -> bool:
    """Whether there is no such process."""
    return not Path(f"/proc/{pid}").exists()


def test_an_umount_right_after_a_restart_is_not_undone(scene: Scene) -> None:
    """The supervisor that comes out of a restart does not take it for a mount that is still to be made."""
    scene.mount()
    command = ["umount"] if os.geteuid() == 0 else ["fusermount3", "-u"]
    for _ in range(int(os.environ.get("CERTFS_TEST_REMOUNTS", "1"))):
        supervisor = scene.state()["supervisor"]["pid"]
        scene.certfs("restart", scene.mountpoint)
        subprocess.run([*command, scene.mountpoint], check=True, timeout=60)
        wait_until(partial(has_ended, supervisor), seconds=60, what="the end of the supervisor")
        assert scene.is_clean()
        scene.mount()


def test_a_plain_umount_ends_it(scene: Scene) -> None:
    """`umount` or `fusermount3 -u` ends the daemon as well, and no state is left."""
    scene.mount()
    supervisor = scene.state()["supervisor"]["pid"]
    command = ["umount"] if os.geteuid() == 0 else ["fusermount3", "-u"]
    subprocess.run([*command, scene.mountpoint], check=True)
    wait_until(lambda: not Path(f"/proc/{supervisor}").exists(), what="the end of the supervisor")
    assert scene.is_clean()


def test_the_foreground_ends_by_signal(scene: Scene) -> None:
    """`--foreground` stays, tells systemd when it is ready, and a SIGINT ends it cleanly with 0."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(scene.directory / "notify"))
        manager.settimeout(20)
        arguments = ("mount", "--foreground", "--store", scene.store, scene.mountpoint)
        process = scene.start(*arguments, NOTIFY_SOCKET=str(scene.directory / "notify"))
        assert b"READY=1" in manager.recv(4096)
        assert b"CERTIFICATE" in read(scene.mountpoint / BUNDLE)
        process.send_signal(signal.SIGINT)
        assert b"STOPPING=1" in manager.recv(4096)
        process.communicate(timeout=20)
    assert process.returncode == 0
    assert scene.is_clean()


def test_a_failure_in_the_foreground(scene: Scene) -> None:
    """In the foreground a server that cannot serve is one line on standard error and the same exit code."""
    (scene.store / "xensource").write_text("a file where a directory belongs")
    process = scene.start("mount", "--foreground", "--store", scene.store, scene.mountpoint)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 4
    assert sum(line.startswith("certfs: ") for line in said.splitlines()) == 1
    assert scene.is_clean()


def test_the_paths_work_after_a_crash(scene: Scene) -> None:
    """Between a crash and the next server the paths of a standalone mount lead to the plain files (I14)."""
    scene.mount()
    expected = read(scene.mountpoint / BUNDLE)
    wait_until(
        lambda: read(scene.store / BUNDLE) == expected, seconds=60, what="the plain copy (I12)"
    )
    killed = scene.state()["server"]["pid"]
    os.kill(killed, signal.SIGKILL)
    deadline = time.monotonic() + 5
    trouble, since = 0.0, time.monotonic()
    while time.monotonic() < deadline:
        try:
            content = read(scene.mountpoint / BUNDLE)
        except OSError:
            trouble = time.monotonic() - since
            continue
        assert content == expected
        state = scene.state()
        if state["phase"] == "serving" and state["server"]["pid"] != killed:
            break
    print(f"trouble for {trouble:.3f} s after SIGKILL")
    assert (
        trouble < 1.0
    )  # the bound of the promise is held by test_supervision_endurance, over many kills
    scene.certfs("unmount", scene.mountpoint)
    assert list(scene.mountpoint.iterdir()) == []


def test_what_was_at_the_mountpoint_stays(scene: Scene) -> None:
    """Files that the mount covers are there again afterwards, untouched."""
    (scene.mountpoint / "stunnel").write_text("mine")
    scene.mount()
    scene.certfs("restart", scene.mountpoint)
    scene.certfs("unmount", scene.mountpoint)
    assert [path.name for path in scene.mountpoint.iterdir()] == ["stunnel"]
    assert (scene.mountpoint / "stunnel").read_text() == "mine"


def test_a_store_can_be_mounted_over_itself(scene: Scene) -> None:
    """With the store as mountpoint it is its own plain view, after a crash and after the end."""
    scene.certfs("mount", "--store", scene.store, scene.store)
    status = scene.store / ".certfs" / "status.json"
    wait_until(
        lambda: json.loads(status.read_text())["plain_copies_current"],
        seconds=60,
        what="the copies",
    )
    server, supervisor = (scene.state()[name]["pid"] for name in ("server", "supervisor"))
    kill(supervisor, server)
    wait_until(lambda: not scene.presented(), what="the janitor's work")
    assert b"CERTIFICATE" in read(scene.store / BUNDLE)
    scene.certfs("mount", "--store", scene.store, scene.store)
    (scene.store / "stunnel" / "certs" / "two.pem").write_bytes(pki.issue("two").pem)
    assert read(scene.store / BUNDLE).count(b"BEGIN") == 2


def test_the_kernel_reads_far_ahead(scene: Scene) -> None:
    """Root's mount is read in pieces of a MiB: a large bundle costs an eighth of the requests."""
    mounts.need_root()
    scene.certfs("mount", "--store", scene.store, scene.mountpoint)
    device = scene.mountpoint.stat().st_dev
    setting = f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb"
    assert read(Path(setting)) == b"1024\n"


def test_who_opens_everything_stops_nobody(scene: Scene) -> None:
    """I18: with all the files open that may be, others are refused more, and everything else goes on."""
    subprocess.run(
        ["prlimit", "--nofile=256", mounts.certfs_program(), "mount", "--store", scene.store, scene.mountpoint],
        check=True,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=scene.environment,
        timeout=60,
    )  # fmt: skip
    directory = scene.mountpoint / "xensource"
    for number in range(200):
        (directory / f"{number}").touch()
    with contextlib.ExitStack() as stack:
        limit = (256 - 128) // 2
        for number in range(limit if os.geteuid() == 0 else limit // 2):
            stack.callback(os.close, os.open(directory / f"{number}", os.O_RDONLY))
        with pytest.raises(OSError, match="Too many open files in system"):
            os.open(directory / "99", os.O_RDONLY)
        with pytest.raises(OSError, match="Too many open files in system"):
            (directory / "new").touch()
        assert b"CERTIFICATE" in read(scene.mountpoint / BUNDLE)
        for number in range(100, 200):
            (directory / f"{number}").chmod(0o600)
            (directory / f"{number}").rename(directory / "renamed")
            (directory / "renamed").unlink()
    mounts.wait_until(lambda: read(directory / "99") == b"")
    assert sum(name.isdigit() for name in os.listdir(directory)) == 100


def test_a_caller_without_standard_streams(scene: Scene) -> None:
    """Whoever starts us with 0, 1 and 2 closed gets a mount, and nothing of ours is taken for one of them."""
    closed = 'exec "$@" 0<&- 1>&- 2>&-'
    command: list[str | Path] = ["sh", "-c", closed, "sh", mounts.certfs_program(), "mount"]
    command += ["--store", scene.store, scene.mountpoint]
    subprocess.run(command, check=True, env=scene.environment, timeout=60)
    assert b"CERTIFICATE" in read(scene.mountpoint / BUNDLE)
    scene.certfs("unmount", scene.mountpoint)
    assert scene.is_clean()


def test_strange_names(scene: Scene) -> None:
    """Paths with blanks, newlines, backslashes and bytes that are not UTF-8 are paths like any other."""
    strange = os.fsdecode(b"a b\\040\tc\n\xff'\"$(x)")
    scene.store.rename(scene.directory / f"s {strange}")
    mountpoint = scene.directory / f"m {strange}"
    mountpoint.mkdir()
    scene.certfs("mount", "--store", scene.directory / f"s {strange}", mountpoint)
    scene.certfs("restart", mountpoint)
    status = json.loads(scene.certfs("status", "--json", mountpoint))
    assert (status["answering"], status["mounts"][0]["target"]) == (True, str(mountpoint))
    assert "one.pem" in scene.certfs("list", mountpoint)
    server, supervisor = (scene.state()[name]["pid"] for name in ("server", "supervisor"))
    assert b"CERTIFICATE" in read(mountpoint / BUNDLE)
    kill(supervisor, server)
    wait_until(lambda: not scene.presented(), what="the janitor's work")
    scene.certfs("unmount", mountpoint)
    assert list(mountpoint.iterdir()) == []


def test_status_for_people_and_programs(scene: Scene) -> None:
    """`certfs status` says what is mounted and how it is; `--json` has the documented keys."""
    scene.mount()
    scene.certfs("restart", scene.mountpoint)
    said = scene.certfs("status", scene.mountpoint)
    assert str(scene.mountpoint) in said
    assert "1 certificates" in said
    assert "restarted" in said
    status = json.loads(scene.certfs("status", "--json", scene.mountpoint))
    assert status["answering"]
    assert status["phase"] == "serving"
    assert status["mounts"] == [{"target": str(scene.mountpoint), "store": str(scene.store)}]
    assert [bundle["certificates"] for bundle in status["bundles"]] == [1, 1]
    assert status["events"][-1]["kind"] == "restarted"


def test_status_of_a_hanging_mount_does_not_hang(scene: Scene) -> None:
    """With a server that does not answer, `certfs status` says so after 3 s, with exit code 9."""
    scene.mount()
    server = scene.state()["server"]["pid"]
    os.kill(server, signal.SIGSTOP)
    try:
        began = time.monotonic()
        said = scene.certfs("status", scene.mountpoint, expect=9)
        assert time.monotonic() - began < 6
        assert "NOT ANSWERING" in said
    finally:
        os.kill(server, signal.SIGCONT)


def test_a_dead_mount_says_what_serves_it_again(scene: Scene) -> None:
    """The command that status prints for a mount of its own names store, configuration and place (I14)."""
    config = scene.directory / "my config.toml"
    config.write_text('[[bundle]]\nsource = "stunnel/certs"\nbundle = "ca.pem"\n')
    scene.certfs("mount", "--store", scene.store, "--config", config, scene.mountpoint)
    state = scene.state()
    kill(*(state[name]["pid"] for name in ("janitor", "supervisor", "server")))
    wait_until(
        lambda: "DEAD" in run_forked(["status", scene.mountpoint], env=scene.environment).stdout,
        what="the end of the mount",
    )
    said = scene.certfs("status", scene.mountpoint, expect=9)
    found = re.search(
        "; certfs (mount .*) serves it again, certfs (unmount .*) takes it away", said
    )
    assert found is not None, said
    scene.certfs(*shlex.split(found[1]))
    assert b"CERTIFICATE" in read(scene.mountpoint / "ca.pem")
    scene.certfs(*shlex.split(found[2]))
    assert scene.is_clean()


def has_asked(pid: int) -> bool:
    """Whether a command, which is a child of the process that was started, is connected with a supervisor."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for fd in [fd for child in children for fd in Path(f"/proc/{child}/fd").iterdir()]:
        with contextlib.suppress(FileNotFoundError):  # it was closed meanwhile
            if os.readlink(fd).startswith("socket:"):
                return True
    return False


def test_a_hanging_supervisor_can_be_unmounted(scene: Scene) -> None:
    """`certfs unmount` ends also an instance whose processes are stopped, and `certfs restart` says that they are."""
    scene.mount()
    state = scene.state()
    for process in ("supervisor", "server"):
        os.kill(state[process]["pid"], signal.SIGSTOP)
    restarting = scene.start("restart", scene.mountpoint)
    wait_until(partial(has_asked, restarting.pid), what="the question")
    time.sleep(1)  # so much earlier it gives up than the command that ends the instance
    unmounted = scene.certfs("unmount", scene.mountpoint)
    _, said = restarting.communicate(timeout=20)
    assert restarting.returncode == 9
    end = f"certfs unmount {scene.mountpoint}"
    assert said.startswith(f"certfs: the supervisor does not answer: end it with {end}, then ")
    assert said.count("\n") == 1
    assert "supervisor was dead" in unmounted
    assert scene.is_clean()


def test_help_has_examples(scene: Scene) -> None:
    """Every command explains itself with an example, and the group lists all of them."""
    listing = scene.certfs("--help")
    for command in ("mount", "unmount", "restart", "detached", "status", "install-units"):
        assert f"  {command} " in listing
        assert "Example" in scene.certfs(command, "--help")


def test_the_backup_of_the_help_holds_the_certificate(scene: Scene) -> None:
    """What comes into view is the store itself, under the same names: rsync and tar save files, no links (I12)."""
    mounts.need_root()
    mounts.need_program("rsync")
    (scene.directory / "certfs.toml").write_text('[[bundle]]\nsource = "ca"\nbundle = "ca.pem"\n')
    (scene.store / "ca").mkdir()
    (scene.store / "ca" / "one.pem").write_bytes(pki.issue("one").pem)
    scene.mount("--config", scene.directory / "certfs.toml")
    backup = scene.directory / "backup"
    command = ("rsync", "-a", f"{scene.mountpoint}/", f"{backup}/")
    scene.certfs("detached", "--mountpoint", scene.mountpoint, "--", *command)
    for name in ("ca.pem", "ca/one.pem"):
        assert b"CERTIFICATE" in (backup / name).read_bytes()
        assert not (backup / name).is_symlink()


_CHROOT = """
set -e
for path in /*; do
    if [ -L "$path" ] || [ ! -d "$path" ]; then
        cp -P "$path" "$1"
    else
        mkdir "$1$path"
        mount --rbind "$path" "$1$path"
    fi
done
mount --make-rshared /
echo ready
exec sleep infinity
"""
"""Makes a root directory that is no mountpoint, among mounts that propagate as systemd has them."""


@pytest.mark.namespace
def test_a_command_runs_detached_in_a_chroot(scene: Scene) -> None:
    """I12: also where the root directory is no mountpoint the command sees plain files, and the mount stays."""
    mounts.need_namespaces()
    root = scene.directory / "root"
    root.mkdir()
    holder = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", _CHROOT, "sh", str(root)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )

    def inside(*words: str | Path) -> str:
        entering = ("nsenter", f"--mount=/proc/{holder.pid}/ns/mnt", "chroot", root)
        result = subprocess.run(
            (*entering, *words),
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            env=scene.environment,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    program, where = mounts.certfs_program(), ("stat", "-f", "-c", "%T", scene.store)
    assert holder.stdout is not None
    with holder.stdout:
        try:
            assert holder.stdout.readline() == b"ready\n"
            inside(program, "mount", "--store", scene.store, scene.store)
            detached = (program, "detached", "--mountpoint", scene.store, "--")
            assert inside(*where) == "fuseblk\n"
            assert inside(*detached, *where) != "fuseblk\n"
            own_root = ("stat", "-c", "%d:%i", "/")
            assert inside(*detached, *own_root) == inside(*own_root)
            assert inside(*where) == "fuseblk\n"
        finally:
            inside(program, "unmount", "--all")
            holder.kill()
            holder.wait()


def test_plain_is_the_store_itself(scene: Scene) -> None:
    """A mountpoint beside its store shows the same tree without a server, and nothing after the end (I12, I14)."""
    mounts.need_root()
    scene.mount()
    expected = read(scene.mountpoint / BUNDLE)
    wait_until(lambda: read(scene.store / BUNDLE) == expected, seconds=60, what="the copy")
    state = scene.state()
    kill(state["supervisor"]["pid"], state["server"]["pid"])
    wait_until(lambda: not scene.presented(), what="the janitor's work")
    assert os.path.samefile(scene.mountpoint, scene.store)
    scene.mount()
    assert not os.path.samefile(scene.mountpoint, scene.store)
    subprocess.run(["umount", scene.mountpoint], check=True)
    wait_until(lambda: not scene.mounted(), what="the end of the mount")
    assert list(scene.mountpoint.iterdir()) == []


def test_what_is_mounted_in_the_store_is_in_view_and_stays(scene: Scene) -> None:
    """File systems below the store are part of plain, and unmounting certfs leaves them where they are (I11, I12)."""
    mounts.need_root()
    below = scene.store / "xensource"
    below.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "below", below], check=True)
    try:
        (below / "file").write_text("below")
        scene.mount()
        assert read(scene.mountpoint / "xensource" / "file") == b"below"
        command = ("cat", scene.mountpoint / "xensource" / "file")
        said = scene.certfs("detached", "--mountpoint", scene.mountpoint, "--", *command)
        assert said == "below"
        scene.certfs("unmount", scene.mountpoint)
        assert read(below / "file") == b"below"
        assert list(scene.mountpoint.iterdir()) == []
    finally:
        subprocess.run(["umount", "-l", below], check=True)


def test_all_mounts_at_once(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """I17: `--all` is every mount of this user: an upgrade restarts those of another version, a removal ends them."""
    other = scene.directory / "other"
    other.mkdir()
    scene.mount()
    scene.certfs("mount", "--store", other, other)
    monkeypatch.setenv("CERTFS_RUNTIME_DIR", scene.environment["CERTFS_RUNTIME_DIR"])

    def servers() -> set[ProcessId | None]:
        return {state.server for state in map(read_state, instances.every()) if state}

    before = servers()
    assert len(before) == 2
    scene.certfs("restart", "--all", "--outdated")
    assert servers() == before
    scene.certfs("restart", "--all")
    assert len(servers()) == 2
    assert not servers() & before
    monkeypatch.setattr(instances, "interpreter", lambda: "/opt/certfs/2-1/bin/python3")
    assert all(map(instances.outdated, instances.every()))
    assert "--all" in scene.certfs("unmount", "--all", scene.mountpoint, expect=2)
    assert scene.certfs("unmount", "--all").count("unmounted") == 2
    assert scene.certfs("unmount", "--all") == ""


def test_a_command_runs_as_it_is_where_nothing_is_mounted(scene: Scene) -> None:
    """`detached --if-mounted` without a mount is just the command: its output, its status."""
    command = ("detached", "--if-mounted", "--mountpoint", scene.mountpoint, "--", "sh", "-c")
    # More is said where another test has a mount: root's command sees that one's plain files too.
    assert scene.certfs(*command, "echo said; exit 9", expect=9).startswith("said\n")
    assert "cannot run" in scene.certfs(*command[:-2], "/missing", expect=127)
    assert scene.certfs("detached", *command[2:], "true", expect=7)


def test_a_mount_waits_for_one_that_ends(scene: Scene) -> None:
    """`umount M && certfs mount M` is no race: the second mount waits for the end of the first."""
    mounts.need_root()
    scene.mount()
    for _ in range(int(os.environ.get("CERTFS_TEST_REMOUNTS", "3"))):
        subprocess.run(["umount", scene.mountpoint], check=True)
        scene.mount()
        assert b"CERTIFICATE" in read(scene.mountpoint / BUNDLE)


@pytest.mark.parametrize("limit", ["--nofile=128", "--fsize=0"])
def test_limits_that_make_serving_impossible_are_refused(scene: Scene, limit: str) -> None:
    """The reason and the way out are said, and nothing is started (I18)."""
    result = subprocess.run(
        ["prlimit", limit, mounts.certfs_program(), "mount", "--store", scene.store, scene.mountpoint],
        check=False,
        capture_output=True,
        text=True,
        env=scene.environment,
        timeout=60,
    )  # fmt: skip
    assert result.returncode == 10
    assert "RLIMIT_" in result.stderr
    assert scene.is_clean()


def test_without_proc_the_reason_is_said(scene: Scene) -> None:
    """Every command that needs /proc says that it is not there."""
    mounts.need_namespaces()
    script = 'umount -l /proc && exec "$@"'
    mount = ("mount", "--store", scene.store, scene.mountpoint)
    for command in (mount, ("unmount", scene.mountpoint)):
        result = subprocess.run(
            ["unshare", "-m", "sh", "-c", script, "sh", mounts.certfs_program(), *command],
            check=False,
            capture_output=True,
            text=True,
            env=scene.environment,
            timeout=60,
        )
        assert result.stderr.startswith("certfs: /proc is not mounted"), result.stderr


def close_whatever_serves(kept: IO[bytes]) -> None:
    """Close a file whose server may have been ended: close(2) says so then (ENOTCONN)."""
    with contextlib.suppress(OSError):
        kept.close()


def test_replaced_servers_that_are_pinned_are_bounded(scene: Scene) -> None:
    """Whoever keeps a file open over many restarts keeps few servers: the oldest are ended (I18)."""
    scene.mount()
    with contextlib.ExitStack() as stack:
        for _ in range(9):
            kept = (scene.mountpoint / BUNDLE).open("rb")
            stack.callback(close_whatever_serves, kept)
            scene.certfs("restart", scene.mountpoint)
        lingering = [process["pid"] for process in scene.state()["lingering"]]
        assert len(lingering) == 8
        assert all(Path(f"/proc/{pid}").exists() for pid in lingering)


def test_status_tells_when_the_next_server_starts(scene: Scene) -> None:
    """While a back-off keeps plain files in view, status has the time of the next start and the way out (I9, I15)."""
    scene.mount()

    def waits() -> bool:
        server = scene.state()["server"]
        if server is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(server["pid"], signal.SIGSEGV)
        shown = run_forked(["status", scene.mountpoint], env=scene.environment).stdout
        return f"certfs restart {scene.mountpoint} tries at once" in shown

    wait_until(waits, seconds=120, what="the back-off")
    status = run_forked(["status", "--json", scene.mountpoint], env=scene.environment)
    assert "next_start" in json.loads(status.stdout)
    scene.certfs("restart", scene.mountpoint)
    assert (scene.mountpoint / BUNDLE).read_bytes()
    assert json.loads(scene.certfs("status", "--json", scene.mountpoint))["next_start"] is None
