"""Tests that no interruption leaves a host that does not work, or one that cannot be helped by trying again.

Each command is killed before each of the system calls by which it changes a file, and each of those
calls is made to fail as on a full disk.
"""

from __future__ import annotations

import re
import shutil
import ssl
import stat
from collections.abc import Sequence
from pathlib import Path

import pytest

from certfs.identity import refresh
from certfs.identity.finding import Severity
from certfs.identity.health import judge
from certfs.identity.paths import HostPaths
from tests.identity.interrupt import Step, creations, fail_at, kill_at, kills, some, steps
from tests.support.identity import UUID, run_certfs
from tests.support.openssl import OpenSsl, Pair
from tests.support.pki import certificates_in

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

Words = Sequence[str | Path]


@pytest.fixture
def install(server: Pair, authority: Pair) -> Words:
    """Give the words of an installation."""
    words: list[str | Path] = ["host-server-certificate-install", "--private-key", server.key]
    words += ["--certificate", server.certificate, "--certificate-chain", authority.certificate]
    return words


class Trial:
    """A host, of which every run of a command gets a fresh copy at the same path."""

    def __init__(self, host: HostPaths, openssl: OpenSsl, words: Words) -> None:
        """Keep the host as it is now."""
        self.host, self.openssl = host, openssl
        self.words = [*words, "--store", self.root]
        self.kept = self.root.with_name("kept")
        shutil.copytree(self.root, self.kept, symlinks=True)

    @property
    def root(self) -> Path:
        """Where the host is."""
        assert self.host.root is not None
        return self.host.root

    def restore(self) -> None:
        """Make the host what it was."""
        shutil.rmtree(self.root)
        shutil.copytree(self.kept, self.root, symlinks=True)

    def kills(self) -> list[Step]:
        """Give the calls before which to kill the command, and restore the host."""
        found = kills(self.words, self.root.with_name("trace"))
        self.restore()
        return found

    def steps(self) -> list[Step]:
        """Give the calls by which the command changes files, and restore the host."""
        found = list(steps(self.words, self.root.with_name("trace")))
        self.restore()
        return found

    def creations(self) -> list[Step]:
        """Give the calls by which the command makes files, and restore the host."""
        places = [self.host.xensource, self.host.stunnel, self.host.certs_pool]
        found = list(creations(self.words, self.root.with_name("trace"), places))
        self.restore()
        assert found
        return found

    def check_works(self, step: Step | None) -> None:
        """Fail unless stunnel could start with what is there, and the pool trusts what it shows."""
        server, pool = (
            self.host.xensource / "xapi-ssl.pem",
            self.host.xensource / "xapi-pool-tls.pem",
        )
        for path in (server, pool):
            # Raises where stunnel, which has the same library, would not start.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(path)
        shown = self.openssl.fingerprint(pool).replace(":", "").lower()
        bundle = self.host.stunnel / "xapi-pool-ca-bundle.pem"
        assert shown in certificates_in(bundle.read_bytes()), step
        for path in self.host.xensource.iterdir():
            mode = stat.S_IMODE(path.stat().st_mode)
            assert mode & 0o077 == 0, f"{step}: {path} has mode {mode:04o}"

    def check_done(self, step: Step | None) -> None:
        """Fail unless the command, run again to its end, leaves a healthy host."""
        done = run_certfs(*self.words)
        assert done.returncode == 0, f"{step}: {done.stderr}"
        self.check_works(step)
        worst = max((one.severity for one in judge(self.host)), default=Severity.NOTE)
        assert worst < Severity.CRITICAL, step


def _commands(install: Words) -> dict[str, Words]:
    return {
        "install": install,
        "reset": ["reset-server-certificate"],
        "refresh": ["host-refresh-server-certificate"],
        "finish": ["host-refresh-server-certificate", "--finish"],
        "whole refresh": ["host-refresh-server-certificate", "--reload", "true", "--overlap", "0"],
    }


COMMANDS = ["install", "reset", "refresh", "finish"]


@pytest.fixture
def trial(
    request: pytest.FixtureRequest, host: HostPaths, openssl: OpenSsl, install: Words
) -> Trial:
    """Give a trial of the command whose name is the parameter."""
    if request.param == "finish":
        refresh.begin(host, host_uuid=UUID)
    return Trial(host, openssl, _commands(install)[request.param])


@pytest.mark.parametrize("trial", COMMANDS, indirect=True)
def test_killed_before_a_system_call(trial: Trial) -> None:
    """Killed at any point a command leaves a host that works, and completes when it is run again."""
    for step in trial.kills():
        kill_at(step, trial.words)
        trial.check_works(step)
        trial.check_done(step)
        trial.restore()


@pytest.mark.parametrize(
    "trial,error",
    [("install", "ENOSPC"), ("install", "EIO"), ("whole refresh", "ENOSPC")],
    indirect=["trial"],
)
def test_failure_of_a_system_call(trial: Trial, error: str) -> None:
    """Whichever call fails, one line says so, the host works, no temporary file is left, and it can be run again."""
    for step in some([*trial.steps(), *trial.creations()]):
        if step.name == "write" and str(trial.root) not in step.arguments:
            continue  # to the terminal
        done = fail_at(step, trial.words, error=error)
        assert "Traceback" not in done.stderr, step
        assert "bug" not in done.stderr, f"{step}: {done.stderr}"
        assert done.returncode != 0, step
        trial.check_works(step)
        if not step.name.startswith("unlink"):
            leftovers = [
                path for path in trial.root.rglob("*") if re.search(r"\.certfs-", path.name)
            ]
            assert not leftovers, step
        trial.check_done(step)
        trial.restore()


@pytest.mark.parametrize("change", ["install", "uninstall"])
def test_killed_while_a_ca_comes_or_goes(
    host: HostPaths, openssl: OpenSsl, authority: Pair, change: str
) -> None:
    """Killed at any point a CA is installed as a whole or not at all, and repair makes the bundle follow."""
    words: Words = ["pool-install-ca-certificate", authority.certificate, "--name", "root.pem"]
    if change == "uninstall":
        shutil.copy(authority.certificate, host.certs / "root.pem")
        words = ["pool-uninstall-ca-certificate", "root.pem"]
    trial = Trial(host, openssl, words)
    for step in trial.kills():
        kill_at(step, trial.words)
        assert run_certfs("repair", "--store", trial.root).returncode == 0, step
        bundle = host.stunnel / "xapi-stunnel-ca-bundle.pem"
        assert (host.certs / "root.pem").exists() == bundle.exists(), step
        if bundle.exists():
            assert len(certificates_in(bundle.read_bytes())) == 1, step
        assert not judge(host), step
        trial.restore()


def test_killed_while_a_key_is_generated_at_boot(tmp_path: Path, openssl: OpenSsl) -> None:
    """Killed at any point the generator leaves no file or a whole one, and completes when it is run again."""
    path = tmp_path / "xapi-ssl.pem"
    words: Words = ["gencert", path, "default"]
    for step in kills(words, tmp_path / "trace"):
        path.unlink(missing_ok=True)
        kill_at(step, words)
        for left in tmp_path.iterdir():
            assert left.name == "trace" or stat.S_IMODE(left.stat().st_mode) == 0o400, step
        assert run_certfs(*words).returncode == 0, step
        assert openssl.is_pair(path), step
