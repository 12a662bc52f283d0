"""Tests of the certificate commands: each of them with real files, with each error, and as JSON."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from certfs.core.pem import render
from certfs.identity.errors import CertificateError
from certfs.identity.paths import HostPaths
from tests.support import pki_deviations, pki_raw
from tests.support.identity import UUID, call_certfs, run_certfs
from tests.support.mounts import certfs_program, need_root
from tests.support.openssl import OpenSsl, Pair

pytestmark = pytest.mark.counted

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def on_host(host: HostPaths) -> Run:
    """Give a function that runs a command on a host's store."""
    assert host.root is not None
    return lambda *words: run_certfs(*words, "--store", str(host.root))


def _json(done: subprocess.CompletedProcess[str]) -> Any:  # noqa: ANN401 - whatever the command answers
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _bare(fingerprint: str) -> str:
    """Give a fingerprint of openssl's in the one form that certfs has."""
    return fingerprint.replace(":", "").lower()


def _install(pair: Pair, *words: str | Path) -> list[str | Path]:
    given: tuple[str | Path, ...] = ("--certificate", pair.certificate, "--private-key", pair.key)
    return ["host-server-certificate-install", *given, *words]


def _server_pem(host: HostPaths) -> Path:
    return host.xensource / "xapi-ssl.pem"


# --- host-get-server-certificate ---------------------------------------------------------------


@pytest.mark.parametrize("option,name", [((), "xapi-ssl.pem"), (("--pool",), "xapi-pool-tls.pem")])
def test_get_prints_the_certificate_and_nothing_private(
    on_host: Run, host: HostPaths, openssl: OpenSsl, *, option: tuple[str, ...], name: str
) -> None:
    """What is printed is the first certificate of the file, as one PEM block and nothing else."""
    done = on_host("host-get-server-certificate", *option)
    assert done.returncode == 0
    assert re.findall("-----BEGIN (.*)-----", done.stdout) == ["CERTIFICATE"]
    printed = openssl.run("x509", "-noout", "-fingerprint", "-sha256", feed=done.stdout.encode())
    assert printed.decode().partition("=")[2].strip() == openssl.fingerprint(host.xensource / name)


def test_get_as_json(on_host: Run, host: HostPaths, openssl: OpenSsl) -> None:
    """The JSON form has the certificate in PEM and what can be said of it."""
    answer = _json(on_host("host-get-server-certificate", "--json"))
    assert answer["certificate"]["sha256"] == _bare(openssl.fingerprint(_server_pem(host)))
    assert answer["pem"].startswith("-----BEGIN CERTIFICATE-----")
    assert answer["path"] == str(_server_pem(host))


@pytest.mark.parametrize("content", [b"", b"nonsense"])
def test_get_of_a_broken_file(on_host: Run, host: HostPaths, content: bytes) -> None:
    """CERTIFICATE_LIBRARY_CORRUPT: the platform's name for a host file that is broken."""
    _server_pem(host).unlink()
    _server_pem(host).write_bytes(content)
    done = on_host("host-get-server-certificate")
    assert done.returncode == 34
    assert done.stderr.startswith(f"certfs: CERTIFICATE_LIBRARY_CORRUPT: {_server_pem(host)} ")


# --- host-server-certificate-install -----------------------------------------------------------


def test_install_of_a_chain(
    on_host: Run, host: HostPaths, openssl: OpenSsl, server: Pair, authority: Pair
) -> None:
    """An installed file is key, leaf, chain, and says that stunnel must reload."""
    done = on_host(*_install(server, "--certificate-chain", authority.certificate))
    assert done.returncode == 0, done.stderr
    path = _server_pem(host)
    labels = re.findall("-----BEGIN (.*)-----", path.read_text())
    assert labels == ["PRIVATE KEY", "CERTIFICATE", "CERTIFICATE"]
    assert openssl.is_pair(path)
    assert openssl.fingerprint(path) == openssl.fingerprint(server.certificate)
    assert _bare(openssl.fingerprint(path)) in done.stdout
    assert "until it reloads: systemctl reload-or-restart stunnel@xapi" in done.stderr


@pytest.mark.parametrize("mode,kept", [(0o400, 0o400), (0o440, 0o440), (0o644, 0o640)])
def test_install_keeps_mode_and_group(
    on_host: Run, host: HostPaths, server: Pair, *, mode: int, kept: int
) -> None:
    """Owner, group and mode stay, but for what others could do with the key."""
    need_root()
    os.chown(_server_pem(host), 0, 4242)
    _server_pem(host).chmod(mode)
    assert on_host(*_install(server)).returncode == 0
    status = _server_pem(host).stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (0, 4242, kept)


def test_install_where_there_was_none(on_host: Run, host: HostPaths, server: Pair) -> None:
    """A file that was missing is made with the platform's mode, 0400."""
    _server_pem(host).unlink()
    assert on_host(*_install(server)).returncode == 0
    assert stat.S_IMODE(_server_pem(host).stat().st_mode) == 0o400


def test_install_from_pipes(host: HostPaths, server: Pair) -> None:
    """The key may come from a pipe or standard input, so that it need not be in a file."""
    done = run_certfs(
        *_install(Pair(server.certificate, Path("-"))), "--store", str(host.root), feed=server.key.read_bytes()
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    words = f"--certificate {server.certificate} --private-key <(cat {server.key})"
    command = f"{certfs_program()} host-server-certificate-install {words} --store {host.root}"
    assert subprocess.run(["bash", "-c", command], check=False, timeout=60).returncode == 0


def test_full_chain_file_is_not_doubled(
    on_host: Run, host: HostPaths, server: Pair, authority: Pair, tmp_path: Path
) -> None:
    """A chain file that begins with the host's own certificate does not put it in twice."""
    chain = tmp_path / "fullchain.pem"
    chain.write_bytes(server.certificate.read_bytes() + authority.certificate.read_bytes())
    assert on_host(*_install(server, "--certificate-chain", chain)).returncode == 0
    assert _server_pem(host).read_text().count("BEGIN CERTIFICATE") == 2


def test_chain_that_does_not_belong_is_a_warning(
    on_host: Run, openssl: OpenSsl, server: Pair
) -> None:
    """What the platform accepts and clients will not is accepted with a warning."""
    stranger = openssl.certificate("stranger", openssl.key("other"), ca=True)
    answer = _json(
        on_host(*_install(server, "--certificate-chain", stranger.certificate), "--json")
    )
    assert answer["warnings"] == ["no certificate of the chain issued the host's certificate"]


def _refusals(openssl: OpenSsl, server: Pair, tmp_path: Path) -> dict[str, list[str | Path]]:
    """Give an installation for each of the platform's names that refuses one."""
    bad = tmp_path / "bad.pem"
    bad.write_bytes(b"nothing")
    ec = openssl.key("EC", "-pkeyopt", "ec_paramgen_curve:P-256", algorithm="EC")
    short = openssl.key("rsa1024", "-pkeyopt", "rsa_keygen_bits:1024")
    multi = openssl.key(
        "multi", "-pkeyopt", "rsa_keygen_bits:2048", "-pkeyopt", "rsa_keygen_primes:3"
    )
    early = openssl.certificate("early", openssl.key(), start="20900201000000Z")
    late = openssl.certificate("expired", openssl.key(), end="20200201123000Z")
    sha1 = openssl.certificate("signature-sha1", openssl.key(), options=("-md", "sha1"))
    return {
        "SERVER_CERTIFICATE_KEY_INVALID": _install(Pair(server.certificate, bad)),
        "SERVER_CERTIFICATE_KEY_MISMATCH": _install(Pair(server.certificate, openssl.key("other"))),
        "SERVER_CERTIFICATE_KEY_ALGORITHM_NOT_SUPPORTED": _install(Pair(server.certificate, ec)),
        "SERVER_CERTIFICATE_KEY_RSA_LENGTH_NOT_SUPPORTED": _install(
            Pair(server.certificate, short)
        ),
        "SERVER_CERTIFICATE_KEY_RSA_MULTI_NOT_SUPPORTED": _install(Pair(server.certificate, multi)),
        "SERVER_CERTIFICATE_INVALID": _install(Pair(bad, server.key)),
        "SERVER_CERTIFICATE_EXPIRED": _install(late),
        "SERVER_CERTIFICATE_NOT_VALID_YET": _install(early),
        "SERVER_CERTIFICATE_SIGNATURE_NOT_SUPPORTED": _install(sha1),
        "SERVER_CERTIFICATE_CHAIN_INVALID": _install(server, "--certificate-chain", bad),
    }


@pytest.mark.parametrize(
    "name,code",
    [
        (one.name, one.exit_code)
        for one in CertificateError.__subclasses__()
        if "SERVER" in one.name
    ],
)
def test_install_refuses_with_the_platforms_name(  # noqa: PLR0913 - fixtures and the table's columns
    on_host: Run,
    host: HostPaths,
    openssl: OpenSsl,
    server: Pair,
    tmp_path: Path,
    *,
    name: str,
    code: int,
) -> None:
    """Each refusal has the platform's name, its own exit code, one sentence and advice; nothing changes."""
    before = _server_pem(host).read_bytes()
    words = _refusals(openssl, server, tmp_path)[name]
    done = on_host(*words)
    assert (done.returncode, done.stdout) == (code, "")
    assert re.fullmatch(rf"certfs: {name}: [^\n]{{20,}}\n", done.stderr)
    answer = json.loads(on_host(*words, "--json").stdout)
    assert (answer["error"], answer["exit_code"]) == (name, code)
    assert answer["message"]
    assert answer["advice"]
    assert _server_pem(host).read_bytes() == before
    assert len(list(host.xensource.iterdir())) == 2


def _named(tmp_path: Path, openssl: OpenSsl, server: Pair) -> dict[str, Path]:
    """Give a file of each kind that an admin may take for another, in a directory with a blank in its name."""
    directory = tmp_path / "two words"
    directory.mkdir()
    pem, key = server.certificate.read_bytes(), server.key.read_bytes()
    crl = b"-----BEGIN X509 CRL-----\nMAAA\n-----END X509 CRL-----\n"
    contents = {
        "certificate.der": openssl.run("x509", "-in", server.certificate, "-outform", "DER"),
        "key.der": openssl.run("pkey", "-in", server.key, "-outform", "DER"),
        "p7": openssl.run("crl2pkcs7", "-nocrl", "-certfile", server.certificate),
        "certificate": pem,
        "key": key,
        "crl": crl,
        "request": openssl.run("req", "-new", "-subj", "/CN=x", "-key", server.key),
        "cut certificate": pem[: len(pem) // 2],
        "cut key": key[: len(key) // 2],
        "junk": b"hello\n",
    }
    for name, content in contents.items():
        (directory / name).write_bytes(content)
    return {name: directory / name for name in contents}


@pytest.mark.parametrize(
    "case",
    [
        ("--certificate", "certificate.der", "openssl x509 -inform DER"),
        ("--certificate", "p7", "openssl pkcs7 -print_certs"),
        ("--certificate", "key", "--private-key"),
        ("--certificate", "crl", "pool-install-crl"),
        ("--certificate", "request", "signed by the CA"),
        ("--certificate", "cut certificate", "damaged or cut off"),
        ("--certificate", "junk", "in PEM form"),
        ("--private-key", "key.der", "openssl pkey -inform DER"),
        ("--private-key", "certificate", "--certificate"),
        ("--private-key", "cut key", "copy the file anew"),
        ("--private-key", "junk", "in PEM form"),
        ("--certificate-chain", "certificate.der", "openssl x509 -inform DER"),
        ("--certificate-chain", "p7", "openssl pkcs7 -print_certs"),
        ("--certificate-chain", "crl", "pool-install-crl"),
        ("--certificate-chain", "key", "--private-key"),
        ("certificate-show", "certificate.der", "openssl x509 -inform DER"),
        ("certificate-show", "p7", "openssl pkcs7 -print_certs"),
        ("certificate-show", "crl", "openssl crl"),
        ("certificate-show", "key", "no key"),
        ("pool-install-ca-certificate", "certificate.der", "openssl x509 -inform DER"),
        ("pool-install-ca-certificate", "p7", "openssl pkcs7 -print_certs"),
        ("pool-install-ca-certificate", "crl", "pool-install-crl"),
        ("pool-install-ca-certificate", "key", "secret"),
        ("pool-install-crl", "certificate", "pool-install-ca-certificate"),
    ],
)
def test_the_way_out_that_is_said_works(
    on_host: Run, openssl: OpenSsl, server: Pair, tmp_path: Path, case: tuple[str, str, str]
) -> None:
    """Who gives the wrong file is told what fits that file, and a conversion that is said makes one that is taken."""
    named = _named(tmp_path, openssl, server)
    option, name, expected = case

    def give(file: Path) -> subprocess.CompletedProcess[str]:
        given = {"--certificate": server.certificate, "--private-key": server.key, option: file}
        installing = [
            "host-server-certificate-install",
            *(word for pair in given.items() for word in pair),
        ]
        words: list[str | Path] = [
            option,
            file,
            *(["--name", "x.pem"] if option.startswith("pool") else []),
        ]
        if option == "certificate-show":
            return call_certfs(*words)
        return on_host(*(installing if option.startswith("--") else words))

    done = give(named[name])
    assert done.returncode != 0
    advice = done.stderr.rpartition(": openssl ")
    assert expected in done.stderr
    assert "FILE" not in done.stderr
    if " -out " in advice[2]:
        command = f"openssl {advice[2].splitlines()[0]}"
        subprocess.run(["sh", "-c", command], check=True, cwd=tmp_path, timeout=60)
        again = give(Path(f"{named[name]}.pem"))
        assert again.returncode == 0, again.stderr
    assert (" -out " in advice[2]) == (name.endswith(".der") or name == "p7")


def test_install_does_not_show_the_key(on_host: Run, server: Pair, openssl: OpenSsl) -> None:
    """Neither success nor failure prints anything of a key."""
    for pair in (server, Pair(server.certificate, openssl.key("other"))):
        secrets = pair.key.read_text().splitlines()[1:-1]
        for option in ((), ("--json",), ("--dry-run",)):
            done = on_host(*_install(pair), *option)
            assert not any(line in done.stdout + done.stderr for line in secrets)


def test_install_into_a_missing_directory(server: Pair, tmp_path: Path) -> None:
    """A store that is none is an error that names the path."""
    done = run_certfs(*_install(server), "--store", str(tmp_path))
    assert done.returncode == 4
    assert f"{tmp_path}/xensource: No such file or directory" in done.stderr


# --- reset and refresh ---------------------------------------------------------------------------


def test_reset_makes_a_new_certificate(on_host: Run, host: HostPaths, openssl: OpenSsl) -> None:
    """A reset leaves a new key and a self-signed certificate with another fingerprint."""
    before = openssl.fingerprint(_server_pem(host))
    done = on_host("reset-server-certificate")
    assert done.returncode == 0
    assert openssl.fingerprint(_server_pem(host)) != before
    assert openssl.is_pair(_server_pem(host))
    assert "until it reloads" in done.stderr


def test_refresh_in_two_parts(on_host: Run, host: HostPaths, openssl: OpenSsl) -> None:
    """A refresh says what to do between its two parts, and ends with one trusted certificate."""
    pool = host.xensource / "xapi-pool-tls.pem"
    before = openssl.fingerprint(pool)
    first = on_host("host-refresh-server-certificate")
    assert "run certfs host-refresh-server-certificate --finish" in first.stderr
    assert openssl.fingerprint(pool) != before
    second = on_host("host-refresh-server-certificate", "--finish")
    assert "not trusted any more" in second.stdout
    names = [path.name for path in host.certs_pool.iterdir() if path.suffix == ".pem"]
    assert names == [f"{UUID}.pem"]


def test_refresh_with_reload(on_host: Run, host: HostPaths, tmp_path: Path) -> None:
    """With --reload the command is run between the switch and the end of the old certificate."""
    words = ["--reload", f"cp -r {host.certs_pool} {tmp_path}/seen", "--overlap", "0"]
    answer = _json(on_host("host-refresh-server-certificate", *words, "--json"))
    assert (answer["stage"], answer["changed"], answer["next"]) == ("idle", True, "")
    seen = {path.name for path in (tmp_path / "seen").iterdir()}
    assert seen == {f"{UUID}.pem", f"{UUID}.new.pem"}


@pytest.mark.parametrize("command", ["false", "/no/such/program", "unfinished 'quote"])
def test_reload_that_fails(on_host: Run, host: HostPaths, command: str) -> None:
    """When stunnel could not be made to reload, both certificates stay trusted, and what to do is said."""
    done = on_host("host-refresh-server-certificate", "--reload", command, "--overlap", "0")
    assert done.returncode == 36
    assert "then run certfs host-refresh-server-certificate --finish" in done.stderr
    assert (host.certs_pool / f"{UUID}.new.pem").exists()


@pytest.mark.parametrize("words", [(), ("--reload", "touch reloaded"), ("--distributed",)])
def test_refresh_stops_where_other_hosts_would_refuse_this_one(
    on_host: Run, host: HostPaths, server: Pair, openssl: OpenSsl, words: tuple[str, ...]
) -> None:
    """With other hosts in the pool nothing is put in use or reloaded; the message names the file and the next step."""
    pool = host.xensource / "xapi-pool-tls.pem"
    before = openssl.fingerprint(pool)
    (host.certs_pool / "other.pem").write_bytes(server.certificate.read_bytes())
    done = on_host("host-refresh-server-certificate", *words)
    assert done.returncode == 37
    assert f"{host.certs_pool / f'{UUID}.new.pem'} may not be on the host other" in done.stderr
    assert "host-refresh-server-certificate --distributed --store" in done.stderr
    assert openssl.fingerprint(pool) == before
    assert not Path("reloaded").exists()


def test_refresh_in_a_pool_is_announced_by_a_dry_run(
    on_host: Run, host: HostPaths, server: Pair
) -> None:
    """A dry run says that a refresh will wait for the other hosts."""
    (host.certs_pool / "other.pem").write_bytes(server.certificate.read_bytes())
    done = on_host("host-refresh-server-certificate", "--dry-run")
    assert done.returncode == 0
    assert "another host is in certs-pool" in done.stderr
    assert "--distributed" in done.stderr


def test_refresh_is_not_reloaded_without_a_word_about_the_others(
    on_host: Run, host: HostPaths, server: Pair, tmp_path: Path
) -> None:
    """Also when the key is in use already, --reload takes --distributed while there are other hosts."""
    on_host("host-refresh-server-certificate")
    (host.certs_pool / "other.pem").write_bytes(server.certificate.read_bytes())
    reload = ["--reload", f"touch {tmp_path}/reloaded", "--overlap", "0"]
    assert on_host("host-refresh-server-certificate", *reload).returncode == 37
    assert not (tmp_path / "reloaded").exists()
    assert on_host("host-refresh-server-certificate", "--distributed", *reload).returncode == 0
    assert (tmp_path / "reloaded").exists()


def test_refresh_of_nobody(tmp_path: Path) -> None:
    """Where nothing tells the host's UUID there is nothing to refresh."""
    (tmp_path / "xensource").mkdir()
    done = run_certfs("host-refresh-server-certificate", "--store", str(tmp_path))
    assert done.returncode == 4
    assert "nothing here tells the UUID" in done.stderr


# --- CA certificates -----------------------------------------------------------------------------


def test_authority_comes_and_goes(on_host: Run, authority: Pair) -> None:
    """An installed CA is listed under the file's name, and not any more after its removal."""
    assert (
        on_host("pool-install-ca-certificate", authority.certificate, "--name", "ca.pem").returncode
        == 0
    )
    listed = _json(on_host("pool-certificate-list", "--json"))["certificates"]
    assert [(one["type"], one["name"]) for one in listed] == [
        ("host", "xapi-ssl.pem"),
        ("host_internal", "xapi-pool-tls.pem"),
        ("ca", "ca.pem"),
        ("pool", f"{UUID}.pem"),
    ]
    assert on_host("pool-uninstall-ca-certificate", "ca.pem").returncode == 0
    assert "ca.pem" not in on_host("pool-certificate-list").stdout


def test_names_of_the_platforms_for_authorities(
    on_host: Run, host: HostPaths, authority: Pair, tmp_path: Path
) -> None:
    """Each refusal about a CA certificate has the platform's name and its own exit code."""
    bad = tmp_path / "bad.pem"
    bad.write_bytes(b"nothing")
    install: list[str | Path] = ["pool-install-ca-certificate", authority.certificate, "--name"]
    assert on_host(*install, "ca.pem").returncode == 0
    cases: dict[str, list[str | Path]] = {
        "CERTIFICATE_NAME_INVALID": [*install, ".ca.pem"],
        "CERTIFICATE_ALREADY_EXISTS": [*install, "ca.pem"],
        "CERTIFICATE_DOES_NOT_EXIST": ["pool-uninstall-ca-certificate", "other.pem"],
        "CERTIFICATE_CORRUPT": ["pool-install-ca-certificate", bad],
    }
    codes = {one.name: one.exit_code for one in CertificateError.__subclasses__()}
    for name, words in cases.items():
        done = on_host(*words)
        assert done.returncode == codes[name]
        assert done.stderr.startswith(f"certfs: {name}: ")
        assert json.loads(on_host(*words, "--json").stdout)["error"] == name
    (host.certs / "ca.pem").unlink()
    host.certs.rmdir()
    host.certs.write_bytes(b"")
    assert on_host(*install, "ca.pem").returncode == codes["CERTIFICATE_LIBRARY_CORRUPT"]


def test_file_that_is_too_large(on_host: Run, tmp_path: Path) -> None:
    """A file of more than a mebibyte is refused as such, not cut off (I18)."""
    large = tmp_path / "large.pem"
    large.write_bytes(b"#" * ((1 << 20) + 1))
    done = on_host("pool-install-ca-certificate", large)
    assert done.returncode == 4
    assert "is larger than 1048576 bytes" in done.stderr


def test_uninstall_with_force(on_host: Run) -> None:
    """With --force it is no error that a certificate is not there."""
    assert on_host("pool-uninstall-ca-certificate", "ca.pem", "--force").returncode == 0


# --- showing ---------------------------------------------------------------------------------------


def test_certificate_is_shown_in_full(openssl: OpenSsl, server: Pair) -> None:
    """What is shown of a certificate agrees with what openssl says of it."""
    (one,) = _json(run_certfs("certificate-show", server.certificate, "--json"))["certificates"]
    assert one["subject"] == "CN=host.example"
    assert one["issuer"] == "CN=certfs test root"
    assert one["names"] == ["DNS:host.example"]
    assert (one["not_before"], one["not_after"]) == ("2020-01-01T00:00:00Z", "2099-01-01T00:00:00Z")
    assert (one["key"], one["signature"], one["is_ca"]) == (
        "RSA 2048",
        "sha256WithRSAEncryption",
        False,
    )
    assert one["sha256"] == _bare(openssl.fingerprint(server.certificate))
    serial = openssl.text(server.certificate, "-serial").strip().removeprefix("serial=")
    assert one["serial_number"] == serial
    text = run_certfs("certificate-show", server.certificate).stdout
    both = (one["sha256"], openssl.fingerprint(server.certificate))
    assert all(value in text for value in (one["subject"], one["sha1"], *both))


@pytest.mark.parametrize("kind", pki_deviations.every())
def test_what_only_openssl_loads_is_shown_as_openssl_shows_it(
    tmp_path: Path, openssl: OpenSsl, kind: str
) -> None:
    """I9: of a certificate that strict parsers refuse, everything is shown that can be read, the rest as unknown."""
    der = pki_deviations.every()[kind]
    file = tmp_path / "odd.pem"
    file.write_bytes(render(der))
    (one,) = _json(run_certfs("certificate-show", file, "--json"))["certificates"]
    assert one["sha256"] == hashlib.sha256(der).hexdigest()
    assert (
        openssl.text(file, "-serial").replace("\\\n", "").strip()
        == f"serial={one['serial_number']}"
    )
    with_dates = kind != "dates that are none"
    assert (one["not_before"] is not None) == (one["not_after"] is not None) == with_dates
    text = run_certfs("certificate-show", file)
    assert text.returncode == 0
    assert ("unknown: it" in text.stdout) == (None in one.values())


def test_a_certificate_is_shown_whose_extensions_cannot_be_read(tmp_path: Path) -> None:
    """A name of a kind that is not shown costs nothing; an extension that is there twice or broken is unknown."""
    subject = pki_raw.name(pki_raw.attribute(b"odd"))

    def extension(last: str, value: bytes) -> bytes:
        identifier = pki_raw.element(0x06, bytes.fromhex(f"551d{last}"))
        return pki_raw.sequence(identifier, pki_raw.element(0x04, value))

    other, host = b"\xa3\x02\xa0\x00", b"\x82\x01h"
    names = extension("11", pki_raw.sequence(other, host, b"\x87\x04\x7f\x00\x00\x01"))
    is_ca = extension("13", pki_raw.sequence(b"\x01\x01\xff"))
    cases: list[tuple[list[bytes], list[str] | None, bool | None]] = [
        ([names, is_ca], ["DNS:h", "IP:127.0.0.1"], True),
        ([is_ca, is_ca], [], None),
        ([names, names], None, False),
        ([extension("11", b"\x30\x05\x82")], None, False),
        ([extension("11", pki_raw.sequence(b"\x87\x03abc")), extension("13", b"\x04")], None, None),
    ]
    for extensions, expected, authority in cases:
        file = tmp_path / "odd.pem"
        file.write_bytes(render(pki_raw.certificate(subject, extensions=extensions)))
        (one,) = _json(run_certfs("certificate-show", file, "--json"))["certificates"]
        assert (one["subject"], one["names"], one["is_ca"]) == ("CN=odd", expected, authority)


def test_what_only_openssl_loads_is_installed_and_listed(on_host: Run, tmp_path: Path) -> None:
    """Every command names a certificate that strict parsers refuse like any other (I9)."""
    der = pki_deviations.every()["Latin-1 in a T61String"]
    (tmp_path / "odd.pem").write_bytes(render(der))
    sha256 = hashlib.sha256(der).hexdigest()
    installed = _json(on_host("pool-install-ca-certificate", tmp_path / "odd.pem", "--json"))
    listed = _json(on_host("pool-certificate-list", "--json"))["certificates"]
    (found,) = [file for file in listed if file["name"] == "odd.pem"]
    removed = _json(on_host("pool-uninstall-ca-certificate", "odd.pem", "--json"))
    for certificates in (installed["certificates"], found["certificates"], removed["certificates"]):
        assert [(one["subject"], one["sha256"]) for one in certificates] == [
            ("CN=F\u00fcr uns", sha256)
        ]
    assert found["defect"] == ""


def test_attributes_of_a_name_are_written_as_words(tmp_path: Path) -> None:
    """An attribute without a short name in RFC 4514 is shown by openssl's name for it, and not by a number."""
    words = {"serialNumber": "550405", "organizationIdentifier": "550461", "title": "55040c"}
    attributes = [
        pki_raw.attribute(b"x", identifier=pki_raw.element(0x06, bytes.fromhex(number)))
        for number in words.values()
    ]
    file = tmp_path / "words.pem"
    file.write_bytes(render(pki_raw.certificate(pki_raw.name(*attributes))))
    (one,) = _json(run_certfs("certificate-show", file, "--json"))["certificates"]
    assert one["subject"] == ",".join(f"{word}=x" for word in reversed(words))


def test_key_is_not_shown(server: Pair, tmp_path: Path) -> None:
    """A key beside a certificate is not shown."""
    path = tmp_path / "host.pem"
    path.write_bytes(server.key.read_bytes() + server.certificate.read_bytes())
    done = run_certfs("certificate-show", path)
    assert done.returncode == 0
    assert not any(line in done.stdout for line in server.key.read_text().splitlines())


def test_escape_sequences_in_a_name_do_nothing(openssl: OpenSsl) -> None:
    """What a stranger put into a certificate's name does not reach the terminal as a command."""
    pair = openssl.certificate("red\x1b[31m", openssl.key())
    done = run_certfs("certificate-show", pair.certificate)
    assert "\x1b" not in done.stdout
    assert "red\\x1b[31m" in done.stdout


def test_file_without_a_certificate_cannot_be_shown(server: Pair) -> None:
    """CERTIFICATE_CORRUPT: what holds no certificate cannot be shown."""
    assert run_certfs("certificate-show", server.key).returncode == 33


# --- gencert -----------------------------------------------------------------------------------------


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    """Give a store whose UUID is known, with no certificate in it."""
    (tmp_path / "xensource").mkdir()
    (tmp_path / ".certfs").mkdir()
    (tmp_path / ".certfs/host-uuid").write_text(UUID)
    return tmp_path / "xensource"


@pytest.mark.parametrize("name", ["default", "xapi:pool"])
def test_gencert_generates(inventory: Path, openssl: OpenSsl, name: str) -> None:
    """The platform's generator makes a key and certificate with mode 0400."""
    path = inventory / "new.pem"
    done = run_certfs("gencert", path, name)
    assert done.returncode == 0, done.stderr
    assert openssl.is_pair(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o400
    assert (f"CN = {UUID}" in openssl.text(path, "-subject")) == (name == "xapi:pool")


def test_gencert_with_a_group(inventory: Path) -> None:
    """With the number of a group that group may read the key."""
    need_root()
    path = inventory / "new.pem"
    assert run_certfs("gencert", path, "4242", "default").returncode == 0
    assert (path.stat().st_gid, stat.S_IMODE(path.stat().st_mode)) == (4242, 0o440)


PLATFORM_CALLS = [
    ("-1", "default"),
    ("-1", "xapi:pool"),
    ("default",),
    ("xapi:pool",),
    (),
]
"""What the units of the platform's releases pass after the path (scripts/gencert.service in xapi-project/xen-api)."""


@pytest.mark.parametrize("words", [*PLATFORM_CALLS, ("-2", "default"), ("-001", "xapi:pool")])
def test_gencert_as_the_platform_calls_it(
    inventory: Path, openssl: OpenSsl, words: tuple[str, ...]
) -> None:
    """With the arguments of a release's unit, or another negative group, a key of no group is made."""
    path = inventory / "xapi.pem"
    done = run_certfs("gencert", path, *words)
    assert done.returncode == 0, done.stderr
    assert openssl.is_pair(path)
    assert (path.stat().st_gid, stat.S_IMODE(path.stat().st_mode)) == (os.getgid(), 0o400)
    assert (f"CN = {UUID}" in openssl.text(path, "-subject")) == ("xapi:pool" in words)


@pytest.mark.parametrize(
    "words", [*PLATFORM_CALLS, ("4242", "xapi:pool"), ("nonsense",), ("x", "default"), ("-1", "x")]
)
def test_gencert_does_nothing_where_there_is_a_file(
    inventory: Path, words: tuple[str, ...]
) -> None:
    """Where the file is there nothing is done, whatever is in it and whatever else is said, as on the platform."""
    path = inventory / "there.pem"
    path.write_bytes(b"mine")
    assert run_certfs("gencert", path, *words).returncode == 0
    assert path.read_bytes() == b"mine"


def test_gencert_replaces_a_link_that_leads_nowhere(inventory: Path, openssl: OpenSsl) -> None:
    """A dangling link counts as a missing file and is replaced, as the platform's program does it."""
    path = inventory / "xapi-ssl.pem"
    path.symlink_to("gone.pem")
    assert run_certfs("gencert", path, "-1", "default").returncode == 0
    assert not path.is_symlink()
    assert openssl.is_pair(path)


@pytest.mark.parametrize(
    "words",
    [
        ("other",),
        ("x", "default"),
        ("-x", "default"),
        ("4294967295", "default"),
        ("-1", "other"),
        ("1", "default", "more"),
    ],
)
def test_gencert_with_wrong_words(inventory: Path, words: tuple[str, ...]) -> None:
    """Other words than the platform's program takes are a usage error and make nothing."""
    assert run_certfs("gencert", inventory / "new.pem", *words).returncode == 2
    assert list(inventory.iterdir()) == []


# --- every command -------------------------------------------------------------------------------


CHANGING: list[list[str]] = [
    ["host-server-certificate-install", "--certificate", "C", "--private-key", "K"],
    ["reset-server-certificate"],
    ["host-refresh-server-certificate"],
    ["host-refresh-server-certificate", "--finish"],
    ["pool-install-ca-certificate", "C"],
    ["pool-uninstall-ca-certificate", "there.pem"],
    ["repair"],
]


@pytest.mark.parametrize("words", CHANGING, ids=" ".join)
def test_dry_run_changes_nothing(
    on_host: Run, host: HostPaths, server: Pair, words: list[str]
) -> None:
    """With --dry-run a command checks and tells, and leaves every file and time as it is."""
    assert host.root is not None
    (host.certs / "there.pem").write_bytes(server.certificate.read_bytes())
    (host.certs_pool / f"{UUID}.pem").unlink()
    given: dict[str, str | Path] = {"C": server.certificate, "K": server.key}
    before = {path: path.stat() for path in host.root.rglob("*")}
    done = on_host(*[given.get(word, word) for word in words], "--dry-run")
    assert done.returncode == 0, done.stderr
    after = {path: path.stat() for path in host.root.rglob("*")}
    assert {p: (s.st_ino, s.st_mtime_ns) for p, s in after.items()} == {
        p: (s.st_ino, s.st_mtime_ns) for p, s in before.items()
    }


COMMANDS = [
    "certificate-show",
    "gencert",
    "host-get-server-certificate",
    "host-refresh-server-certificate",
    "host-server-certificate-install",
    "pool-certificate-list",
    "pool-install-ca-certificate",
    "pool-uninstall-ca-certificate",
    "repair",
    "reset-server-certificate",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str) -> None:
    """The help of each command ends with an example of it."""
    done = run_certfs(command, "--help")
    assert re.search(rf"\n  Examples?:\n    certfs {command}", done.stdout)


def test_repair_says_what_it_did_and_what_it_left(
    on_host: Run, host: HostPaths, server: Pair
) -> None:
    """The exit code of repair is that of the worst finding it left; both lists are in its answer."""
    _server_pem(host).unlink()
    (host.certs_pool / "other.new.pem").write_bytes(server.certificate.read_bytes())
    done = on_host("repair", "--json")
    assert done.returncode == 1
    answer = json.loads(done.stdout)
    assert {one["name"] for one in answer["mended"]} == {"SERVER_KEY_MISSING", "BUNDLE_STALE"}
    assert [one["name"] for one in answer["left"]] == ["OTHER_HOST_REFRESH_UNFINISHED"]
    assert "left to you: " in on_host("repair").stdout


def test_two_commands_at_a_time(on_host: Run, host: HostPaths) -> None:
    """While one command changes the host's keys another says so and changes nothing."""
    import fcntl  # noqa: PLC0415 - for this test alone

    fd = os.open(host.xensource, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        done = on_host("host-refresh-server-certificate")
    finally:
        os.close(fd)
    assert done.returncode == 15
    assert "another certfs command is working there" in done.stderr
