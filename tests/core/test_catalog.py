"""The order of a bundle (I5) and the union during a swap (I10), against a naive oracle."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from certfs.core.catalog import Catalog, Change, Source
from certfs.core.certificate import Certificate, Remark, Severity, SourceContent, parse_source
from certfs.core.pem import render
from certfs.core.rope import RopeView
from tests.core.samples import certificate, source
from tests.support import pki

Files = Mapping[tuple[bytes, bool], Sequence[Certificate]]
"""Certificates by file name and whether the file is only held from before a swap."""

_NAMES = [b"a.pem", b"b.pem", b"b.new.pem", b"z.new.pem", b"\xff.pem"]
# Few subjects and dates, so that most certificates meet one of their own subject.
_CERTIFICATES = [
    certificate(f"{subject}{number}", subject=subject, not_before=number % 3)
    for subject in "stu"
    for number in range(4)
]


def in_order(files: Files) -> list[Certificate]:
    """Work out a bundle with nothing but sorting: I5 word for word."""
    keys = sorted(files, key=lambda key: (not key[0].endswith(b".new.pem"), *key))
    written = [each for key in keys for each in files[key]]
    found = list({each.fingerprint: each for each in written}.values())
    result = list(found)
    for subject in {each.subject_key for each in found}:
        places = [at for at, each in enumerate(found) if each.subject_key == subject]
        newest_first = sorted((found[place] for place in places), key=lambda each: -each.not_before)
        for place, each in zip(places, newest_first, strict=True):
            result[place] = each
    return result


def _text(certificates: Sequence[Certificate]) -> bytes:
    return b"".join(each.pem for each in certificates)


_CONTENTS = st.lists(st.sampled_from(_CERTIFICATES), max_size=4).map(lambda each: source(*each))
_CHANGES = st.dictionaries(
    st.sampled_from(_NAMES), st.one_of(st.none(), _CONTENTS), min_size=1, max_size=4
)


class CatalogMachine(RuleBasedStateMachine):
    """Sources come, change and go, swaps begin and end, in any order."""

    @initialize()
    def start(self) -> None:
        """Begin with an empty directory."""
        self.catalog = Catalog()
        self.files: dict[bytes, Source] = {}
        self.held: dict[bytes, Source] = {}
        self.frozen: list[tuple[RopeView, bytes]] = []

    def _expected(self) -> list[Certificate]:
        files = {(name, False): each.content.certificates for name, each in self.files.items()}
        held = {(name, True): each.content.certificates for name, each in self.held.items()}
        return in_order({**files, **held})

    def _check(self, before: Sequence[Certificate], change: Change) -> None:
        after = self._expected()
        prints_before = {each.fingerprint for each in before}
        prints_after = {each.fingerprint for each in after}
        added = [entry.certificate.fingerprint for entry in change.added]
        removed = [entry.certificate.fingerprint for entry in change.removed]
        assert sorted(added) == sorted(prints_after - prints_before)
        assert sorted(removed) == sorted(prints_before - prints_after)
        # A swap with no effect and a change within what is not shown must be quiet (I20).
        if _text(before) != _text(after):
            assert change

    @rule(changes=_CHANGES)
    def update(self, changes: dict[bytes, Source | None]) -> None:
        """Change several sources at once."""
        before = self._expected()
        change = self.catalog.update(changes)
        for name, content in changes.items():
            if content is None:
                self.files.pop(name, None)
            else:
                self.files[name] = content
        self._check(before, change)

    @precondition(lambda self: not self.catalog.is_swapping)
    @rule()
    def hold(self) -> None:
        """Begin a swap; nobody begins one within another."""
        before = self._expected()
        self.catalog.hold()
        self.held = {name: each for name, each in self.files.items() if each.content.certificates}
        assert _text(self._expected()) == _text(before)
        assert self.catalog.is_swapping

    @rule()
    def release(self) -> None:
        """End a swap, or end none."""
        before = self._expected()
        change = self.catalog.release()
        self.held = {}
        self._check(before, change)
        assert not self.catalog.is_swapping

    @rule()
    def freeze(self) -> None:
        """Pin what a reader would have open now."""
        self.frozen.append((self.catalog.snapshot(), _text(self._expected())))

    @invariant()
    def says_what_the_oracle_says(self) -> None:
        """I5: the bytes, the number of certificates, and which source each is taken from."""
        if not hasattr(self, "catalog"):
            return
        expected = self._expected()
        assert b"".join(self.catalog.snapshot()) == _text(expected)
        assert len(self.catalog) == len(expected)
        assert set(self.catalog.names()) == set(self.files)
        for each in _CERTIFICATES:
            holders = sorted(
                (not name.endswith(b".new.pem"), name)
                for held in (self.files, self.held)
                for name, content in held.items()
                if each in content.content.certificates
            )
            owner = holders[0][1] if holders else None
            assert self.catalog.owner(each.fingerprint) == owner

    @invariant()
    def open_files_stay(self) -> None:
        """I2: what was pinned is what it was."""
        for view, content in getattr(self, "frozen", []):
            assert view.read(0, len(content) + 1) == content


TestCatalog = CatalogMachine.TestCase


@given(
    final=st.dictionaries(st.sampled_from(_NAMES), _CONTENTS, max_size=5),
    history=st.lists(_CHANGES, max_size=5),
    order=st.randoms(use_true_random=False),
)
def test_the_same_set_gives_the_same_bytes_whatever_came_before(
    final: dict[bytes, Source], history: list[dict[bytes, Source | None]], order: object
) -> None:
    """I5: two directories with the same files have the same bundle, however they came to be."""
    straight = Catalog()
    straight.update(final)
    winding = Catalog()
    for changes in history:
        winding.update(changes)
    for name in set(winding.names()) - set(final):
        winding.update({name: None})
    names = list(final)
    order.shuffle(names)  # type: ignore[attr-defined]
    for name in names:
        winding.update({name: final[name]})
    assert b"".join(winding.snapshot()) == b"".join(straight.snapshot())


def test_new_pem_comes_first_then_the_names_in_order() -> None:
    """I5: ``*.new.pem`` before all others, bytes compare names."""
    catalog = Catalog()
    names = [b"b.pem", b"\xff.pem", b"a.pem", b"z.new.pem", b"B.pem", b"y.new.pem"]
    catalog.update({name: source(certificate(name.decode("latin-1"))) for name in names})
    in_bundle = [b"y.new.pem", b"z.new.pem", b"B.pem", b"a.pem", b"b.pem", b"\xff.pem"]
    assert catalog.names() == in_bundle
    assert b"".join(catalog.snapshot()) == b"".join(
        f"[{name.decode('latin-1')}]\n".encode() for name in in_bundle
    )


def test_the_live_one_of_a_subject_takes_the_first_place_of_the_subject() -> None:
    """I5: of equal subjects the later notBefore comes first; others keep their places."""
    old = certificate("old", subject="host", not_before=1)
    new = certificate("new", subject="host", not_before=2)
    between = certificate("between")
    catalog = Catalog()
    catalog.update({b"1.pem": source(old), b"2.pem": source(between), b"3.pem": source(new)})
    assert b"".join(catalog.snapshot()) == b"[new]\n[between]\n[old]\n"


def test_a_certificate_that_is_there_twice_is_emitted_once_at_its_first_place() -> None:
    """I5: a duplicate is named after the source that it is taken from."""
    twin, other = certificate("twin"), certificate("other")
    catalog = Catalog()
    catalog.update({b"a.pem": source(other, twin, twin), b"b.pem": source(twin)})
    assert b"".join(catalog.snapshot()) == b"[other]\n[twin]\n"
    assert catalog.owner(twin.fingerprint) == b"a.pem"
    change = catalog.update({b"a.pem": None})
    assert b"".join(catalog.snapshot()) == b"[twin]\n"
    assert [entry.certificate for entry in change.removed] == [other]


def test_a_change_names_the_source_of_each_certificate() -> None:
    """I20: what came in is told with the file that it came from, also where it stands elsewhere."""
    old = certificate("old", subject="host", not_before=1)
    new = certificate("new", subject="host", not_before=2)
    catalog = Catalog()
    catalog.update({b"1.pem": source(old)})
    change = catalog.update({b"2.pem": source(new)})
    assert [(entry.source, entry.certificate) for entry in change.added] == [(b"2.pem", new)]
    assert not change.removed


def test_a_source_that_says_the_same_is_no_change() -> None:
    """I20: reading a file again that holds the same certificates changes nothing."""
    catalog = Catalog()
    content = source(certificate("a"), certificate("b"))
    catalog.update({b"a.pem": content})
    again = Source(content.content, stamp=b"touched")
    assert not catalog.update({b"a.pem": again})
    assert catalog.get(b"a.pem") is again


def test_during_a_swap_nothing_is_lost_and_afterwards_nothing_is_kept() -> None:
    """I10: the union of what was and what is, until the swap ends."""
    old, new = certificate("old"), certificate("new")
    catalog = Catalog()
    catalog.update({b"a.pem": source(old)})
    catalog.hold()
    catalog.update({b"a.pem": None})
    assert b"".join(catalog.snapshot()) == b"[old]\n"
    catalog.update({b"b.pem": source(new)})
    assert b"".join(catalog.snapshot()) == b"[old]\n[new]\n"
    change = catalog.release()
    assert b"".join(catalog.snapshot()) == b"[new]\n"
    assert [entry.certificate for entry in change.removed] == [old]


@pytest.mark.parametrize(
    "severity, expected",
    [(Severity.NOTE, 3), (Severity.WARNING, 2), (Severity.DEFECT, 1)],
)
def test_remarks_can_be_asked_for_by_weight(severity: Severity, expected: int) -> None:
    """I9: every remark is found again with its source, those of a weight and above."""
    remarks = tuple(Remark(each, 1, each.name) for each in Severity)
    catalog = Catalog()
    catalog.update({b"a.pem": Source(SourceContent((), remarks))})
    found = list(catalog.remarks(severity))
    assert len(found) == expected
    assert {name for name, _ in found} == {b"a.pem"}


@pytest.mark.parametrize("damaged_name", [b"a.pem", b"z.pem", b"a.new.pem"])
def test_a_damaged_copy_does_not_hide_the_good_one(damaged_name: bytes, tmp_path: Path) -> None:
    """I4, I5: OpenSSL finds the first of a subject, so one whose own signature is broken comes last, by any name."""
    good = pki.issue("a subject", extensions=False)
    damaged = bytearray(good.der)
    damaged[-1] ^= 1
    catalog = Catalog()
    for name, text in ((damaged_name, render(bytes(damaged))), (b"good.pem", good.pem)):
        catalog.update({name: Source(parse_source(text))})
    bundle, certificate_file = tmp_path / "bundle.pem", tmp_path / "good.pem"
    bundle.write_bytes(b"".join(catalog.snapshot()))
    certificate_file.write_bytes(good.pem)
    assert len(catalog) == 2
    subprocess.run(
        ["openssl", "verify", "-CAfile", bundle, certificate_file],
        check=True,
        capture_output=True,
        timeout=30,
    )


def test_copies_that_change_nothing_are_told_of() -> None:
    """A further copy, one that goes and one that moves are known, though the bundle stays (I20); not in a swap."""
    twin, other = certificate("twin"), certificate("other")
    catalog = Catalog()
    catalog.update({b"a.pem": source(twin)})

    def told(change: Change) -> tuple[list[bytes], list[bytes]]:
        assert (change.added, change.removed) == ((), ())
        return [each.source for each in change.copied], [each.source for each in change.uncopied]

    assert told(catalog.update({b"b.pem": source(twin)})) == ([b"b.pem"], [])
    assert told(catalog.update({b"b.pem": source(twin)})) == ([], [])
    assert told(catalog.update({b"a.pem": None})) == ([], [b"a.pem"])
    assert told(catalog.update({b"b.pem": None, b"c.pem": source(twin)})) == (
        [b"c.pem"],
        [b"b.pem"],
    )
    catalog.hold()
    assert told(catalog.update({b"c.pem": None})) == ([], [])
    assert told(catalog.update({b"c.pem": source(twin)})) == ([], [])
    assert told(catalog.release()) == ([], [])
    change = catalog.update({b"d.pem": source(other)})
    assert (change.copied, change.uncopied) == ((), ())
