"""Which conntrack entries are stale, what is asked of the kernel to find them, and how entries are read."""

from __future__ import annotations

import ipaddress
from socket import AF_INET, AF_INET6

import pytest

from podlane.runtime import netlink as nl
from proxyd.conntrack import is_stale, requests
from proxyd.ctmsg import Flow, Request, delete_message, list_message, read_counters, read_flow
from proxyd.tables import Frontend, Target

pytestmark = pytest.mark.unit

VIP, VIP6 = "10.96.0.1", "fd00:96::1"
DNS, WEB, SIG = Frontend(VIP, "UDP", 53), Frontend(VIP, "TCP", 80), Frontend(VIP, "SCTP", 3868)
DNS6, WEB6 = Frontend(VIP6, "UDP", 53), Frontend(VIP6, "TCP", 80)
POD, GONE = Target("10.5.1.2", 5353), Target("10.5.1.3", 5353)
POD6, GONE6 = Target("fd00:5::2", 5353), Target("fd00:5::3", 5353)
RANGE = [ipaddress.ip_network("10.96.0.0/16"), ipaddress.ip_network("fd00:96::/112")]
SERVED = {
    DNS: {POD},
    DNS6: {POD6},
    WEB: {Target("10.5.1.2", 8080)},
    SIG: {Target("10.5.1.2", 3868)},
}


@pytest.mark.parametrize(
    ("flow", "stale"),
    [
        (Flow(DNS, POD, True), False),
        (Flow(DNS, GONE, True), True),
        (Flow(DNS, Target(POD.address, 5354), True), True),  # the port counts
        (Flow(DNS, Target(VIP, 53), True), True),  # never translated
        (Flow(DNS6, POD6, True), False),
        (Flow(DNS6, GONE6, True), True),
        (Flow(DNS6, Target(VIP6, 53), False), True),
        (Flow(WEB, GONE, True), False),  # TCP is left to end by itself
        (Flow(WEB, GONE, True, reset=True), True),  # what remains of it would lead a new one from the same port astray
        (Flow(WEB, GONE, False), True),  # nor must a client wait whom nobody has answered yet
        (Flow(WEB, Target("10.5.1.2", 8080), False), False),
        (Flow(WEB, Target(VIP, 80), True, reset=True), True),
        (Flow(WEB, Target(VIP, 80), True), False),  # to who had the address, or the port, before
        (Flow(SIG, GONE, True), False),
        (Flow(SIG, GONE, False), True),
        (Flow(Frontend("192.0.2.1", "UDP", 53), Target("192.0.2.1", 53), True), False),  # not ours
        (Flow(Frontend(VIP, "UDP", 54), Target(VIP, 54), True), False),
    ],
)
def test_entries_of_the_frontends_asked_for(flow, stale):
    assert is_stale(flow, SERVED) is stale


@pytest.mark.parametrize(
    ("flow", "stale"),
    [
        (Flow(DNS, POD, True), False),
        (Flow(Frontend("10.96.9.9", "UDP", 53), GONE, True), True),
        (Flow(Frontend("10.96.9.9", "TCP", 80), GONE, True), False),
        (Flow(Frontend("10.97.9.9", "UDP", 53), GONE, True), False),
        (Flow(Frontend("fd00:96::9", "UDP", 53), GONE6, True), True),
        (Flow(Frontend("fd00:97::9", "UDP", 53), GONE6, True), False),
    ],
)
def test_with_ranges_also_those_nobody_serves(flow, stale):
    assert is_stale(flow, {DNS: {POD}}, RANGE) is stale


def test_to_zero_every_udp_entry_is_stale():
    assert is_stale(Flow(DNS, POD, True), {DNS: frozenset()})


# --- what is asked ---------------------------------------------------------------------

MANY = 1_000_000


def test_of_a_large_table_few_frontends_are_asked_for_one_by_one():
    assert requests([DNS, WEB], [], MANY) == [Request(AF_INET, "TCP", 80, VIP), Request(AF_INET, "UDP", 53, VIP)]


def test_by_what_the_kernel_selects_right():
    """Not by an IPv6 address, nor by a port of SCTP."""
    other6 = Frontend("fd00:96::2", "UDP", 53)
    assert requests([DNS6, other6, SIG, SIG._replace(port=3869)], [], MANY) == [
        Request(AF_INET, "SCTP", 0, VIP),
        Request(AF_INET6, "UDP", 53),
    ]


@pytest.mark.parametrize(("entries", "few"), [(0, 1), (1000, 2), (20_000, 14), (200_000, 29), (10_000_000, 32)])
def test_of_a_small_table_or_for_many_frontends_all_of_a_protocol_is_listed(entries, few):
    tcp = [Frontend(VIP, "TCP", port) for port in range(1, 100)]
    assert len(requests(tcp[:few], [], entries)) == few
    assert requests(tcp[: few + 1], [], entries) == [Request(AF_INET, "TCP")]


def test_one_frontend_is_always_asked_for_alone():
    assert requests([WEB], [], 0) == [Request(AF_INET, "TCP", 80, VIP)]


def test_a_range_lists_its_familys_udp_once():
    asked = requests([DNS, DNS6, WEB6], [RANGE[0]], MANY)
    assert asked == [Request(AF_INET, "UDP"), Request(AF_INET6, "TCP", 80), Request(AF_INET6, "UDP", 53)]
    assert requests([DNS, DNS6], RANGE, MANY) == [Request(AF_INET, "UDP"), Request(AF_INET6, "UDP")]
    assert requests([], [], MANY) == []


def asked_for(request):
    """(flags of the filter, what of the tuple is given) of a list message."""
    found = nl.attribute_map(memoryview(list_message(request).body)[4:])
    ends = nl.attribute_map(found[1])
    given = {("ip", kind) for kind in nl.attribute_map(ends[1])} | {
        ("proto", kind) for kind in nl.attribute_map(ends[2])
    }
    return nl.get_u32(nl.attribute_map(found[25])[1]), given


def test_the_filter_says_what_the_tuple_gives():
    # CTA_FILTER_F_CTA_IP_DST 2, _PROTO_NUM 8, _PROTO_DST_PORT 32
    assert asked_for(Request(AF_INET, "UDP")) == (8, {("proto", 1)})
    assert asked_for(Request(AF_INET6, "UDP", 53)) == (8 | 32, {("proto", 1), ("proto", 3)})
    assert asked_for(Request(AF_INET, "UDP", 53, VIP)) == (2 | 8 | 32, {("ip", 2), ("proto", 1), ("proto", 3)})


# --- entries ---------------------------------------------------------------------------


def ends(kind, source, destination, protocol, ports, *, zone=None):
    six = ":" in source
    packed = [ipaddress.ip_address(each).packed for each in (source, destination)]
    addresses = nl.attr(3 if six else 1, packed[0]) + nl.attr(4 if six else 2, packed[1])
    numbers = nl.u8(1, protocol) + nl.be16(2, ports[0]) + nl.be16(3, ports[1])
    in_zone = b"" if zone is None else nl.be16(3, zone)
    return nl.nest(kind, nl.nest(1, addresses), nl.nest(2, numbers), in_zone)


def entry(protocol=17, status=0, *, six=False, zone=None, state=None, more=b""):
    client, vip, pod, node = (
        ("fd00:5::9", VIP6, "fd00:5::2", "fd00:5::1") if six else ("10.5.1.9", VIP, *POD[:1], "10.5.1.1")
    )
    info = b"" if state is None else nl.nest(4, nl.nest({6: 1, 132: 3}[protocol], nl.u8(1, state)))
    return memoryview(
        (b"\x0a" if six else b"\x02")
        + b"\0\0\0"
        + ends(1, client, vip, protocol, (40000, 53), zone=zone)
        + ends(2, pod, node, protocol, (5353, 40000), zone=zone)
        + nl.be32(3, status)
        + info
        + more
        + nl.be32(12, 7)
    )


@pytest.mark.parametrize("zone", [None, 5])
@pytest.mark.parametrize(("six", "frontend", "pod"), [(False, DNS, POD), (True, DNS6, POD6)])
def test_a_listed_entry_is_read_and_named_again(six, frontend, pod, zone):
    assert read_flow(entry(status=0b1001, six=six, zone=zone)) == Flow(frontend, pod, answered=False)
    assert read_flow(entry(status=0b1011, six=six, zone=zone)) == Flow(frontend, pod, answered=True)
    message = delete_message(entry(six=six, zone=zone)).body
    assert message[0] == (10 if six else 2)
    body = nl.attribute_map(memoryview(message)[4:])
    assert set(body) == {1, 12}  # its tuple and its id: a successor with the same tuple is not hit
    assert bytes(body[1]) == bytes(nl.attribute_map(entry(six=six, zone=zone)[4:])[1])


@pytest.mark.parametrize(
    ("protocol", "state", "reset"),
    [(6, 2, False), (6, 3, False), (6, 7, False), (6, 8, True), (132, 1, True), (132, 4, False), (17, None, False)],
)
def test_whether_a_connection_was_reset(protocol, state, reset):
    flow = read_flow(entry(protocol, 0b1010, state=state))
    assert flow is not None
    assert flow.reset is reset


def test_other_protocols_and_halves_are_not_flows():
    assert read_flow(entry(protocol=1)) is None
    assert read_flow(memoryview(b"\x02\0\0\0" + nl.be32(12, 7))) is None
    assert read_flow(memoryview(b"\x07" + bytes(entry())[1:])) is None


def test_counters_are_of_both_directions_or_none():
    def counted(kind, packets, size):
        return nl.nest(kind, nl.attr(1, packets.to_bytes(8)), nl.attr(2, size.to_bytes(8)))

    assert read_counters(entry(more=counted(9, 3, 300) + counted(10, 2, 1 << 33))) == (300 + (1 << 33), 5)
    assert read_counters(entry()) is None
