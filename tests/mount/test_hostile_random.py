"""I4: files with random damage; what comes out is always what OpenSSL and GnuTLS read."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from certfs.core.certificate import parse_source
from tests.support import mounts, peer, pki, pki_forms
from tests.support.mounts import CertfsMount
from tests.support.peer import Peer

pytestmark = [pytest.mark.mount, pytest.mark.slow]

FILES = int(os.environ.get("CERTFS_TEST_FUZZ", "800"))
"""How many damaged files are tried; the nightly run tries more."""
BATCH = 100

_TOKENS = (
    b"-----BEGIN CERTIFICATE-----",
    b"-----END CERTIFICATE-----",
    b"-----BEGIN TRUSTED CERTIFICATE-----",
    b"-----BEGIN PRIVATE KEY-----",
    b"-----",
    b"\n",
    b"\r",
    b"\0",
    b"=",
    b" ",
    b"\xef\xbb\xbf",
)


def _damage(randomly: random.Random, forms: list[bytes]) -> bytes:
    """Cut, join, flip, insert and delete at random places of random forms."""
    data = bytearray(randomly.choice(forms))
    for _ in range(randomly.choice((1, 1, 2, 3, 8))):
        place = randomly.randrange(len(data) + 1)
        kind = randomly.randrange(7)
        if kind == 0:
            del data[place : place + randomly.choice((1, 1, 5, 64, 300))]
        elif kind == 1:
            data[place:place] = randomly.choice(_TOKENS)
        elif kind == 2 and place < len(data):
            data[place] = randomly.randrange(256)
        elif kind == 3:
            data[place:place] = randomly.choice(forms)
        elif kind == 4:
            del data[place:]
        elif kind == 5:
            start = randomly.randrange(len(data) + 1)
            data[place:place] = data[start : start + 200]
        else:
            data += randomly.choice(forms)
    return bytes(data)


@pytest.mark.timeout(7200)
def test_damaged_files_leave_a_bundle_that_every_reader_reads(
    certfs_mount: CertfsMount, other_process: Peer, tmp_path: Path
) -> None:
    """I4: the good one stays, no key gets in, OpenSSL reads every block, and GnuTLS all that the damage left whole.

    One in some hundred thousand of these files has a certificate whose extensions are broken in a way that GnuTLS alone
    minds (docs/bundles.md).
    """
    mounts.need_program("certtool")
    certfs_mount.expected_log.append("stunnel/certs/")
    tree = certfs_mount.tree
    seed = random.SystemRandom().randrange(1 << 32)
    randomly = random.Random(seed)  # noqa: S311 - reproducible on purpose
    forms = [form.data for form in pki_forms.every()]
    whole = {one.fingerprint.hex() for form in forms for one in parse_source(form).certificates}
    secrets = {line for form in pki_forms.with_keys() for line in form.secrets}
    good = pki.authority("the good one")
    (tree.certs / "good.pem").write_bytes(good.pem)
    for _ in range(FILES // BATCH):
        for number in range(BATCH):
            (tree.certs / f"{number}.pem").write_bytes(_damage(randomly, forms))
        seen = other_process.call(peer.read_or_none, str(tree.user_bundle)) or b""
        found = pki.certificates_in(seen)
        assert good.sha256 in found, f"seed {seed}"
        assert len(set(found)) == len(found), f"seed {seed}"
        assert not any(secret in seen for secret in secrets), f"seed {seed}"
        assert pki.certificates_openssl_reads(str(tree.user_bundle)) == found, f"seed {seed}"
        undamaged = [one for one in found if one in {*whole, good.sha256}]
        (tmp_path / "undamaged.pem").write_bytes(pki.blocks_of(seen, undamaged))
        read = pki.certificates_gnutls_reads(str(tmp_path / "undamaged.pem"))
        assert read == undamaged, f"seed {seed}"
