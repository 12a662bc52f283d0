"""I6, I9: which files of a directory are sources, and a word on those that were meant to be."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from certfs.core.bundle import BundleSpec
from certfs.store.backing import O_PATH_NOFOLLOW
from certfs.store.overlooked import overlooked
from certfs.store.source_reader import source_names
from tests.support import pki, pki_forms

_SPEC = BundleSpec((b"certs",), (b"bundle.pem",))
_ONE = pki.authority("overlooked")


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    """Open a source directory."""
    opened = os.open(tmp_path, O_PATH_NOFOLLOW | os.O_DIRECTORY)
    yield opened
    os.close(opened)


@pytest.mark.parametrize(
    "name",
    [
        *("x.crt", "x.cer", "x.PEM", "x.Pem", "x.cert", "x.CRT", "x.new.PEM", "x.ca"),
        *("x.pem.txt", "x.pem ", "x.txt", "x", "x.bundle", "x.ca-bundle", "x.key", ".x", "new"),
    ],
)
def test_a_certificate_under_another_ending_is_named(
    name: str, directory: int, tmp_path: Path
) -> None:
    """I9: whoever copied it in finds out why it is not trusted."""
    (tmp_path / name).write_bytes(_ONE.pem)
    ((found, reason),) = overlooked(directory, _SPEC)
    assert found == name.encode()
    assert "does not end in .pem" in reason


@pytest.mark.parametrize("name", ["x.der", "x.cer", "x.crt"])
def test_a_certificate_in_der_is_named(name: str, directory: int, tmp_path: Path) -> None:
    """I9: with the command that converts it."""
    (tmp_path / name).write_bytes(_ONE.der)
    ((_, reason),) = overlooked(directory, _SPEC)
    assert "openssl x509 -inform der" in reason


@pytest.mark.parametrize("target", ["/nowhere", "/dev/zero", "x.pem"])
def test_a_link_with_another_ending_is_named(directory: int, tmp_path: Path, target: str) -> None:
    """I9: without a look at what it leads to, which may not answer."""
    (tmp_path / "link.crt").symlink_to(target)
    ((name, reason),) = overlooked(directory, _SPEC)
    assert (name, reason) == (b"link.crt", "a link that does not end in .pem: no source")


def test_sources_in_a_subdirectory_are_named(directory: int, tmp_path: Path) -> None:
    """I9: a directory of certificates is not searched, and that is said."""
    (tmp_path / "partners").mkdir()
    (tmp_path / "empty").mkdir()
    for name in ("1.pem", "2.pem", "3.crt", "readme"):
        (tmp_path / "partners" / name).write_bytes(_ONE.pem)
    ((found, reason),) = overlooked(directory, _SPEC)
    assert found == b"partners"
    assert "the 3 files" in reason


@pytest.mark.parametrize(
    "content, said",
    [
        (_ONE.pem.replace(b"-----", b"----"), "damaged"),
        (_ONE.pem.decode().encode("utf-16"), "UTF-16"),
        (pki_forms.block(b"PKCS7", b"\x30\x00"), "openssl pkcs7"),
        (_ONE.der.hex().encode(), "dump"),
    ],
)
def test_a_damaged_file_with_another_ending_is_named(
    directory: int, tmp_path: Path, content: bytes, said: str
) -> None:
    """I9: renaming it would not be enough, and that is said at once; of junk nothing is."""
    (tmp_path / "x.cer").write_bytes(content)
    (tmp_path / "junk.cer").write_bytes(b"404 Not Found")
    ((name, reason),) = overlooked(directory, _SPEC)
    assert name == b"x.cer"
    assert said in reason


@pytest.mark.parametrize("name", ["x.tar.gz", "x.TGZ", "x.zip", "x.p12", "x.PFX", "x.jks", "x.tar"])
def test_an_archive_is_named(directory: int, tmp_path: Path, name: str) -> None:
    """I9: by its name alone."""
    (tmp_path / name).write_bytes(b"")
    (tmp_path / f"{name}.old").write_bytes(b"")
    (tmp_path / f"directory.{name}").mkdir()
    ((found, reason),) = overlooked(directory, _SPEC)
    assert found == name.encode()
    assert "no source" in reason


def test_sources_further_down_are_named(directory: int, tmp_path: Path) -> None:
    """I9: also where a whole tree was copied in; directories that are hidden are somebody's own."""
    for place in ("a/b/c", ".git/x"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "x.pem").touch()
    ((name, reason),) = overlooked(directory, _SPEC)
    assert name == b"a"
    assert "the 1 files in it" in reason


def test_nothing_is_said_of_other_files(directory: int, tmp_path: Path) -> None:
    """What a host keeps beside its certificates is no news, and nothing is opened that could block."""
    (tmp_path / "x.pem").write_bytes(_ONE.pem)
    for name in (
        *("x.pem.bak", "x.tmp", "x.pem~", "#x.pem#", ".x.pem.swp", "x.pem.dpkg-old", "x.rpmsave"),
        *("x.old", "x.pem.1", "1a2b3c4d.1", "1a2b3c4d.r0", "x.disabled", "x-old"),
    ):
        (tmp_path / name).write_bytes(_ONE.pem)
    (tmp_path / "readme.crt").write_bytes(b"text")
    (tmp_path / "key.crt").write_bytes(pki_forms.block(b"PRIVATE KEY", b"x"))
    (tmp_path / "1a2b3c4d.0").symlink_to("x.pem")
    (tmp_path / ".#x.crt").symlink_to("ada@host.1:2")
    os.mkfifo(tmp_path / "fifo.crt")
    (tmp_path / "large.crt").touch()
    os.truncate(tmp_path / "large.crt", 1 << 40)
    assert list(overlooked(directory, _SPEC)) == []


def test_a_bundle_in_its_own_source_directory_is_not_overlooked(
    directory: int, tmp_path: Path
) -> None:
    """The plain copy of the bundle itself is no source that somebody meant."""
    (tmp_path / "ca.crt").write_bytes(_ONE.pem)
    assert list(overlooked(directory, BundleSpec((b"certs",), (b"certs", b"ca.crt")))) == []


def test_a_rule_may_name_other_endings(directory: int, tmp_path: Path) -> None:
    """I6: then they are sources like every other, and nothing is said of them."""
    spec = BundleSpec((b"certs",), (b"bundle.pem",), (b".pem", b".crt"))
    for name in ("a.pem", "b.crt", "c.cer"):
        (tmp_path / name).write_bytes(_ONE.pem)
    assert sorted(source_names(directory, spec.is_source)) == [b"a.pem", b"b.crt"]
    ((found, reason),) = overlooked(directory, spec)
    assert (found, ".pem or .crt" in reason) == (b"c.cer", True)


def test_an_editors_lock_link_is_no_source(directory: int, tmp_path: Path) -> None:
    """I6: Emacs makes `.#x.pem`, a link to nothing, while it has x.pem open; a file of that name is a source."""
    (tmp_path / "x.pem").write_bytes(_ONE.pem)
    (tmp_path / ".#x.pem").symlink_to("admin@host.4711:1700000000")
    (tmp_path / ".#file.pem").write_bytes(_ONE.pem)
    assert sorted(source_names(directory)) == [b".#file.pem", b"x.pem"]
