"""The judgement that ``certfs list`` shows is made by what makes the bundles (I9)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from certfs.core.certificate import Severity
from certfs.store.inspection import Item, inspect
from certfs.store.source_reader import SourceReader
from tests.store.scenes import Scene, content, scene
from tests.support import pki, pki_forms

ONE, TWO = (pki.authority(f"inspect {number}") for number in range(2))


@pytest.fixture
def live(tmp_path: Path, reader: SourceReader) -> Iterator[Scene]:
    """Give a bundle of an empty directory."""
    made = scene(tmp_path, reader)
    yield made
    made.bundle.close()


def items(live: Scene) -> list[Item]:
    """Judge what the directory holds now."""
    live.bundle.load()
    return list(inspect(live.bundle))


def test_each_certificate_is_there_with_its_source(live: Scene) -> None:
    """I9: which bundle, which file, and the certificate with all that it says."""
    (live.path / "a.pem").write_bytes(ONE.pem)
    (item,) = items(live)
    assert (item.bundle, item.source, item.included) == (b"bundle.pem", b"certs/a.pem", True)
    assert item.details is not None
    assert item.details.subject == ONE.certificate.subject.rfc4514_string()
    assert item.details.not_after == ONE.certificate.not_valid_after_utc


def test_a_duplicate_names_the_file_that_it_is_taken_from(live: Scene) -> None:
    """I9: in another file, or further down in the same."""
    (live.path / "a.pem").write_bytes(ONE.pem + ONE.pem)
    (live.path / "b.new.pem").write_bytes(TWO.pem)
    (live.path / "c.pem").write_bytes(ONE.pem + TWO.pem)
    found = [(item.source, item.included, item.duplicate_of) for item in items(live)]
    assert found == [
        (b"certs/b.new.pem", True, b""),
        (b"certs/a.pem", True, b""),
        (b"certs/a.pem", False, b"certs/a.pem"),
        (b"certs/c.pem", False, b"certs/a.pem"),
        (b"certs/c.pem", False, b"certs/b.new.pem"),
    ]


def test_what_is_no_certificate_has_a_line_and_a_reason(live: Scene) -> None:
    """I9: each block that was left out, and how much that matters."""
    data = ONE.pem + pki_forms.block(b"X509 CRL", b"x") + pki_forms.block(b"CERTIFICATE", b"x")
    (live.path / "a.pem").write_bytes(data)
    _, note, defect = items(live)
    first = len(ONE.pem.splitlines()) + 1
    assert (note.line, note.severity) == (first, Severity.NOTE)
    assert (defect.line, defect.severity) == (first + 3, Severity.DEFECT)
    assert note.details is None


def test_what_is_included_is_what_the_bundle_holds(live: Scene) -> None:
    """I9: every form at once: the list and the bundle agree."""
    for number, form in enumerate(pki_forms.every()):
        (live.path / f"{number:03}.pem").write_bytes(form.data)
    found = items(live)
    included = [item.certificate for item in found if item.included]
    in_bundle = content(live.bundle)
    assert len(included) == live.bundle.generation.certificates
    assert {item.fingerprint.hex() for item in included if item} == set(
        pki.certificates_in(in_bundle)
    )
    assert all(item.reason for item in found if not item.included)
