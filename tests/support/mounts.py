"""Real certfs mounts for the tests, each ended and checked when its test ends.

Owns starting `certfs mount`, finding the processes behind a mount, unmounting,
and what must be true then: the daemon gone, nothing unexpected in its log, no
descriptor leaked, no mount left.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from certfs import procfs
from tests.support.forked import call_forked, run_forked
from tests.support.tree import Tree

_PREFIX = "certfs-test-"
_MARK = "CERTFS_TEST_MOUNT"
"""Environment variable by which every process that came from a mount is found."""
_RUNTIME = "CERTFS_RUNTIME_DIR"
"""Environment variable that gives each mount a runtime directory of its own."""
_SPARE_DESCRIPTORS = 4
"""Descriptors that a daemon may have more at the end than when it began to serve."""
_UNEXPECTED = re.compile(r"Traceback|\b(WARNING|ERROR|CRITICAL)\b|Warning:", re.IGNORECASE)


def certfs_program() -> str:
    """Give the path of the `certfs` command that belongs to this interpreter."""
    return str(Path(sys.executable).with_name("certfs"))


def wait_until(
    reached: Callable[[], bool], *, seconds: float = 30.0, what: str = "the condition"
) -> None:
    """Poll until `reached` gives true; fail the test after `seconds`.

    The usual limit is for a busy machine; a shorter one is the bound of a promise. Only a look that began after it
    fails the test: a machine may hold up one that began in time.
    """
    deadline = time.monotonic() + seconds
    pause = 0.001
    while True:
        is_late = time.monotonic() > deadline
        if reached():
            return
        if is_late:
            pytest.fail(f"{what} was not reached in {seconds} s")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.05)


def missing(what: str) -> None:
    """Skip the test for want of something on this machine; in CI that is a failure."""
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(f"{what} is missing, and CI=true")
    pytest.skip(f"{what} is missing")


def need_fuse() -> None:
    """Skip or fail unless a FUSE filesystem can be mounted here."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        missing("/dev/fuse")
    if shutil.which("fusermount3") is None:
        missing("fusermount3")


def need_program(*programs: str) -> None:
    """Skip or fail unless the programs are installed."""
    for program in programs:
        if shutil.which(program) is None:
            missing(f"the program {program}")


def need_root() -> None:
    """Skip or fail unless this is root."""
    if os.geteuid() != 0:
        missing("root")


def need_program_for_all() -> None:
    """Skip where other users cannot get to the program, such as in a clone below /root."""
    program = Path(certfs_program()).resolve()
    if any(not directory.stat().st_mode & stat.S_IXOTH for directory in program.parents):
        pytest.skip("other users may not enter the directory of this clone")


def need_namespaces() -> None:
    """Skip or fail unless a process can have a mount namespace of its own, and others can enter it.

    In a chroot they cannot, and nothing could be installed that changes it: entering a namespace leads to its root,
    and a root directory that is no mountpoint has no propagation to be set (unshare(1), setns(2)).
    """
    need_root()
    need_program("unshare", "nsenter")
    if is_chroot():
        pytest.skip("this is a chroot, where no other mount namespace can be entered")


@functools.cache
def is_chroot() -> bool:
    """Whether this process has another root directory than its mount namespace."""
    entering = ["nsenter", f"--mount=/proc/{os.getpid()}/ns/mnt", "stat", "-c", "%d:%i", "/"]
    entered = subprocess.run(entering, check=False, capture_output=True, text=True, timeout=30)
    root = os.stat("/")
    return entered.stdout.strip() != f"{root.st_dev}:{root.st_ino}"


def need_readable_checkout() -> None:
    """Skip unless every user can run what is in this checkout: nobody else comes into a home such as /root."""
    here = Path(__file__).resolve()
    if not all(parent.stat().st_mode & stat.S_IXOTH for parent in here.parents):
        pytest.skip(f"{here.parents[2]} cannot be reached by other users")


def scratch_directory() -> Path:
    """Make an empty directory that every user can reach; its name carries our pid."""
    directory = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
    directory.chmod(0o755)
    return directory


def mountpoints() -> list[str]:
    """Give every mountpoint of this process's mount namespace, innermost last."""
    return [entry.point for entry in procfs.mounts()]


def sweep_stale_mounts() -> None:
    """Unmount and remove what test sessions left behind that are no longer running."""
    stale = re.compile(rf"^({re.escape(tempfile.gettempdir())}/{_PREFIX}(\d+)-[^/]+)")
    for mountpoint in reversed(mountpoints()):
        found = stale.match(mountpoint)
        if found and not Path("/proc", found[2]).exists():
            force_unmount(mountpoint)
    for directory in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        found = stale.match(str(directory))
        if found and not Path("/proc", found[2]).exists():
            shutil.rmtree(directory, ignore_errors=True)


def force_unmount(mountpoint: str) -> None:
    """Detach a mount, alive or dead, without an error when it is none."""
    command = ["umount", "-l"] if os.geteuid() == 0 else ["fusermount3", "-u", "-z"]
    subprocess.run([*command, mountpoint], check=False, capture_output=True, timeout=30)


def processes_with(mark: str, among: Iterable[int] | None = None) -> list[int]:
    """Give the pids of all processes that were started for a mount, zombies left out; or of some that are known."""
    entry = f"{_MARK}={mark}".encode()
    found = []
    for pid in among if among is not None else _every_process():
        with contextlib.suppress(OSError), open(f"/proc/{pid}/environ", "rb") as environ:
            if entry in environ.read().split(b"\0"):
                found.append(pid)
    return found


def _every_process() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def kill_all(mark: str) -> None:
    """Kill the processes of a mount or a host, and the successor that a killed one may start."""
    deadline = time.monotonic() + 5
    quiet = 0
    # One that is becoming another program shows no environment for an instant: nobody must be there three times.
    while quiet < 3 and time.monotonic() < deadline:
        pids = processes_with(mark)
        quiet = 0 if pids else quiet + 1
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def _runs_python(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/exe").readlink().name.startswith("python")
    return False


def descriptors_of(pids: list[int]) -> Counter[str]:
    """Count the open descriptors of some processes, by what they are of."""
    found: Counter[str] = Counter()
    for pid in pids:
        numbers: list[str] = []
        with contextlib.suppress(FileNotFoundError):
            numbers = os.listdir(f"/proc/{pid}/fd")
        for number in numbers:
            with contextlib.suppress(FileNotFoundError):
                found[f"process {pid}: {os.readlink(f'/proc/{pid}/fd/{number}')}"] += 1
    return found


def forget_inodes(mountpoint: Path) -> None:
    """Let the kernel forget what it remembers of the files of one mount that nobody uses.

    A remount does that: everything else on the machine keeps its caches, unlike with drop_caches.
    """
    command = ["mount", "--internal-only", "-o", "remount", str(mountpoint)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)


@dataclass(slots=True)
class CertfsMount:
    """One `certfs mount --store`, from its start to its checked end."""

    tree: Tree
    options: tuple[str, ...] = ()
    wrapper: tuple[str, ...] = ()
    """A program, with its arguments, that starts the command, such as prlimit(1)."""
    expected_log: list[str] = field(default_factory=list)
    """Regular expressions of warnings and errors that this test provokes."""
    mark: str = field(default_factory=lambda: secrets.token_hex(8))
    _descriptors: Counter[str] = field(default_factory=Counter)

    @property
    def log(self) -> Path:
        """Where the output of the command goes."""
        return self.tree.root.with_name("certfs.log")

    @property
    def daemon_logs(self) -> list[Path]:
        """The log files of the daemon, in its runtime directory."""
        return sorted(self.tree.root.with_name("run").glob("*/log"))

    def read_log(self) -> str:
        """Give all that the command and the daemon have logged."""
        logs = [path for path in (self.log, *self.daemon_logs) if path.exists()]
        return "".join(path.read_text(errors="backslashreplace") for path in logs)

    @property
    def environment(self) -> dict[str, str]:
        """The environment of the processes of this mount."""
        return {**os.environ, _MARK: self.mark, _RUNTIME: str(self.tree.root.with_name("run"))}

    @property
    def pids(self) -> list[int]:
        """The processes behind the mount."""
        return processes_with(self.mark)

    def start(self) -> None:
        """Run `certfs mount` and expect the tree to be served when it returns."""
        arguments: list[str | Path] = ["mount", *self.options]
        arguments += ["--store", self.tree.store, self.tree.root]
        with self.log.open("ab") as log, open(os.devnull, "rb") as nothing:
            if self.wrapper:
                code = subprocess.run(
                    [*self.wrapper, certfs_program(), *arguments],
                    check=False,
                    stdin=nothing,
                    stdout=log,
                    stderr=log,
                    env=self.environment,
                    timeout=150,
                ).returncode
            else:
                streams = (nothing, log, log)
                code = call_forked(arguments, streams=streams, env=self.environment, timeout=150)
        assert code == 0, f"certfs mount: exit {code}\n{self.read_log()}"
        assert str(self.tree.root) in mountpoints(), "the command returned without a mount"
        self.count_descriptors()

    def count_descriptors(self) -> None:
        """Take what the daemon holds now for what it may hold in the end."""
        self._descriptors = descriptors_of(self.daemon())

    def stop(self) -> None:
        """Unmount with `certfs unmount` and expect every process to be gone."""
        known = self.pids
        ended = run_forked(["unmount", self.tree.root], env=self.environment)
        assert ended.returncode == 0, ended.stderr
        if self._held_elsewhere():  # a server lives as long as its mount does anywhere
            wait_until(lambda: not self._held_elsewhere(), seconds=120, what="its last copy's end")
        # To look at every process of the machine costs more than to look at these, again and again.
        what = f"the end of {self._describe()}"
        wait_until(lambda: not processes_with(self.mark, known), seconds=20, what=what)
        wait_until(lambda: not self.pids, seconds=20, what=what)
        assert str(self.tree.root) not in mountpoints()

    def _held_elsewhere(self) -> bool:
        """Whether another mount namespace, made while we were mounted, still has a copy."""
        point = f" {self.tree.root} ".encode()
        one_of: dict[str, int] = {}
        for pid in _every_process():
            with contextlib.suppress(OSError):
                one_of.setdefault(os.readlink(f"/proc/{pid}/ns/mnt"), pid)
        for pid in one_of.values():
            with contextlib.suppress(OSError):
                if point in Path(f"/proc/{pid}/mountinfo").read_bytes():
                    return True
        return False

    def _describe(self) -> str:
        """Say which processes there are and what the kernel does for them, for a failure."""
        lines = []
        for pid in self.pids:
            with contextlib.suppress(OSError):
                command = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
                waiting = Path(f"/proc/{pid}/wchan").read_text()
                lines.append(f"process {pid} ({command.strip()}, in {waiting})")
        return ", ".join(lines) or "the daemon"

    def daemon(self) -> list[int]:
        """Give the supervisor and its servers: the janitor's shells begin and end after the mount is served."""
        return [pid for pid in self.pids if _runs_python(pid)]

    def check_descriptors(self) -> None:
        """Fail if the daemon holds descriptors for what nobody has open any more."""
        bound = self._descriptors.total() + _SPARE_DESCRIPTORS
        if descriptors_of(self.daemon()).total() <= bound:
            return
        if os.geteuid() != 0:
            return  # Only root can make the kernel forget the inodes that it remembers.
        deadline = time.monotonic() + 30
        while (now := descriptors_of(self.daemon())).total() > bound:
            added = now - self._descriptors
            assert time.monotonic() < deadline, f"more than {bound} descriptors: {sorted(added)}"
            # Again and again: what a process of the test has in use at that moment, the kernel goes on remembering.
            forget_inodes(self.tree.root)
            time.sleep(0.05)

    def check_log(self) -> None:
        """Fail if the log holds a traceback, a warning or an error that was not announced."""
        unexpected = [
            line
            for line in self.read_log().splitlines()
            if _UNEXPECTED.search(line)
            and not any(re.search(pattern, line) for pattern in self.expected_log)
        ]
        shown = "\n".join(unexpected[:10])
        assert not unexpected, f"{len(unexpected)} unexpected lines in the log, such as\n{shown}"

    def discard(self) -> None:
        """End whatever is left, without any check."""
        kill_all(self.mark)
        for mountpoint in reversed(mountpoints()):
            if mountpoint.startswith(f"{self.tree.root.parent}/"):
                force_unmount(mountpoint)


@contextlib.contextmanager
def mounted(
    *options: str,
    prepare: Callable[[Tree], None] | None = None,
    standard: bool = True,
    wrapper: tuple[str, ...] = (),
) -> Iterator[CertfsMount]:
    """Mount a fresh store with certfs; unmount and check everything at the end.

    `prepare` fills the store before; `standard` makes a host's directories in it.
    """
    need_fuse()
    directory = scratch_directory()
    tree = Tree(root=directory / "mount", store=directory / "store")
    tree.root.mkdir()
    tree.store.mkdir(mode=0o755)
    if standard:
        Tree(root=tree.store, store=tree.store).make()
    if prepare is not None:
        prepare(Tree(root=tree.store, store=tree.store))
    mount = CertfsMount(tree=tree, options=options, wrapper=wrapper)
    try:
        mount.start()
        yield mount
        mount.check_descriptors()
        mount.stop()
        mount.check_log()
    finally:
        mount.discard()
        sys.stderr.write(mount.read_log())  # pytest shows it when the test fails
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def plain() -> Iterator[Tree]:
    """Make a directory with the same content as a fresh store, without any mount."""
    directory = scratch_directory()
    tree = Tree(root=directory / "plain", store=directory / "plain")
    try:
        tree.make()
        yield tree
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def bindfs_command(*arguments: str | Path) -> list[str]:
    """Give the command line of bindfs; only root may let others in without asking fuse.conf."""
    alone = [] if os.geteuid() == 0 else ["--no-allow-other"]
    return ["bindfs", *alone, *map(str, arguments)]


def mount_bindfs(beneath: Path, mountpoint: Path) -> None:
    """Mount with bindfs."""
    subprocess.run(bindfs_command(beneath, mountpoint), check=True, timeout=30)


@contextlib.contextmanager
def bindfs() -> Iterator[Tree]:
    """Mount a fresh directory with bindfs: another passthrough to prove the tests on."""
    need_fuse()
    need_program("bindfs")
    directory = scratch_directory()
    tree = Tree(root=directory / "mount", store=directory / "store")
    tree.root.mkdir()
    Tree(root=tree.store, store=tree.store).make()
    try:
        mount_bindfs(tree.store, tree.root)
        yield tree
    finally:
        force_unmount(str(tree.root))
        shutil.rmtree(directory, ignore_errors=True)
