"""A host of its own for a test: a private mount namespace with /etc/xensource and /etc/stunnel.

Owns the namespace, running commands in it, and looking into it from outside: a path of the host is reached through
``/proc/PID/root``, in which the kernel resolves names with that process's mounts.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from certfs.procfs import parse_mounts
from tests.support import mounts, pki
from tests.support.forked import run_forked
from tests.support.mounts import wait_until
from tests.support.tree import Tree

_SETUP = """
set -e
umount --all --lazy --types fuse.certfs || true
mount -t tmpfs run /run
mount --bind "$1" /etc
echo ready
exec sleep infinity
"""

POOL = {"0.pem": pki.issue("host 0"), "1.pem": pki.issue("host 1")}
"""The sources of the pool's bundle on a host that `serving_host` made."""


@dataclass(frozen=True, slots=True)
class Detached:
    """A `certfs detached` whose command waits until something is written to ``release``."""

    command: subprocess.Popen[str]
    release: Path

    def finish(self) -> tuple[int, str]:
        """Let the command print "go" and end; return the exit code of `certfs detached` and what both said."""
        self.release.write_text("go")
        said, _ = self.command.communicate(timeout=10)
        return self.command.returncode, said


@dataclass(slots=True)
class Host:
    """A mount namespace that looks like a host."""

    holder: subprocess.Popen[bytes]
    """The process that keeps the namespace."""
    directory: Path
    """Outside of the namespace; its ``etc`` is the host's /etc."""
    mark: str = field(default_factory=lambda: os.urandom(8).hex())

    def inside(self, path: str) -> Path:
        """Return the path by which this process reaches ``path`` of the host, as the host sees it."""
        return Path(f"/proc/{self.holder.pid}/root{path}")

    @property
    def tree(self) -> Tree:
        """The host's /etc, as its programs see it."""
        return Tree(root=self.inside("/etc"), store=self.store.root)

    @property
    def store(self) -> Tree:
        """What is beneath, whatever is mounted in the namespace."""
        return Tree(root=self.directory / "etc", store=self.directory / "etc")

    def run(self, *command: str | Path, seconds: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run a command on the host and return how it went."""
        return subprocess.run(
            self.entering(*command),
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            env=self.environment,
        )

    def let_users_mount(self) -> None:
        """Make /dev/fuse what it is on most machines: everybody's."""
        node = self.directory / "fuse"
        os.mknod(node, stat.S_IFCHR | 0o666, os.stat("/dev/fuse").st_rdev)
        node.chmod(0o666)
        assert self.run("mount", "--bind", node, "/dev/fuse").returncode == 0

    def start(self, *command: str | Path) -> subprocess.Popen[str]:
        """Start a command on the host."""
        return subprocess.Popen(
            self.entering(*command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.environment,
        )

    def detached(self, then: str = "true") -> Detached:
        """Have a shell command run that sees the plain directories, and that ends when it is told to finish."""
        release = self.directory / "release"
        os.mkfifo(release)
        script = f"touch /run/detached; cat {release}; {then}"
        started = self.start(*self.program(), "detached", "--", "sh", "-c", script)
        wait_until(self.inside("/run/detached").exists, what="the command")
        return Detached(started, release)

    def command(
        self, *arguments: str | Path, seconds: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run certfs on the host and return how it went."""
        namespace = Path(f"/proc/{self.holder.pid}/ns/mnt")
        return run_forked(arguments, env=self.environment, namespace=namespace, timeout=seconds)

    def certfs(self, *arguments: str | Path, expect: int = 0) -> str:
        """Run certfs on the host, expect this exit code, and return what it said on both outputs."""
        result = self.command(*arguments)
        said = result.stdout + result.stderr
        assert result.returncode == expect, said + self.log()
        return said

    @property
    def environment(self) -> dict[str, str]:
        """The environment of the host's processes."""
        plain = {name: value for name, value in os.environ.items() if name != "CERTFS_RUNTIME_DIR"}
        return {**plain, mounts._MARK: self.mark}

    def state(self, instance: str = "dom0") -> dict[str, Any]:
        """Return the state file of an instance."""
        content = self.inside(f"/run/certfs/{instance}/state.json").read_bytes()
        state: dict[str, Any] = json.loads(content)
        return state

    def server(self) -> int:
        """Return the pid of the server of the Dom0 mount, 0 if there is none at this moment."""
        server = self.state()["server"]
        return int(server["pid"]) if server else 0

    def supervisor(self) -> int:
        """Return the pid of the supervisor of the Dom0 mount."""
        pid: int = self.state()["supervisor"]["pid"]
        return pid

    def log(self) -> str:
        """Return the daemon's log."""
        try:
            return self.inside("/run/certfs/dom0/log").read_text(errors="backslashreplace")
        except FileNotFoundError:
            return ""

    @staticmethod
    def program() -> list[str]:
        """Return the command line of certfs."""
        return [mounts.certfs_program()]

    def processes(self) -> list[int]:
        """Return every process that came from a certfs of this host, whoever it is now."""
        return mounts.processes_with(self.mark)

    def daemons(self) -> list[int]:
        """Return the supervisors and servers of this host."""
        return self.processes_named("certfs.server") + self.processes_named("certfs.supervisor")

    def processes_named(self, part: str) -> list[int]:
        """Return the processes of this host with ``part`` in their command line."""
        found = []
        for pid in self.processes():
            with contextlib.suppress(OSError):
                if part.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(pid)
        return found

    def certfs_mounts(self) -> list[str]:
        """Return the places of the host where certfs is mounted, live or dead."""
        table = Path(f"/proc/{self.holder.pid}/mountinfo").read_bytes()
        return [entry.point for entry in parse_mounts(table) if entry.is_certfs]

    def in_view(self) -> bool:
        """Whether any of the two trees shows certfs, live or dead."""
        return bool({"/etc/xensource", "/etc/stunnel"} & set(self.certfs_mounts()))

    def presented(self) -> bool:
        """Whether both trees are served."""
        return {"/etc/xensource", "/etc/stunnel"} <= set(self.certfs_mounts())

    def live_again(self, since: float, *, not_pid: int, seconds: float = 10.0) -> float:
        """Wait until another server than ``not_pid`` serves both trees; the seconds since ``since`` (monotonic)."""

        def live() -> bool:
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                state = self.state()
                return (
                    state["phase"] == "serving"
                    and state["server"]["pid"] != not_pid
                    and self.presented()
                    and self.tree.pool_bundle.exists()
                )
            return False

        wait_until(live, seconds=seconds, what="the live mount")
        return time.monotonic() - since

    def entering(self, *command: str | Path) -> list[str | Path]:
        """Return the command line that runs ``command`` on the host."""
        return ["nsenter", f"--mount=/proc/{self.holder.pid}/ns/mnt", "--", *command]


def janitor(made: Host) -> int:
    """Return the janitor that is written down; 0 while there is none."""
    state = made.state()["janitor"]
    return int(state["pid"]) if state else 0


def janitors(made: Host) -> set[int]:
    """Return the janitors that run: each is the leader of a session."""
    found = set()
    for pid in made.processes_named("umount -l"):
        with contextlib.suppress(ProcessLookupError):
            found.add(os.getsid(pid))
    return found


def kill(*pids: int) -> float:
    """Kill processes at one moment: none can react to the death of another. Return when (monotonic)."""
    began = time.monotonic()
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in pids:
            os.kill(pid, number)
    return began


@contextlib.contextmanager
def host() -> Iterator[Host]:
    """Make a host with its own /etc and /run; end everything on it afterwards."""
    mounts.need_fuse()
    mounts.need_namespaces()
    directory = mounts.scratch_directory()
    etc = directory / "etc"
    copy_etc(etc)
    holder = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", _SETUP, "sh", etc],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    made = Host(holder, directory)
    try:
        assert holder.stdout.readline() == b"ready\n"
        yield made
    finally:
        end_host(made)


@contextlib.contextmanager
def serving_host() -> Iterator[Host]:
    """Make a host with the two certificates of POOL as sources, on which certfs is mounted."""
    with host() as made:
        for name, identity in POOL.items():
            (made.store.certs_pool / name).write_bytes(identity.pem)
        made.certfs("mount")
        wait_until(made.store.pool_bundle.exists, seconds=60, what="the plain copy (I12)")
        yield made


def copy_etc(target: Path) -> None:
    """Copy this machine's /etc, with a host's empty directories for certfs in it.

    The files are hard links to a copy that each test process makes once.
    """
    shutil.copytree(_etc_template(), target, symlinks=True, copy_function=os.link)
    Tree(root=target, store=target).make()


@functools.cache
def _etc_template() -> Path:
    template = mounts.scratch_directory() / "etc"
    atexit.register(shutil.rmtree, template.parent, ignore_errors=True)

    def left_out(directory: str, _names: list[str]) -> list[str]:
        return ["stunnel", "xensource"] if directory == "/etc" else []

    shutil.copytree("/etc", template, symlinks=True, ignore=left_out, ignore_dangling_symlinks=True)
    return template


def end_host(made: Host) -> None:
    """End every process of the host, and with the last one its mounts."""
    said = made.log()
    mounts.kill_all(made.mark)
    made.holder.kill()
    made.holder.wait()
    if made.holder.stdout:
        made.holder.stdout.close()
    sys.stderr.write(said)
    shutil.rmtree(made.directory, ignore_errors=True)
