"""Which of a node's addresses node ports are served at."""

from __future__ import annotations

import ipaddress
import struct
from socket import AF_INET, AF_INET6

import pytest

from podlane.runtime import netlink as nl
from proxyd.addresses import Local, choose, read_address

pytestmark = pytest.mark.unit

UPLINK, SECOND, BRIDGE = 2, 3, 7
LOCAL = [
    Local("10.5.1.1", BRIDGE),
    Local("192.0.2.20", SECOND),
    Local("192.0.2.10", UPLINK),
    Local("192.0.2.9", UPLINK),
    Local("2001:db8::10", UPLINK),
    Local("fd00:5::1", BRIDGE),
]
NOWHERE: dict[int, str | None] = {AF_INET: None, AF_INET6: None}


@pytest.mark.parametrize(
    ("primary", "sources", "chosen"),
    [
        (["192.0.2.20", "192.0.2.10"], NOWHERE, ("192.0.2.20", "2001:db8::10")),
        (["203.0.113.5", "192.0.2.20"], NOWHERE, ("192.0.2.20", "2001:db8::10")),  # the first is a NAT's
        (["2001:DB8:0::10", "nonsense"], NOWHERE, ("192.0.2.9", "2001:db8::10")),
        (["192.0.2.20"], {AF_INET: "192.0.2.10", AF_INET6: "fd00:5::1"}, ("192.0.2.20", "fd00:5::1")),
        ([], {AF_INET: "192.0.2.10", AF_INET6: "fe80::1"}, ("192.0.2.10", "2001:db8::10")),
        ([], NOWHERE, ("192.0.2.9", "2001:db8::10")),  # the first link's lowest
    ],
)
def test_without_ranges_the_primary_of_each_family(primary, sources, chosen):
    assert choose(LOCAL, [], primary, sources) == chosen
    assert choose(reversed(LOCAL), ["primary"], primary, sources) == chosen


def test_a_family_the_host_has_no_address_of_is_left_out():
    assert choose(LOCAL[:4], [], [], NOWHERE) == ("192.0.2.9",)
    assert choose([], [], ["192.0.2.10"], NOWHERE) == ()


def test_with_ranges_every_local_address_in_them():
    assert choose(LOCAL, ["192.0.2.0/24"], ["192.0.2.20"], NOWHERE) == ("192.0.2.9", "192.0.2.10", "192.0.2.20")
    assert choose(LOCAL, ["10.5.0.0/16", "fd00:5::/64"], [], NOWHERE) == ("10.5.1.1", "fd00:5::1")
    assert len(choose(LOCAL, ["0.0.0.0/0", "::/0"], [], NOWHERE)) == len(LOCAL)
    assert choose(LOCAL, ["198.51.100.0/24"], ["192.0.2.20"], NOWHERE) == ()


def test_primary_and_ranges_together():
    assert choose(LOCAL, ["primary", "10.5.0.0/16"], ["192.0.2.20"], NOWHERE) == (
        "10.5.1.1",
        "192.0.2.20",
        "2001:db8::10",
    )


def body(address, *, local=None, scope=0, flags=0, long_flags=None, link=UPLINK):
    packed = ipaddress.ip_address(address)
    attributes = nl.attr(1, packed.packed)
    if local is not None:
        attributes += nl.attr(2, ipaddress.ip_address(local).packed)
    if long_flags is not None:
        attributes += nl.u32(8, long_flags)
    family = AF_INET if packed.version == 4 else AF_INET6
    return memoryview(struct.pack("=BBBBI", family, 24, flags, scope, link) + attributes)


@pytest.mark.parametrize(
    ("listed", "read"),
    [
        (body("192.0.2.10", local="192.0.2.10"), Local("192.0.2.10", UPLINK)),
        (body("192.0.2.1", local="192.0.2.10"), Local("192.0.2.10", UPLINK)),  # of a point-to-point link: ours
        (body("2001:db8::10"), Local("2001:db8::10", UPLINK)),
        (body("2001:db8::10", flags=0x80, long_flags=0x180), Local("2001:db8::10", UPLINK)),
        (body("2001:db8::10", long_flags=0x40), None),  # still being checked for duplicates
        (body("2001:db8::10", long_flags=0x44), Local("2001:db8::10", UPLINK)),  # but used meanwhile
        (body("2001:db8::10", long_flags=0x48), None),  # a duplicate
        (body("fe80::1", scope=253), None),
        (body("169.254.7.7", local="169.254.7.7"), None),
        (body("127.0.0.1", local="127.0.0.1", scope=254), None),
        (body("127.0.0.5", local="127.0.0.5"), None),
        (body("::1", scope=254), None),
    ],
)
def test_by_what_others_can_reach_the_host(listed, read):
    assert read_address(listed) == read
