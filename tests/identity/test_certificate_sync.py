"""A pool-wide sync through XAPI: refused where it would lose trust, followed to its end otherwise."""

from __future__ import annotations

import dataclasses
import json
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from certfs.cli.json_forms import Synchronised
from certfs.errors import DeadlineError
from certfs.identity import certificate_sync
from certfs.identity.certificate_sync import Here, Pool, PoolHost, covered, objections
from certfs.identity.paths import HostPaths
from certfs.identity.xapi import Session, XapiError
from tests.support.identity import UUID, run_certfs
from tests.support.xapi_server import StandIn, serving

ONE, TWO = "1c111a1f-412e-47c0-9003-60789b839bc3", "960abfff-6017-4d97-bd56-0a8f1a43e51a"
PRINTS = {ONE: "aa" * 32, TWO: "bb" * 32}
POOL = Pool(ONE, (26, 13), tuple(PoolHost(uuid, "", True, PRINTS[uuid]) for uuid in (ONE, TWO)))  # noqa: FBT003
HERE = Here(ONE, PRINTS[ONE], {f"{uuid}.pem": frozenset({PRINTS[uuid]}) for uuid in (ONE, TWO)})


@pytest.fixture
def xapi(tmp_path: Path) -> Iterator[StandIn]:
    """Give a stand-in for XAPI that listens at `tmp_path`/xapi."""
    with serving(StandIn(ONE, dict(PRINTS)), tmp_path / "xapi") as stand_in:
        yield stand_in


def codes(pool: Pool = POOL, here: Here = HERE) -> list[tuple[str, bool]]:
    """Return the code of each objection, and whether it refuses."""
    return [(one.code, one.refuses) for one in objections(pool, here)]


def test_nothing_speaks_against_a_pool_that_is_whole() -> None:
    """A coordinator that has every host's certificate, all hosts up, no refresh."""
    assert codes() == []


def test_an_offline_host_refuses() -> None:
    """A host that cannot be reached would keep what the others lose."""
    hosts = (POOL.hosts[0], dataclasses.replace(POOL.hosts[1], live=False))
    assert codes(dataclasses.replace(POOL, hosts=hosts)) == [("HOST_OFFLINE", True)]


def test_a_refresh_in_flight_refuses() -> None:
    """A sync erases UUID.new.pem, and the host that switches to it then is trusted by no other."""
    here = dataclasses.replace(
        HERE, certs_pool={**HERE.certs_pool, f"{TWO}.new.pem": frozenset({"cc" * 32})}
    )
    assert codes(here=here) == [("REFRESH_IN_FLIGHT", True)]


@pytest.mark.parametrize("lost", [ONE, TWO])
def test_a_missing_certificate_refuses(lost: str) -> None:
    """The coordinator would take the certificate of a host away from all others."""
    certs_pool = {name: prints for name, prints in HERE.certs_pool.items() if lost not in name}
    assert codes(here=dataclasses.replace(HERE, certs_pool=certs_pool)) == [
        ("CERTIFICATE_MISSING", True)
    ]


@pytest.mark.parametrize("stale", [ONE, TWO])
def test_a_certificate_that_a_host_no_longer_has_refuses(stale: str) -> None:
    """What counts is the certificate that the host shows now, the coordinator's own included."""
    certs_pool = {**HERE.certs_pool, f"{stale}.pem": frozenset({"cc" * 32})}
    assert codes(here=dataclasses.replace(HERE, certs_pool=certs_pool)) == [
        ("CERTIFICATE_STALE", True)
    ]


def test_a_member_says_what_it_cannot_check() -> None:
    """Only the coordinator has the directory that counts."""
    assert codes(here=dataclasses.replace(HERE, uuid=TWO)) == [("NOT_CHECKED", False)]


@pytest.mark.parametrize(
    "release,words",
    [
        ((26, 13), "is erased"),
        ((27, 0), "is erased"),
        ((26, 12), "certs-pool is not"),
        (None, "not known"),
    ],
)
def test_what_a_sync_covers_follows_from_the_release(
    release: tuple[int, int] | None, words: str
) -> None:
    """Older releases distribute CAs and CRLs by name only."""
    assert words in covered(release)


def test_the_pool_is_read_from_records(xapi: StandIn, tmp_path: Path) -> None:
    """Hosts, liveness, fingerprints and the release come over the socket as XAPI writes them."""
    xapi.offline.add(TWO)
    with Session(tmp_path / "xapi") as session:
        pool = certificate_sync.read_pool(session)
    assert (pool.coordinator, pool.release) == (ONE, (26, 13))
    assert [(host.uuid, host.live, host.sha256) for host in pool.hosts] == [
        (ONE, True, PRINTS[ONE]),
        (TWO, False, PRINTS[TWO]),
    ]
    assert xapi.calls[-1] == "session.logout"


def run(path: Path, *, seconds: float = 60) -> list[float]:
    """Synchronise through the stand-in; return the progress that was told."""
    told: list[float] = []
    with Session(path, seconds=2) as session:
        certificate_sync.run(session, seconds=seconds, progress=told.append, sleep=lambda _: None)
    return told


def test_a_sync_is_followed_to_its_end(xapi: StandIn, tmp_path: Path) -> None:
    """Progress is told while the task runs, and the task is removed."""
    assert run(tmp_path / "xapi") == [0.5, 1.0]
    assert "task.destroy" in xapi.calls


def test_a_task_that_fails_is_an_error_with_the_platform_s_name(
    xapi: StandIn, tmp_path: Path
) -> None:
    """HOST_OFFLINE is what a host gives that went away in the middle."""
    xapi.error = ["HOST_OFFLINE", "OpaqueRef:x"]
    with pytest.raises(XapiError, match="HOST_OFFLINE") as raised:
        run(tmp_path / "xapi")
    assert raised.value.code == "HOST_OFFLINE"
    assert "task.destroy" in xapi.calls


def test_a_sync_that_takes_too_long_goes_on_and_says_so(xapi: StandIn, tmp_path: Path) -> None:
    """The error names the task to wait for."""
    xapi.steps = 1000
    with pytest.raises(DeadlineError, match="goes on in XAPI as task b0c7b19c"):
        run(tmp_path / "xapi", seconds=0)


def test_an_xapi_that_hangs_is_given_up(xapi: StandIn, tmp_path: Path) -> None:
    """A call has a bound of its own."""
    xapi.hang = "pool.get_all"
    with (
        pytest.raises(DeadlineError, match=r"did not answer pool\.get_all"),
        Session(tmp_path / "xapi", seconds=0.2) as session,
    ):
        certificate_sync.read_pool(session)


def test_without_xapi_the_error_says_what_to_start(tmp_path: Path) -> None:
    """Neither a missing socket nor one that nobody listens on is a traceback."""
    (nobody := socket.socket(socket.AF_UNIX)).bind(str(tmp_path / "dead"))
    nobody.close()
    for name in ("absent", "dead"):
        with pytest.raises(XapiError, match="systemctl start xapi"), Session(tmp_path / name):
            pass


def test_what_is_no_xapi_is_an_error(tmp_path: Path) -> None:
    """Something else that answers on the socket is told apart."""
    with serving(StandIn(ONE, {}), tmp_path / "xapi") as stand_in:
        stand_in.answer = lambda *_: {"odd": 1}  # type: ignore[method-assign]
        with pytest.raises(XapiError, match="no answer of XAPI"), Session(tmp_path / "xapi"):
            pass


@pytest.fixture
def sync(
    xapi: StandIn, host: HostPaths, tmp_path: Path
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Give the command on a host whose own certificate is that of the pool's only host."""
    own = x509.load_pem_x509_certificates((host.xensource / "xapi-pool-tls.pem").read_bytes())[0]
    xapi.coordinator, xapi.hosts = UUID, {UUID: own.fingerprint(hashes.SHA256()).hex()}
    assert host.root is not None
    words = ("--store", host.root, "--socket", tmp_path / "xapi")
    return lambda *more: run_certfs("pool-certificate-sync", *words, *more)


def test_the_command_synchronises_and_says_what_that_covers(
    sync: Callable[..., subprocess.CompletedProcess[str]], xapi: StandIn
) -> None:
    """One sentence on the release, progress on standard error, and the end."""
    done = sync()
    assert done.returncode == 0, done.stderr
    assert "XAPI 26.13 replaces" in done.stdout
    assert done.stdout.endswith(f"synchronised 1 host with the coordinator {UUID}\n")
    assert "Async.pool.certificate_sync" in xapi.calls


def test_the_command_refuses_and_force_overrules(
    sync: Callable[..., subprocess.CompletedProcess[str]], xapi: StandIn
) -> None:
    """A refusal changes nothing, names the host, and has an exit code of its own; so has a failed task."""
    xapi.hosts[ONE] = PRINTS[ONE]
    done = sync()
    assert (done.returncode, done.stdout) == (41, "")
    assert ONE in done.stderr
    assert "--force" in done.stderr
    answer = msgspec.convert(
        json.loads(sync("--dry-run", "--json").stdout), Synchronised, strict=True
    )
    assert answer.objections[0].code == "CERTIFICATE_MISSING"
    assert "Async.pool.certificate_sync" not in xapi.calls
    xapi.error = ["HOST_OFFLINE", "OpaqueRef:x"]
    done = sync("--force", "--json")
    assert done.returncode == 40
    assert json.loads(done.stdout)["xapi_error"] == "HOST_OFFLINE"
