"""``certfs export``: what it writes is what openssl and Java read, and nothing is missing while it changes."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from certfs.cli.export import _write
from certfs.core.formats import hash_directory
from certfs.store.atomic import write_atomic
from tests.support import pki
from tests.support.identity import run_certfs
from tests.support.mounts import need_program, need_root

pytestmark = pytest.mark.counted

ONE, TWO = pki.authority("export one"), pki.authority("export two")
USER = 65534
SAME = [pki.authority("same name", key=pki.ec_key(number)) for number in range(3)]


class Exporter:
    """A bundle and a place for what is made of it."""

    def __init__(self, root: Path) -> None:
        self.bundle = root / "ca.pem"
        self.output = root / "out"

    def run(self, form: str, *options: str) -> subprocess.CompletedProcess[str]:
        """Export the bundle."""
        return run_certfs(
            "export", self.bundle, "--format", form, "--output", self.output, *options
        )

    def of(self, form: str, *certificates: pki.Identity, changed: bool = True) -> Path:
        """Export these certificates, which must succeed; return the output."""
        self.bundle.write_bytes(b"".join(one.pem for one in certificates))
        done = self.run(form, "--json")
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout)
        assert (answer["certificates"], answer["changed"]) == (len(certificates), changed)
        return self.output


@pytest.fixture
def exporter(tmp_path: Path) -> Exporter:
    """Give an exporter with nothing in its bundle."""
    return Exporter(tmp_path)


def test_pem_is_the_bundle_and_is_written_only_when_it_changes(exporter: Exporter) -> None:
    """An unchanged bundle leaves the file, its inode and its time as they were."""
    before = exporter.of("pem", ONE, TWO).stat()
    assert exporter.output.read_bytes() == ONE.pem + TWO.pem
    after = exporter.of("pem", ONE, TWO, changed=False).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert exporter.of("pem", TWO).read_bytes() == TWO.pem


def test_keytool_reads_the_trust_store_without_a_password(exporter: Exporter) -> None:
    """Every certificate of the bundle is an entry that Java trusts."""
    need_program("keytool")
    store = exporter.of("pkcs12", ONE, TWO)
    listed = subprocess.run(
        ["keytool", "-list", "-keystore", str(store)],
        input="\n", check=True, capture_output=True, text=True, timeout=60,
    ).stdout  # fmt: skip
    for one in (ONE, TWO):
        assert f"{one.sha256}, " in listed
    assert listed.count("trustedCertEntry") == 2


def test_openssl_verifies_with_the_hash_directory(exporter: Exporter, tmp_path: Path) -> None:
    """A certificate is accepted while its CA is exported, and not afterwards."""
    need_program("openssl")
    leaf = tmp_path / "leaf.pem"
    leaf.write_bytes(pki.issue("leaf", issuer=ONE).pem)

    def accepted() -> bool:
        command = ["openssl", "verify", "-CApath", str(exporter.output), "-no-CAfile", str(leaf)]
        return subprocess.run(command, check=False, capture_output=True, timeout=60).returncode == 0

    exporter.of("hash-directory", ONE, TWO)
    assert accepted()
    exporter.of("hash-directory", TWO)
    assert not accepted()


@pytest.mark.parametrize("after", [[1, 0, 2], [2, 1], [1], [2, 0, 1], []])
def test_no_certificate_is_missing_while_numbers_change(
    exporter: Exporter, after: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each step a reader finds every certificate that was there before and will be there (I1)."""
    directory = exporter.output
    _write("hash-directory", tuple(one.der for one in (TWO, *SAME)), directory)
    wanted = [TWO, *(SAME[number] for number in after)]
    files, _ = hash_directory([one.der for one in wanted])
    seen: list[set[bytes]] = []

    def look() -> None:
        found = set()
        for stem in {name.partition(".")[0] for name in files}:
            number = 0
            while (path := directory / f"{stem}.{number}").exists():
                found.add(path.read_bytes())
                number += 1
        seen.append(found)

    write, unlink = write_atomic, os.unlink

    def watched_write(*args: object, **options: object) -> None:
        write(*args, **options)  # type: ignore[arg-type]
        look()

    def watched_unlink(*args: object, **options: object) -> None:
        unlink(*args, **options)  # type: ignore[arg-type]
        look()

    monkeypatch.setattr("certfs.cli.export.write_atomic", watched_write)
    monkeypatch.setattr(os, "unlink", watched_unlink)
    _write("hash-directory", tuple(one.der for one in wanted), directory)
    assert seen
    assert all(set(files.values()) <= found for found in seen)
    left = {path.name for path in directory.iterdir()} - {".certfs-export"}
    assert left == files.keys()


def test_a_directory_of_others_is_refused(exporter: Exporter) -> None:
    """Nothing that certfs export did not make is replaced."""
    exporter.output.mkdir()
    (exporter.output / "1a2b3c4d.0").write_bytes(ONE.pem)
    exporter.bundle.write_bytes(TWO.pem)
    done = exporter.run("hash-directory")
    assert (done.returncode, done.stdout) == (4, "")
    assert "certfs export did not make it" in done.stderr
    assert (exporter.output / "1a2b3c4d.0").read_bytes() == ONE.pem


def test_a_bundle_that_is_missing_is_an_error_unless_it_may_be(exporter: Exporter) -> None:
    """A mistyped path must not remove trust; an empty bundle must (I7)."""
    exporter.of("pkcs12", ONE)
    exporter.bundle.unlink()
    done = exporter.run("pkcs12")
    assert done.returncode == 4
    assert "--remove-empty" in done.stderr
    assert exporter.output.exists()
    assert exporter.run("pkcs12", "--remove-empty").returncode == 0
    assert not exporter.output.exists()
    exporter.bundle = exporter.bundle.parent / "mistyped" / "ca.pem"
    assert exporter.run("pkcs12", "--remove-empty").returncode == 4


@pytest.mark.parametrize("kind", ["fifo", "directory", "no certificate", "key"])
def test_what_is_no_bundle_is_an_error(exporter: Exporter, kind: str) -> None:
    """Each is one sentence that names the file; nothing is written and nothing waits."""
    if kind == "fifo":
        os.mkfifo(exporter.bundle)
    elif kind == "directory":
        exporter.bundle.mkdir()
    else:
        exporter.bundle.write_bytes(ONE.key_pem if kind == "key" else b"nothing\n")
    done = exporter.run("pem")
    assert done.returncode == 4
    assert str(exporter.bundle) in done.stderr
    assert not exporter.output.exists()


@pytest.mark.parametrize("form", ["pem", "hash-directory"])
def test_root_exports_through_no_link_of_a_user(tmp_path: Path, form: str) -> None:
    """I19: where a user may exchange a directory for a link, root writes, makes and removes nothing behind it."""
    need_root()
    theirs, victim = tmp_path / "theirs", tmp_path / "victim"
    for directory in (theirs, victim):
        directory.mkdir()
    os.chown(theirs, USER, USER)
    (theirs / "link").symlink_to(victim)
    (victim / "out").write_text("precious")
    (tmp_path / "ca.pem").write_bytes(ONE.pem)
    for bundle, *options in (("ca.pem",), ("none.pem", "--remove-empty")):
        for output in ("link/out", "link/new"):
            done = run_certfs(
                "export", tmp_path / bundle, "--format", form, "--output", theirs / output, *options
            )
            assert done.returncode == 4
            assert "link" in done.stderr
    assert [each.name for each in victim.iterdir()] == ["out"]
    assert (victim / "out").read_text() == "precious"
