"""What a trace asks, foretells, sends and reads, without a kernel."""

from __future__ import annotations

import ipaddress
import struct
from fractions import Fraction
from itertools import chain

import pytest
from proxyd_objects import POD_NETWORK, SERVICE_RANGE, SKELETON, applied, index_of, service, slice_of
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.sctp import SCTP, SCTPChunkInit

from podlane.runtime import netlink as nl
from proxyd.explain import frames, inject, nftrace
from proxyd.explain.frames import Ends
from proxyd.explain.inject import Entry
from proxyd.explain.intervals import networks_between
from proxyd.explain.live import Seen
from proxyd.explain.names import Names
from proxyd.explain.nftrace import Event, read_event
from proxyd.explain.trace import BadInput, Outcome, check, forecast, parse
from proxyd.explain.tracing import Question, agrees, document, render_forecast, render_seen
from proxyd.tables import IPV4, IPV6, PROTOCOL_NUMBERS, Frontend, Target
from proxyd.walk import Kernel, Packet

pytestmark = pytest.mark.unit

V4 = Ends("10.5.1.4", 40000, "10.96.0.1", 80, "TCP")
V6 = Ends("fd00:5::4", 40001, "fd00:96::1", 53, "UDP")


# --- the packet --------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOL_NUMBERS)
@pytest.mark.parametrize("ends", [V4, V6], ids=["ip", "ip6"])
def test_a_packet_is_what_another_program_reads_with_its_checksums(ends, protocol):
    ends = Ends(ends.source, ends.source_port, ends.destination, ends.port, protocol)
    packed = frames.packet(ends, number=0x12345678)
    layer = {"TCP": TCP, "UDP": UDP, "SCTP": SCTP}[protocol]
    outer = IPv6 if ends.width == 16 else IP
    read = outer(packed)
    assert (read.src, read.dst, read[layer].sport, read[layer].dport) == (
        ends.source,
        ends.destination,
        ends.source_port,
        ends.port,
    )
    if protocol == "TCP":
        assert (str(read[TCP].flags), read[TCP].seq) == ("S", 0x12345678)
    if protocol == "SCTP":
        assert read[SCTPChunkInit].init_tag == 0x12345678
    # without its checksums the other program makes its own: the bytes must be the same again
    if outer is IP:
        del read[IP].chksum
    del read[layer].chksum
    assert bytes(read) == packed


def test_ends_are_read_back_from_the_headers_a_trace_shows():
    for ends in (V4, V6):
        packed = frames.packet(ends, number=1)
        size = 40 if ends.width == 16 else 20
        assert frames.read_ends(packed[:size], packed[size : size + 20]) == ends
        assert frames.read_ends(packed[: size - 1], packed[size:]) is None
        assert frames.read_ends(packed[:size], packed[size : size + 3]) is None
    icmp = bytearray(frames.packet(V4, number=1))
    icmp[9] = 1
    assert frames.read_ends(bytes(icmp[:20]), bytes(icmp[20:])) is None


def test_a_frame_says_which_family_is_in_it():
    to, sender = b"\x02\0\0\0\0\1", b"\x02\0\0\0\0\2"
    assert frames.frame(frames.packet(V4, number=1), to=to, sender=sender)[:14] == to + sender + b"\x08\x00"
    assert frames.frame(frames.packet(V6, number=1), to=to, sender=sender)[12:14] == b"\x86\xdd"


def test_crc32c_of_the_standards_own_example():
    assert frames.crc32c(b"123456789") == 0xE3069283  # RFC 3720's check value


def test_where_it_comes_in_is_said():
    assert str(Entry()) == "sent by this host"
    assert str(Entry("eth0")) == "arriving at eth0"
    assert str(Entry("v1", "cbr0")) == "arriving at v1, a port of bridge cbr0"
    assert str(Entry("cbr0", "cbr0")) == "arriving at cbr0"
    assert inject._mac("not one") == bytes(6)


# --- the question ------------------------------------------------------------------------

KNOWN = [Frontend("10.96.0.1", "TCP", 80), Frontend("10.96.0.1", "UDP", 53), Frontend("10.96.0.2", "UDP", 53)]


def lookup(namespace, name, version):
    served = {("default", "web"): KNOWN[:2], ("kube-system", "dns"): KNOWN[2:]}
    names = ["http", "dns"] if name == "web" else ["dns"]
    return list(zip(names, served.get((namespace, name), ()), strict=False)) if version == 4 else []


def asked(destination, protocol="", source="10.5.1.4"):
    return parse(source, destination, protocol, KNOWN, lookup)


@pytest.mark.parametrize(
    ("destination", "protocol", "expected"),
    [
        ("10.96.0.1:80", "", Packet("10.5.1.4", "10.96.0.1", 80)),
        ("10.96.0.1:53", "", Packet("10.5.1.4", "10.96.0.1", 53, "UDP")),
        ("10.96.0.1:53", "tcp", Packet("10.5.1.4", "10.96.0.1", 53)),
        ("10.96.0.2", "", Packet("10.5.1.4", "10.96.0.2", 53, "UDP")),
        ("10.96.0.1", "udp", Packet("10.5.1.4", "10.96.0.1", 53, "UDP")),
        ("192.0.2.1:443", "", Packet("10.5.1.4", "192.0.2.1", 443)),
        ("web:http", "", Packet("10.5.1.4", "10.96.0.1", 80)),
        ("default/web:53", "", Packet("10.5.1.4", "10.96.0.1", 53, "UDP")),
        ("kube-system/dns", "", Packet("10.5.1.4", "10.96.0.2", 53, "UDP")),
    ],
)
def test_what_is_left_out_follows_from_what_there_is(destination, protocol, expected):
    assert asked(destination, protocol) == expected


def test_an_ipv6_destination_with_and_without_its_brackets():
    known = [Frontend("fd00:96::1", "TCP", 80)]
    for text in ("[fd00:96::1]:80", "[fd00:96::1]", "fd00:96::1", "fd00:96:0::1"):
        assert parse("fd00:5::4", text, "", known, lookup) == Packet("fd00:5::4", "fd00:96::1", 80)


@pytest.mark.parametrize(
    ("source", "destination", "message"),
    [
        ("pod1", "10.96.0.1:80", 'SRC: expected an IP address, such as a pod\'s, got "pod1"'),
        ("10.5.1.4", "10.96.0.1:0", 'DST: expected a port from 1 to 65535, got "0"'),
        ("10.5.1.4", "10.96.0.1:http", 'DST: expected a port from 1 to 65535, got "http"'),
        ("10.5.1.4", "10.96.0.300:80", 'DST: expected an address as in 10.96.0.10:80, got "10.96.0.300:80"'),
        ("10.5.1.4", "[10.96.0.1", 'DST: expected [ADDRESS]:PORT, got "[10.96.0.1"'),
        ("10.5.1.4", "a/b/c", 'DST: expected 10.96.0.10:80 or namespace/service:port, got "a/b/c"'),
        ("10.5.1.4", "10.96.0.1", "DST: 10.96.0.1 has several ports, name one of: 10.96.0.1:80/tcp, 10.96.0.1:53/udp"),
        (
            "10.5.1.4",
            "10.96.9.9",
            "DST: no port given, and no service has one at 10.96.9.9; name it, as in 10.96.9.9:80",
        ),
        ("fd00::1", "10.96.0.1:80", "DST: 10.96.0.1 and SRC fd00::1 are of different families; give both as one"),
        ("10.5.1.4", "nobody", "DST: no service default/nobody with an IPv4 address; see: proxyd services"),
        ("10.5.1.4", "web:https", "DST: service default/web has no such port; it has: 80/tcp, 53/udp"),
        ("10.5.1.4", "web", "DST: service default/web has several ports, name one of: 80/tcp, 53/udp"),
    ],
)
def test_a_mistake_is_named_with_its_remedy(source, destination, message):
    with pytest.raises(BadInput) as caught:
        asked(destination, source=source)
    assert str(caught.value) == message
    assert caught.value.exit_code == 2


def test_some_mistakes_are_found_before_anything_is_read():
    for source, destination in (("x", "web"), ("10.5.1.4", "10.96.0.1:x"), ("10.5.1.4", "/")):
        with pytest.raises(BadInput):
            check(source, destination)
    check("10.5.1.4", "default/web:http")


# --- the forecast ------------------------------------------------------------------------

OBJECTS = (
    service("web", "10.96.0.1", "http:80"),
    slice_of("web", ["10.5.1.2", "10.5.1.3", "10.5.2.2 node2"], "http:8080"),
)


def told(source, ip="10.96.0.1", port=80, protocol="TCP"):
    kernel = Kernel(applied(*OBJECTS), SKELETON, {"192.168.64.11"})
    return forecast(Packet(source, ip, port, protocol), kernel)


def test_every_endpoint_has_its_chance_and_its_own_steps():
    found = told("10.5.1.2")
    assert found.common == ("services: 10.96.0.1:80/tcp goto lb3",)
    assert [(each.outcome.target.address, each.chance, each.outcome.masquerade) for each in found.possible] == [
        ("10.5.1.2", Fraction(1, 3), True),
        ("10.5.1.3", Fraction(1, 3), False),
        ("10.5.2.2", Fraction(1, 3), False),
    ]
    assert found.possible[0].steps[-1] == "postrouting: 10.5.1.2 was sent to itself, masquerade"


def test_where_chance_has_no_part_there_is_one_outcome():
    (only,) = told("10.5.1.2", port=81).possible
    assert (only.outcome, only.chance) == (Outcome("reset"), 1)
    (passed,) = told("10.5.1.2", ip="192.0.2.1").possible
    assert passed.outcome == Outcome("pass")


# --- comparing and showing -----------------------------------------------------------------


def question(**how):
    found = told("10.5.1.2", **how)
    return Question(found.packet, found, Names(index_of(*OBJECTS)))


RULE = Event("ip", "podlane", "lb3", "rule", "accept", 7, V4)
SEEN = Seen(
    Entry("v1", "cbr0"),
    40000,
    Outcome("translate", Target("10.5.2.2", 8080)),
    (RULE, Event("ip", "filter", "FORWARD", "policy", "accept", 0, Ends("10.5.1.4", 40000, "10.5.2.2", 8080, "TCP"))),
    {("ip", "podlane", "lb3", 7): "dnat ip to …"},
    Target("10.5.1.2", 40000),
)


def test_it_agrees_when_the_packet_went_one_of_the_ways():
    assert agrees(question(), SEEN)
    text = render_seen(question(), SEEN)
    assert text.splitlines() == [
        "A real packet from 10.5.1.2:40000/tcp, arriving at v1, a port of bridge cbr0:",
        "  ip podlane lb3: dnat ip to …  -> accept",
        "  now for 10.5.2.2:8080/tcp",
        "  ip filter FORWARD: policy  -> accept",
        "  conntrack: replies are expected at 10.5.1.2:40000",
        "",
        "It goes to 10.5.2.2:8080 on node2, which sees the source's own address.",
        "agree",
    ]


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome("translate", Target("10.5.2.2", 8080), masquerade=True),
        Outcome("translate", Target("10.5.9.9", 8080)),
        Outcome("drop"),
        Outcome("pass"),
    ],
    ids=lambda each: str(each)[:20],
)
def test_it_disagrees_when_anything_is_otherwise(outcome):
    seen = Seen(SEEN.entry, 40000, outcome, SEEN.events)
    assert not agrees(question(), seen)
    assert "DISAGREE: by the model it goes to 10.5.1.2:8080 on node1" in render_seen(question(), seen)
    assert document(question(), seen)["live"]["agrees"] is False


def test_a_packet_no_rule_saw_is_said_to_be_lost_before():
    seen = Seen(Entry("eth0"), 40000, Outcome("not seen"))
    text = render_seen(question(), seen)
    assert "no rule saw it: rp_filter may have dropped it" in text
    assert "It is lost before any nftables rule saw it." in text


def test_the_forecast_for_people_and_for_programs():
    text = render_forecast(question())
    assert text.splitlines()[:5] == [
        "10.5.1.2 to 10.96.0.1:80/tcp  (default/web:http)",
        "",
        "By the rules and elements in the kernel:",
        "  services: 10.96.0.1:80/tcp goto lb3",
        "",
    ]
    assert "Then one of 3:" in text
    assert "   33.3%  it goes to 10.5.2.2:8080 on node2, which sees the source's own address" in text
    assert render_forecast(question(port=81)).splitlines()[-1] == "It is refused by a TCP reset."
    found = document(question(), None)
    assert found["service"] == "default/web:http"
    assert [(each["endpoint"]["address"], each["node"]) for each in found["outcomes"]] == [
        ("10.5.1.2", "node1"),
        ("10.5.1.3", "node1"),
        ("10.5.2.2", "node2"),
    ]
    assert "live" not in found


# --- what the kernel tells ------------------------------------------------------------------


def message(**given: bytes) -> dict[int, memoryview]:
    return nl.attribute_map(b"".join(given.values()))


def test_trace_messages_of_each_kind():
    name = nl.text(1, "podlane") + nl.text(2, "prerouting")
    verdict = nl.nest(5, nl.be32(1, 0xFFFFFFFC), nl.text(2, "lb3"))
    packed = frames.packet(V4, number=1)
    headers = nl.attr(8, packed[:20]) + nl.attr(9, packed[20:40])
    rule = message(a=name, b=nl.be32(4, 3), c=verdict, d=nl.attr(3, struct.pack(">Q", 7)), e=headers)
    assert read_event(2, rule) == Event("ip", "podlane", "prerouting", "rule", "goto lb3", 7, V4)
    policy = message(a=name, b=nl.be32(4, 1), c=nl.be32(16, 0))
    assert read_event(10, policy) == Event("ip6", "podlane", "prerouting", "policy", "drop")
    end = read_event(2, message(a=name, b=nl.be32(4, 3), c=nl.nest(5, nl.be32(1, 0xFFFFFFFF))))
    assert (end.verdict, end.is_end_of_chain) == ("continue", True)
    assert not read_event(2, rule).is_end_of_chain


def test_rules_of_ours_have_their_text_and_others_none():
    assert nftrace.rule_texts(IPV4, "prerouting") == ["ip daddr . meta l4proto . th dport vmap @services"]
    assert "numgen random mod 3" in nftrace.rule_texts(IPV4, "lb3")[0]
    assert nftrace.rule_texts(IPV6, "external-source")
    assert nftrace.rule_texts(IPV4, "FORWARD") == []


@pytest.mark.parametrize(
    ("family", "networks"),
    [
        (IPV4, [POD_NETWORK, SERVICE_RANGE]),
        (IPV4, ["10.5.0.0/16", "10.6.0.0/16"]),
        (IPV4, ["224.0.0.0/3"]),
        (IPV6, ["fd00:5::/48", "fd00:96::/112"]),
        (IPV4, []),
    ],
    ids=str,
)
def test_networks_are_read_back_from_their_ends(family, networks):
    parsed = [ipaddress.ip_network(each) for each in networks]
    top = 1 << family.width * 8
    ends = list(
        chain.from_iterable(
            [(int(each.network_address), False), (int(each.network_address) + each.num_addresses, True)]
            for each in parsed
        )
    )
    # the kernel lists no end for the last address of all, and says a border of two neighbours twice
    kept = [each for each in ends if each[0] < top]
    assert networks_between(kept[::-1], family) == tuple(sorted(networks))
