"""The texts handed to iptables-restore and nft, and which of the kernel's notifications are news."""

from __future__ import annotations

import struct
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, ip_address

import pytest

from netd.notices import Notices
from netd.ruleset import NOTHING, FirewallRules, VxlanGuard, forward_restore, table_script, table_text
from podlane.api.subnets import Network, Subnets
from podlane.runtime import netlink as nl
from podlane.runtime import nftables as nft

pytestmark = pytest.mark.unit

NETWORK = IPv4Network("10.5.0.0/16")
NETWORK6 = IPv6Network("fd00:5::/48")
RULES = FirewallRules(
    networks=(NETWORK, NETWORK6),
    own=Subnets(IPv4Network("10.5.1.0/24"), IPv6Network("fd00:5:0:1::/64")),
    forward=True,
    masquerade=True,
    guard=VxlanGuard(8472, frozenset(map(ip_address, ["192.168.64.12", "192.168.64.3", "fd00:64::2"]))),
)
GUARD = """\
	counter vxlan-dropped { }
	set vxlan-sources { type ipv4_addr; elements = { 192.168.64.3, 192.168.64.12 } }
	set vxlan-sources6 { type ipv6_addr; elements = { fd00:64::2 } }
	chain input {
		type filter hook input priority raw; policy accept;
		iif != "lo" udp dport 8472 ip saddr != @vxlan-sources counter name vxlan-dropped drop
		iif != "lo" udp dport 8472 ip6 saddr != @vxlan-sources6 counter name vxlan-dropped drop
	}
"""
MASQUERADE = """\
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		meta mark & 0x4000 == 0x4000 return
		ip saddr 10.5.0.0/16 ip daddr 10.5.0.0/16 return
		ip saddr 10.5.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random
		ip saddr != 10.5.0.0/16 ip daddr 10.5.1.0/24 return
		ip saddr != 10.5.0.0/16 ip daddr 10.5.0.0/16 masquerade fully-random
"""
MASQUERADE6 = """\
		ip6 saddr fd00:5::/48 ip6 daddr fd00:5::/48 return
		ip6 saddr fd00:5::/48 ip6 daddr != ff00::/8 masquerade fully-random
		ip6 saddr != fd00:5::/48 ip6 daddr fd00:5:0:1::/64 return
		ip6 saddr != fd00:5::/48 ip6 daddr fd00:5::/48 masquerade fully-random
"""
BEGIN = "table inet podlane-netd {\n"
V4_ONLY = replace(RULES, networks=(NETWORK,), own=Subnets(IPv4Network("10.5.1.0/24")))


# --- the nft table -------------------------------------------------------------------------


def test_the_whole_table() -> None:
    assert table_text(RULES) == BEGIN + GUARD + MASQUERADE + MASQUERADE6 + "\t}\n}\n"


def test_only_what_is_asked_for() -> None:
    assert table_text(replace(RULES, masquerade=False)) == BEGIN + GUARD + "}\n"
    assert table_text(replace(V4_ONLY, guard=None)) == BEGIN + MASQUERADE + "\t}\n}\n"
    assert table_text(replace(RULES, masquerade=False, guard=None)) == ""
    assert table_text(NOTHING) == ""


def test_ports_are_kept_where_the_operator_wants_it() -> None:
    text = table_text(replace(RULES, random_fully=False))
    assert text == table_text(RULES).replace(" fully-random", "")
    assert "masquerade\n" in text


def test_the_script_replaces_the_table_and_the_first_versions() -> None:
    gone = "".join(f"add table {name}\ndelete table {name}\n" for name in ("ip podlane-netd", "inet podlane-netd"))
    assert table_script(RULES) == gone + table_text(RULES)
    assert table_script(NOTHING) == gone


def test_only_what_is_in_the_table_makes_it_another_table() -> None:
    assert RULES.guard is not None
    for other in (replace(RULES, forward=False), replace(RULES, guard=VxlanGuard(8472, frozenset()))):
        assert other.skeleton == RULES.skeleton
    for other in (replace(RULES, guard=replace(RULES.guard, port=4789)), replace(RULES, own=Subnets()), V4_ONLY):
        assert other.skeleton != RULES.skeleton


# --- the forward chain ---------------------------------------------------------------------

CHAIN = [
    "-N PODLANE-FORWARD",
    "-A PODLANE-FORWARD -s 10.5.0.0/16 -j ACCEPT",
    "-A PODLANE-FORWARD -d 10.5.0.0/16 -j ACCEPT",
]
OTHER = [line.replace("10.5", "10.6") for line in CHAIN]
JUMP = "-A FORWARD -j PODLANE-FORWARD"
DOCKER = "-A FORWARD -j DOCKER-FORWARD"
USER = "-A FORWARD -j DOCKER-USER"
FILL = ":PODLANE-FORWARD - [0:0]\n" + "".join(f"{line}\n" for line in CHAIN[1:])
AWAY = "-D FORWARD -j PODLANE-FORWARD\n"


def into(place: int) -> str:
    return f"-I FORWARD {place} -j PODLANE-FORWARD\n"


@pytest.mark.parametrize(
    ("forward", "chain", "script"),
    [
        pytest.param([], None, FILL + into(1), id="nothing there"),
        pytest.param([USER, DOCKER], None, FILL + into(2), id="docker was first"),
        pytest.param([JUMP], CHAIN, "", id="well"),
        pytest.param([USER, JUMP, DOCKER], CHAIN, "", id="well beside docker"),
        pytest.param([JUMP, USER, DOCKER], CHAIN, AWAY + into(2), id="before the administrator's rules"),
        pytest.param([DOCKER, JUMP], CHAIN, AWAY + into(1), id="behind docker's"),
        pytest.param([DOCKER, USER, JUMP], CHAIN, AWAY + into(1), id="docker-user is not first"),
        pytest.param([JUMP, JUMP], CHAIN, AWAY + AWAY + into(1), id="twice"),
        pytest.param([DOCKER], CHAIN, into(1), id="jump gone"),
        pytest.param([JUMP], OTHER, FILL, id="another network"),
        pytest.param([JUMP], CHAIN[:1], FILL, id="emptied"),
        pytest.param([JUMP], CHAIN[:2], FILL, id="one rule gone"),
    ],
)
def test_forward_rules(forward: list[str], chain: list[str] | None, script: str) -> None:
    whole = f"*filter\n{script}COMMIT\n" if script else ""
    assert forward_restore(["-P FORWARD DROP", *forward], chain, (NETWORK,)) == whole


def test_several_networks_of_a_family() -> None:
    script = forward_restore([JUMP], None, (NETWORK, IPv4Network("10.6.0.0/16")))
    assert [line.split()[2:4] for line in script.splitlines() if line.startswith("-A")] == [
        ["-s", "10.5.0.0/16"],
        ["-d", "10.5.0.0/16"],
        ["-s", "10.6.0.0/16"],
        ["-d", "10.6.0.0/16"],
    ]


@pytest.mark.parametrize(
    ("forward", "chain", "script"),
    [
        ([USER, DOCKER], None, ""),
        ([USER, JUMP, JUMP], CHAIN, f"*filter\n{AWAY}{AWAY}-F PODLANE-FORWARD\n-X PODLANE-FORWARD\nCOMMIT\n"),
        ([DOCKER], CHAIN, "*filter\n-F PODLANE-FORWARD\n-X PODLANE-FORWARD\nCOMMIT\n"),
    ],
)
def test_forward_rules_are_removed_only_if_they_are_there(
    forward: list[str], chain: list[str] | None, script: str
) -> None:
    none: tuple[Network, ...] = ()
    assert forward_restore(forward, chain, none) == script


# --- notifications -------------------------------------------------------------------------

OURS = nft.Table(nft.NFPROTO_INET, "podlane-netd")
FILTER, FILTER6 = nft.Table(nft.NFPROTO_IPV4, "filter"), nft.Table(nft.NFPROTO_IPV6, "filter")
PROXYD = nft.Table(nft.NFPROTO_IPV4, "podlane")
ELEMENT = [nft.element(ip_address("10.0.0.1").packed)]


def generation(number: int) -> nl.Message:
    return nl.Message(nft.SUBSYSTEM | nft.NEWGEN, 0, struct.pack(">BBH", 0, 0, number & 0xFFFF) + nl.be32(1, number))


def datagram(*messages: nl.Message) -> memoryview:
    return memoryview(b"".join(struct.pack("=IHHII", 16 + len(m.body), m.type, 0, 0, 0) + m.body for m in messages))


def chain(table: nft.Table, name: str, kind: int = nft.NEWCHAIN) -> nl.Message:
    return table.message(kind, nl.text(nft.CHAIN_NAME, name))


def rule(table: nft.Table, name: str, kind: int = nft.NEWRULE) -> nl.Message:
    return table.message(kind, nl.text(nft.RULE_CHAIN, name), nl.be32(3, 7))


def elements(table: nft.Table, name: str) -> nl.Message:
    return next(message for message, _ in table.change_elements(nft.DELSETELEM, name, ELEMENT))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(OURS.message(2), id="our table deleted"),
        pytest.param(rule(OURS, "postrouting", nft.DELRULE), id="a rule of ours"),
        pytest.param(elements(OURS, "vxlan-sources"), id="a source"),
        pytest.param(rule(FILTER, "FORWARD"), id="a rule in FORWARD"),
        pytest.param(rule(FILTER6, "PODLANE-FORWARD", nft.DELRULE), id="a rule in our chain"),
        pytest.param(chain(FILTER, "PODLANE-FORWARD", nft.DELCHAIN), id="our chain"),
        pytest.param(chain(FILTER6, "FORWARD"), id="FORWARD itself"),
    ],
)
def test_news(change: nl.Message) -> None:
    assert Notices().read(datagram(change, generation(7))) == [7]
    apart = Notices()
    assert apart.read(datagram(rule(FILTER, "DOCKER"), change, elements(PROXYD, "services"))) == []
    assert apart.read(datagram(generation(8))) == [8]
    assert apart.read(datagram(generation(9))) == []


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(elements(PROXYD, "services"), id="proxyd"),
        pytest.param(rule(FILTER, "DOCKER"), id="docker publishes a port"),
        pytest.param(chain(FILTER, "DOCKER-FORWARD"), id="a chain of docker's"),
        pytest.param(rule(nft.Table(nft.NFPROTO_IPV4, "nat"), "FORWARD"), id="a table of that name elsewhere"),
        pytest.param(rule(nft.Table(nft.NFPROTO_INET, "filter"), "FORWARD"), id="the administrator's own table"),
        pytest.param(elements(FILTER, "FORWARD"), id="a set called FORWARD"),
        pytest.param(nft.Table(nft.NFPROTO_IPV4, "podlane-netd").message(2), id="the first version's table"),
        pytest.param(nl.Message(1 << 8, 0, OURS.message(0).body), id="not of nftables"),
    ],
)
def test_no_news(change: nl.Message) -> None:
    assert Notices().read(datagram(change, generation(7))) == []


def test_transactions_in_one_datagram_are_told_apart() -> None:
    others, ours = rule(FILTER, "DOCKER"), rule(FILTER, "FORWARD")
    assert Notices().read(datagram(others, generation(5), ours, generation(6), others, generation(7))) == [6]
    assert Notices().read(datagram(ours, generation(5), ours, ours, generation(6), ours)) == [5, 6]


@pytest.mark.parametrize("length", [0, 3, 15, 30, 44])
def test_a_datagram_cut_short_is_no_news(length: int) -> None:
    assert Notices().read(datagram(rule(OURS, "input"), generation(5))[:length]) == []
