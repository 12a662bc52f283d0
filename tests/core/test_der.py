"""Walking elements as leniently as OpenSSL, and never out of the data."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certfs.core.der import DerError, content_of, encode_element, read_element, read_elements


@pytest.mark.parametrize(
    "data, content",
    [
        (b"\x04\x02ab", b"ab"),
        (b"\x04\x81\x02ab", b"ab"),
        (b"\x04\x84\0\0\0\x02ab", b"ab"),
        (b"\x04\x8a\0\0\0\0\0\0\0\0\0\x02ab", b"ab"),
        (b"\x24\x06\x04\x01a\x04\x01b", b"ab"),
        (b"\x24\x80\x04\x01a\x04\x01b\0\0", b"ab"),
        (b"\x24\x80\x24\x80\x04\x01a\0\0\x04\x02b\0\0\0", b"ab\0"),
        (b"\x3f\x81\x01\x03\x04\x01a", b"a"),
        (b"\x1f\x04\x02ab", b"ab"),
        (b"\x3f\x80\x80\x04\x03\x1f\x04\x00", b""),
        (b"\x24\x00", b""),
    ],
)
def test_a_string_is_read_in_every_encoding(data: bytes, content: bytes) -> None:
    """I4: padded and open lengths and strings in pieces are BER (X.690, 8), which OpenSSL reads."""
    element = read_element(data + b"behind", 0, len(data) + 6)
    assert element.end == len(data)
    assert content_of(data, element) == content


@pytest.mark.parametrize(
    "data, tag",
    [
        (b"\x3f\x10\x00", 0x30),
        (b"\xbf\x00\x00", 0xA0),
        (b"\x1f\x80\x80\x06\x00", 0x06),
        (b"\x1f\x1f\x00", 0x1F),
        (b"\x1f\x81\x02\x00", 0x1F),
    ],
)
def test_a_small_tag_is_the_same_in_several_octets(data: bytes, tag: int) -> None:
    """I4: OpenSSL reads it so, though X.690 (8.1.2.2) has small ones in one octet."""
    assert read_element(data, 0, len(data)).tag == tag


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x30",
        b"\x30\x05\x00",
        b"\x30\x80\x00",
        b"\x30\x80",
        b"\x04\x80\x00\x00",
        b"\x30\x80\x04\x05a",
        b"\x30\x89\x01\0\0\0\0\0\0\0\0",
        b"\x30\x82\x01",
        b"\x30\x84\xff\xff\xff\xff",
        b"\x3f",
        b"\x3f\x81",
        b"\x3f\x81\x81",
        b"\x3f\x81\x01",
    ],
)
def test_what_is_not_an_element_is_an_error(data: bytes) -> None:
    """An element ends within its data."""
    with pytest.raises(DerError):
        read_element(data, 0, len(data))


@given(data=st.binary(max_size=60))
def test_walking_never_leaves_the_data(data: bytes) -> None:
    """Whatever the lengths claim, nothing outside of the parent is read."""
    try:
        parent = read_element(data, 0, len(data))
        for element in read_elements(data, parent):
            assert parent.content <= element.start <= element.content <= element.content_end
            assert element.content_end <= element.end <= parent.content_end
            content_of(data, element)
    except DerError:
        pass


@given(content=st.binary(max_size=300), tag=st.sampled_from([4, 0x0C, 0x30]))
def test_what_is_encoded_is_read_back(content: bytes, tag: int) -> None:
    """DER is the strict form of what is read (X.690, 10.1)."""
    element = read_element(encode_element(tag, content), 0, len(content) + 6)
    assert (element.tag, element.end - element.content) == (tag, len(content))


def test_pieces_within_pieces_have_a_bound() -> None:
    """I18: a string that is nested a thousand times is refused, and not followed."""
    data = b"ab"
    for _ in range(1000):
        data = encode_element(0x24, data)
    with pytest.raises(DerError):
        content_of(data, read_element(data, 0, len(data)))
