"""Which conntrack entries are stale."""

from __future__ import annotations

import ipaddress

import pytest

from podlane.runtime import netlink as nl
from proxyd.conntrack import Flow, delete_message, is_stale, read_flow
from proxyd.tables import Frontend, Target

pytestmark = pytest.mark.unit

VIP = "10.96.0.1"
DNS, WEB = Frontend(VIP, "UDP", 53), Frontend(VIP, "TCP", 80)
POD, GONE = Target("10.5.1.2", 5353), Target("10.5.1.3", 5353)
RANGE = [ipaddress.IPv4Network("10.96.0.0/16")]


@pytest.mark.parametrize(
    ("flow", "stale"),
    [
        (Flow(DNS, POD, True), False),
        (Flow(DNS, GONE, True), True),
        (Flow(DNS, Target(POD.address, 5354), True), True),  # the port counts
        (Flow(DNS, Target(VIP, 53), True), True),  # never translated
        (Flow(WEB, GONE, True), False),  # TCP is left to end by itself
        (Flow(WEB, GONE, False), True),  # but for a client that nobody has answered yet
        (Flow(WEB, Target("10.5.1.2", 8080), False), False),
        (Flow(WEB, Target(VIP, 80), True), True),
        (Flow(Frontend("192.0.2.1", "UDP", 53), Target("192.0.2.1", 53), True), False),  # not ours
        (Flow(Frontend(VIP, "UDP", 54), Target(VIP, 54), True), False),
    ],
)
def test_entries_of_the_frontends_asked_for(flow, stale):
    assert is_stale(flow, {DNS: {POD}, WEB: {Target("10.5.1.2", 8080)}}) is stale


@pytest.mark.parametrize(
    ("flow", "stale"),
    [
        (Flow(DNS, POD, True), False),
        (Flow(Frontend("10.96.9.9", "UDP", 53), GONE, True), True),
        (Flow(Frontend("10.96.9.9", "TCP", 80), GONE, True), False),
        (Flow(Frontend("10.97.9.9", "UDP", 53), GONE, True), False),
    ],
)
def test_with_ranges_also_those_nobody_serves(flow, stale):
    assert is_stale(flow, {DNS: {POD}}, RANGE) is stale


def test_to_zero_every_udp_entry_is_stale():
    assert is_stale(Flow(DNS, POD, True), {DNS: frozenset()})


def ends(kind, source, destination, protocol, ports):
    addresses = nl.attr(1, ipaddress.IPv4Address(source).packed) + nl.attr(2, ipaddress.IPv4Address(destination).packed)
    ports = nl.u8(1, protocol) + nl.be16(2, ports[0]) + nl.be16(3, ports[1])
    return nl.nest(kind, nl.nest(1, addresses), nl.nest(2, ports))


def entry(protocol=17, status=0):
    return memoryview(
        b"\x02\0\0\0"
        + ends(1, "10.5.1.9", VIP, protocol, (40000, 53))
        + ends(2, "10.5.1.2", "10.5.1.1", protocol, (5353, 40000))
        + nl.be32(3, status)
        + nl.be32(12, 7)
    )


def test_a_listed_entry_is_read_and_named_again():
    assert read_flow(entry(status=0b1001)) == Flow(DNS, POD, answered=False)
    assert read_flow(entry(status=0b1011)) == Flow(DNS, POD, answered=True)
    body = nl.attribute_map(delete_message(entry()).body[4:])
    assert set(body) == {1, 12}  # its tuple and its id: a successor with the same tuple is not hit
    assert bytes(body[1]) == bytes(nl.attribute_map(entry()[4:])[1])


def test_other_protocols_and_halves_are_not_flows():
    assert read_flow(entry(protocol=1)) is None
    assert read_flow(memoryview(b"\x02\0\0\0" + nl.be32(12, 7))) is None
