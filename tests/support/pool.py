"""A pool for a test: real etcd members, and hosts with real mounts, each in a network namespace of its own.

Owns starting, cutting off and ending all of it. Must not know what a test claims.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from certfs.cli.json_forms import FORMS
from tests.support import etcd, mounts, pki
from tests.support.forked import run_forked
from tests.support.mounts import CertfsMount, certfs_program, wait_until
from tests.support.network import Network, Node, network
from tests.support.tree import Tree

POOL = "test"
_ROOT_PASSWORD = "secret of the engine's root"
STUNNEL_BUNDLE = "stunnel/xapi-stunnel-ca-bundle.pem"
POOL_BUNDLE = "stunnel/xapi-pool-ca-bundle.pem"


@dataclass(slots=True)
class PoolHost:
    """A host: a mount, a state directory, and the process that keeps it in the pool."""

    mount: CertfsMount
    node: Node
    uuid: str
    state: Path
    process: subprocess.Popen[bytes] | None = None
    config: Path | None = None
    """The configuration of its process."""

    @property
    def certs(self) -> Path:
        """The directory of CA certificates on the mount."""
        return self.mount.tree.root / "stunnel/certs"

    @property
    def pool_pem(self) -> bytes:
        """The host's certificate that others trust."""
        return (self.mount.tree.store / f"stunnel/certs-pool/{self.uuid}.pem").read_bytes()

    @property
    def log(self) -> str:
        """What the process has said."""
        return self.state.with_name("pool.log").read_text(errors="replace")

    def bundle(self, name: str = STUNNEL_BUNDLE) -> bytes:
        """Return a bundle as a reader gets it, empty where there is none."""
        try:
            return (self.mount.tree.root / name).read_bytes()
        except FileNotFoundError:
            return b""

    def trusts(self, identity: pki.Identity, name: str = STUNNEL_BUNDLE) -> bool:
        """Whether the bundle has a certificate."""
        return identity.pem in self.bundle(name)

    def start(self) -> None:
        """Start the process."""
        with self.state.with_name("pool.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *self.node.entering(),
                    certfs_program(),
                    "pool",
                    "run",
                    *("--store", self.mount.tree.store, self.mount.tree.root),
                    *("--state", self.state),
                    *(("--config", self.config) if self.config else ()),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.mount.environment,
            )

    def signal(self, number: int) -> None:
        """Send the process a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """Kill the process."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def end(self) -> None:
        """End the process as a service manager does, so that coverage has what it counted."""
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()
            self.process = None

    def certfs(self, *arguments: str | Path, expect: int = 0) -> str:
        """Run a command of certfs on the host."""
        environment = {**self.mount.environment, "CERTFS_POOL_STATE": str(self.state)}
        ran = run_forked(arguments, env=environment, namespace=self.node.namespace, timeout=180)
        assert ran.returncode == expect, ran.stdout + ran.stderr + self.log
        return ran.stdout + ran.stderr

    def status(self) -> dict[str, Any]:
        """Return the status for programs, which has the form of its schema."""
        answer: dict[str, Any] = json.loads(self.certfs("pool", "status", "--json"))
        msgspec.convert(answer, FORMS["pool-status"], strict=True)
        return answer


@dataclass(slots=True)
class Pool:
    """The engine and the hosts."""

    cluster: etcd.Cluster
    network: Network
    hosts: list[PoolHost]
    directory: Path

    @property
    def engine_options(self) -> list[str | Path]:
        """The options of commands that act as the engine's root."""
        endpoints = [word for url in self.cluster.endpoints for word in ("--endpoint", url)]
        password = self.directory / "root.txt"
        return [*endpoints, "--ca", self.cluster.ca, "--root-password", password]

    def root(self, *arguments: str | Path, expect: int = 0) -> str:
        """Run a command of certfs as the engine's root."""
        words = (*arguments, *self.engine_options)
        ran = run_forked(words, namespace=self.network.nodes[0].namespace, timeout=180)
        assert ran.returncode == expect, ran.stdout + ran.stderr
        return ran.stdout

    def admit(self, host: PoolHost, *, publisher: bool) -> None:
        """Admit a host and have it join."""
        options = ["--publisher"] if publisher else []
        join = host.state.with_name("join")
        join.write_text(self.root("pool", "admit", POOL, host.uuid, *options))
        host.certfs("pool", "join", join)

    def control(self, *arguments: str) -> str:
        """Run etcdctl as the engine's root."""
        return self.cluster.control(*arguments, user=f"root:{_ROOT_PASSWORD}")

    def engine_status(self, member: etcd.Member | None = None) -> dict[str, Any]:
        """Return what a member says of itself, the first if none is given."""
        options = ("endpoint", "status", "--write-out=json")
        user = f"root:{_ROOT_PASSWORD}"
        (told,) = json.loads(self.cluster.control(*options, at=member, user=user))
        status: dict[str, Any] = told["Status"]
        return status

    def leader(self) -> etcd.Member:
        """Return the engine's leader."""
        for member in self.cluster.members:
            status = self.engine_status(member)
            if status["header"]["member_id"] == status["leader"]:
                return member
        raise AssertionError("the engine has no leader")

    def processes(self) -> dict[str, list[int]]:
        """Return all processes, by what they are for."""
        members = (member.process for member in self.cluster.members)
        own = (host.process for host in self.hosts)
        return {
            "the engine": [process.pid for process in members if process is not None],
            "pool processes": [process.pid for process in own if process is not None],
            "file systems": [pid for host in self.hosts for pid in host.mount.daemon()],
        }

    def all_trust(self, identity: pki.Identity) -> bool:
        """Whether every host's bundle has a certificate."""
        return all(host.trusts(identity) for host in self.hosts)

    def none_trusts(self, identity: pki.Identity) -> bool:
        """Whether no host's bundle has a certificate."""
        return not any(host.trusts(identity) for host in self.hosts)


def processor_seconds(pids: list[int]) -> float:
    """Return how much processor time these processes have had."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):  # a short-lived one of a mount has ended
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def busy_seconds() -> float:
    """Return how much processor time everything on this machine has had."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    user, nice, system, _idle, _waiting, *interrupts = map(int, fields[:7])
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


def memory_bytes(pids: list[int]) -> int:
    """Return how much memory these processes have, what several share counted in parts (proc_pid_smaps(5), Pss)."""
    kilobytes = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    kilobytes += int(line.split()[1])
    return kilobytes << 10


@contextlib.contextmanager
def pool(hosts: int, *, members: int = 3, publishers: int | None = None) -> Iterator[Pool]:
    """Run an engine of so many members and so many hosts; the first ``publishers`` of them may publish."""
    mounts.need_fuse()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_enough_inotify(hosts))
        net = stack.enter_context(network())
        nodes = [net.node() for _ in range(members + hosts)]
        # As if it had a machine of its own: what waits for it would wait for all that the hosts do at that moment.
        places = [
            (node.address, [*node.entering(), "nice", "-n", "-10"]) for node in nodes[:members]
        ]
        cluster = stack.enter_context(etcd.cluster(places))
        directory = mounts.scratch_directory()
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        (directory / "root.txt").write_text(f"{_ROOT_PASSWORD}\n")
        made = Pool(cluster, net, [], directory)
        made.root("pool", "init", POOL)
        for node in nodes[members:]:
            made.hosts.append(stack.enter_context(_host(node)))
        for number, host in enumerate(made.hosts):
            made.admit(host, publisher=publishers is None or number < publishers)
        for host in made.hosts:
            host.start()
        wait_until(
            lambda: all("in sync" in host.log for host in made.hosts),
            seconds=60 + 10 * hosts,
            what="every host in sync",
        )
        yield made


@contextlib.contextmanager
def _enough_inotify(hosts: int) -> Iterator[None]:
    """Let so many hosts be on one machine, whose users have 128 instances of inotify(7) unless told otherwise."""
    limit = Path("/proc/sys/fs/inotify/max_user_instances")
    before = limit.read_text()
    limit.write_text(str(max(int(before), 128 + 6 * hosts)))
    try:
        yield
    finally:
        limit.write_text(before)


@contextlib.contextmanager
def _host(node: Node) -> Iterator[PoolHost]:
    def with_identity(tree: Tree) -> None:
        key = tree.root / "xensource/xapi-pool-tls.pem"
        key.touch(mode=0o400)
        key.write_bytes(identity.host_pem)
        # Otherwise the mount makes one, of an RSA key.
        shutil.copy(key, tree.root / "xensource/xapi-ssl.pem")
        (tree.root / f"stunnel/certs-pool/{name}.pem").write_bytes(identity.pem)

    name = uuid.uuid4()
    identity = pki.pool_certificate(name, key=pki.ec_key(node.number))
    with mounts.mounted(prepare=with_identity) as mount:
        made = PoolHost(mount, node, str(name), mount.tree.root.with_name("pool"))
        mount.tree.root.with_name("pool.log").touch()
        try:
            yield made
        finally:
            made.end()
            sys.stderr.write(made.log)
