"""A real etcd cluster for a test, each member where the test wants it.

Owns the members' processes, their certificates and data, and how the client of certfs is given them.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import ipaddress
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID

from certfs.pool import wire
from certfs.pool.engine import Access, Engine
from tests.support import mounts, pki
from tests.support.mounts import wait_until

LEFT_BY_HTTPX = [
    pytest.mark.filterwarnings(f"ignore:{what}:pytest.PytestUnraisableExceptionWarning")
    for what in (".*ByteStream.__aiter__", "Exception ignored in. <socket")
]
"""Marks of tests that cancel requests: an iterator and a connection that is being made are left to the collector."""

KEY, END = b"/t/", b"/t0"
"""The range of keys that `follow` watches."""
_SERVER, _CLIENT = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH


@dataclass(slots=True)
class Member:
    """One member: ``entering`` runs a command where it lives."""

    name: str
    address: str
    client: int
    peer: int
    directory: Path
    entering: list[str] = field(default_factory=list)
    plain: bool = False
    """Without TLS towards clients."""
    options: tuple[str, ...] = ()
    """More options of etcd."""
    process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """Where clients ask it."""
        return f"http{'' if self.plain else 's'}://{self.address}:{self.client}"

    @property
    def peer_url(self) -> str:
        """Where other members reach it."""
        return f"https://{self.address}:{self.peer}"

    @property
    def data(self) -> Path:
        """Everything that it keeps."""
        return self.directory / f"{self.name}.data"

    def start(self, initial: str) -> None:
        """Start it with what it has."""
        at = self.endpoint
        certificate, key = (str(self.directory / f"{self.name}.{end}") for end in ("pem", "key"))
        shown = () if self.plain else ("--cert-file", certificate, "--key-file", key)
        with (self.directory / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *self.entering,
                    "etcd",
                    *("--name", self.name, "--data-dir", str(self.data)),
                    *("--listen-client-urls", at, "--advertise-client-urls", at),
                    *("--listen-peer-urls", self.peer_url),
                    *("--initial-advertise-peer-urls", self.peer_url),
                    *("--initial-cluster", initial, "--initial-cluster-token", "certfs-test"),
                    *shown,
                    *("--peer-cert-file", certificate, "--peer-key-file", key),
                    *("--peer-trusted-ca-file", str(self.directory / "ca.pem")),
                    "--peer-client-cert-auth",
                    # Of a test's passwords nobody has to be kept from guessing; each costs 60 ms otherwise.
                    *("--bcrypt-cost", "4"),
                    "--logger=zap",
                    *self.options,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def kill(self) -> None:
        """Kill it."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@dataclass(slots=True)
class Cluster:
    """All members, and the authority that signed their certificates."""

    members: list[Member]
    authority: pki.Identity
    directory: Path

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Where clients ask."""
        return tuple(member.endpoint for member in self.members)

    @property
    def ca(self) -> Path:
        """The file with the authority."""
        return self.directory / "ca.pem"

    def start(self) -> None:
        """Start all members that do not run."""
        initial = ",".join(f"{member.name}={member.peer_url}" for member in self.members)
        for member in self.members:
            if member.process is None:
                member.start(initial)

    def control(self, *arguments: str, at: Member | None = None, user: str = "") -> str:
        """Run etcdctl on the node of a member."""
        member = at or self.members[0]
        options = [f"--endpoints={member.endpoint}"]
        options += [] if member.plain else [f"--cacert={self.ca}"]
        if "--client-cert-auth" in member.options:
            files = (self.directory / f"{member.name}.{end}" for end in ("pem", "key"))
            options += map("--{}={}".format, ("cert", "key"), files)
        options += [f"--user={user}"] if user else []
        ran = subprocess.run(
            [*member.entering, "etcdctl", *options, *arguments],
            check=True,
            capture_output=True,
            text=True,
            timeout=30,
            env={"ETCDCTL_API": "3", "PATH": os.environ["PATH"]},
        )
        return ran.stdout

    def is_healthy(self) -> bool:
        """Whether every member answers with a leader."""
        try:
            return all(self.control("get", "x", at=member) == "" for member in self.members)
        except subprocess.SubprocessError:
            return False

    def is_serving(self) -> bool:
        """Whether every member answers, be it that the user is not known."""
        try:
            for member in self.members:
                self.control("endpoint", "status", at=member)
        except subprocess.SubprocessError as error:
            return b"user name is empty" in getattr(error, "stderr", "").encode()
        return True

    def data_holds(self, needle: bytes) -> bool:
        """Whether any file of any member has these bytes."""
        return any(
            needle in path.read_bytes()
            for member in self.members
            for path in member.data.rglob("*")
            if path.is_file()
        )


@contextlib.contextmanager
def cluster(  # noqa: PLR0913 - what an engine may be like
    places: Sequence[tuple[str, list[str]]] = (),
    *,
    plain: bool = False,
    options: Sequence[str] = (),
    client_certificates: bool = False,
    uses: Sequence[x509.ObjectIdentifier] = (_SERVER, _CLIENT),
    healthy: bool = True,
) -> Iterator[Cluster]:
    """Run one member on the loopback, or one for each of ``places``: an address, and what enters its node.

    The ``etcd`` of PATH is run, with ``options`` besides; with ``client_certificates`` it asks clients for one.
    ``uses`` are what the certificates of the members are for. ``healthy`` if they are to be waited for.
    """
    mounts.need_program("etcd", "etcdctl")
    directory = mounts.scratch_directory()
    authority = pki.authority("etcd of a test")
    if client_certificates:
        options = [*options, "--client-cert-auth", f"--trusted-ca-file={directory}/ca.pem"]
    members = [
        Member(f"m{number}", address, *_ports(address), directory, entering, plain, tuple(options))
        for number, (address, entering) in enumerate(places or [("127.0.0.1", [])])
    ]
    made = Cluster(members, authority, directory)
    made.ca.write_bytes(authority.pem)
    for member in members:
        identity = _served(authority, member, uses)
        (directory / f"{member.name}.pem").write_bytes(identity.pem)
        (directory / f"{member.name}.key").write_bytes(identity.key_pem)
    try:
        made.start()
        if healthy:
            wait_until(made.is_healthy, seconds=60, what="etcd with a leader")
        yield made
    finally:
        for member in members:
            member.kill()
        shutil.rmtree(directory, ignore_errors=True)


def _ports(address: str) -> tuple[int, int]:
    if address != "127.0.0.1":
        return 2379, 2380
    with socket.socket() as first, socket.socket() as second:
        first.bind((address, 0))
        second.bind((address, 0))
        return first.getsockname()[1], second.getsockname()[1]


def _served(
    authority: pki.Identity, member: Member, uses: Sequence[x509.ObjectIdentifier]
) -> pki.Identity:
    """Issue what a member shows; its own gateway is a client with it, hence both uses."""
    key = pki.ec_key(1)
    begin = pki.NOW - dt.timedelta(days=1)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(member.address))])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(pki.name(member.name))
        .issuer_name(authority.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + dt.timedelta(days=30))
        .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        .add_extension(names, critical=False)
        .sign(authority.key, hashes.SHA256())
    )
    return pki.Identity(certificate, key)


def access(cluster: Cluster, *, user: str = "", password: str = "") -> Access:
    """Return the access of a user."""
    return Access(cluster.endpoints, cluster.ca.read_text(), user, password)


def put(key: bytes, value: bytes) -> wire.Operation:
    """Return the operation."""
    return wire.Operation(request_put=wire.Put(key=key, value=value))


async def follow(engine: Engine, start: int, then: Callable[[], None] = lambda: None) -> None:
    """Take every change from a revision on, without end; ``then`` happens at the beginning."""
    async with engine.watch(KEY, END, start) as changes:
        then()
        async for _ in changes:
            pass
