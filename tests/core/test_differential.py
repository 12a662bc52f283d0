"""I4: what OpenSSL loads from a damaged file is in the bundle, and what is in the bundle OpenSSL loads."""

from __future__ import annotations

import os
import random

import pytest

from tests.support import mutations, pki_deviations, pki_forms
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
