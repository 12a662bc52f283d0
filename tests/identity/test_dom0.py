"""Tests of the certificate commands on a host's own paths, served by certfs and not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator

import pytest

from tests.support.host import Host, host
from tests.support.identity import UUID
from tests.support.openssl import OpenSsl, Pair
from tests.support.pki import certificates_in

pytestmark = [pytest.mark.mount, pytest.mark.namespace]


@pytest.fixture(params=["plain", "mounted"])
def dom0(request: pytest.FixtureRequest) -> Iterator[Host]:
    """Give a host of the platform with the keys that its generator makes at boot."""
    with host() as made:
        inventory = made.store.root / "xensource-inventory"
        inventory.write_text(f"INSTALLATION_UUID='{UUID}'\nMANAGEMENT_INTERFACE=''\n")
        made.certfs("gencert", "/etc/xensource/xapi-ssl.pem", "0", "default")
        made.certfs("gencert", "/etc/xensource/xapi-pool-tls.pem", "0", "xapi:pool")
        assert "POOL_CERTIFICATE_MISSING" in made.certfs("repair", "--dry-run", "--json", expect=0)
        made.certfs("repair")
        if request.param == "mounted":
            made.certfs("mount")
        yield made
        if request.param == "mounted":
            made.certfs("unmount")


@pytest.mark.parametrize("others", [False, True])
def test_a_host_without_pool_key_and_uuid_is_led_out(authority: Pair, *, others: bool) -> None:
    """What check says of the missing pool key is what makes it, one step after the other."""
    with host() as made:
        if others:
            shutil.copy(authority.certificate, made.store.certs_pool / "other.pem")
        made.certfs("repair", expect=2)
        steps = []
        for _ in range(5):
            said = made.command("check", "--json").stdout
            found = [one for one in json.loads(said)["findings"] if "POOL" in one["name"]]
            if not found:
                break
            mend = found[0]["mend"]
            steps.append(mend.split(" ")[0])
            if mend.startswith("put INSTALLATION_UUID='UUID' into "):
                inventory = made.store.root / "xensource-inventory"
                inventory.write_text(f"INSTALLATION_UUID='{UUID}'\n")
            else:
                words = mend.split(",")[0].split(" ")
                assert words[0] == "certfs"
                made.command(*words[1:])
        assert steps == (["put", "certfs", "certfs"] if others else ["put", "certfs"])


def test_host_is_healthy_after_repair(dom0: Host) -> None:
    """What is missing after the generator ran, repair makes; then nothing is left to mend."""
    assert "nothing to repair" in dom0.certfs("repair")


def test_commands_work_without_naming_the_host(
    dom0: Host, openssl: OpenSsl, server: Pair, authority: Pair
) -> None:
    """Without --store the commands work on /etc/xensource and /etc/stunnel, and the bundles follow."""
    dom0.certfs("pool-install-ca-certificate", authority.certificate, "--name", "root.pem")
    words = ("--private-key", server.key, "--certificate-chain", authority.certificate)
    dom0.certfs("host-server-certificate-install", "--certificate", server.certificate, *words)
    tree = dom0.tree
    assert len(certificates_in(tree.user_bundle.read_bytes())) == 1
    assert openssl.fingerprint(tree.api_certificate) == openssl.fingerprint(server.certificate)
    assert tree.api_certificate.stat().st_mode & 0o777 == 0o440
    dom0.certfs("pool-uninstall-ca-certificate", "root.pem")
    assert not tree.user_bundle.exists()


def test_refresh_on_the_hosts_own_paths(dom0: Host, openssl: OpenSsl) -> None:
    """A refresh keeps the host's UUID from the inventory and its certificate trusted."""
    before = openssl.fingerprint(dom0.tree.pool_host_certificate)
    dom0.certfs("host-refresh-server-certificate")
    assert len(certificates_in(dom0.tree.pool_bundle.read_bytes())) == 2
    dom0.certfs("host-refresh-server-certificate", "--finish")
    assert len(certificates_in(dom0.tree.pool_bundle.read_bytes())) == 1
    after = openssl.fingerprint(dom0.tree.certs_pool / f"{UUID}.pem")
    assert after == openssl.fingerprint(dom0.tree.pool_host_certificate) != before


def test_repair_of_a_served_host_names_no_bundle_that_the_mount_makes() -> None:
    """Where nothing is there yet, the bundle comes by itself, and a dry run says the same as the repair."""
    with host() as made:
        (made.store.root / "xensource-inventory").write_text(f"INSTALLATION_UUID='{UUID}'\n")
        made.certfs("mount")
        planned = made.certfs("repair", "--dry-run")
        done = made.certfs("repair")
        assert "xapi-pool-ca-bundle.pem" not in planned + done
        assert done == planned.replace("  would: ", "  did: ")
        assert made.tree.pool_bundle.read_bytes().count(b"BEGIN") == 1
        made.certfs("unmount")
