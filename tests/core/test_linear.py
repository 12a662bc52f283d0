"""I18: no step is quadratic. Work is counted, or the processor's time: on a shared machine a clock proves nothing."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from certfs.core.catalog import Catalog, Source
from certfs.core.certificate import parse_source
from certfs.core.pem import find_blocks
from tests.core.samples import certificate, source
from tests.support.counting import CountedBytes, calls_of

pytestmark = pytest.mark.uncounted

_HOSTILE = {
    "BEGIN only": b"-----BEGIN A-----",
    "BEGIN lines": b"-----BEGIN A-----\n",
    "END only": b"-----END A-----",
    "unfinished BEGIN": b"-----BEGIN ",
    "dashes": b"-",
    "no newline at all": b"-----BEGIN A-----MAA=-----END A-----",
    "text between": b"-----BEGIN A-----\nMAA=\n-----END A-----text",
    "carriage returns": b"\r",
    "empty lines": b"\n",
    "loose base64": b"MIIBAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\n",
    "base64 without an end": b"MIIBAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
    "damaged markers": b"--BEGIN CERTIFICATE--\n",
    "base64 and damaged markers": b"MIIB" * 40 + b"\n" + b"--END CERTIFICATE--\n" * 40,
    "certificates within lines": b"x: MIIBIjCBygAwIBAMIIB1jCCAXygAwIBA\n",
    "certificates within a line": b"x:MIIB1jCCAXygAwIBA",
    "BEGIN within a line": b"-----BEGIN A-----\nx-----BEGIN A-----\n",
    "END of another label": b"-----BEGIN A-----\nx-----END B-----\n",
    "NULs": b"\0",
    "NULs in lines": b"text\0text\n",
    "high bytes": b"\xa0\n",
    "controls": b"\x01",
    "controls between blocks": b"-----BEGIN A-----\n-----END A-----\n" + b"\x01" * 60,
    "dumps cut short": b"30 82 01 22 30 82 01 49 a0 03 ",
    "dumps": b"30 82 01 22 30 82 01 49 a0 03 02 01\n",
    "dumps of decimals": b"48, 130, 1, 22, 48, 130, 1, 2, 160, 3,",
    "uuencode": b"begin 644 x\n",
    "uuencode without an end": b"\nbegin 644 xxxxxxxxxxxxxxxxxxxxxxx",
    "printed text": b"Certificate:\n  Data:\n",
    "printed text and certificates": b"Certificate:\n  Data:\n" * 3
    + b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n",
    "blank lines between base64": b"MIIBAAAAAAAAAAAAAAAAAA\n\n\n\n",
    "empty certificates": b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n",
}
_SMALL, _LARGE = 20_000, 200_000


def _data(pattern: bytes, size: int) -> bytes:
    return pattern * (size // len(pattern))


@pytest.mark.parametrize("pattern", _HOSTILE.values(), ids=_HOSTILE)
def test_searching_touches_each_byte_a_few_times(pattern: bytes) -> None:
    """I18: what is searched, counted and cut grows as the text does, whatever the text is."""

    def touched(size: int) -> int:
        data = CountedBytes(_data(pattern, size))
        for _ in find_blocks(data):
            pass
        return data.touched

    assert touched(_LARGE) <= 4 * _LARGE
    assert touched(_LARGE) <= 11 * touched(_SMALL) + 100


@pytest.mark.parametrize(
    "pattern", [b"\t", b" ", b" " * 63 + b"\n", b".", b"0", b"30", b"48 ", b"-"]
)
def test_a_search_without_a_find_is_over_at_once(pattern: bytes) -> None:
    """I18: no other thread has its turn meanwhile, so a file of blanks must not take the 0.4 s that it once did."""
    data = _data(pattern, 1 << 20)
    began = time.thread_time()
    assert not list(find_blocks(data))
    assert time.thread_time() - began < 0.1


def test_markers_behind_loose_base64_are_looked_at_once() -> None:
    """I18: what is between the base64 and each damaged marker behind it is not copied for each of them."""

    def touched(size: int) -> int:
        data = CountedBytes(b"MIIB" * 40 + b"\n" + _data(b"--END CERTIFICATE--\n", size))
        for _ in find_blocks(data):
            pass
        return data.touched

    assert touched(_LARGE) <= 11 * touched(_SMALL) + 1000


@pytest.mark.parametrize("pattern", _HOSTILE.values(), ids=_HOSTILE)
def test_judging_takes_calls_in_proportion(pattern: bytes) -> None:
    """I18: ten times the text is ten times the work."""
    small = calls_of(lambda: parse_source(_data(pattern, _SMALL)))
    large = calls_of(lambda: parse_source(_data(pattern, _LARGE)))
    assert large <= 12 * small + 1000


@pytest.mark.parametrize("pattern", _HOSTILE.values(), ids=_HOSTILE)
def test_remarks_on_one_source_are_few(pattern: bytes) -> None:
    """I18: a file of a MiB cannot fill the log or the memory with reasons."""
    content = parse_source(_data(pattern, 1 << 20))
    assert len(content.remarks) <= 51
    assert all(len(remark.reason) < 200 for remark in content.remarks)


def _all_different(count: int) -> dict[bytes, Source]:
    return {b"%08d.pem" % at: source(certificate(f"c{at}")) for at in range(count)}


def _one_subject(count: int) -> dict[bytes, Source]:
    return {
        b"%08d.pem" % at: source(certificate(f"c{at}", subject="s", not_before=at % 97))
        for at in range(count)
    }


def _one_certificate(count: int) -> dict[bytes, Source]:
    twin = certificate("twin")
    return {b"%08d.pem" % at: source(twin) for at in range(count)}


def _one_file(count: int) -> dict[bytes, Source]:
    return {b"a.pem": source(*(certificate(f"c{at}") for at in range(count)))}


@pytest.mark.parametrize("sources", [_all_different, _one_subject, _one_certificate, _one_file])
def test_loading_a_directory_is_linear(sources: Callable[[int], dict[bytes, Source]]) -> None:
    """I18: ten times the sources take about ten times the calls, whatever they have in common."""

    def load(count: int) -> int:
        files = sources(count)
        return calls_of(lambda: Catalog().update(files))

    assert load(8_000) <= 14 * load(800)


@pytest.mark.parametrize("sources", [_all_different, _one_file])
def test_a_change_costs_what_it_touches(sources: Callable[[int], dict[bytes, Source]]) -> None:
    """I18: copying one more certificate into a directory costs the same for 100 and for 10,000."""

    def change(count: int) -> int:
        catalog = Catalog()
        catalog.update(sources(count))
        catalog.snapshot()
        return calls_of(lambda: catalog.update({b"x.pem": source(certificate("new"))}))

    assert change(10_000) <= 2 * change(100) + 100


def test_a_swap_of_a_large_directory_is_linear() -> None:
    """I10, I18: beginning and ending a swap costs the directory once."""

    def swap(count: int) -> int:
        catalog = Catalog()
        catalog.update(_all_different(count))

        def work() -> None:
            catalog.hold()
            catalog.release()

        return calls_of(work)

    assert swap(8_000) <= 14 * swap(800)
