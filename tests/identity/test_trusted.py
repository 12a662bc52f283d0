"""Tests that what the commands say of trust is what the bundles of the host hold."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from certfs.identity.authorities import install_authority, uninstall_authority
from certfs.identity.bundles import bundle_places, is_stale, update_bundle
from certfs.identity.health import judge
from certfs.identity.paths import BundlePlace, HostPaths
from certfs.identity.repair import repair
from certfs.identity.validate import Document
from tests.support.openssl import Pair
from tests.support.pki import certificates_in


def _install(paths: HostPaths, file: Path, name: str) -> None:
    install_authority(paths, Document(file, file.read_bytes()), name=name)


def test_installed_certificate_is_trusted_through_its_file(
    paths: HostPaths, authority: Pair
) -> None:
    """After an installation the bundle that has the certificate is named, with the file that it comes from."""
    document = Document(authority.certificate, authority.certificate.read_bytes())
    (found,) = install_authority(paths, document, name="root.pem").trusted
    assert found.bundle == paths.stunnel / "xapi-stunnel-ca-bundle.pem"
    assert found.files == (paths.certs / "root.pem",)


def test_removed_certificate_is_trusted_no_more(paths: HostPaths, authority: Pair) -> None:
    """A certificate that no bundle has any more is trusted through none."""
    _install(paths, authority.certificate, "root.pem")
    assert uninstall_authority(paths, "root.pem").trusted == ()


@pytest.mark.parametrize("directory", ["certs", "certs-pool", "trusted-certs/ca-general"])
def test_other_file_with_a_removed_certificate_is_named(
    paths: HostPaths, authority: Pair, directory: str
) -> None:
    """Wherever the certificate is still a source, the bundle and the file are said."""
    _install(paths, authority.certificate, "root.pem")
    other = paths.stunnel.parent / (directory if "/" in directory else f"stunnel/{directory}")
    other.mkdir(parents=True, exist_ok=True)
    shutil.copy(authority.certificate, other / "copy.pem")
    for place in bundle_places(paths):
        update_bundle(place)
    (found,) = uninstall_authority(paths, "root.pem").trusted
    assert (found.files, found.is_same) == ((other / "copy.pem",), True)
    assert found.bundle.exists()


def test_bundle_that_nothing_follows_is_named(paths: HostPaths, authority: Pair) -> None:
    """A bundle that still has the certificate, although no file of its directory has it, is said as well."""
    _install(paths, authority.certificate, "root.pem")
    own = BundlePlace(paths.stunnel / "mine", paths.stunnel / "mine.pem")
    own.source.mkdir()
    own.bundle.write_bytes(authority.certificate.read_bytes())
    host = HostPaths(paths.xensource, paths.stunnel, paths.root, (*bundle_places(paths), own))
    (found,) = uninstall_authority(host, "root.pem").trusted
    assert (found.bundle, found.files) == (own.bundle, ())


def test_renewed_certificate_vouches_for_the_removed_one(paths: HostPaths, tmp_path: Path) -> None:
    """Another certificate with the same name and key is said to keep what the first has signed trusted."""
    key = ec.generate_private_key(ec.SECP256R1())
    for number, file in enumerate(("old.pem", "renewed.pem")):
        (tmp_path / file).write_bytes(_authority(key, number).public_bytes(Encoding.PEM))
        _install(paths, tmp_path / file, file)
    (found,) = uninstall_authority(paths, "old.pem").trusted
    assert (found.files, found.is_same) == ((paths.certs / "renewed.pem",), False)


def _authority(key: ec.EllipticCurvePrivateKey, serial: int) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "renewed CA")])
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(serial + 1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=365))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )


# --- plain bundles of the other trees ------------------------------------------------------------


@pytest.fixture
def purpose(host: HostPaths, authority: Pair) -> HostPaths:
    """Give a host with the newer layout and one CA for one purpose, of which the plain bundle is missing."""
    directory = host.trusted_certs / "ca-general"
    directory.mkdir(parents=True)
    shutil.copy(authority.certificate, directory / "root.pem")
    return host


def _stale(host: HostPaths) -> list[Path]:
    return [finding.file for finding in judge(host) if finding.name == "BUNDLE_STALE"]


def test_plain_bundle_by_purpose_is_judged_and_mended(purpose: HostPaths) -> None:
    """The plain bundles of the newer layout are found stale and written anew like the two others."""
    bundle = purpose.trusted_certs / "ca-bundle-general.pem"
    assert _stale(purpose) == [bundle]
    repair(purpose)
    assert len(certificates_in(bundle.read_bytes())) == 1
    assert _stale(purpose) == []


def test_plain_bundle_whose_directory_is_gone_is_judged_and_removed(purpose: HostPaths) -> None:
    """A bundle by purpose that has lost its source directory is stale, and mending it removes it (I7)."""
    repair(purpose)
    bundle = purpose.trusted_certs / "ca-bundle-general.pem"
    shutil.rmtree(purpose.trusted_certs / "ca-general")
    assert _stale(purpose) == [bundle]
    repair(purpose)
    assert not bundle.exists()


def test_directory_in_the_middle_of_a_swap_is_no_purpose(purpose: HostPaths) -> None:
    """``ca-general.bk`` is a part of a replacement, and no purpose that a bundle belongs to."""
    repair(purpose)
    (purpose.trusted_certs / "ca-general.bk").mkdir()
    assert _stale(purpose) == []


def test_plain_bundle_of_the_configuration_is_judged_and_mended(
    host: HostPaths, authority: Pair
) -> None:
    """A bundle that an admin has configured is judged like the platform's."""
    own = BundlePlace(host.stunnel / "mine", host.stunnel / "mine.crt")
    own.source.mkdir()
    shutil.copy(authority.certificate, own.source / "root.pem")
    configured = HostPaths(host.xensource, host.stunnel, host.root, (*bundle_places(host), own))
    assert _stale(configured) == [own.bundle]
    repair(configured)
    assert not is_stale(own)
    assert len(certificates_in(own.bundle.read_bytes())) == 1


def test_bundle_with_other_suffixes_is_judged_by_them(host: HostPaths, authority: Pair) -> None:
    """A configured bundle that takes ``.crt`` files is current with them, and not with other files."""
    own = BundlePlace(host.stunnel / "mine", host.stunnel / "mine.pem", suffixes=(b".crt",))
    own.source.mkdir()
    shutil.copy(authority.certificate, own.source / "root.crt")
    shutil.copy(authority.certificate, own.source / "other.pem")
    update_bundle(own)
    assert len(certificates_in(own.bundle.read_bytes())) == 1
    assert not is_stale(own)
    (own.source / "root.crt").unlink()
    assert is_stale(own)
