"""Other forms of a bundle, against the programs that read them: openssl and keytool."""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certfs.core.formats import certificates_of, hash_directory, java_truststore, subject_hash
from certfs.core.pem import render
from tests.support import libcrypto, pki, pki_raw
from tests.support.mounts import missing, need_program

DEBIAN = Path("/etc/ssl/certs/ca-certificates.crt")


def openssl_hash(der: bytes) -> str:
    """Return the subject's hash as openssl prints it."""
    need_program("openssl")
    return subprocess.run(
        ["openssl", "x509", "-inform", "DER", "-noout", "-subject_hash"],
        input=der, check=True, capture_output=True, timeout=60,
    ).stdout.decode().strip()  # fmt: skip


def test_a_bundle_is_its_certificates_each_once() -> None:
    """What stands twice is there once, other blocks are none, and the order is the bundle's."""
    one, two = pki.issue("one"), pki.issue("two")
    crl = b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"
    assert list(certificates_of(two.pem + crl + one.pem + two.pem)) == [two.der, one.der]


@pytest.mark.parametrize(
    "name",
    [
        "plain",
        "  Wide   \t  space  ",
        "ÄÖÜ ß Ω 漢字",
        "UPPER lower",
        "comma, plus+quote\"'",
        "x" * 64,
    ],
)
def test_a_subject_has_the_hash_that_openssl_gives(name: str) -> None:
    """The names of a CApath are those that openssl looks for."""
    der = pki.issue(name).der
    assert subject_hash(der) == openssl_hash(der)


ODD_NAMES = int(os.environ.get("CERTFS_TEST_NAMES", "3000"))
KINDS = (0x0C, 0x12, 0x13, 0x14, 0x16, 0x1A, 0x1B, 0x1C, 0x1E, 0x04, 0x03, 0x02, 0x30, 0x17)
IDENTIFIERS = ("0603550403", "060355040a", "060a0992268993f22c640119", "06092a864886f70d010901")


def odd_name(chance: random.Random) -> bytes:
    """Encode a name of strings, numbers and structures of all kinds, with blanks, cases and broken characters."""
    pieces = ("a", "A", " ", "\t", "ß", "Ω", "漢", "\0", "z  ", "\x7f", "\U0001f512")
    sets = []
    for _ in range(chance.randint(0, 3)):
        attributes = []
        for _ in range(chance.choice((1, 1, 1, 2, 3))):
            kind = chance.choice(KINDS)
            text = "".join(chance.choice(pieces) for _ in range(chance.randint(0, 5)))
            encoding = {0x1C: "utf-32-be", 0x1E: "utf-16-be"}.get(kind, "utf-8")
            value = text.encode(encoding) if chance.random() < 0.9 else chance.randbytes(3)
            identifier = bytes.fromhex(chance.choice(IDENTIFIERS))
            attributes.append(pki_raw.attribute(value, kind, identifier))
        sets.append(pki_raw.element(0x31, *sorted(attributes)))
    return pki_raw.sequence(*sets)


def test_an_odd_subject_has_the_hash_that_openssl_gives() -> None:
    """Whatever OpenSSL accepts as a name, a program that looks for it in a CApath finds it."""
    chance = random.Random(21)  # noqa: S311 - no secret
    accepted = 0
    for _ in range(ODD_NAMES):
        der = pki_raw.certificate(odd_name(chance), signature=b"\0" * 8)
        theirs = libcrypto.subject_hash(der)
        accepted += theirs is not None
        assert theirs is None or subject_hash(der) == theirs, der.hex()
    assert accepted > ODD_NAMES / 4


def test_every_ca_of_the_system_has_the_hash_that_openssl_gives() -> None:
    """What Debian ships has real subjects of all string types; its hash links are made by openssl."""
    if not DEBIAN.exists():
        missing(str(DEBIAN))
    made = set(map(subject_hash, certificates_of(DEBIAN.read_bytes())))
    linked = {path.name.partition(".")[0] for path in DEBIAN.parent.glob("????????.[0-9]")}
    assert linked
    assert linked <= made


def test_certificates_with_one_subject_are_numbered_in_the_order_of_the_bundle() -> None:
    """The first of the bundle is the first that openssl finds."""
    first, second = pki.issue("same", key=pki.ec_key(1)), pki.issue("same", key=pki.ec_key(2))
    files, left_out = hash_directory([first.der, second.der])
    assert left_out == ()
    stem = subject_hash(first.der)
    assert files == {f"{stem}.0": render(first.der), f"{stem}.1": render(second.der)}


def test_what_is_no_certificate_is_left_out_with_a_reason() -> None:
    """A form that cannot hold one certificate holds its neighbours (I9)."""
    good = pki.issue("good").der
    for make in (java_truststore, hash_directory):
        _made, left_out = make([good, b"\x30\x03abc"])
        assert [bool(one.reason) for one in left_out] == [True]


@given(st.binary(max_size=200))
def test_no_bytes_raise(der: bytes) -> None:
    """Whatever the bytes are, each form answers."""
    hash_directory([der])
    java_truststore([der])


def test_a_trust_store_for_java_is_the_same_bytes_each_time() -> None:
    """Nothing random is in it, so that an unchanged bundle changes no file."""
    certificates = [pki.issue(str(number)).der for number in range(3)]
    assert java_truststore(certificates) == java_truststore(certificates)
