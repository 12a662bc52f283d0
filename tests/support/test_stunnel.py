"""The stunnel clients tell trust from distrust, proven on bundles made by hand.

These are the facts that the product is built on, measured again on the stunnel
of this machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import mounts, pki, stunnel
from tests.support.stunnel import Verdict

pytestmark = pytest.mark.stunnel


@dataclass(frozen=True, slots=True)
class Host:
    """A host with a running server and the identities that it shows."""

    server: stunnel.Server
    authority: pki.Identity
    pool: pki.Identity


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """Run the server of one host."""
    mounts.need_program("stunnel")
    directory = tmp_path_factory.mktemp("host")
    authority = pki.authority()
    api = pki.issue("host.example", issuer=authority, host_names=("host.example",))
    pool = pki.pool_certificate()
    for name, identity in (("api", api), ("pool", pool)):
        (directory / name).write_bytes(identity.host_pem)
        (directory / name).chmod(0o400)
    with stunnel.server(
        api=directory / "api", pool=directory / "pool", directory=directory
    ) as running:
        yield Host(running, authority, pool)


def test_a_pool_client_accepts_the_certificate_in_its_bundle(host: Host, tmp_path: Path) -> None:
    """With `verifyPeer`, the peer's own certificate among others is what counts."""
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(b"".join(one.pem for one in [*pki.many(3), host.pool, *pki.many(2)]))
    outcome = stunnel.connect_pool(host.server.port, bundle)
    assert (outcome.verdict, outcome.answer) == (Verdict.ACCEPTED, "pool"), outcome.log


def test_a_pool_client_refuses_a_certificate_that_is_not_there(host: Host, tmp_path: Path) -> None:
    """A bundle of other certificates refuses this peer, with a reason."""
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(b"".join(one.pem for one in pki.many(3)))
    outcome = stunnel.connect_pool(host.server.port, bundle)
    assert outcome.verdict == Verdict.REFUSED, outcome.log
    assert "certificate verify failed" in outcome.reason or "CERT" in outcome.reason


def test_an_appliance_client_wants_chain_and_name(host: Host, tmp_path: Path) -> None:
    """With `verifyChain` the authority is enough; another name is refused."""
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(host.authority.pem)
    good = stunnel.connect_appliance(host.server.port, bundle, host="host.example")
    wrong = stunnel.connect_appliance(host.server.port, bundle, host="other.example")
    assert (good.verdict, good.answer) == (Verdict.ACCEPTED, "default"), good.log
    assert wrong.verdict == Verdict.REFUSED, wrong.log


@pytest.mark.parametrize("content", [None, b"", b"no certificate\n"])
def test_without_any_certificate_stunnel_does_not_start(
    host: Host, tmp_path: Path, content: bytes | None
) -> None:
    """A missing, empty or useless CAfile ends the client before it connects."""
    bundle = tmp_path / "bundle.pem"
    if content is not None:
        bundle.write_bytes(content)
    outcome = stunnel.connect_pool(host.server.port, bundle)
    assert outcome.verdict == Verdict.NOT_STARTED, outcome.log


def test_a_bad_block_behind_a_good_one_destroys_all_trust(host: Host, tmp_path: Path) -> None:
    """A plain concatenation with one bad block is refused: why I4 exists."""
    bundle = tmp_path / "bundle.pem"
    bad = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    bundle.write_bytes(host.pool.pem + bad)
    outcome = stunnel.connect_pool(host.server.port, bundle)
    assert outcome.verdict != Verdict.ACCEPTED


def test_of_two_equal_names_only_the_first_is_found(host: Host, tmp_path: Path) -> None:
    """Without key identifiers OpenSSL takes the first of one subject: why I5 has an order."""
    subject = host.pool.certificate.subject
    other = pki.issue(subject, key=pki.rsa_key(1), extensions=False)
    verdicts = []
    for pair in ((host.pool, other), (other, host.pool)):
        bundle = tmp_path / "bundle.pem"
        bundle.write_bytes(b"".join(one.pem for one in pair))
        verdicts.append(stunnel.connect_pool(host.server.port, bundle).verdict)
    assert verdicts == [Verdict.ACCEPTED, Verdict.REFUSED]
