"""Which interface: what was named or what the evidence shows, and never a guess."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface
from typing import Any

import pytest

from netd.model import Interface
from netd.underlay import NoUnderlay, UnderlayWish, choose_underlay, interface_regex, overlap
from podlane.api.network import NetworkConfig, parse_config
from podlane.api.subnets import Address, Subnets
from podlane.errors import UsageError

pytestmark = pytest.mark.unit


def interface(name: str, *addresses: str, up: bool = True, kind: str = "", **more: Any) -> Interface:
    """`metric` and `metric6` are those of its default routes."""
    return Interface(
        name=name,
        index=2,
        mtu=1500,
        up=up,
        loopback=name == "lo",
        kind=kind,
        addresses=tuple(map(ip_interface, addresses)),
        default_metric=more.pop("metric", None),
        default_metric6=more.pop("metric6", None),
    )


LO = interface("lo")
NAT = interface("eth0", "10.0.2.15/24", metric=100)
LAN = interface("eth1", "192.168.64.11/24", "192.168.65.11/24")
SAN = interface("eth2", "172.20.0.11/16", "fd00:20::11/64")
WAN = interface("wan0", "203.0.113.5/24", "2001:db8::5/64", metric=50, metric6=1024)
DOWN = interface("eth8", "10.8.0.1/24", up=False)
BARE = interface("eth9")
DOCKER = interface("docker0", "172.17.0.1/16", kind="bridge")
VETH = interface("veth12ab", "10.9.9.9/32", kind="veth")
OVERLAY = interface("flannel.1", "10.5.34.0/32", kind="vxlan")

VAGRANT = (LO, NAT, LAN, DOWN, BARE, DOCKER, VETH, OVERLAY)
SERVER = (LO, WAN, LAN, SAN, DOCKER)


def nowhere(address: Address) -> str:
    del address
    return ""


def routes(**table: str) -> Callable[[Address], str]:
    """`eth1="198.51.100.7"`: packets for that address go by eth1."""
    by_address = {ip_address(address): name for name, address in table.items()}
    return lambda address: by_address.get(address, "")


def choose(
    interfaces: Sequence[Interface],
    *reach: str,
    route_to: Callable[[Address], str] = nowhere,
    previous: str = "",
    **wish: Any,
) -> str:
    """The choice as text: name, addresses, and the public ones where they differ."""
    chosen = choose_underlay(
        interfaces, UnderlayWish(**wish), reach=[*map(ip_address, reach)], route_to=route_to, previous=previous
    )
    text = " ".join(str(part) for part in (chosen.name, chosen.v4, chosen.v6) if part is not None)
    for address, public in ((chosen.v4, chosen.public_ip), (chosen.v6, chosen.public_ipv6)):
        assert (address is None) == (public is None)
        if address is not None and address.ip != public:
            text += f" as {public}"
    return text


def refusal(interfaces: Sequence[Interface], *reach: str, **more: Any) -> str:
    with pytest.raises(NoUnderlay) as caught:
        choose(interfaces, *reach, **more)
    return str(caught.value)


# ---- named by the operator ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wish", "chosen"),
    [
        ({"ifaces": ("eth1",)}, "eth1 192.168.64.11/24"),
        ({"ifaces": ("192.168.65.11",)}, "eth1 192.168.65.11/24"),
        ({"ifaces": ("eth7", "10.8.0.1", "eth9", "eth1", "eth0")}, "eth1 192.168.64.11/24"),
        ({"ifaces": ("eth0",)}, "eth0 10.0.2.15/24"),
        ({"ifaces": ("docker0",)}, "docker0 172.17.0.1/16"),
        ({"iface_regexes": (r"^eth[1-9]$",)}, "eth1 192.168.64.11/24"),
        ({"iface_regexes": (r"[[:alpha:]]+1$",)}, "eth1 192.168.64.11/24"),
        ({"iface_regexes": (r"192\.168\.65\.",)}, "eth1 192.168.65.11/24"),
        ({"iface_regexes": (r"nothing", r"eth1")}, "eth1 192.168.64.11/24"),
        # an address counts before a name, and a link of containers only if nothing else matches
        ({"iface_regexes": (r"eth0|64\.11",)}, "eth1 192.168.64.11/24"),
        ({"iface_regexes": (r"172\.17|eth",)}, "eth0 10.0.2.15/24"),
        ({"iface_regexes": (r"^172\.17",)}, "docker0 172.17.0.1/16"),
        ({"ifaces": ("eth7",), "iface_regexes": (r"eth1",)}, "eth1 192.168.64.11/24"),
        ({"ifaces": ("eth1",), "iface_regexes": (r"eth0",)}, "eth1 192.168.64.11/24"),
    ],
)
def test_named(wish: dict[str, Any], chosen: str) -> None:
    assert choose(VAGRANT, **wish) == chosen


def test_the_interface_that_reaches_an_address() -> None:
    far = ip_address("198.51.100.7")
    assert choose(SERVER, can_reach=far, route_to=routes(eth2="198.51.100.7")) == "eth2 172.20.0.11/16"
    near = ip_address("192.168.65.40")  # then by the address of that subnet
    assert choose(SERVER, can_reach=near, route_to=routes(eth1="192.168.65.40")) == "eth1 192.168.65.11/24"
    assert choose(SERVER, ifaces=("eth2",), can_reach=near, route_to=nowhere) == "eth2 172.20.0.11/16"


@pytest.mark.parametrize(
    ("wish", "chosen"),
    [
        ({"public_ip": "192.168.65.11"}, "eth1 192.168.65.11/24"),
        ({"ifaces": ("eth1",), "public_ip": "192.168.65.11"}, "eth1 192.168.65.11/24"),
        ({"ifaces": ("eth1",), "public_ip": "198.51.100.7"}, "eth1 192.168.64.11/24 as 198.51.100.7"),
        ({"public_ip": "198.51.100.7"}, "wan0 203.0.113.5/24 as 198.51.100.7"),
        ({"public_ipv6": "fd00:20::11"}, "eth2 172.20.0.11/16 fd00:20::11/64"),
        (
            {"public_ip": "198.51.100.7", "public_ipv6": "fd00:20::11"},
            "eth2 172.20.0.11/16 fd00:20::11/64 as 198.51.100.7",
        ),
    ],
)
def test_the_public_address_is_held_or_told(wish: dict[str, Any], chosen: str) -> None:
    for flag, kind in (("public_ip", IPv4Address), ("public_ipv6", IPv6Address)):
        if flag in wish:
            wish = {**wish, flag: kind(wish[flag])}
    assert choose(SERVER, **wish) == chosen


CANDIDATES = (
    "candidates: eth0 (10.0.2.15, the same on every virtual machine behind such a NAT), "
    "eth1 (192.168.64.11, 192.168.65.11); "
    "only if named: docker0 (172.17.0.1), veth12ab (10.9.9.9), flannel.1 (10.5.34.0)"
)


@pytest.mark.parametrize(
    ("wish", "reason"),
    [
        ({"ifaces": ("eth7",)}, "--iface eth7: no such interface"),
        ({"ifaces": ("eth8",)}, "--iface eth8: it is down"),
        ({"ifaces": ("10.8.0.1",)}, "--iface 10.8.0.1: it is down"),
        ({"ifaces": ("eth9",)}, "--iface eth9: it has no address other hosts can use"),
        ({"ifaces": ("lo",)}, "--iface lo: it is the loopback"),
        ({"ifaces": ("10.9.9.8",)}, "--iface 10.9.9.8: no interface has this address"),
        (
            {"ifaces": ("eth7", "eth8"), "iface_regexes": ("wlan",), "can_reach": ip_address("198.51.100.7")},
            "--iface eth7: no such interface; --iface eth8: it is down; --iface-regex wlan: matches no name and no "
            "address; --iface-can-reach 198.51.100.7: there is no route to it",
        ),
        (
            {"ifaces": ("eth1",), "public_ipv6": IPv6Address("2001:db8::9")},
            "--iface eth1: it has no IPv6 address to go with --public-ipv6 2001:db8::9",
        ),
    ],
)
def test_refused_with_the_reason_and_the_candidates(wish: dict[str, Any], reason: str) -> None:
    assert refusal(VAGRANT, **wish) == f"choose interface: {reason}; {CANDIDATES}"


def test_what_was_named_is_not_replaced_by_something_else() -> None:
    assert "no such interface" in refusal(VAGRANT, "192.168.64.2", ifaces=("eth7",), previous="eth1")
    assert "is down" in refusal(VAGRANT, can_reach=ip_address("10.8.0.2"), route_to=routes(eth8="10.8.0.2"))
    assert refusal(SERVER, public_ip=IPv4Address("192.168.64.11"), public_ipv6=IPv6Address("fd00:20::11")) == (
        "choose interface: --public-ip 192.168.64.11 is on eth1 and --public-ipv6 fd00:20::11 on eth2; "
        "name one of them with --iface"
    )
    assert "eth1 has the public address: it has no IPv6 address" in refusal(
        SERVER, public_ip=IPv4Address("192.168.64.11"), public_ipv6=IPv6Address("2001:db8::99")
    )


def test_regular_expressions_are_gos() -> None:
    assert interface_regex(r"^eth[[:digit:]]\z").search("eth7")
    assert not interface_regex(r"^eth[[:digit:]]\z").search("eth:")
    for bad in ("(", "[[:vowel:]]"):
        with pytest.raises(UsageError, match="expected a regular expression, got"):
            interface_regex(bad)


# ---- the automatic choice -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reach", "chosen"),
    [
        (("172.20.0.1",), "eth2 172.20.0.11/16"),
        (("172.20.0.1", "192.168.64.1", "192.168.64.2"), "eth1 192.168.64.11/24"),
        # as many here as there: etcd's, which come first
        (("172.20.0.1", "192.168.64.1"), "eth2 172.20.0.11/16"),
        (("192.168.64.1", "172.20.0.1"), "eth1 192.168.64.11/24"),
        # the address of the subnet they are in
        (("192.168.65.1",), "eth1 192.168.65.11/24"),
        # named twice is not more
        (("172.20.0.1", "192.168.64.1", "192.168.64.1"), "eth2 172.20.0.11/16"),
        # an address of this host counts for its interface, a loopback one for none
        (("192.168.64.11",), "eth1 192.168.64.11/24"),
        (("127.0.0.1", "::1", "172.20.0.1"), "eth2 172.20.0.11/16"),
        (("127.0.0.1",), "wan0 203.0.113.5/24"),
        (("172.17.0.2",), "wan0 203.0.113.5/24"),
    ],
)
def test_the_interface_whose_subnet_has_etcd_and_the_peers(reach: tuple[str, ...], chosen: str) -> None:
    assert choose(SERVER, *reach) == chosen


def test_the_longest_prefix_counts() -> None:
    wide, narrow = interface("eth0", "10.0.0.1/8", metric=0), interface("eth1", "10.1.0.1/16")
    assert choose((wide, narrow), "10.1.0.9") == "eth1 10.1.0.1/16"


def test_an_address_of_this_host_speaks_for_no_other_interface() -> None:
    wide = interface("eth1", "172.16.0.5/12")
    assert choose((WAN, wide), "172.17.0.1") == "eth1 172.16.0.5/12"
    assert choose((WAN, wide, DOCKER), "172.17.0.1") == "wan0 203.0.113.5/24"


def test_then_what_it_was_before_a_restart() -> None:
    assert choose(SERVER, previous="eth2") == "eth2 172.20.0.11/16"
    assert choose(SERVER, "192.168.64.1", previous="eth2") == "eth1 192.168.64.11/24"
    assert choose(SERVER, previous="eth5") == "wan0 203.0.113.5/24"
    assert choose(VAGRANT, previous="eth0") == "eth1 192.168.64.11/24"


def test_then_the_route_to_etcd() -> None:
    assert choose(SERVER, "198.51.100.7", route_to=routes(eth2="198.51.100.7")) == "eth2 172.20.0.11/16"
    # the first whose route is by a candidate
    by = routes(docker0="198.51.100.7", eth1="198.51.100.8")
    assert choose(SERVER, "198.51.100.7", "198.51.100.8", route_to=by) == "eth1 192.168.64.11/24"


def test_then_the_default_route_with_the_lowest_metric() -> None:
    spare = interface("wan1", "198.51.100.9/24", metric=60)
    assert choose((*SERVER, spare)) == "wan0 203.0.113.5/24"
    only_v6 = (LAN, interface("eth2", "172.20.0.11/16", "fd00:20::11/64", metric6=1024))
    assert choose(only_v6) == "eth2 172.20.0.11/16"


def test_vagrants_nat_is_left_when_there_is_anything_else() -> None:
    assert choose(VAGRANT) == "eth1 192.168.64.11/24"
    assert choose(VAGRANT, "10.0.2.2", route_to=routes(eth0="10.0.2.2")) == "eth1 192.168.64.11/24"
    assert choose(VAGRANT, "10.0.2.15") == "eth1 192.168.64.11/24"
    assert choose((LO, NAT, DOCKER, DOWN)) == "eth0 10.0.2.15/24"
    with_v6 = interface("eth0", "10.0.2.15/24", "fd17:625c:f037:2::15/64", metric=1)
    assert choose((with_v6, LAN), families=frozenset({4, 6})) == "eth1 192.168.64.11/24"
    # a second address that is its own makes it an interface as any other
    assert choose((interface("eth0", "10.0.2.15/24", "10.77.0.5/24", metric=1), LAN)) == "eth0 10.0.2.15/24"
    # so does a place in such a subnet that was not given by a NAT
    assert choose((interface("eth0", "10.0.2.16/24", metric=1), LAN)) == "eth0 10.0.2.16/24"


def test_nothing_tells_them_apart() -> None:
    assert refusal((NAT, LAN, SAN, DOCKER)) == (
        "choose interface: nothing tells eth1 and eth2 apart, name one with --iface; "
        "candidates: eth0 (10.0.2.15, the same on every virtual machine behind such a NAT), "
        "eth1 (192.168.64.11, 192.168.65.11), eth2 (172.20.0.11, fd00:20::11); only if named: docker0 (172.17.0.1)"
    )
    twins = (interface("eth0", "192.168.64.5/24", metric=100), interface("eth1", "192.168.64.6/24", metric=100))
    assert "nothing tells eth0 and eth1 apart" in refusal(twins, "192.168.64.1")


def test_none_fits() -> None:
    assert refusal(()) == (
        "choose interface: none fits, name one with --iface; no interface is up with an address other hosts can use"
    )
    assert refusal((LO, DOCKER, VETH, OVERLAY, DOWN)) == (
        "choose interface: none fits, name one with --iface; "
        "only if named: docker0 (172.17.0.1), veth12ab (10.9.9.9), flannel.1 (10.5.34.0)"
    )


@pytest.mark.parametrize(
    "link",
    [
        interface("br-0123456789ab", "172.18.0.1/16", kind="bridge", metric=1),
        interface("mybridge", "172.18.0.1/16", kind="bridge"),
        interface("podlane0", "10.5.34.1/24", kind="bridge"),
        interface("cni0", "10.5.34.1/24"),
        interface("wg0", "10.99.0.1/24", kind="wireguard", metric=1),
        interface("tailscale0", "100.64.0.1/32", kind="tun"),
        interface("kube-ipvs0", "10.96.0.1/32", kind="dummy"),
    ],
)
def test_links_of_containers_and_overlays_are_not_chosen(link: Interface) -> None:
    assert choose((link, LAN), str(link.addresses[0].ip + 1), previous=link.name) == "eth1 192.168.64.11/24"
    assert choose((link, LAN), ifaces=(link.name,)) == f"{link.name} {link.addresses[0]}"


@pytest.mark.parametrize("kind", ["veth", "bridge", "vlan", "bond"])
def test_links_that_lead_to_other_hosts_are(kind: str) -> None:
    """A container's own eth0 is a veth; a host's way out may be a bridge with a physical port."""
    assert choose((interface("br0", "192.168.64.5/24", kind=kind, metric=0), DOCKER)) == "br0 192.168.64.5/24"


# ---- address families ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("families", "wan", "lan"),
    [
        ({4}, "wan0 203.0.113.5/24", "eth1 192.168.64.11/24"),
        ({6}, "wan0 2001:db8::5/64", "eth1 192.168.64.11/24"),  # IPv6 pods over IPv4 hosts
        ({4, 6}, "wan0 203.0.113.5/24 2001:db8::5/64", "eth1 192.168.64.11/24"),
    ],
)
def test_the_families_the_pods_need_are_used_or_the_other_one(families: set[Any], wan: str, lan: str) -> None:
    assert choose((WAN,), families=frozenset(families)) == wan
    assert choose((LAN,), families=frozenset(families)) == lan


def test_ipv4_pods_over_ipv6_hosts() -> None:
    v6 = interface("eth0", "fd00:64::11/64", metric6=1024)
    assert choose((v6,)) == "eth0 fd00:64::11/64"
    assert choose((WAN,), ifaces=("2001:db8::5",)) == "wan0 2001:db8::5/64"


def test_of_equal_ones_that_with_the_needed_families() -> None:
    bare = interface("eth0", "fd00:64::11/64", metric6=5)
    assert choose((bare, LAN)) == "eth1 192.168.64.11/24"
    assert choose((bare, LAN), "fd00:64::1") == "eth0 fd00:64::11/64"


def test_ipv6_peers_are_evidence_too() -> None:
    both = frozenset({4, 6})
    assert choose(SERVER, "fd00:20::1", families=both) == "eth2 172.20.0.11/16 fd00:20::11/64"


# ---- overlap ------------------------------------------------------------------------------------


def config(**fields: Any) -> NetworkConfig:
    return parse_config(json.dumps({"Network": "10.5.0.0/16", **fields}))


def overlapping(*interfaces: Interface, own: str = "", **fields: Any) -> str:
    underlay = choose_underlay((LAN, *interfaces), UnderlayWish(ifaces=("eth1",)), reach=(), route_to=nowhere)
    subnets = Subnets.parse_key(own) if own else None
    return overlap(config(**fields), (LO, LAN, *interfaces), underlay, {"flannel.1"}, subnets)


@pytest.mark.parametrize("address", ["10.5.7.1/24", "10.0.0.1/8", "10.5.7.1/32"])
def test_a_network_that_this_host_is_in_already(address: str) -> None:
    network = str(ip_interface(address).network)
    other = interface("eth3", address)
    assert overlapping(other) == (
        f"use network 10.5.0.0/16: it overlaps {network}, the subnet of eth3 ({other.addresses[0].ip}); "
        "take another network for the pods, or another subnet for eth3"
    )


def test_the_underlay_itself_may_not_be_in_the_pod_network() -> None:
    assert "overlaps 192.168.64.0/24, the subnet of eth1" in overlapping(Network="192.168.0.0/16")


def test_ipv6_overlaps_too() -> None:
    six = {"EnableIPv6": True, "IPv6Network": "fd00:20::/56"}
    assert "use network fd00:20::/56: it overlaps fd00:20::/64" in overlapping(SAN, **six)
    assert overlapping(SAN, **(six | {"IPv6Network": "fd00:21::/56"})) == ""


def test_what_belongs_there_does_not_overlap() -> None:
    assert overlapping(SAN, DOCKER, OVERLAY, interface("lo", "127.0.0.1/8")) == ""
    bridge = interface("podlane0", "10.5.34.1/24", kind="bridge")
    assert overlapping(bridge) == ""
    assert overlapping(bridge, own="10.5.34.0-24") == ""
    assert overlapping(interface("docker0", "10.5.34.1/26", kind="bridge"), own="10.5.34.0-24") == ""


def test_a_bridge_in_another_hosts_subnet_does() -> None:
    bridge = interface("docker0", "10.5.34.1/24", kind="bridge")
    assert "the subnet of docker0" in overlapping(bridge, own="10.5.77.0-24")
    wide = interface("cni0", "10.5.34.1/16", kind="bridge")
    assert "the subnet of cni0" in overlapping(wide)
    assert "the subnet of cni0" in overlapping(wide, own="10.5.34.0-24")
    for metric in ("metric", "metric6"):
        uplink = interface("br0", "10.5.34.1/24", kind="bridge", **{metric: 1024})
        assert "the subnet of br0" in overlapping(uplink)


def test_nor_may_a_bridge_that_is_the_underlay() -> None:
    bridge = interface("br1", "10.5.34.1/24", kind="bridge")
    underlay = choose_underlay((LAN, bridge), UnderlayWish(ifaces=("br1",)), reach=(), route_to=nowhere)
    assert "the subnet of br1" in overlap(config(), (LAN, bridge), underlay, ())
