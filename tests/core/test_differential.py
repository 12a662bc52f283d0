"""I4: what OpenSSL loads from a damaged file is in the bundle, and what is in the bundle OpenSSL loads."""

from __future__ import annotations

import os
import random

import pytest

from certfs.core.der import CONSTRUCTED, Element, encode_element, read_element, read_elements, walk
from tests.support import mutations, pki, pki_deviations, pki_forms
from tests.support.openssl_differences import differences

FILES = int(os.environ.get("CERTFS_TEST_DIFFERENTIAL", "300"))
"""How many damaged files are compared; scripts/fuzz compares more, on all processors."""


def test_damaged_files_give_what_openssl_loads() -> None:
    """I4: damaged in their text and in their DER; the only exceptions are those of docs/bundles.md."""
    first = random.SystemRandom().randrange(1 << 32)
    for seed in range(first, first + FILES):
        data = mutations.file_of(seed)
        assert list(differences(data)) == [], data


@pytest.mark.parametrize("form", pki_forms.every(), ids=lambda form: form.name)
def test_every_form_gives_what_openssl_loads(form: pki_forms.Form) -> None:
    """I4: the same for the forms that people and programs leave."""
    assert list(differences(form.data)) == []


@pytest.mark.parametrize("kind", pki_deviations.every())
def test_every_deviation_is_told_from_what_openssl_refuses(kind: str) -> None:
    """I4: with each byte of its first part changed in turn, it is in exactly if OpenSSL loads it."""
    der = pki_deviations.every()[kind]
    for place in range(0, min(len(der), 160), 7):
        damaged = der[:place] + bytes((der[place] ^ 0x01,)) + der[place + 1 :]
        assert list(differences(pki_forms.block(b"CERTIFICATE", damaged))) == [], place


def _rewritten(der: bytes, element: Element, place: int, replacement: bytes) -> bytes:
    """Write an element anew, with something else in the place of the one that starts at ``place``."""
    if element.start == place:
        return replacement
    if not element.tag & CONSTRUCTED:
        return der[element.start : element.end]
    parts = (_rewritten(der, one, place, replacement) for one in read_elements(der, element))
    return encode_element(element.tag, b"".join(parts))


@pytest.mark.parametrize("what", ["emptied", "lost", "twice"])
def test_whatever_part_is_damaged_it_is_told_from_what_openssl_refuses(what: str) -> None:
    """I4: with each element emptied, lost or doubled in turn nothing raises, and it is in if OpenSSL loads it."""
    der = pki.authority("damaged in parts").der
    outermost = read_element(der, 0, len(der))
    for element in walk(der, outermost):
        own = der[element.start : element.end]
        replacement = {"emptied": encode_element(element.tag, b""), "lost": b"", "twice": own * 2}
        damaged = _rewritten(der, outermost, element.start, replacement[what])
        assert list(differences(pki_forms.block(b"CERTIFICATE", damaged))) == [], element
