"""The main job: a PEM that was just copied in is trusted by the next real stunnel client."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import mounts, pki, stunnel
from tests.support.mounts import CertfsMount
from tests.support.stunnel import Verdict
from tests.support.tree import Tree

pytestmark = [pytest.mark.mount, pytest.mark.stunnel]


@dataclass(frozen=True, slots=True)
class Pool:
    """A mounted host, and another host of its pool with a running server."""

    tree: Tree
    server: stunnel.Server
    authority: pki.Identity
    other: pki.Identity
    """The other host's pool certificate."""


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """Mount a store and run the server of another host."""
    mounts.need_program("stunnel")
    directory = tmp_path_factory.mktemp("other-host")
    authority = pki.authority()
    other = pki.pool_certificate()
    api = pki.issue("other.example", issuer=authority, host_names=("other.example",))
    for name, identity in (("api.pem", api), ("pool.pem", other)):
        (directory / name).write_bytes(identity.host_pem)
        (directory / name).chmod(0o400)
    with (
        mounts.mounted() as mount,
        stunnel.server(
            api=directory / "api.pem", pool=directory / "pool.pem", directory=directory
        ) as server,
    ):
        yield Pool(mount.tree, server, authority, other)


def test_a_pool_client_trusts_what_is_in_certs_pool_now(pool: Pool) -> None:
    """I1: refused before the copy, accepted by the very next client, refused after the removal."""
    source = pool.tree.certs_pool / f"{uuid.uuid4()}.pem"
    verdicts = []
    for _ in range(10):
        verdicts.append(stunnel.connect_pool(pool.server.port, pool.tree.pool_bundle).verdict)
        source.write_bytes(pool.other.pem)
        verdicts.append(stunnel.connect_pool(pool.server.port, pool.tree.pool_bundle).verdict)
        source.unlink()
    assert verdicts == [Verdict.REFUSED, Verdict.ACCEPTED] * 10


def test_an_appliance_client_trusts_what_is_in_certs_now(pool: Pool) -> None:
    """I1, I7: without a bundle stunnel does not start; with the authority it is accepted."""
    bundle = pool.tree.user_bundle
    source = pool.tree.certs / "authority.pem"
    before = stunnel.connect_appliance(pool.server.port, bundle, host="other.example")
    source.write_bytes(pool.authority.pem)
    trusted = stunnel.connect_appliance(pool.server.port, bundle, host="other.example")
    wrong = stunnel.connect_appliance(pool.server.port, bundle, host="wrong.example")
    source.unlink()
    assert (before.verdict, trusted.verdict, trusted.answer, wrong.verdict) == (
        Verdict.NOT_STARTED,
        Verdict.ACCEPTED,
        "default",
        Verdict.REFUSED,
    )


def test_the_two_bundles_do_not_mix(pool: Pool) -> None:
    """A certificate of users is not trusted by a pool client, nor the other way round."""
    (pool.tree.certs / "wrong.pem").write_bytes(pool.other.pem)
    (pool.tree.certs_pool / "wrong.pem").write_bytes(pool.authority.pem)
    try:
        pool_client = stunnel.connect_pool(pool.server.port, pool.tree.pool_bundle)
        appliance = stunnel.connect_appliance(
            pool.server.port, pool.tree.user_bundle, host="other.example"
        )
        assert (pool_client.verdict, appliance.verdict) == (Verdict.REFUSED, Verdict.REFUSED)
    finally:
        (pool.tree.certs / "wrong.pem").unlink()
        (pool.tree.certs_pool / "wrong.pem").unlink()


def test_the_generated_certificates_serve(pool: Pool, tmp_path: Path) -> None:
    """The host's own generated certificates work in a stunnel server that reads the mount."""
    with stunnel.server(
        api=pool.tree.api_certificate, pool=pool.tree.pool_host_certificate, directory=tmp_path
    ) as own:
        outcome = stunnel.connect_pool(own.port, pool.tree.pool_bundle)
        assert (outcome.verdict, outcome.answer) == (Verdict.ACCEPTED, "pool"), outcome.log


@pytest.mark.parametrize("live_first", [True, False])
@pytest.mark.parametrize("live_name", ["a.pem", "z.pem"])
def test_of_one_subject_the_later_certificate_is_found(
    pool: Pool, *, live_first: bool, live_name: str
) -> None:
    """I5: of two certificates of one name the newer is found, whatever their file names or age."""
    subject = pool.other.certificate.subject
    stale = pki.issue(
        subject, key=pki.rsa_key(1), extensions=False, not_before=pki.NOW - 400 * pki.DAY
    )
    stale_name = "z.pem" if live_name == "a.pem" else "a.pem"
    writes = [(live_name, pool.other), (stale_name, stale)]
    try:
        for name, identity in writes if live_first else reversed(writes):
            (pool.tree.certs_pool / name).write_bytes(identity.pem)
        outcome = stunnel.connect_pool(pool.server.port, pool.tree.pool_bundle)
        assert outcome.verdict == Verdict.ACCEPTED, outcome.log
    finally:
        for name, _ in writes:
            (pool.tree.certs_pool / name).unlink()


def test_a_server_reads_its_certificate_from_the_mount_again(tmp_path: Path) -> None:
    """A running stunnel server takes a replaced host certificate at SIGHUP, as XAPI sends it."""
    with mounts.mounted() as mount:
        tree = mount.tree
        with stunnel.server(
            api=tree.api_certificate, pool=tree.pool_host_certificate, directory=tmp_path
        ) as own:
            fresh = pki.pool_certificate()
            temporary = tree.xensource / "new.tmp"
            temporary.write_bytes(fresh.host_pem)
            temporary.chmod(0o400)
            temporary.rename(tree.pool_host_certificate)
            (source,) = tree.certs_pool.iterdir()
            source.write_bytes(fresh.pem)
            before = stunnel.connect_pool(own.port, tree.pool_bundle)
            own.reload()
            after = stunnel.connect_pool(own.port, tree.pool_bundle)
            assert (before.verdict, after.verdict) == (Verdict.REFUSED, Verdict.ACCEPTED)


def test_other_readers_read_it_too(certfs_mount: CertfsMount) -> None:
    """openssl, certtool and curl's library take the bundle as they take any file."""
    tree = certfs_mount.tree
    identities = pki.many(20)
    (tree.certs / "all.pem").write_bytes(b"".join(one.pem for one in identities))
    expected = [one.sha256 for one in identities]
    assert pki.certificates_openssl_reads(str(tree.user_bundle)) == expected
    mounts.need_program("certtool")
    assert pki.certificates_gnutls_reads(str(tree.user_bundle)) == expected
    copied = tree.xensource / "copy.pem"
    subprocess.run(["cp", tree.user_bundle, copied], check=True, timeout=10)
    assert copied.read_bytes() == tree.user_bundle.read_bytes()
