"""What `certfs pool` makes of files that are not what they should be; the rest is in tests/pool."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from certfs.cli.check import _judge, _judge_pool, judge_pool_report
from tests.support import pki
from tests.support.identity import UUID, run_certfs

_CA = pki.authority("engine").pem
_JOIN = {
    "pool": "prod",
    "uuid": UUID,
    "endpoints": ["https://127.0.0.1:1"],
    "ca": _CA.decode(),
    "user": "user",
    "password": "secret",
}
_SIGNER = b"admin ssh-ed25519 " + base64.b64encode(
    b"\0\0\0\x0bssh-ed25519\0\0\0\x20" + bytes(range(32))
)


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
    file.write_text(json.dumps({**_JOIN, "ca": "junk"}))
    ended = run_certfs("pool", "join", file, "--state", tmp_path / "state")
    assert ended.returncode == 50, ended.stderr
    assert "no CA certificate in PEM" in ended.stderr
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    "listed, mode, said",
    [
        (None, 0, "No such file"),
        (b"", 0o644, "it names no key for certfs-pool"),
        (b"admin ssh-ed25519 AAAA\n", 0o644, "line 1: its key cannot be read"),
        (b"\xff\n", 0o644, "ssh-keygen(1)"),
        (_SIGNER, 0o664, "another user can write to it"),
        (_SIGNER, 0o646, "another user can write to it"),
        (_SIGNER, 0o644, "/nowhere"),
    ],
)
def test_a_list_of_signers_that_cannot_be_used_is_named(
    tmp_path: Path, listed: bytes | None, mode: int, said: str
) -> None:
    """A host that is to ask for approvals starts with a list that is its admin's alone, or not at all (I22)."""
    state, signers, config = (tmp_path / name for name in ("state", "signers", "certfs.toml"))
    state.mkdir(mode=0o700)
    (state / "membership.json").write_text(json.dumps(_JOIN))
    config.write_text(f'[pool]\nrequire_signature = true\nsigners = "{signers}"\n')
    if listed is not None:
        signers.write_bytes(listed)
        signers.chmod(mode)
    run = ("pool", "run", "--state", state, "--config", config, "--store", "/nowhere", tmp_path)
    ended = run_certfs(*run)
    assert ended.returncode in {3, 4}, ended.stderr
    assert said in ended.stderr
    assert (str(signers) in ended.stderr) == (said != "/nowhere")


def test_check_names_what_a_pool_process_says(tmp_path: Path) -> None:
    """Each state that wants an admin, each name that differs, and each file set aside is a finding (I22)."""
    (tmp_path / "aside/certs").mkdir(parents=True)
    (tmp_path / "aside/certs/old.pem").touch()
    report = {
        "mountpoint": "/srv/tls",
        "state": "held",
        "reason": "certs: 5 of 6 names gone at once",
        "disconnected_since": None,
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
    away = {**report, "state": "disconnected", "disconnected_since": 1.0}
    assert any(
        each.name == "POOL_DISCONNECTED" and "disconnected since 1970" in each.what
        for each in judge_pool_report(away, str(tmp_path))
    )
    calm = {**report, "state": "in sync", "drift": {}, "refused": {}}
    assert not list(judge_pool_report(calm, str(tmp_path / "nothing")))


def test_check_advises_what_helps(tmp_path: Path) -> None:
    """A sync is advised for what the pool has, not for what only this host has: it would leave that as it is (I22)."""
    report = {
        "mountpoint": "/srv/tls",
        "state": "in sync",
        "reason": "",
        "disconnected_since": None,
        "drift": {"certs": ["link.pem", "own.pem", "old.pem"], "certs-pool": ["x.pem"]},
        "only_here": {
            "certs": {"link.pem": "it is a symbolic link", "own.pem": ""},
            "certs-pool": {"x.pem": ""},
        },
        "refused": {},
    }
    found = {Path(each.file).name: each for each in judge_pool_report(report, str(tmp_path))}
    assert {name for name, each in found.items() if "pool sync" in each.mend} == {"old.pem"}
    assert {name for name, each in found.items() if "pool publish" in each.mend} == {
        "old.pem",
        "own.pem",
    }
    assert all("remove it" in found[name].mend for name in ("link.pem", "own.pem", "x.pem"))
    assert "it is a symbolic link" in found["link.pem"].what


def test_check_names_a_swap_that_was_left_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A D.bk that nobody ends, which the pool process ignores after 30 s, is a finding (I10, I22)."""
    monkeypatch.setattr("certfs.identity.leftovers._SETTLED_SECONDS", -1.0)
    for directory in ("stunnel/certs", "stunnel/certs-pool", "xensource", "stunnel/certs.bk"):
        (tmp_path / directory).mkdir(parents=True)
    found = {(each.name, each.file) for each in _judge(None, str(tmp_path), None)}
    assert ("LEFTOVER_BACKUP_DIRECTORY", f"{tmp_path}/stunnel/certs.bk") in found


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
