"""Tests of installing and removing CA certificates."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from certfs.identity import errors
from certfs.identity.authorities import install_authority, uninstall_authority
from certfs.identity.paths import HostPaths
from certfs.identity.validate import Document
from tests.support.mounts import need_program
from tests.support.openssl import OpenSsl, Pair
from tests.support.pki import certificates_in


def _document(path: Path) -> Document:
    return Document(path, path.read_bytes())


def test_installed_authority_is_in_the_bundle(
    paths: HostPaths, openssl: OpenSsl, authority: Pair, server: Pair
) -> None:
    """After an installation `openssl verify` accepts what that CA has signed."""
    install_authority(paths, _document(authority.certificate), name="root.pem")
    bundle = paths.stunnel / "xapi-stunnel-ca-bundle.pem"
    assert b"OK" in openssl.run("verify", "-CAfile", bundle, server.certificate)
    assert stat.S_IMODE((paths.certs / "root.pem").stat().st_mode) == 0o644


def test_uninstalled_authority_is_gone(paths: HostPaths, authority: Pair) -> None:
    """After a removal neither the file nor a bundle is left."""
    install_authority(paths, _document(authority.certificate), name="root.pem")
    change = uninstall_authority(paths, "root.pem")
    assert change.changed
    assert [one.subject for one in change.certificates] == ["CN=certfs test root"]
    assert list(paths.certs.iterdir()) == []
    assert not (paths.stunnel / "xapi-stunnel-ca-bundle.pem").exists()


def test_several_certificates_and_text(paths: HostPaths, openssl: OpenSsl, authority: Pair) -> None:
    """A file of several certificates with text and CRLF is installed as certificates and nothing else."""
    other = openssl.certificate("second root", openssl.key("second"), ca=True)
    text = (
        b"# ours\n" + authority.certificate.read_bytes() + b"and\n" + other.certificate.read_bytes()
    )
    install_authority(paths, Document(Path("x"), text.replace(b"\n", b"\r\n")), name="roots.pem")
    assert len(certificates_in((paths.certs / "roots.pem").read_bytes())) == 2


def test_directory_is_made_with_the_platforms_mode(paths: HostPaths, authority: Pair) -> None:
    """A missing certs is made with mode 0700."""
    paths.certs.rmdir()
    install_authority(paths, _document(authority.certificate), name="root.pem")
    assert stat.S_IMODE(paths.certs.stat().st_mode) == 0o700


def test_name_that_is_taken(paths: HostPaths, authority: Pair) -> None:
    """CERTIFICATE_ALREADY_EXISTS: a file of that name is left as it is, also a dangling link."""
    (paths.certs / "root.pem").symlink_to("nowhere")
    for dry_run in (True, False):
        with pytest.raises(errors.CertificateAlreadyExistsError):
            install_authority(
                paths, _document(authority.certificate), name="root.pem", dry_run=dry_run
            )
    assert (paths.certs / "root.pem").is_symlink()


@pytest.mark.parametrize("what", ["empty", "text", "key", "half", "trusted", "der"])
def test_what_is_no_certificate(
    paths: HostPaths, openssl: OpenSsl, authority: Pair, what: str
) -> None:
    """CERTIFICATE_CORRUPT: what holds no certificate, a broken one or a key is not installed."""
    good = authority.certificate.read_bytes()
    data = {
        "empty": b"",
        "text": b"no certificate\n",
        "key": good + authority.key.read_bytes(),
        "half": good + good[:-40],
        "trusted": openssl.run(
            "x509", "-in", authority.certificate, "-addreject", "serverAuth", "-trustout"
        ),
        "der": openssl.run("x509", "-in", authority.certificate, "-outform", "DER"),
    }[what]
    with pytest.raises(errors.CertificateCorruptError, match="given"):
        install_authority(paths, Document(Path("given"), data), name="root.pem")
    assert list(paths.certs.iterdir()) == []


def test_bad_name(paths: HostPaths, authority: Pair) -> None:
    """CERTIFICATE_NAME_INVALID: a name that leads elsewhere is refused for both ways."""
    with pytest.raises(errors.CertificateNameInvalidError):
        install_authority(paths, _document(authority.certificate), name="../root.pem")
    with pytest.raises(errors.CertificateNameInvalidError):
        uninstall_authority(paths, "../xapi-pool-ca-bundle.pem", force=True)


@pytest.mark.parametrize("directory_is_there", [True, False])
def test_missing_certificate(paths: HostPaths, *, directory_is_there: bool) -> None:
    """CERTIFICATE_DOES_NOT_EXIST: removing what is not there is an error, with --force it is none."""
    if not directory_is_there:
        paths.certs.rmdir()
    with pytest.raises(errors.CertificateDoesNotExistError):
        uninstall_authority(paths, "root.pem")
    assert uninstall_authority(paths, "root.pem", force=True).changed is False


def test_what_cannot_be_removed(paths: HostPaths) -> None:
    """CERTIFICATE_CORRUPT: the platform's name for what cannot be removed, such as a directory."""
    (paths.certs / "root.pem").mkdir()
    with pytest.raises(errors.CertificateCorruptError, match="cannot be removed"):
        uninstall_authority(paths, "root.pem")


@pytest.mark.parametrize("what", ["file", "nothing"])
def test_library_that_is_none(paths: HostPaths, authority: Pair, what: str) -> None:
    """CERTIFICATE_LIBRARY_CORRUPT: certs must be a directory, or be possible to make."""
    paths.certs.rmdir()
    if what == "file":
        paths.certs.write_bytes(b"")
    else:
        paths.certs_pool.rmdir()
        paths.stunnel.rmdir()
    with pytest.raises(errors.CertificateLibraryCorruptError):
        install_authority(paths, _document(authority.certificate), name="root.pem")


def test_dry_run_changes_nothing(paths: HostPaths, authority: Pair) -> None:
    """A dry run checks everything and leaves everything as it is."""
    install_authority(paths, _document(authority.certificate), name="root.pem", dry_run=True)
    assert list(paths.certs.iterdir()) == []
    install_authority(paths, _document(authority.certificate), name="root.pem")
    uninstall_authority(paths, "root.pem", dry_run=True)
    assert (paths.certs / "root.pem").exists()


def test_hash_links_follow(paths: HostPaths, authority: Pair, server: Pair) -> None:
    """Where a directory has hash links they stay true; where it has none, none are made."""
    need_program("openssl")
    install_authority(paths, _document(authority.certificate), name="root.pem")
    assert [path.name for path in paths.certs.iterdir()] == ["root.pem"]
    (paths.certs / "0a0a0a0a.0").symlink_to("gone.pem")
    install_authority(paths, _document(server.certificate), name="server.pem")
    targets = {path.readlink().name for path in paths.certs.iterdir() if path.is_symlink()}
    assert targets == {"root.pem", "server.pem"}
    uninstall_authority(paths, "server.pem")
    targets = {path.readlink().name for path in paths.certs.iterdir() if path.is_symlink()}
    assert targets == {"root.pem"}
