"""Netlink's bytes: what is packed is what is read, and never longer than a length field can say."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podlane.runtime import netlink as nl

pytestmark = pytest.mark.unit


def test_attributes_are_padded_and_their_length_is_not():
    packed = nl.text(3, "eth0") + nl.u32(4, 7)
    assert packed == b"\x09\x00\x03\x00eth0\0\0\0\0" + b"\x08\x00\x04\x00" + struct.pack("=I", 7)
    found = nl.attribute_map(packed)
    assert (nl.get_text(found[3]), nl.get_u32(found[4])) == ("eth0", 7)


def test_nested_attributes_are_marked_and_read_without_the_mark():
    packed = nl.nest(2, nl.be32(1, 0x01020304), nl.be16(5, 80))
    assert packed[2:4] == struct.pack("=H", 2 | nl.NLA_F_NESTED)
    inner = nl.attribute_map(nl.attribute_map(packed)[2])
    assert (nl.get_be32(inner[1]), nl.get_be16(inner[5])) == (0x01020304, 80)


@pytest.mark.parametrize("garbage", [b"", b"\x01", b"\x02\x00\x01\x00", b"\xff\xff\x01\x00abcd"])
def test_malformed_attributes_end_the_reading(garbage):
    assert nl.attribute_map(garbage) == {}


@given(st.lists(st.tuples(st.integers(1, 0x3FFF), st.binary(max_size=40)), max_size=20))
def test_what_is_packed_is_read(items):
    packed = b"".join(nl.attr(kind, data) for kind, data in items)
    assert [(kind, bytes(data)) for kind, data in nl.attributes(packed)] == items


def test_lists_are_split_where_their_length_field_ends():
    items = [nl.attr(1, bytes(100))] * 2000
    lists = list(nl.lists(3, items))
    assert sum(count for _, count in lists) == 2000
    assert all(len(packed) <= 65535 for packed, _ in lists)
    assert len(lists) == 4
    assert list(nl.lists(3, [])) == []


def test_a_failure_reads_as_a_sentence():
    assert str(nl.Failure(3, 17)) == "file exists"
    assert str(nl.Failure(3, 22, "Invalid prefix")) == "invalid argument (Invalid prefix)"
