"""Where the measuring happens: stores, certfs and bindfs mounts over them, and plain directories beside them.

Owns everything that is made for a run, and its end: whatever happens, no mount, process or file of a run stays.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from certfs.procfs import mounts
from scripts.benchmark.pem import Template
from scripts.benchmark.timing import wait_until
from tests.support.machine import Machine

_MARK = "CERTFS_BENCH_MARK"
"""Environment variable by which every process of a run is found."""
_CERTFS = Path(sys.executable).with_name("certfs")
_PATIENCE = 180.0
_PAUSE = 0.05
"""Seconds after which a server has nothing left to do for the change before (it gathers changes for 30 ms)."""


@dataclass(frozen=True, slots=True)
class Tree:
    """A directory that looks like a host's /etc, wherever it is reached through."""

    root: Path

    @property
    def sources(self) -> Path:
        """The certificates of the pool's hosts."""
        return self.root / "stunnel" / "certs-pool"

    @property
    def bundle(self) -> Path:
        """What is made of them."""
        return self.root / "stunnel" / "xapi-pool-ca-bundle.pem"

    @property
    def other(self) -> Path:
        """A directory that has nothing to do with bundles."""
        return self.root / "xensource"


@dataclass(slots=True)
class Ground:
    """One store with ``count`` certificates and the ways to it: ``store`` itself, ``certfs`` and ``bindfs`` over it.

    ``plain`` is a directory of the same content that no mount has anything to do with; ``first_mount`` is how many
    seconds the first mount took, which also makes the keys of a host.
    """

    count: int
    store: Tree
    certfs: Tree
    bindfs: Tree
    plain: Tree
    mark: str
    first_mount: float = field(default=0.0, init=False)

    @property
    def pids(self) -> list[int]:
        """The processes of certfs behind this mount."""
        return _processes("environ", f"{_MARK}={self.mark}")

    @property
    def bindfs_pids(self) -> list[int]:
        """The process of bindfs."""
        return _processes("cmdline", str(self.bindfs.root))

    @property
    def all_pids(self) -> list[int]:
        """Both."""
        return [*self.pids, *self.bindfs_pids]

    @property
    def _environment(self) -> dict[str, str]:
        runtime = str(self.store.root.parent / "run")
        return {**os.environ, _MARK: self.mark, "CERTFS_RUNTIME_DIR": runtime}

    def mount(self, *options: str | Path) -> float:
        """Mount with certfs; return how many seconds the command took."""
        started = time.perf_counter()
        self._run("mount", *options, "--store", self.store.root, self.certfs.root)
        return time.perf_counter() - started

    def unmount(self) -> None:
        """Unmount with certfs and wait for the end of its processes."""
        self._run("unmount", self.certfs.root)
        wait_until(lambda: not self.pids, seconds=_PATIENCE, what="the end of the daemon")

    def _run(self, *arguments: str | Path) -> None:
        # Not through a pipe: the daemon would keep it open.
        log = self.store.root.parent / f"log-{self.count}"
        with log.open("ab") as output:
            result = subprocess.run(
                [_CERTFS, *arguments],
                check=False,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._environment,
                timeout=_PATIENCE,
            )
        if result.returncode:
            logs = [log, *log.parent.glob("run/*/log")]
            said = "\n".join(path.read_text(errors="replace")[-2000:] for path in logs)
            raise RuntimeError(f"certfs {arguments[0]} failed:\n{said}")

    def settle(self) -> None:
        """Wait until the store holds what the mount shows, and the server has gone back to sleep."""

        def settled() -> bool:
            with contextlib.suppress(FileNotFoundError):
                return self.store.bundle.stat().st_size == self.certfs.bundle.stat().st_size
            return False

        time.sleep(_PAUSE)
        wait_until(settled, seconds=_PATIENCE, what="the plain copy of the bundle")
        time.sleep(_PAUSE)

    def ext4_copy(self) -> Path:
        """Return a copy of the bundle on the store's filesystem, where nothing is watched: inotify costs readers."""
        copy = self.store.root.parent / "bundle.pem"
        shutil.copyfile(self.store.bundle, copy)
        return copy

    def discard(self) -> None:
        """End what is left, without complaint: one that is just being started needs more than one look."""
        deadline = time.monotonic() + _PATIENCE
        # Processes first: a supervisor would mount again.
        while (self._end_processes() or self._detach()) and time.monotonic() < deadline:
            time.sleep(0.02)

    def _end_processes(self) -> bool:
        """Kill every process of this mount; whether there were any."""
        pids = self.pids
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return bool(pids)

    def _detach(self) -> bool:
        """Detach every mount below this ground, those that are hidden in the runtime directory too."""
        found = [point for point in _mountpoints() if self.store.root.parent in point.parents]
        command = ["umount", "-l"] if os.geteuid() == 0 else ["fusermount3", "-u", "-z"]
        for point in reversed(found):
            subprocess.run([*command, point], check=False, capture_output=True, timeout=30)
        return bool(found)


def _processes(file: str, entry: str) -> list[int]:
    """Return the processes that have this entry in this file of theirs in /proc."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                if entry.encode() in Path("/proc", name, file).read_bytes().split(b"\0"):
                    found.append(int(name))
    return found


def _mountpoints() -> list[Path]:
    """Return every mountpoint, innermost last."""
    return [Path(entry.point) for entry in mounts()]


class Grounds:
    """All grounds of a run, by the number of their certificates."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.template = Template()
        self._grounds: dict[int, Ground] = {}
        self._machine: Machine | None = None
        self._resources = contextlib.ExitStack()

    def __getitem__(self, count: int) -> Ground:
        """Return the ground of ``count`` certificates."""
        return self._grounds[count]

    @property
    def counts(self) -> list[int]:
        """How many certificates the grounds have, the smallest first."""
        return sorted(self._grounds)

    @property
    def pids(self) -> list[int]:
        """The servers of all grounds, and the first process of the machine with path units."""
        found = [pid for ground in self._grounds.values() for pid in ground.all_pids]
        return [*found, self._machine.init] if self._machine else found

    @property
    def machine(self) -> Machine | None:
        """The machine on which path units follow directories of each size; None where it cannot be."""
        return self._machine

    def boot(self, units: AbstractContextManager[Machine | None]) -> None:
        """Boot that machine; it ends with the grounds."""
        self._machine = self._resources.enter_context(units)

    def make(self, count: int) -> Ground:
        """Make a store of ``count`` certificates; nothing is mounted yet."""
        ground = self._grounds[count] = self._made(self.base / str(count), count)
        return ground

    @contextlib.contextmanager
    def another(self, count: int) -> Iterator[Ground]:
        """Make a further store of ``count`` certificates for a while."""
        base = self.base / f"another-{count}"
        ground = self._made(base, count)
        try:
            yield ground
        finally:
            ground.discard()
            shutil.rmtree(base)

    def _made(self, base: Path, count: int) -> Ground:
        trees = {name: Tree(base / name) for name in ("store", "certfs", "bindfs", "plain")}
        ground = Ground(count=count, mark=secrets.token_hex(8), **trees)
        for name in ("certfs", "bindfs", "plain"):
            trees[name].root.mkdir(parents=True)
        self.template.write(ground.store.sources, count)
        ground.store.other.mkdir()
        return ground

    def make_plain(self, ground: Ground) -> None:
        """Make the plain directory of a ground: the same certificates."""
        ground.plain.sources.parent.mkdir()
        shutil.copytree(ground.store.sources, ground.plain.sources)
        ground.plain.other.mkdir()

    @staticmethod
    def mount_bindfs(ground: Ground) -> None:
        """Mount the store with bindfs as Debian has it."""
        # Only root may let others in without asking fuse.conf.
        alone = [] if os.geteuid() == 0 else ["--no-allow-other"]
        subprocess.run(
            ["bindfs", *alone, ground.store.root, ground.bindfs.root], check=True, timeout=30
        )
        wait_until(lambda: ground.bindfs.root in _mountpoints(), seconds=30, what="bindfs")

    def discard(self) -> None:
        """End and remove everything."""
        self._resources.close()
        for ground in self._grounds.values():
            ground.discard()
        shutil.rmtree(self.base, ignore_errors=True)


@contextlib.contextmanager
def grounds(directory: Path | None) -> Iterator[Grounds]:
    """Give the grounds of one run, below ``directory``, and remove all of them at the end."""
    parent = directory if directory is not None else _roomy_directory()
    made = Grounds(Path(tempfile.mkdtemp(prefix="certfs-bench-", dir=parent)).resolve())
    try:
        yield made
    finally:
        made.discard()


def _roomy_directory() -> Path:
    """Return a place on a disk: /tmp may be memory (file-hierarchy(7))."""
    return Path("/var/tmp") if os.access("/var/tmp", os.W_OK) else Path(tempfile.gettempdir())  # noqa: S108
