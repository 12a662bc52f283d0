"""Tests of generated certificates, as the `openssl` command sees them."""

from __future__ import annotations

import re
import stat
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path

import pytest

from certfs.identity.generate import (
    ServerNames,
    generate_pool_certificate,
    generate_server_certificate,
    serial_stamp,
)
from certfs.identity.subject import local_names, read_inventory
from tests.support.identity import UUID
from tests.support.openssl import OpenSsl

NAMES = ServerNames(("host.example", "host"), (ip_address("192.0.2.7"), ip_address("2001:db8::7")))


@pytest.fixture(scope="module")
def server_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a generated server certificate in a file."""
    path = tmp_path_factory.mktemp("generated") / "xapi-ssl.pem"
    path.write_bytes(generate_server_certificate(NAMES).render())
    return path


@pytest.fixture(scope="module")
def pool_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a generated pool certificate in a file."""
    path = tmp_path_factory.mktemp("generated") / "xapi-pool-tls.pem"
    path.write_bytes(generate_pool_certificate(UUID).render())
    return path


def test_file_is_key_then_certificate(server_file: Path) -> None:
    """A generated file is an unencrypted PKCS #8 key and then one certificate, an empty line between them."""
    markers = re.findall(rb"-----(?:BEGIN|END) [A-Z ]+-----|\n\n", server_file.read_bytes())
    assert markers == [
        b"-----BEGIN PRIVATE KEY-----",
        b"-----END PRIVATE KEY-----",
        b"\n\n",
        b"-----BEGIN CERTIFICATE-----",
        b"-----END CERTIFICATE-----",
    ]


def test_key_belongs_to_certificate(openssl: OpenSsl, server_file: Path, pool_file: Path) -> None:
    """Key and certificate of a generated file belong together."""
    assert openssl.is_pair(server_file)
    assert openssl.is_pair(pool_file)


def test_algorithms_are_the_platforms(openssl: OpenSsl, server_file: Path, pool_file: Path) -> None:
    """Keys are RSA 2048 and signatures SHA-256."""
    for path in (server_file, pool_file):
        text = openssl.text(path, "-text")
        assert "Public-Key: (2048 bit)" in text
        assert "Signature Algorithm: sha256WithRSAEncryption" in text


def test_validity_is_ten_years_from_now(openssl: OpenSsl) -> None:
    """A certificate is valid for 3,650 days from the moment it is made, not backdated."""
    moment = datetime(2026, 2, 28, 12, 30, 15, 987654, tzinfo=UTC)
    pem = generate_pool_certificate(UUID, now=moment)
    text = openssl.run("x509", "-noout", "-dates", feed=pem.render()).decode()
    assert text == "notBefore=Feb 28 12:30:15 2026 GMT\nnotAfter=Feb 26 12:30:15 2036 GMT\n"


def test_server_certificate_names_the_host(openssl: OpenSsl, server_file: Path) -> None:
    """The server certificate has the first name as CN and all names and addresses as SANs, and nothing else."""
    assert (
        openssl.text(server_file, "-subject", "-issuer")
        == "subject=CN = host.example\nissuer=CN = host.example\n"
    )
    extensions = openssl.text(server_file, "-ext", "subjectAltName").splitlines()
    assert extensions[1].split(", ") == [
        "    DNS:host.example",
        "DNS:host",
        "IP Address:192.0.2.7",
        "IP Address:2001:DB8:0:0:0:0:0:7",
    ]
    assert openssl.text(server_file, "-text").count("X509v3") == 2  # the heading and this one


def test_server_certificate_verifies_for_its_names(openssl: OpenSsl, server_file: Path) -> None:
    """A client that trusts the server certificate accepts each of its names and addresses."""
    for check in (
        ("-verify_hostname", "host.example"),
        ("-verify_hostname", "host"),
        ("-verify_ip", "2001:db8::7"),
    ):
        assert b"OK" in openssl.run("verify", "-CAfile", server_file, *check, server_file)


def test_host_without_name_and_address_gets_a_certificate() -> None:
    """A host that has neither a name nor an address yet is called localhost."""
    pem = generate_server_certificate(ServerNames((), ()))
    assert pem.leaf.subject.rfc4514_string() == "CN=localhost"


def test_name_too_long_for_a_common_name_is_passed_over() -> None:
    """A DNS name longer than a CN may be stays a SAN; the CN is the next that fits."""
    names = ServerNames(("x" * 60 + ".example", "short"), ())
    assert names.common_name == "short"


def test_pool_certificate_is_named_after_the_host(openssl: OpenSsl, pool_file: Path) -> None:
    """Subject and issuer of the pool certificate are one name of CN = UUID and a stamp, without extensions."""
    subject, issuer = openssl.text(
        pool_file, "-subject", "-issuer", "-nameopt", "RFC2253"
    ).splitlines()
    assert re.fullmatch(rf"subject=CN={UUID}\+serialNumber=\d{{10}}\.\d{{0,2}}", subject)
    assert issuer == subject.replace("subject", "issuer")
    assert "X509v3" not in openssl.text(pool_file, "-text")


def test_stamp_is_the_platforms() -> None:
    """The stamp is the time in seconds with twelve significant digits, as the platform prints a float."""
    moment = datetime.fromtimestamp(1668169872.346, tz=UTC)
    assert serial_stamp(moment) == "1668169872.35"
    assert serial_stamp(moment.replace(microsecond=0)) == "1668169872."


def test_repr_shows_no_key(server_file: Path) -> None:
    """What a traceback or a log could show of a host PEM is without its key."""
    shown = repr(generate_server_certificate(NAMES))
    assert "PRIVATE" not in shown
    assert server_file.read_text().splitlines()[1] not in shown


def test_names_of_this_host_can_be_in_a_certificate() -> None:
    """What this host is called is accepted as the names of a certificate, without the loopback."""
    names = local_names()
    assert generate_server_certificate(names).certificates
    assert not any(address.is_loopback or address.is_link_local for address in names.addresses)


def test_interface_narrows_the_addresses() -> None:
    """Only the addresses of the interface that is asked for are named."""
    assert local_names(interface="no-such-interface").addresses == ()


def test_inventory_is_read(tmp_path: Path) -> None:
    """The host's UUID and management interface come from the platform's inventory."""
    path = tmp_path / "inventory"
    path.write_text(
        f"BUILD_NUMBER='x'\nINSTALLATION_UUID='{UUID}'\nMANAGEMENT_INTERFACE='xenbr0'\n"
    )
    inventory = read_inventory(path)
    assert (inventory.host_uuid, inventory.management_interface) == (UUID, "xenbr0")
    assert read_inventory(tmp_path / "missing").host_uuid == ""


def test_loads_into_stunnels_library(server_file: Path, pool_file: Path) -> None:
    """OpenSSL loads a generated file as a server's key and certificate chain."""
    import ssl  # noqa: PLC0415 - this test's own second opinion

    for path in (server_file, pool_file):
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(path)
    assert stat.S_ISREG(server_file.stat().st_mode)
