"""Tests of the certificate commands with a real stunnel, on a mount and on plain directories alike.

The server shows the host's own two files, as on a host of the platform; the clients trust the host's
own two bundles.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import pytest

from certfs.identity.bundles import update_bundles_of
from certfs.identity.ensure import ensure_identity, host_uuid
from certfs.identity.paths import HostPaths
from tests.identity.interrupt import kill_at, kills
from tests.support import mounts, pki, stunnel
from tests.support.identity import run_certfs
from tests.support.openssl import OpenSsl, Pair
from tests.support.stunnel import Outcome, Verdict
from tests.support.tree import Tree

pytestmark = [pytest.mark.mount, pytest.mark.stunnel]

_NO_SERVER_SECONDS = 30
"""How long a server may be away that binds its port anew, as stunnel does at every reload, or has crashed."""


@dataclass(frozen=True, slots=True)
class Served:
    """A host's directories and the stunnel that shows what is in them."""

    tree: Tree
    server: stunnel.Server

    def run(self, *words: str | Path) -> str:
        """Run a command on the host and give what it says."""
        done = run_certfs(*words, "--store", self.tree.root)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def pool_client(self) -> Outcome:
        """Connect as another host of the pool; again while there is no server that could be judged."""
        deadline = time.monotonic() + _NO_SERVER_SECONDS
        while True:
            outcome = stunnel.connect_pool(self.server.port, self.tree.pool_bundle)
            # A client that judges a certificate logs CERT. Without it the connection was refused, reset or cut off.
            judged = outcome.verdict is not Verdict.REFUSED or "CERT: " in outcome.log
            if judged or time.monotonic() > deadline:
                return outcome
            self.server.revive()

    def user_client(self, host: str) -> Outcome:
        """Connect as a client that an admin has told which CA to trust."""
        return stunnel.connect_appliance(self.server.port, self.tree.user_bundle, host=host)

    def shown(self) -> str:
        """Give the SHA-256 of the certificate that everybody is shown."""
        certificate = subprocess.run(
            ["openssl", "s_client", "-connect", f"127.0.0.1:{self.server.port}"],
            check=False, capture_output=True, stdin=subprocess.DEVNULL, timeout=60,
        ).stdout  # fmt: skip
        printed = subprocess.run(
            ["openssl", "x509", "-noout", "-fingerprint", "-sha256"],
            check=True, capture_output=True, input=certificate, timeout=60,
        ).stdout  # fmt: skip
        return printed.decode().partition("=")[2].strip()


@pytest.fixture(params=["plain", "mount"])
def tree(request: pytest.FixtureRequest) -> Iterator[Tree]:
    """Give a host with an identity: plain directories, or a mount."""
    if request.param == "mount":
        with mounts.mounted() as mount:
            yield mount.tree
        return
    with mounts.plain() as tree:
        fd = os.open(tree.root, os.O_PATH)
        try:
            ensure_identity(fd, host_uuid=host_uuid(fd))
        finally:
            os.close(fd)
        for source in (tree.certs, tree.certs_pool):
            update_bundles_of(HostPaths.of_store(tree.root), source)
        yield tree


@pytest.fixture
def served(tree: Tree, tmp_path: Path) -> Iterator[Served]:
    """Give that host with its stunnel running."""
    mounts.need_program("stunnel", "openssl")
    with _server(tree, tmp_path) as server:
        yield Served(tree, server)


def _server(tree: Tree, directory: Path) -> AbstractContextManager[stunnel.Server]:
    api, pool = tree.api_certificate, tree.pool_host_certificate
    return stunnel.server(api=api, pool=pool, directory=directory)


def test_installed_chain_is_accepted_after_a_reload(
    served: Served, server: Pair, authority: Pair
) -> None:
    """A client that trusts the CA accepts the host when chain and CA are installed and stunnel has reloaded."""
    served.run("pool-install-ca-certificate", authority.certificate, "--name", "root.pem")
    assert served.user_client("host.example").verdict is Verdict.REFUSED
    words = ("--private-key", server.key, "--certificate-chain", authority.certificate)
    served.run("host-server-certificate-install", "--certificate", server.certificate, *words)
    assert served.user_client("host.example").verdict is Verdict.REFUSED
    served.server.reload()
    accepted = served.user_client("host.example")
    assert (accepted.verdict, accepted.answer) == (Verdict.ACCEPTED, "default")


def test_intermediate_authority_is_presented(
    served: Served, openssl: OpenSsl, authority: Pair
) -> None:
    """With a chain over an intermediate CA a client that knows only the root accepts the host."""
    middle = openssl.certificate("middle", openssl.key("middle"), issuer=authority, ca=True)
    leaf = openssl.certificate("leaf.example", openssl.key(), issuer=middle)
    served.run("pool-install-ca-certificate", authority.certificate, "--name", "root.pem")
    words = ("--private-key", leaf.key, "--certificate-chain", middle.certificate)
    served.run("host-server-certificate-install", "--certificate", leaf.certificate, *words)
    served.server.reload()
    assert served.user_client("host.example").verdict is Verdict.ACCEPTED


def test_removed_authority_is_not_trusted_by_the_next_client(
    served: Served, server: Pair, authority: Pair
) -> None:
    """The client after the removal of a CA refuses the host; stunnel needs no reload for it."""
    served.run("pool-install-ca-certificate", authority.certificate, "--name", "root.pem")
    other = (
        server.certificate
    )  # keeps the bundle from vanishing, which stunnel would not start with
    served.run("pool-install-ca-certificate", other, "--name", "other.pem")
    words = ("--private-key", server.key, "--certificate", server.certificate)
    served.run("host-server-certificate-install", *words)
    served.server.reload()
    assert served.user_client("host.example").verdict is Verdict.ACCEPTED
    served.run("pool-uninstall-ca-certificate", "root.pem")
    assert served.user_client("host.example").verdict is Verdict.REFUSED


def test_reset_shows_a_new_fingerprint(served: Served, openssl: OpenSsl) -> None:
    """After a reset and a reload the host shows another certificate, the one in its file."""
    before = served.shown()
    served.run("reset-server-certificate")
    assert served.shown() == before
    served.server.reload()
    assert served.shown() == openssl.fingerprint(served.tree.api_certificate) != before


@dataclass
class ClientLoop:
    """Clients of the pool, one after the other, until told to stop."""

    served: Served
    outcomes: list[Outcome] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self.wait_for(3)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def wait_for(self, count: int) -> None:
        """Wait until so many clients more have ended."""
        enough = len(self.outcomes) + count
        mounts.wait_until(lambda: len(self.outcomes) >= enough, what=f"{count} clients", seconds=60)

    def _run(self) -> None:
        while not self._stop.is_set():
            self.outcomes.append(self.served.pool_client())

    def refused(self) -> list[str]:
        """Give the reasons of those that did not get through."""
        return [one.reason for one in self.outcomes if one.verdict is not Verdict.ACCEPTED]


def test_loop_of_clients_notices_a_refusal(served: Served) -> None:
    """The loop that the next tests rely on tells when the pool does not trust the host."""
    source = next(served.tree.certs_pool.glob("*.pem"))
    with ClientLoop(served) as loop:
        served.run("pool-install-ca-certificate", source, "--name", "unrelated.pem")
        assert loop.refused() == []
        bundle = served.tree.pool_bundle.read_bytes()
        source.rename(source.with_suffix(".kept"))
        (served.tree.certs_pool / "other.pem").write_bytes(pki.issue("other").pem)
        if served.tree.pool_bundle.read_bytes() == bundle:
            update_bundles_of(HostPaths.of_store(served.tree.root), served.tree.certs_pool)
        loop.wait_for(3)
    assert loop.refused()


def test_no_client_is_refused_during_a_refresh(served: Served, openssl: OpenSsl) -> None:
    """While the pool certificate is refreshed in one go, every client of a running loop is accepted."""
    before = openssl.fingerprint(served.tree.pool_host_certificate)
    with ClientLoop(served) as loop:
        for _ in range(3):
            reload_command = f"kill -HUP {served.server.process.pid}"
            words = ["--reload", reload_command, "--overlap", "1"]
            served.run("host-refresh-server-certificate", *words)
            loop.wait_for(3)
    assert loop.refused() == []
    assert len(loop.outcomes) > 20
    assert openssl.fingerprint(served.tree.pool_host_certificate) != before


def test_no_client_is_refused_during_a_refresh_by_hand(served: Served) -> None:
    """The same in two parts, with an admin between them who takes his time."""
    with ClientLoop(served) as loop:
        served.run("host-refresh-server-certificate")
        loop.wait_for(10)
        served.server.reload()
        loop.wait_for(3)
        served.run("host-refresh-server-certificate", "--finish")
        loop.wait_for(5)
    assert loop.refused() == []


def test_old_pool_certificate_is_refused_after_the_refresh(served: Served, tmp_path: Path) -> None:
    """A server that still shows the old certificate is refused once the refresh is finished."""
    old = tmp_path / "old.pem"
    old.write_bytes(served.tree.pool_host_certificate.read_bytes())
    old.chmod(0o400)
    reload_command = f"kill -HUP {served.server.process.pid}"
    served.run("host-refresh-server-certificate", "--reload", reload_command, "--overlap", "0")
    (tmp_path / "impostor").mkdir()
    with stunnel.server(
        api=served.tree.api_certificate, pool=old, directory=tmp_path / "impostor"
    ) as impostor:
        outcome = stunnel.connect_pool(impostor.port, served.tree.pool_bundle)
    assert outcome.verdict is Verdict.REFUSED


@pytest.mark.parametrize("words", [("--finish",), ("--reload", "true", "--overlap", "0")])
def test_certificate_that_is_still_presented_is_not_retired(
    served: Served, words: tuple[str, ...]
) -> None:
    """While a stunnel that did not reload presents the old certificate, it stays trusted, and the error says where."""
    served.run("host-refresh-server-certificate")
    done = run_certfs("host-refresh-server-certificate", *words, "--store", served.tree.root)
    assert done.returncode == 38, done.stderr
    assert f"process {served.server.process.pid} still presents the old certificate" in done.stderr
    assert served.pool_client().verdict is Verdict.ACCEPTED
    served.server.reload()
    done = run_certfs("host-refresh-server-certificate", "--finish", "--store", served.tree.root)
    assert (done.returncode, "warning" in done.stderr) == (0, False), done.stderr
    assert served.pool_client().verdict is Verdict.ACCEPTED


def test_other_host_is_not_cut_off_by_a_refresh(served: Served, tmp_path: Path) -> None:
    """A host that has not got the new certificate goes on trusting this one, whatever command is run here."""
    other = tmp_path / "other.pem"
    other.write_bytes(served.tree.pool_bundle.read_bytes())
    (served.tree.certs_pool / "other.pem").write_bytes(pki.issue("other").pem)
    reload_command = f"kill -HUP {served.server.process.pid}"
    for words in ([], ["--reload", reload_command], ["--finish"]):
        command: list[str | Path] = ["host-refresh-server-certificate", *words]
        assert run_certfs(*command, "--store", served.tree.root).returncode != 0
        served.server.reload()
        assert stunnel.connect_pool(served.server.port, other).verdict is Verdict.ACCEPTED


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("tree", ["mount"], indirect=True)
def test_stunnel_works_after_a_kill_at_any_point_on_a_mount(tree: Tree, tmp_path: Path) -> None:
    """On a mount, wherever a refresh is killed, stunnel starts with what is there and the pool accepts it."""
    words = ["host-refresh-server-certificate", "--reload", "true", "--overlap", "0"]
    command: list[str | Path] = [*words, "--store", tree.root]
    # Once, so that the files that a refresh leaves are there in every trial.
    assert run_certfs(*command).returncode == 0
    for number, step in enumerate(kills(command, tmp_path / "trace")):
        kill_at(step, command)
        directory = tmp_path / f"{number}"
        directory.mkdir()
        with _server(tree, directory) as server:
            outcome = stunnel.connect_pool(server.port, tree.pool_bundle)
        assert outcome.verdict is Verdict.ACCEPTED, f"{step}: {outcome.reason}"
        assert run_certfs(*command).returncode == 0, step
