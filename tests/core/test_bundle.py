"""Which names are sources, and how one rule stands for many bundles."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certfs.core.bundle import BundleSpec, is_source_name

_PATTERN = BundleSpec((b"trusted-certs", b"ca-*"), (b"trusted-certs", b"ca-bundle-*.pem"))


@pytest.mark.parametrize("name", [b"a.pem", b"x.new.pem", b".pem", b"a b.pem", b"\xff\n.pem"])
def test_a_name_that_ends_in_pem_can_be_a_source(name: bytes) -> None:
    """I6: the suffix alone decides, whatever bytes are before it."""
    assert is_source_name(name)


@pytest.mark.parametrize(
    "name", [b"a.tmp", b"a.pem.bak", b"1a2b3c4d.0", b"a.PEM", b"pem", b"a.pem ", b""]
)
def test_any_other_name_is_no_source(name: bytes) -> None:
    """I6: temporary files, backups and hash links are none."""
    assert not is_source_name(name)


def test_a_pattern_names_the_bundle_after_the_directory() -> None:
    """A directory that matches gives the bundle whose name has the same middle."""
    assert _PATTERN.is_pattern
    assert _PATTERN.expand(b"ca-general") == BundleSpec(
        (b"trusted-certs", b"ca-general"), (b"trusted-certs", b"ca-bundle-general.pem")
    )


@pytest.mark.parametrize("directory", [b"ca-", b"ca", b"xca-a", b"pinned-a", b""])
def test_a_name_that_does_not_match_gives_no_bundle(directory: bytes) -> None:
    """The star stands for at least one character, and the rest must be there."""
    assert _PATTERN.expand(directory) is None


def test_head_and_tail_of_a_pattern_may_not_overlap() -> None:
    """``a*a`` does not match ``a``: one character cannot be both."""
    spec = BundleSpec((b"a*a",), (b"*.pem",))
    assert spec.expand(b"a") is None
    assert spec.expand(b"aa") is None
    assert spec.expand(b"aba") == BundleSpec((b"aba",), (b"b.pem",))


_NAMES = st.binary(min_size=1, max_size=5).filter(lambda name: b"/" not in name)


@given(head=_NAMES.filter(lambda name: b"*" not in name), middle=_NAMES)
def test_different_directories_give_different_bundles(head: bytes, middle: bytes) -> None:
    """What stands for the star can be read off the bundle's name again."""
    spec = BundleSpec((b"d", head + b"*"), (b"d", b"bundle-*.pem"))
    expanded = spec.expand(head + middle)
    assert expanded is not None
    assert expanded.source == (b"d", head + middle)
    assert expanded.bundle == (b"d", b"bundle-" + middle + b".pem")
