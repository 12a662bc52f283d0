"""What `certfs pool` makes of files that are not what they should be; the rest is in tests/pool."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from certfs.cli.check import _judge_pool, judge_pool_report
from tests.support import pki
from tests.support.identity import UUID, run_certfs

_CA = pki.authority("engine").pem


@pytest.mark.parametrize(
    "ca, password, said",
    [
        (b"junk", b"secret", "ca: it is no CA certificate in PEM"),
        (b"", b"secret", "ca: it is no CA certificate in PEM"),
        (b"# \xc3\xa4\nno certificate", b"secret", "ca: it is no CA certificate in PEM"),
        (b"\xff\xfe" + _CA, b"secret", "ca: is no text"),
        (_CA, b"\xff\xfe", "password: is no text"),
        (_CA, b"\n", "password: the file is empty"),
    ],
)
@pytest.mark.parametrize("command", [("init", "prod"), ("admit", "prod", UUID)])
def test_a_file_that_is_none_is_named(
    tmp_path: Path, command: tuple[str, ...], ca: bytes, password: bytes, said: str
) -> None:
    """A CA or a password that cannot be used is named before the engine is asked (I22)."""
    (tmp_path / "ca").write_bytes(ca)
    (tmp_path / "password").write_bytes(password)
    options = ("--ca", tmp_path / "ca", "--root-password", tmp_path / "password")
    ended = run_certfs("pool", *command, "--endpoint", "https://127.0.0.1:1", *options)
    assert ended.returncode == 2, ended.stderr
    assert said in ended.stderr
    assert str(tmp_path) in ended.stderr


def test_nobody_waits_for_a_pool_that_there_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--wait on a host that is in no pool changes nothing, and says what to do (I22)."""
    monkeypatch.setenv("CERTFS_POOL_STATE", str(tmp_path / "state"))
    (tmp_path / "stunnel/certs").mkdir(parents=True)
    (tmp_path / "xensource").mkdir()
    (tmp_path / "ca.pem").write_bytes(_CA)
    install = ("pool-install-ca-certificate", tmp_path / "ca.pem", "--store", tmp_path, "--wait")
    ended = run_certfs(*install, "5")
    assert ended.returncode == 50, ended.stderr
    assert "certfs pool join" in ended.stderr
    assert not list((tmp_path / "stunnel/certs").iterdir())


def test_a_join_file_with_a_broken_ca_is_none(tmp_path: Path) -> None:
    """A host does not become a member of an engine that it could never reach (I22)."""
    file = tmp_path / "host.join"
    file.write_text(
        json.dumps(
            {
                "pool": "prod",
                "uuid": UUID,
                "endpoints": ["https://127.0.0.1:1"],
                "ca": "junk",
                "user": "user",
                "password": "secret",
            }
        )
    )
    ended = run_certfs("pool", "join", file, "--state", tmp_path / "state")
    assert ended.returncode == 50, ended.stderr
    assert "no CA certificate in PEM" in ended.stderr
    assert not (tmp_path / "state").exists()


def test_check_names_what_a_pool_process_says(tmp_path: Path) -> None:
    """Each state that wants an admin, each name that differs, and each file set aside is a finding (I22)."""
    (tmp_path / "aside/certs").mkdir(parents=True)
    (tmp_path / "aside/certs/old.pem").touch()
    report = {
        "mountpoint": "/srv/tls",
        "state": "held",
        "reason": "certs: 5 of 6 names are gone at once",
        "drift": {"certs": ["local.pem"]},
        "refused": {"certs-pool": {"x.pem": "it is a CA's"}},
    }
    found = {(each.name, each.file) for each in judge_pool_report(report, str(tmp_path))}
    assert found == {
        ("POOL_HELD", "/srv/tls/stunnel"),
        ("POOL_DRIFT", "/srv/tls/stunnel/certs/local.pem"),
        ("POOL_REFUSED", "/srv/tls/stunnel/certs-pool/x.pem"),
        ("POOL_SET_ASIDE", f"{tmp_path}/aside/certs/old.pem"),
    }
    calm = {**report, "state": "in sync", "drift": {}, "refused": {}}
    assert not list(judge_pool_report(calm, str(tmp_path / "nothing")))


def test_check_names_a_pool_process_that_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that is in a pool and whose process does not run is a finding (I22)."""
    assert not list(_judge_pool(None))
    (tmp_path / "membership.json").touch()
    monkeypatch.setenv("CERTFS_POOL_STATE", str(tmp_path))
    (found,) = _judge_pool(None)
    assert found.name == "POOL_NOT_RUNNING"
    assert "does not run" in found.what
