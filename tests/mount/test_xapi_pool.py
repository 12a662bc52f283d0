"""I10: a pool that distributes, refreshes and ejects never interrupts a connection.

Readers and real stunnel clients run all the time while XAPI's sequences run.
"""

from __future__ import annotations

import os
import random
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support import mounts, peer, pki, stunnel
from tests.support.mounts import CertfsMount, wait_until
from tests.support.stunnel import Outcome, Verdict
from tests.support.tree import Tree
from tests.support.xapi import Xapi

pytestmark = [pytest.mark.mount, pytest.mark.slow]

DISTRIBUTIONS = int(os.environ.get("CERTFS_TEST_DISTRIBUTIONS", "2"))
"""Erase_old distributions under the eyes of readers; the nightly run does 200."""
ROUNDS = int(os.environ.get("CERTFS_TEST_ROUNDS", "4"))
"""Changes of the simulated pool under the eyes of stunnel clients; the nightly run does 50."""


def hammer(
    bundle: str, always: list[bytes], ever: list[bytes], begun: str, stop: str
) -> tuple[int, list[str]]:
    """Make the file `begun`, and read the bundle until the file `stop` exists; give how often, and what was wrong."""
    Path(begun).touch()
    allowed = set(ever)
    wrong: list[str] = []
    reads = 0
    while not os.path.exists(stop):
        reads += 1
        seen = peer.read_or_none(bundle)
        if seen is None:
            wrong.append(f"read {reads}: no bundle")
            continue
        end = b"-----END CERTIFICATE-----\n"
        blocks = {block + end for block in seen.split(end)[:-1]}
        if not blocks >= set(always):
            wrong.append(f"read {reads}: {len(set(always) - blocks)} are missing")
        if not blocks <= allowed:
            wrong.append(f"read {reads}: {len(blocks - allowed)} too many")
    return reads, wrong


def test_readers_never_see_less_than_the_intersection(
    certfs_mount: CertfsMount, tmp_path: Path
) -> None:
    """I10: through Erase_old distributions of a 64-host pool no read is short, none too long."""
    tree = certfs_mount.tree
    hosts = {
        f"{uuid.UUID(int=number)}.pem": pki.pool_certificate(
            uuid.UUID(int=number), key=pki.ec_key(0)
        ).pem
        for number in range(80)
    }
    names = sorted(hosts)
    xapi = Xapi(tree)
    sets = [dict.fromkeys(names[:64]), dict.fromkeys(names[16:])]
    distributions = [{name: hosts[name] for name in one} for one in sets]
    xapi.erase_old(tree.certs_pool, distributions[0])
    always = [hosts[name] for name in names[16:64]]
    with peer.peers(3) as readers:
        begun = [tmp_path / f"begun-{number}" for number, _ in enumerate(readers)]
        for reader, file in zip(readers, begun, strict=True):
            arguments = (str(tree.pool_bundle), always, list(hosts.values()), str(file))
            reader.send(hammer, *arguments, str(tmp_path / "stop"))
        # A new process may take longer to import this than two distributions do.
        wait_until(lambda: all(file.exists() for file in begun), what="the readers")
        for turn in range(DISTRIBUTIONS):
            xapi.erase_old(tree.certs_pool, distributions[(turn + 1) % 2])
            seen = tree.pool_bundle.read_bytes()
            assert len(pki.certificates_in(seen)) == 64
        (tmp_path / "stop").touch()
        results = [reader.receive() for reader in readers]
    assert [wrong for _, wrong in results] == [[]] * 3
    assert min(reads for reads, _ in results) >= DISTRIBUTIONS


@dataclass(slots=True)
class Presence:
    """When a host's certificate was certainly trusted, certainly not, or in between."""

    changes: list[tuple[float, str]] = field(default_factory=list)

    def note(self, state: str) -> None:
        """Begin a state: `there`, `gone` or `changing`."""
        self.changes.append((time.monotonic(), state))

    def during(self, begin: float, end: float) -> set[str]:
        """Give every state between two moments."""
        before = [state for at, state in self.changes if at <= begin]
        return {*before[-1:], *(state for at, state in self.changes if begin < at <= end)}


@dataclass(frozen=True, slots=True)
class Attempt:
    """One client's connection."""

    begin: float
    end: float
    outcome: Outcome


@contextmanager
def _clients(port: int, bundle: Path) -> Iterator[list[Attempt]]:
    """Let two clients connect over and over, as hosts of a pool do."""
    attempts: list[Attempt] = []
    stop = threading.Event()

    def connect() -> None:
        while not stop.is_set():
            begin = time.monotonic()
            outcome = stunnel.connect_pool(port, bundle)
            attempts.append(Attempt(begin, time.monotonic(), outcome))

    threads = [threading.Thread(target=connect) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield attempts
    finally:
        stop.set()
        for thread in threads:
            thread.join()


class Pool:
    """A simulated pool, seen from one member: what XAPI does there, in random order."""

    def __init__(self, tree: Tree, peer_identity: pki.Identity, seed: int) -> None:
        """The peer is the host whose server the clients connect to."""
        self.xapi = Xapi(tree)
        self.tree = tree
        self.presence = Presence()
        self.random = random.Random(seed)  # noqa: S311 - reproducible on purpose
        self.peer = str(uuid.uuid4())
        self.peer_pem = peer_identity.pem
        self.others = {
            str(uuid.uuid4()): pki.pool_certificate(key=pki.ec_key(1)).pem for _ in range(8)
        }
        self.xapi.erase_old(tree.certs_pool, self._files(peer=True))
        self.presence.note("there")

    def _files(self, *, peer: bool) -> dict[str, bytes]:
        files = {f"{host}.pem": pem for host, pem in self.others.items()}
        return files | ({f"{self.peer}.pem": self.peer_pem} if peer else {})

    def _regenerate(self) -> None:
        self.xapi.regenerate(self.tree.certs_pool, self.tree.pool_bundle)

    def turn(self) -> None:
        """Do one thing that XAPI does."""
        kind = self.random.choice(("distribute", "distribute", "refresh", "merge", "eject", "peer"))
        if kind == "distribute":
            self.xapi.erase_old(self.tree.certs_pool, self._files(peer=True))
        elif kind == "merge":
            host = str(uuid.uuid4())
            self.others[host] = pki.pool_certificate(key=pki.ec_key(1)).pem
            self.xapi.merge(self.tree.certs_pool, {f"{host}.pem": self.others[host]})
        elif kind == "eject":
            host = self.random.choice(sorted(self.others))
            del self.others[host]
            self.xapi.eject_other(host)
        elif kind == "refresh":
            self._refresh(self.random.choice(sorted(self.others)))
        else:
            self.without_peer()
        self._regenerate()

    def _refresh(self, host: str) -> None:
        fresh = pki.pool_certificate(key=pki.ec_key(1))
        self.xapi.refresh_start(host, fresh.host_pem, fresh.pem)
        self.xapi.refresh_switch()
        self.xapi.refresh_finish(host)
        self.others[host] = fresh.pem

    def without_peer(self) -> None:
        """Eject the peer for a while, then let it join again."""
        self.presence.note("changing")
        self.xapi.eject_other(self.peer)
        self.presence.note("gone")
        self.xapi.erase_old(self.tree.certs_pool, self._files(peer=False))
        time.sleep(0.2)  # so that some client's whole connection falls into this time
        self.presence.note("changing")
        self.xapi.merge(self.tree.certs_pool, {f"{self.peer}.pem": self.peer_pem})
        self._regenerate()
        self.presence.note("there")


@pytest.mark.stunnel
def test_stunnel_clients_are_never_wrong(
    certfs_mount: CertfsMount, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """I10: refused only while the peer is really gone, accepted whenever it is there throughout."""
    mounts.need_program("stunnel")
    directory = tmp_path_factory.mktemp("peer")
    identity = pki.pool_certificate()
    (directory / "host.pem").write_bytes(identity.host_pem)
    (directory / "host.pem").chmod(0o400)
    pool = Pool(certfs_mount.tree, identity, seed=1)
    host_pem = directory / "host.pem"
    with (
        stunnel.server(api=host_pem, pool=host_pem, directory=directory) as server,
        _clients(server.port, certfs_mount.tree.pool_bundle) as attempts,
    ):
        pool.without_peer()
        for _ in range(ROUNDS):
            pool.turn()
    states = [pool.presence.during(attempt.begin, attempt.end) for attempt in attempts]
    wrong = [
        f"{attempt.outcome.verdict} while {state}: {attempt.outcome.reason}"
        for attempt, state in zip(attempts, states, strict=True)
        if (state == {"there"} and attempt.outcome.verdict != Verdict.ACCEPTED)
        or (state == {"gone"} and attempt.outcome.verdict != Verdict.REFUSED)
    ]
    assert wrong == []
    assert {"there"} in states
    assert {"gone"} in states
