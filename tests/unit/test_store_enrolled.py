"""Records of enrolled hosts, read."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network

import pytest

from podlane.store.enrolled import HostRecord, read_record
from podlane.store.interface import KeyValue

pytestmark = pytest.mark.unit


def kv(value: str) -> KeyValue:
    return KeyValue("/podlane-admin/enrolled/nodes/n1", value.encode(), 1, 1, 1)


def test_a_record_says_which_networks_are_a_nodes() -> None:
    record = read_record(kv('{"addresses":["192.168.64.11"],"subnets":"10.5.3.0-24&fd00:5:3::-64"}'))
    assert record.networks() == (IPv4Network("10.5.3.0/24"), IPv6Network("fd00:5:3::/64"))
    assert HostRecord().networks() == ()


@pytest.mark.parametrize("value", ["{", "[]", '{"addresses":["ten"]}', '{"subnets":"10.5.3.7-24"}', '{"addresses":7}'])
def test_what_is_no_record_is_one_kind_of_error(value: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_record(kv(value))
