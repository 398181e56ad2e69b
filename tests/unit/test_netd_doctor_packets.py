"""The bytes of the doctor's probes, and what it reads of the packets that come back."""

from __future__ import annotations

import struct
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6PacketTooBig, IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Raw

from netd.doctor import probe
from netd.doctor.seen import Answer, Kind
from netd.doctor.wire import Place
from tests.unit.doctor_objects import TARGET

pytestmark = pytest.mark.unit

IDENT, NUMBER, PORT = 77, 5, 8472
TARGET6 = replace(
    TARGET,
    family=6,
    remote=ip_address("fd00:64::2"),
    local=ip_address("fd00:64::1"),
    vtep=ip_address("fd00:5:0:2::"),
    own_vtep=ip_address("fd00:5:0:1::"),
)
HERE, THERE = "192.168.64.11", "192.168.64.12"


def read(packet: Any, place: Place = Place.UNDERLAY) -> Answer | None:
    return probe.read(place, bytes(packet), IDENT, PORT)


def encapsulated(inner: Any, vni: int = 1) -> Any:
    ip = IP(src=THERE, dst=HERE) / UDP(sport=50000, dport=PORT, chksum=0) / VXLAN(flags="Instance", vni=vni)
    return ip / Ether(src=TARGET.mac, dst=TARGET.own_mac) / inner


def reply(ident: int = IDENT) -> Any:
    return IP(src="10.5.2.0", dst="10.5.1.0") / ICMP(type=0, id=ident, seq=NUMBER) / Raw(b"x" * 40)


@pytest.mark.parametrize("size", [84, 576, 1450])
@pytest.mark.parametrize("target", [TARGET, TARGET6], ids=["ipv4", "ipv6"])
def test_a_probe_has_the_size_asked_for_and_may_not_be_fragmented(target: Any, size: int) -> None:
    packet = probe.encapsulated(target, Kind.VXLAN, IDENT, NUMBER, size)

    assert len(packet) == size + target.overhead
    assert len(probe.inner_of(packet, target)) == size
    if target is TARGET:
        outer = IP(packet)
        assert (outer.src, outer.dst, outer.flags, outer[UDP].dport) == (HERE, THERE, "DF", PORT)
        inner = Ether(bytes(VXLAN(bytes(outer[UDP].payload)).payload))
        assert (inner.src, inner.dst) == (TARGET.own_mac, TARGET.mac)


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (Kind.BACK_PLAIN, ("src", "dst"), (HERE, "10.5.2.0")),
        (Kind.FORWARDED, ("src", "dst"), ("10.5.1.0", "10.5.1.0")),
        (Kind.BROADCAST, ("src", "dst"), ("10.5.1.0", "10.5.2.0")),
    ],
)
def test_a_probe_asks_for_the_way_back_it_is_for(kind: Kind, field: tuple[str, str], value: tuple[str, str]) -> None:
    packet = probe.encapsulated(TARGET, kind, IDENT, NUMBER)
    frame, inner = Ether(packet[36:]), IP(probe.inner_of(packet, TARGET))

    assert tuple(getattr(inner, name) for name in field) == value
    assert frame.dst == (probe.BROADCAST if kind is Kind.BROADCAST else TARGET.mac)


def test_an_arp_probe_teaches_nobody_anything() -> None:
    arp = Ether(probe.encapsulated(TARGET, Kind.ARP, IDENT, NUMBER)[36:])[ARP]

    assert (arp.op, arp.psrc, arp.pdst) == (1, "0.0.0.0", "10.5.2.0")


def test_answers_are_known_by_their_numbers() -> None:
    whole = Answer("reply", "10.5.2.0", NUMBER, True, True, 1, TARGET.mac, TARGET.own_mac)

    assert read(encapsulated(reply())) == whole
    assert read(encapsulated(reply(), vni=9)) == whole._replace(vni=9)
    assert read(reply(), Place.DEVICE) == Answer("reply", "10.5.2.0", NUMBER)
    assert read(encapsulated(reply(ident=78))) is None  # somebody else's
    assert read(encapsulated(IP() / ICMP(type=8, id=78))) is None


def test_ipv6_answers_are_known_by_their_numbers() -> None:
    packet = IPv6(src="fd00:5:0:2::", dst="fd00:5:0:1::") / ICMPv6EchoReply(id=IDENT, seq=NUMBER, data=b"x" * 40)
    spoiled = bytearray(bytes(packet))
    spoiled[-1] ^= 1

    assert read(packet) == Answer("reply", "fd00:5:0:2::", NUMBER)
    assert read(bytes(spoiled)) == Answer("reply", "fd00:5:0:2::", NUMBER, sound=False)


def test_a_wrong_checksum_is_seen_unless_the_packet_is_cut_short() -> None:
    spoiled = bytearray(bytes(encapsulated(reply())))
    spoiled[-1] ^= 1
    answer, cut = read(bytes(spoiled)), read(bytes(encapsulated(reply()))[:-9])

    assert answer is not None
    assert not answer.sound
    assert cut is not None
    assert cut.sound


def test_an_answer_spoiled_beyond_recognition_still_counts_as_spoiled() -> None:
    spoiled = bytearray(bytes(encapsulated(reply())))
    spoiled[-44] ^= 1  # in its identifier

    assert read(bytes(spoiled)) == Answer("reply", "10.5.2.0", None, True, False, 1, TARGET.mac, TARGET.own_mac)


def unreachable(sent: bytes, code: int = 3) -> Any:
    return IP(src="10.5.2.0", dst="10.5.1.0") / ICMP(type=3, code=code) / Raw(sent[:528])


@pytest.mark.parametrize("place", [Place.UNDERLAY, Place.DEVICE])
def test_what_arrived_is_compared_with_what_was_sent(place: Place) -> None:
    sent = probe.inner_of(probe.encapsulated(TARGET, Kind.BARE, IDENT, NUMBER), TARGET)
    changed = bytearray(sent)
    changed[8], changed[10], changed[60] = 63, 9, 0xEE  # TTL and header checksum may; payload may not
    mangled_name = bytearray(sent)
    mangled_name[30] ^= 0xFF  # what says whose probe it is

    answers = [
        read(encapsulated(unreachable(bytes(quote))) if place is Place.UNDERLAY else unreachable(bytes(quote)), place)
        for quote in (sent, changed, mangled_name)
    ]

    assert [answer and (answer.what, answer.number) for answer in answers] == [("closed", NUMBER)] * 3
    assert [probe.altered(sent, answer.quote) for answer in answers if answer] == [(), (60,), (30,)]


def test_routers_complaints_are_read() -> None:
    sent = probe.encapsulated(TARGET, Kind.FULL, IDENT, NUMBER, 1450)
    too_big = read(IP(src="192.168.64.1", dst=HERE) / ICMP(type=3, code=4, nexthopmtu=1400) / Raw(sent[:28]))
    sent6 = probe.encapsulated(TARGET6, Kind.FULL, IDENT, NUMBER, 1430)
    too_big6 = read(IPv6(src="fd00::1", dst="fd00:64::1") / ICMPv6PacketTooBig(mtu=1400) / Raw(sent6[:1000]))
    closed = read(IP(src=THERE, dst=HERE) / ICMP(type=3, code=3) / Raw(sent[:28]))

    for answer, what, destination in (
        (too_big, "too-big", THERE),
        (too_big6, "too-big", "fd00:64::2"),
        (closed, "closed", THERE),
    ):
        assert answer is not None
        assert answer.what == what
        assert probe.quoted_destination(answer.quote) == destination
        assert probe.quoted_port(answer.quote) == PORT
    assert [answer.mtu for answer in (too_big, too_big6) if answer] == [1400, 1400]


def test_arp_replies_are_read_within_vxlan_and_without() -> None:
    arp = ARP(op=2, hwsrc="02:aa:aa:aa:aa:aa", psrc="10.5.2.0", hwdst=TARGET.own_mac, pdst="0.0.0.0")

    answer = read(encapsulated(arp))
    assert answer is not None
    assert (answer.what, answer.source, answer.mac_from) == ("arp", "10.5.2.0", "02:aa:aa:aa:aa:aa")
    assert probe.read_arp(bytes(Ether() / arp)) == ("10.5.2.0", "02:aa:aa:aa:aa:aa")
    assert probe.read_arp(probe.who_has(TARGET.own_mac, HERE)) is None  # our own question


@pytest.mark.parametrize("length", range(0, 90, 3))
def test_what_is_cut_short_anywhere_breaks_nothing(length: int) -> None:
    for packet in (bytes(encapsulated(reply())), bytes(encapsulated(ARP(op=2))), struct.pack("!B", 0x60) + bytes(100)):
        answer = probe.read(Place.UNDERLAY, packet[:length], IDENT, PORT)

        assert answer is None or answer.sound
