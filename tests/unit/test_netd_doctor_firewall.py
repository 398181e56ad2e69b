"""Whether a VXLAN packet gets in: the doctor's walk through a ruleset, and its own socket filters."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

import pytest

from netd.doctor.facts import HostFacts
from netd.doctor.firewall import firewall
from netd.doctor.ruleset import Packet, Ruleset
from netd.doctor.wire import icmp_filter, vxlan_filter
from tests.unit.doctor_objects import B, context, wrong

pytestmark = pytest.mark.unit


def ruleset(*rules: Any, policy: str = "accept", more: Sequence[Any] = (), sets: Any = None) -> Ruleset:
    chain = {"family": "ip", "table": "filter", "name": "INPUT", "type": "filter", "hook": "input", "policy": policy}
    listed = [{"chain": chain}, *more, *(in_chain("INPUT", *rule) for rule in rules)]
    return Ruleset(listed, sets or {})


def in_chain(chain: str, *expressions: Any) -> dict[str, Any]:
    return {"rule": {"family": "ip", "table": "filter", "chain": chain, "handle": 7, "expr": list(expressions)}}


def field(protocol: str, name: str, right: Any, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": {"payload": {"protocol": protocol, "field": name}}, "right": right}}


DROP, ACCEPT = {"drop": None}, {"accept": None}
PORT = field("udp", "dport", 8472)
UNKNOWN = {"xt": {"type": "match", "name": "conntrack"}}
KNOWN = {"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": ["established", "related"]}}


def verdict(rules: Ruleset) -> str:
    return rules.judge(Packet("eth0", B, ip_address("192.168.64.11"), 8472)).kind


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ([], "accept"),
        ([(PORT, DROP)], "drop"),
        ([(PORT, {"reject": {"type": "icmp"}})], "drop"),
        ([(PORT, {"xt": {"type": "target", "name": "REJECT"}})], "drop"),
        ([(PORT, {"xt": {"type": "match", "name": "comment"}}, DROP)], "drop"),
        ([(PORT, UNKNOWN, DROP)], "perhaps"),
        ([(PORT, ACCEPT), (DROP,)], "accept"),
        ([(field("tcp", "dport", 8472), DROP)], "accept"),
        ([(field("udp", "dport", {"set": [53, {"range": [8000, 9000]}]}), DROP)], "drop"),
        ([(field("udp", "dport", 8000, ">"), DROP)], "drop"),
        ([(field("ip", "saddr", {"prefix": {"addr": "192.168.64.0", "len": 24}}), DROP)], "drop"),
        ([(field("ip", "saddr", {"prefix": {"addr": "10.0.0.0", "len": 8}}), DROP)], "accept"),
        ([(field("ip6", "saddr", "fd00::1"), DROP)], "accept"),
        ([(field("ip", "saddr", "192.168.64.12", "!="), DROP)], "accept"),
        ([(field("ip", "saddr", "@peers", "!="), DROP)], "perhaps"),
        ([({"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "lo"}}, DROP)], "accept"),
        ([(KNOWN, DROP)], "accept"),
        ([({"match": {"op": "in", "left": {"meta": {"key": "mark"}}, "right": 1}}, DROP)], "perhaps"),
        ([({"vmap": {"key": PORT["match"]["left"], "data": {"set": [[53, ACCEPT], [8472, DROP]]}}},)], "drop"),
        (
            [
                (
                    {
                        "match": {
                            "op": "==",
                            "left": {"concat": [field("ip", "saddr", 0)["match"]["left"], PORT["match"]["left"]]},
                            "right": {"set": [{"concat": ["192.168.64.12", 8472]}]},
                        }
                    },
                    DROP,
                )
            ],
            "drop",
        ),
    ],
)  # fmt: skip
def test_a_packet_is_walked_through_the_rules(rules: list[Any], expected: str) -> None:
    assert verdict(ruleset(*rules)) == expected


def test_policies_jumps_and_named_sets_are_followed() -> None:
    jump = ({"jump": {"target": "vxlan"}},)
    goto = ({"goto": {"target": "vxlan"}},)
    returns = in_chain("vxlan", {"return": None})
    known = {("ip", "filter", "peers"): ["192.168.64.12"]}
    unless_peer = (field("ip", "saddr", "@peers", "!="), DROP)

    assert verdict(ruleset(policy="drop")) == "drop"
    assert verdict(ruleset((UNKNOWN, ACCEPT), policy="drop")) == "perhaps"
    assert verdict(ruleset(jump, policy="drop", more=[in_chain("vxlan", PORT, ACCEPT)])) == "accept"
    assert verdict(ruleset(jump, (PORT, DROP), more=[returns])) == "drop"
    assert verdict(ruleset(goto, (PORT, DROP), more=[returns])) == "accept"
    assert verdict(ruleset(unless_peer, sets=known)) == "accept"
    assert verdict(ruleset(unless_peer, sets={("ip", "filter", "peers"): ["192.168.64.99"]})) == "drop"
    assert ruleset(unless_peer).named_sets() == {("ip", "filter", "peers")}


def test_probes_that_came_through_outweigh_doubt_but_not_a_rule() -> None:
    doubtful, certain = HostFacts(ruleset=ruleset((UNKNOWN, DROP))), HostFacts(ruleset=ruleset((PORT, DROP)))

    assert wrong(firewall(context(), doubtful, [B], delivered=[])) == [("firewall", "warning", "192.168.64.12")]
    assert wrong(firewall(context(), doubtful, [B], delivered=[B])) == []
    assert wrong(firewall(context(), certain, [B], delivered=[B])) == [("firewall", "error", "192.168.64.12")]


@pytest.mark.parametrize(
    ("saved", "found"),
    [
        (":INPUT ACCEPT [0:0]\n", False),
        (":INPUT DROP [0:0]\n", True),
        (":INPUT DROP [0:0]\n-A INPUT -p udp -m udp --dport 8472 -j ACCEPT\n", False),
        (":INPUT ACCEPT [0:0]\n-A INPUT -p udp -m udp --dport 8472 -j DROP\n", True),
    ],
)
def test_what_only_legacy_iptables_lists_is_a_doubt(saved: str, found: bool) -> None:
    facts = HostFacts(ruleset=ruleset(), legacy_rules=saved)

    assert bool(wrong(firewall(context(), facts, [B], delivered=[]))) == found
    assert wrong(firewall(context(), facts, [B], delivered=[B])) == []


def accepts(program: Sequence[Any], packet: bytes) -> bool:
    """A classic BPF machine with the instructions that the filters use (linux/filter.h)."""
    at, loaded = 0, 0
    while True:
        code, if_true, if_false, k = program[at]
        at += 1
        if code == 0x06:
            return bool(k)
        if code in {0x30, 0x28}:
            size = 1 if code == 0x30 else 2
            if k + size > len(packet):
                return False
            loaded = int.from_bytes(packet[k : k + size], "big")
        elif code == 0x54:
            loaded &= k
        else:
            assert code == 0x15
            at += if_true if loaded == k else if_false


def ip4(protocol: int, data: bytes) -> bytes:
    return b"\x45" + bytes(8) + bytes([protocol]) + bytes(10) + data


def ip6(protocol: int, data: bytes) -> bytes:
    return b"\x60" + bytes(5) + bytes([protocol]) + bytes(33) + data


def in_vxlan(ethertype: int, data: bytes, port: int = 8472) -> bytes:
    return bytes(2) + port.to_bytes(2, "big") + bytes(4 + 8 + 12) + ethertype.to_bytes(2, "big") + data


@pytest.mark.parametrize(
    ("packet", "taken"),
    [
        (ip4(1, b"\0"), True),
        (ip4(1, b"\x03"), True),
        (ip4(1, b"\x08"), False),  # somebody pings this host
        (ip6(58, b"\x81"), True),
        (ip6(58, b"\x80"), False),
        (ip4(17, in_vxlan(0x0806, b"")), True),
        (ip4(17, in_vxlan(0x0800, ip4(1, b"\0"))), True),
        (ip4(17, in_vxlan(0x0800, ip4(6, b"\0"))), False),  # pods' own traffic
        (ip4(17, in_vxlan(0x86DD, ip6(58, b"\x81"))), True),
        (ip6(17, in_vxlan(0x86DD, ip6(58, b"\x81"))), True),
        (ip6(17, in_vxlan(0x86DD, ip6(6, b"\x81"))), False),
        (ip4(17, in_vxlan(0x0800, ip4(1, b"\0"), port=53)), False),
        (ip4(6, b"\0" * 60), False),
        (b"\0\1\x08\0", False),
        (b"", False),
    ],
)
def test_the_filter_takes_in_answers_only(packet: bytes, taken: bool) -> None:
    assert accepts(vxlan_filter(8472), packet) == taken
    plain = packet[:1] in {b"\x45", b"\x60"} and packet[9 if packet[0] == 0x45 else 6] in {1, 58}
    assert accepts(icmp_filter(), packet) == (taken and plain)
