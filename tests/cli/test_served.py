"""Tests that the commands judge a host by what its mount serves, with a configuration of its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import pki
from tests.support.host import Host, host
from tests.support.mounts import need_root, wait_until
from tests.support.pki import certificates_in

pytestmark = pytest.mark.mount

CA = pki.authority("served")

_CONFIG = """
[dom0]
disabled_bundles = ["stunnel/xapi-stunnel-ca-bundle.pem"]

[[bundle]]
source = "stunnel/partners"
bundle = "stunnel/partners.pem"
"""


@pytest.fixture(scope="module")
def configured() -> Iterator[Host]:
    """Give a host that serves a bundle of its own, the pool's, and not the one of CAs."""
    need_root()
    with host() as made:
        (made.directory / "etc/certfs.toml").write_text(_CONFIG, encoding="ascii")
        (made.store.stunnel / "partners").mkdir()
        (made.store.stunnel / "partners/p.pem").write_bytes(pki.issue("partner").pem)
        (made.store.certs_pool / "h.pem").write_bytes(pki.issue("pool").pem)
        (made.directory / "ca.pem").write_bytes(CA.pem)
        made.certfs("mount")
        yield made
        made.certfs("unmount")


def _json(made: Host, *words: str | Path, expect: int = 0) -> Any:  # noqa: ANN401 - any answer
    return json.loads(made.certfs(*words, "--json", expect=expect))


def _bundles(made: Host) -> set[str]:
    return {Path(item["bundle"]).name for item in _json(made, "list")}


def test_own_bundle_and_the_platform_s_are_served(configured: Host) -> None:
    """Naming a bundle adds it; only the one that is turned off by name is an ordinary file."""
    status = _json(configured, "status")
    assert {Path(one["bundle"]).name for one in status["bundles"]} == {
        "partners.pem",
        "xapi-pool-ca-bundle.pem",
    }
    assert configured.tree.pool_bundle.exists()
    assert (configured.tree.stunnel / "partners.pem").exists()


@pytest.mark.parametrize("words", [(), ("/etc/stunnel",), ("/etc/xensource",)])
def test_list_shows_what_is_served(configured: Host, words: tuple[str, ...]) -> None:
    """The list is that of the running mount, under the name of any of its directories."""
    listed = _json(configured, "list", *words)
    assert {Path(item["bundle"]).name for item in listed} == {
        "partners.pem",
        "xapi-pool-ca-bundle.pem",
    }


def test_list_does_not_believe_a_file_that_nothing_serves(configured: Host) -> None:
    """A configuration that was changed after the mount changes nothing before a restart, and the list says so."""
    file = configured.directory / "etc/certfs.toml"
    file.write_text("[[bundle]]\nsource = 'stunnel/new'\nbundle = 'stunnel/new.pem'\n")
    try:
        assert _bundles(configured) == {"partners.pem", "xapi-pool-ca-bundle.pem"}
    finally:
        file.write_text(_CONFIG, encoding="ascii")


def test_bundle_that_is_turned_off_follows_the_commands(configured: Host) -> None:
    """A CA that comes and goes by command is in the plain bundle and gone from it, and that is what is said."""
    said = configured.certfs("pool-install-ca-certificate", configured.directory / "ca.pem")
    assert "ca.pem: installed; trusted" in said
    assert certificates_in(configured.tree.user_bundle.read_bytes()) == [CA.sha256]
    said = configured.certfs("pool-uninstall-ca-certificate", "ca.pem")
    assert "ca.pem: removed; not trusted any more" in said
    assert not configured.tree.user_bundle.exists()


def test_removal_is_said_to_be_none_while_another_bundle_has_the_certificate(
    configured: Host,
) -> None:
    """A certificate that an admin's own bundle has stays trusted after its removal, through that file."""
    configured.certfs("pool-install-ca-certificate", configured.directory / "ca.pem")
    copy = configured.tree.stunnel / "partners/copy.pem"
    copy.write_bytes(CA.pem)
    try:
        answer = _json(configured, "pool-uninstall-ca-certificate", "ca.pem")
    finally:
        copy.unlink()
    (found,) = answer["trusted"]
    assert found["bundle"] == "/etc/stunnel/partners.pem"
    assert found["files"] == ["/etc/stunnel/partners/copy.pem"]
    (warning,) = answer["warnings"]
    assert warning.endswith(
        "is still trusted: /etc/stunnel/partners.pem has it through /etc/stunnel/partners/copy.pem"
    )


def test_plain_bundle_that_is_turned_off_is_judged_and_mended(configured: Host) -> None:
    """A bundle that the mount does not make is found stale, with the way that mends it."""
    (configured.tree.certs / "ca.pem").write_bytes(CA.pem)
    try:
        findings = _json(configured, "check", expect=2)["findings"]
        stale = [one["file"] for one in findings if one["name"] == "BUNDLE_STALE"]
        assert stale == ["/etc/stunnel/xapi-stunnel-ca-bundle.pem"]
        configured.command("repair")
        assert certificates_in(configured.tree.user_bundle.read_bytes()) == [CA.sha256]
    finally:
        (configured.tree.certs / "ca.pem").unlink()
        configured.command("repair")


def test_a_swap_is_described_as_it_is_served(configured: Host) -> None:
    """I10: while a source directory is replaced, the list has what the bundle keeps, and the check finds it."""
    pool = configured.tree.certs_pool
    backup = pool.with_name("certs-pool.bk")
    backup.mkdir()
    pool.rename(backup)
    pool.mkdir()
    try:
        kept = [
            one for one in _json(configured, "list") if one["bundle"].endswith("pool-ca-bundle.pem")
        ]
        served = certificates_in(configured.tree.pool_bundle.read_bytes())
        assert [one["sha256"] for one in kept if one["included"]] == served
        assert kept[0]["reason"] == "kept while its directory is replaced"
    finally:
        pool.rmdir()
        backup.rename(pool)
        wait_until(configured.tree.pool_bundle.exists, what="the bundle")


def test_path_outside_of_the_presented_trees_is_no_configuration(configured: Host) -> None:
    """A bundle that could appear nowhere is an error with the exit code of configuration, also at a restart."""
    file = configured.directory / "etc/certfs.toml"
    file.write_text("[[bundle]]\nsource = 'certs'\nbundle = 'all.pem'\n", encoding="ascii")
    try:
        said = configured.certfs("restart", expect=3)
        assert "bundle[0].source: no presented directory is called 'certs'" in said
        assert configured.tree.pool_bundle.exists()
    finally:
        file.write_text(_CONFIG, encoding="ascii")


def test_restart_says_that_the_presented_directories_stay(configured: Host) -> None:
    """Changed trees take unmount and mount, and a restart that reads them says so."""
    file = configured.directory / "etc/certfs.toml"
    file.write_text('[dom0]\ntrees = ["/etc/stunnel"]\n', encoding="ascii")
    try:
        said = configured.certfs("restart")
        assert "a restart keeps /etc/stunnel and /etc/xensource" in said
        assert "certfs unmount and certfs mount change that" in said
        assert configured.presented()
    finally:
        file.write_text(_CONFIG, encoding="ascii")
        assert "warning" not in configured.certfs("restart")


def test_tree_that_is_not_presented_is_not_claimed_and_has_its_bundles(configured: Host) -> None:
    """A tree that comes as a link waits for the next mount: the check says so, and repair writes its bundle."""
    directory = configured.inside("/etc/elsewhere/ca-general")
    directory.mkdir(parents=True)
    (directory / "ca.pem").write_bytes(CA.pem)
    link = configured.inside("/etc/trusted-certs")
    link.symlink_to("elsewhere")
    try:
        assert all("trusted-certs" not in item["bundle"] for item in _json(configured, "list"))
        findings = _json(configured, "check", expect=2)["findings"]
        said = {(one["name"], one["file"]) for one in findings if "trusted-certs" in one["file"]}
        bundle = "/etc/trusted-certs/ca-bundle-general.pem"
        assert said == {("TREE_NOT_PRESENTED", "/etc/trusted-certs"), ("BUNDLE_STALE", bundle)}
        configured.command("repair")
        assert certificates_in(configured.inside(bundle).read_bytes()) == [CA.sha256]
    finally:
        link.unlink()
        shutil.rmtree(directory.parent)
