"""Real input: every certificate that Debian trusts, in one source directory."""

from __future__ import annotations

import datetime as dt
import hashlib
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from tests.support import mounts, pki
from tests.support.mounts import CertfsMount

pytestmark = pytest.mark.mount

AUTHORITIES = sorted(Path("/usr/share/ca-certificates").rglob("*.crt"))


def _fingerprint(path: Path) -> str:
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(path.read_text())).hexdigest()


@pytest.fixture(scope="module")
def debian() -> Iterator[CertfsMount]:
    """Mount a store and copy all of ca-certificates into its `certs`."""
    if not AUTHORITIES:
        mounts.missing("the package ca-certificates")
    with mounts.mounted() as mount:
        for path in AUTHORITIES:
            shutil.copy(path, mount.tree.certs / f"{path.stem}.pem")
        yield mount


def test_the_bundle_is_exactly_that_set(debian: CertfsMount) -> None:
    """I4: nothing is missing from the bundle, nothing is in it twice, nothing else is in it."""
    found = pki.certificates_in(debian.tree.user_bundle.read_bytes())
    assert sorted(found) == sorted({_fingerprint(path) for path in AUTHORITIES})


def _newest_of_each_name() -> list[Path]:
    """Give the authorities without those of which a newer one of the same name is there.

    `openssl verify` takes the first certificate of a name for the issuer; of two self-signed
    ones with one name it accepts that one only, in whichever order they stand.
    """
    newest: dict[bytes, tuple[dt.datetime, Path]] = {}
    for path in AUTHORITIES:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        found = (certificate.not_valid_before_utc, path)
        subject = certificate.subject.public_bytes()
        newest[subject] = max(found, newest.get(subject, found))
    return [path for _, path in newest.values()]


@pytest.mark.filterwarnings("ignore:Parsed a serial number which wasn't positive")
def test_openssl_verifies_every_one_against_it(debian: CertfsMount) -> None:
    """Every root verifies with the bundle as the only trust; of one name, the newest."""
    roots = _newest_of_each_name()
    command = ["openssl", "verify", "-no-CApath", "-no-CAstore", "-no_check_time", "-CAfile"]
    ended = subprocess.run(
        [*command, debian.tree.user_bundle, *roots],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.stdout.count(": OK") == len(roots), ended.stderr
    assert len(roots) > 100


def test_python_loads_every_one(debian: CertfsMount) -> None:
    """Python's ssl has every certificate of the bundle in its store."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cafile=debian.tree.user_bundle)
    assert context.cert_store_stats()["x509"] == len({_fingerprint(path) for path in AUTHORITIES})


def test_gnutls_and_openssl_read_the_same(debian: CertfsMount) -> None:
    """GnuTLS and OpenSSL read from the bundle what the naive reader reads, in its order."""
    mounts.need_program("certtool")
    bundle = str(debian.tree.user_bundle)
    found = pki.certificates_in(debian.tree.user_bundle.read_bytes())
    assert pki.certificates_openssl_reads(bundle) == found
    assert pki.certificates_gnutls_reads(bundle) == found


def test_removing_one_removes_exactly_that_one(debian: CertfsMount) -> None:
    """I1: after a removal the bundle is the same without that certificate, and back again."""
    path = AUTHORITIES[len(AUTHORITIES) // 2]
    copied = debian.tree.certs / f"{path.stem}.pem"
    before = debian.tree.user_bundle.read_bytes()
    copied.unlink()
    after = pki.certificates_in(debian.tree.user_bundle.read_bytes())
    assert after == [one for one in pki.certificates_in(before) if one != _fingerprint(path)]
    shutil.copy(path, copied)
    assert debian.tree.user_bundle.read_bytes() == before


def test_a_whole_bundle_as_one_file_is_the_same_set(debian: CertfsMount) -> None:
    """I5: the concatenation of all of them as one more source adds nothing."""
    everything = debian.tree.certs / "zz-everything.pem"
    before = debian.tree.user_bundle.read_bytes()
    everything.write_bytes(b"\n".join(path.read_bytes() for path in AUTHORITIES))
    assert debian.tree.user_bundle.read_bytes() == before
    everything.unlink()
