"""Rounds of probes over the overlay, and the probes themselves, byte for byte."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netd.desired import Lease
from netd.icmp import Echo, Reply, parse_reply
from netd.reachability import Reachability, Silent, Target
from podlane.api.subnets import LeaseValue, Subnets

pytestmark = pytest.mark.unit


def lease(number: int, *, six: bool = False) -> Lease:
    v6 = IPv6Network(f"fd00:5:0:{number:x}::/64") if six else None
    subnets = Subnets(IPv4Network(f"10.5.{number}.0/24"), v6)
    return Lease(subnets.key, subnets, LeaseValue.vxlan(IPv4Address(f"192.168.64.{number}"), 1, "02:00:00:00:00:01"))


# ---- whom to ask over the overlay ----------------------------------------------------------------


def test_every_peer_gets_its_turn_and_no_round_is_larger_than_allowed() -> None:
    reach = Reachability()
    reach.replace([lease(number) for number in range(1, 101)], {4})
    rounds = [reach.round(32) for _ in range(25)]
    assert {len(each) for each in rounds} == {32}
    times = [sum(target.key == lease(number).key for each in rounds for target in each) for number in range(1, 101)]
    assert set(times) == {8}


def test_a_round_asks_nobody_twice_and_only_families_this_host_has() -> None:
    reach = Reachability()
    reach.replace([lease(2, six=True), lease(3)], {4, 6})
    asked = [str(target.address) for target in reach.round(32)]
    assert sorted(asked) == ["10.5.2.0", "10.5.3.0", "fd00:5:0:2::"]
    reach.replace([lease(2, six=True), lease(3)], {6})
    assert [str(target.address) for target in reach.round(32)] == ["fd00:5:0:2::"]
    reach.replace([], {4, 6})
    assert reach.round(32) == []


def ask(reach: Reachability, limit: int, dead: set[str]) -> list[Target]:
    targets = reach.round(limit)
    for target in targets:
        (reach.lost if target.key in dead else reach.answered)(target)
    return targets


def test_a_peer_is_silent_after_three_losses_and_no_longer_with_one_answer() -> None:
    reach, dead = Reachability(), {lease(3).key}
    reach.replace([lease(number) for number in range(2, 5)], {4})
    for silent in (Silent(), Silent(), Silent(1, (lease(3).key,))):
        ask(reach, 32, dead)
        assert reach.silent() == silent
    ask(reach, 32, set())
    assert reach.silent() == Silent()


def test_the_silent_are_asked_again_soon_but_never_crowd_the_others_out() -> None:
    peers = [lease(number) for number in range(1, 201)]
    dead = {each.key for each in peers[:40]}
    reach = Reachability()
    reach.replace(peers, {4})
    for _ in range(24):
        alive = sum(target.key not in dead for target in ask(reach, 16, dead))
    assert alive >= 1
    assert reach.silent().count == 40
    assert len(reach.silent().peers) == 10
    asked: set[str] = set()
    for _ in range(30):
        asked |= {target.key for target in ask(reach, 16, dead)}
    assert asked == {each.key for each in peers}


def test_a_peer_that_left_is_not_silent() -> None:
    reach = Reachability()
    reach.replace([lease(2), lease(3)], {4})
    for _ in range(3):
        ask(reach, 32, {lease(2).key, lease(3).key})
    asked = reach.round(32)
    reach.replace([lease(3)], {4})
    for target in asked:
        reach.lost(target)
    assert reach.silent() == Silent(1, (lease(3).key,))


# ---- packets -------------------------------------------------------------------------------------

TOKEN = b"\1\2\3\4\5\6\7\xff"


def total(data: bytes) -> int:
    words: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while words >> 16:
        words = (words & 0xFFFF) + (words >> 16)
    return words


@given(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF), st.binary(min_size=8, max_size=8))
def test_checksums_are_right_for_every_probe(ident: int, sequence: int, token: bytes) -> None:
    packet = Echo.between(IPv4Address("10.5.1.0"), IPv4Address("10.5.2.0"), ident, token).packet(sequence)
    assert total(packet[:20]) == total(packet[20:]) == 0xFFFF
    source, destination = IPv6Address("fd00:5:0:1::"), IPv6Address("fd00:5:0:2::")
    packet = Echo.between(source, destination, ident, token).packet(sequence)
    pseudo = source.packed + destination.packed + struct.pack("!II", len(packet) - 40, 58)
    assert total(pseudo + packet[40:]) == 0xFFFF


def test_a_probe_byte_for_byte() -> None:
    four = Echo.between(IPv4Address("10.5.1.0"), IPv4Address("10.5.2.0"), 0xABCD, TOKEN)
    assert four.packet(7).hex(" ", 4) == (
        "45000024 00004000 010162d0 0a050100 0a050200 "  # 36 bytes, don't fragment, one hop, ICMP
        "08003b20 abcd0007 01020304 050607ff"
    )
    six = Echo.between(IPv6Address("fd00:5:0:1::"), IPv6Address("fd00:5:0:2::"), 0xABCD, TOKEN)
    assert six.header.hex() == (
        "6000000000103a01" + IPv6Address("fd00:5:0:1::").packed.hex() + IPv6Address("fd00:5:0:2::").packed.hex()
    )


@pytest.mark.parametrize(
    ("family", "head", "tail", "counts"),
    [
        (4, (0, 0, 0, 0xABCD, 7), b"", True),
        (6, (129, 0, 0, 0xABCD, 7), b"", True),
        (4, (8, 0, 0, 0xABCD, 7), b"", False),  # a request, such as our own looped back
        (6, (0, 0, 0, 0xABCD, 7), b"", False),
        (4, (3, 0, 0, 0xABCD, 7), b"", False),
        (4, (0, 1, 0, 0xABCD, 7), b"", False),
        (4, (0, 0, 0, 0xABCE, 7), b"", False),  # somebody else's ping
        (4, (0, 0, 0, 0xABCD, 7), b"x", False),
    ],
)
def test_only_replies_to_us_count(family: int, head: tuple[int, ...], tail: bytes, counts: bool) -> None:
    message = struct.pack("!BBHHH", *head) + TOKEN + tail
    expected = Reply(b"abcd", 7, TOKEN) if counts else None
    assert parse_reply(message, b"abcd", family, 0xABCD) == expected
    assert parse_reply(message[:10], b"abcd", family, 0xABCD) is None
