"""Tests of revocation lists and of certificates by purpose: installed, listed, judged, and removed by command."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from certfs.cli.json_forms import FORMS
from certfs.identity.health import judge
from certfs.identity.paths import HostPaths
from certfs.identity.repair import repair
from tests.support.identity import call_certfs
from tests.support.openssl import Pair
from tests.support.pki import certificates_in

Run = Callable[..., "subprocess.CompletedProcess[str]"]
_KEY = ec.generate_private_key(ec.SECP256R1())
_NOW = datetime.now(UTC)


@pytest.fixture
def on_host(host: HostPaths) -> Run:
    """Give a function that runs a command on a host's store."""
    return lambda *words: call_certfs(*words, "--store", str(host.root))


def _crl(*, days: int = 30, encoding: Encoding = Encoding.PEM) -> bytes:
    """Give a list that expires in so many days and revokes one certificate."""
    revoked = x509.RevokedCertificateBuilder().serial_number(7).revocation_date(_NOW).build()
    return (
        x509.CertificateRevocationListBuilder()
        .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "crl CA")]))
        .last_update(_NOW - timedelta(days=60))
        .next_update(_NOW + timedelta(days=days))
        .add_revoked_certificate(revoked)
        .sign(_KEY, hashes.SHA256())
        .public_bytes(encoding)
    )


def _certificate(*, ca: bool | None, days: int = 365, begins: int = -400) -> bytes:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "doubtful")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(_KEY.public_key())
        .serial_number(1)
        .not_valid_before(_NOW + timedelta(days=begins))
        .not_valid_after(_NOW + timedelta(days=days))
    )
    if ca is not None:
        builder = builder.add_extension(
            x509.BasicConstraints(ca=ca, path_length=None), critical=True
        )
    return builder.sign(_KEY, hashes.SHA256()).public_bytes(Encoding.PEM)


@pytest.fixture
def crl(tmp_path: Path) -> Path:
    """Give a list that counts now."""
    path = tmp_path / "ca.pem"
    path.write_bytes(b"# text around\n" + _crl())
    return path


def _json(done: subprocess.CompletedProcess[str], name: str) -> Any:  # noqa: ANN401 - any answer
    answer = json.loads(done.stdout)
    msgspec.convert(answer, FORMS[name], strict=True)
    return answer


def test_list_comes_and_goes(on_host: Run, host: HostPaths, crl: Path) -> None:
    """An installed list is found by its hash, listed, and gone with its link after its removal."""
    done = on_host("pool-install-crl", crl)
    assert done.returncode == 0, done.stderr
    (link,) = [path for path in host.crls.iterdir() if path.is_symlink()]
    assert re.fullmatch(r"[0-9a-f]{8}\.r0", link.name)
    assert (host.crls / "ca.pem").read_bytes() == _stripped(crl)
    (row,) = _json(on_host("pool-crl-list", "--json"), "pool-crl-list")["crls"]
    assert (row["crl"]["issuer"], row["crl"]["revoked"]) == ("CN=crl CA", 1)
    assert "CN=crl CA" in on_host("pool-crl-list").stdout
    answer = _json(on_host("pool-uninstall-crl", "ca.pem", "--json"), "pool-uninstall-crl")
    assert (answer["changed"], answer["crl"]["revoked"]) == (True, 1)
    assert list(host.crls.iterdir()) == []


def _stripped(crl: Path) -> bytes:
    text = crl.read_bytes()
    return text[text.index(b"-----BEGIN") :]


def test_dry_run_installs_no_list(on_host: Run, host: HostPaths, crl: Path) -> None:
    """A dry run checks the list and makes nothing, the directory included."""
    assert on_host("pool-install-crl", crl, "--dry-run").returncode == 0
    assert not host.crls.exists()


def test_names_of_the_platforms_for_lists(
    on_host: Run, crl: Path, server: Pair, tmp_path: Path
) -> None:
    """Each refusal has the platform's name and a code of its own, and says what to do with that very file."""
    assert on_host("pool-install-crl", crl).returncode == 0
    two, der = tmp_path / "two.pem", tmp_path / "der.pem"
    two.write_bytes(_crl() + _crl())
    der.write_bytes(_crl(encoding=Encoding.DER))
    cases: list[tuple[list[str | Path], int, str]] = [
        (["pool-install-crl", crl, "--name", "x"], 42, "CRL_NAME_INVALID: 'x'"),
        (["pool-install-crl", crl], 43, "remove it: certfs pool-uninstall-crl ca.pem"),
        (["pool-uninstall-crl", "none.pem"], 44, " shows what is installed; --force ignores"),
        (["pool-install-crl", two], 45, "holds 2 revocation lists"),
        (["pool-install-crl", der], 45, f"openssl crl -inform DER -in {der}"),
        (["pool-install-crl", server.certificate], 45, f"certfs pool-install-ca-certificate {server.certificate}"),
    ]  # fmt: skip
    for words, code, said in cases:
        done = on_host(*words)
        assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    assert "--name" not in on_host("pool-uninstall-crl", "x").stderr


def test_an_expired_list_beside_a_current_one_refuses_nobody(
    on_host: Run, crl: Path, tmp_path: Path
) -> None:
    """OpenSSL takes the one that counts: the old one is to be removed, and is no emergency."""
    old = tmp_path / "old.pem"
    old.write_bytes(_crl(days=-1))
    on_host("repair")
    assert on_host("pool-install-crl", crl).returncode == 0
    assert "a current list of CN=crl CA counts" in on_host("pool-install-crl", old).stderr
    (finding,) = _json(on_host("check", "--json"), "check")["findings"]
    assert (finding["severity"], finding["name"]) == ("warning", "CRL_EXPIRED")
    assert on_host("pool-uninstall-crl", "ca.pem").returncode == 0
    (finding,) = _json(on_host("check", "--json"), "check")["findings"]
    assert finding["severity"] == "critical"
    assert "every certificate of CN=crl CA is refused" in finding["what"]


@pytest.mark.parametrize(
    "days,name,code", [(-1, "CRL_EXPIRED", 2), (3, "CRL_EXPIRING", 1), (30, None, 0)]
)
def test_expired_list_is_a_finding(
    on_host: Run, crl: Path, days: int, name: str | None, code: int
) -> None:
    """A list that has expired, after which its issuer's certificates are all refused, is critical."""
    crl.write_bytes(_crl(days=days))
    done = on_host("pool-install-crl", crl)
    assert (done.returncode, "the list expired" in done.stderr) == (0, days < 0)
    done = on_host("check", "--json")
    names = {one["name"] for one in json.loads(done.stdout)["findings"]}
    assert (done.returncode, names) == (code, {name} - {None})


def test_broken_list_is_a_finding(on_host: Run, host: HostPaths) -> None:
    """What is in crls and no list revokes nothing, and that is said."""
    host.crls.mkdir()
    (host.crls / "x.pem").write_bytes(b"junk")
    assert "CRL_BROKEN" in on_host("check", "--json").stdout


def test_an_authority_of_tomorrow_is_a_warning(on_host: Run, tmp_path: Path) -> None:
    """One among others that is not valid yet is as bad as one that has expired, and the way out is not to renew it."""
    file = tmp_path / "tomorrow.pem"
    file.write_bytes(_certificate(ca=True, begins=1))
    on_host("repair")
    on_host("pool-install-ca-certificate", file)
    (finding,) = _json(on_host("check", "--json"), "check")["findings"]
    assert (finding["severity"], finding["name"]) == (
        "warning",
        "POOL_CA_CERTIFICATE_NOT_VALID_YET",
    )
    assert "wait until then, or certfs pool-uninstall-ca-certificate" in finding["mend"]


# --- what the platform installs without a word ------------------------------------------------------


@pytest.mark.parametrize(
    "certificate,said",
    [
        (_certificate(ca=True, days=-1), "expired at "),
        (_certificate(ca=False), "is not a CA: it vouches for no other certificate"),
        (_certificate(ca=None), "is not a CA: it vouches for no other certificate"),
        (_certificate(ca=True), ""),
    ],
)
def test_doubtful_certificate_is_installed_with_a_warning(
    on_host: Run, tmp_path: Path, certificate: bytes, said: str
) -> None:
    """One that has expired or is no CA is installed as the platform does it, and the warning says what that means."""
    file = tmp_path / "doubtful.pem"
    file.write_bytes(certificate)
    dry = on_host("pool-install-ca-certificate", file, "--dry-run", "--json")
    done = on_host("pool-install-ca-certificate", file)
    assert done.returncode == 0, done.stderr
    assert said in done.stderr
    assert bool(done.stderr) == bool(said) == bool(json.loads(dry.stdout)["warnings"])


# --- by purpose -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options,directory,bundle,kind",
    [
        (["--purpose", "general"], "ca-general", "ca-bundle-general.pem", "ca"),
        (["--purpose", "licensing", "--pinned"], "pinned-licensing", "pinned-bundle-licensing.pem", "pinned"),
    ],
)  # fmt: skip
def test_certificate_for_a_purpose_comes_and_goes(  # noqa: PLR0913 - the table's columns
    on_host: Run,
    host: HostPaths,
    authority: Pair,
    *,
    options: list[str],
    directory: str,
    bundle: str,
    kind: str,
) -> None:
    """It is in the bundle of its purpose, listed with it, and in no bundle after its removal."""
    words = ["pool-install-ca-certificate", authority.certificate, "--name", "ca.pem", *options]
    answer = _json(on_host(*words, "--json"), "pool-install-ca-certificate")
    assert answer["path"] == str(host.trusted_certs / directory / "ca.pem")
    assert answer["warnings"] == []
    file = host.trusted_certs / bundle
    assert len(certificates_in(file.read_bytes())) == 1
    rows = _json(on_host("pool-certificate-list", "--json"), "pool-certificate-list")[
        "certificates"
    ]
    assert [(one["type"], one["purpose"]) for one in rows if one["purpose"]] == [(kind, options[1])]
    said = on_host("pool-uninstall-ca-certificate", "ca.pem", *options)
    assert (said.returncode, "not trusted any more" in said.stdout) == (0, True)
    assert not file.exists()
    assert repair(host).mended == ()
    assert judge(host) == ()


@pytest.mark.parametrize("options", [["--purpose", "../x"], ["--purpose", "a.bk"], ["--pinned"]])
def test_wrong_purpose_is_refused(
    on_host: Run, host: HostPaths, authority: Pair, options: list[str]
) -> None:
    """What names no directory of a purpose is refused, and nothing is made."""
    done = on_host(
        "pool-install-ca-certificate", authority.certificate, "--name", "a.pem", *options
    )
    assert done.returncode in {2, 30}
    assert not host.trusted_certs.exists()


# --- who is used to xe -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words,line",
    [
        (["pool-install-ca-certificate", "filename=/a b.pem"], "certfs pool-install-ca-certificate '/a b.pem'"),
        (
            ["pool-uninstall-ca-certificate", "name=a.pem", "force=true"],
            "certfs pool-uninstall-ca-certificate a.pem --force",
        ),
        (["pool-install-crl", "filename=a.pem"], "certfs pool-install-crl a.pem"),
        (["host-refresh-server-certificate", "host=h"], "certfs host-refresh-server-certificate"),
        (
            ["host-server-certificate-install", "certificate=c", "private-key=k", "host=h"],
            "certfs host-server-certificate-install --certificate c --private-key k",
        ),
        (["host-reset-server-certificate"], "'reset-server-certificate' here"),
        (["pool-crl-install", "filename=a"], "'pool-install-crl' here"),
    ],
)  # fmt: skip
def test_words_of_xe_are_answered_with_those_of_certfs(words: list[str], line: str) -> None:
    """Who types what xe takes is told the very line that does the same."""
    done = call_certfs(*words)
    assert done.returncode == 2
    assert line in done.stderr
    assert line in json.loads(call_certfs(*words, "--json").stdout)["message"]
