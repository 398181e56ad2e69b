"""Which interface: never a guess."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface

import pytest

from netd.desired import Underlay
from netd.model import Interface
from netd.underlay import NoUnderlay, choose_underlay

pytestmark = pytest.mark.unit


def interface(name: str, *addresses: str, up: bool = True, metric: int | None = None, index: int = 2) -> Interface:
    return Interface(name, index, 1500, up, name == "lo", "", tuple(map(IPv4Interface, addresses)), metric)


NAT = interface("eth0", "10.0.2.15/24", metric=100)
LAN = interface("eth1", "192.168.64.11/24", "192.168.65.11/24", index=3)
HOST = (interface("lo", "127.0.0.1/8"), NAT, LAN, interface("eth2", "172.16.0.1/16", up=False), interface("eth3"))


def test_the_default_route_decides_and_of_several_the_lowest_metric() -> None:
    assert choose_underlay(HOST) == Underlay("eth0", IPv4Interface("10.0.2.15/24"), IPv4Address("10.0.2.15"), 1500)
    better = interface("wan", "203.0.113.5/24", metric=50)
    assert choose_underlay((*HOST, better)).name == "wan"


@pytest.mark.parametrize(
    ("iface", "public", "address", "told"),
    [
        ("eth1", None, "192.168.64.11/24", "192.168.64.11"),
        ("192.168.65.11", None, "192.168.65.11/24", "192.168.65.11"),
        ("", "192.168.65.11", "192.168.65.11/24", "192.168.65.11"),
        ("eth1", "192.168.65.11", "192.168.65.11/24", "192.168.65.11"),
        ("eth1", "198.51.100.7", "192.168.64.11/24", "198.51.100.7"),
    ],
)
def test_by_name_by_address_and_by_public_address(iface: str, public: str | None, address: str, told: str) -> None:
    chosen = choose_underlay(HOST, iface=iface, public_ip=IPv4Address(public) if public else None)
    assert chosen == Underlay("eth1", IPv4Interface(address), IPv4Address(told), 1500)


CANDIDATES = "candidates: eth0 (10.0.2.15), eth1 (192.168.64.11, 192.168.65.11)"


@pytest.mark.parametrize(
    ("iface", "message"),
    [
        ("eth9", f"choose interface eth9: no such interface; {CANDIDATES}"),
        ("eth2", f"choose interface eth2: it is down; {CANDIDATES}"),
        ("eth3", f"choose interface eth3: it has no IPv4 address; {CANDIDATES}"),
        ("lo", f"choose interface lo: it is the loopback; {CANDIDATES}"),
        ("10.9.9.9", f"choose interface 10.9.9.9: no interface has this address; {CANDIDATES}"),
    ],
)
def test_refused_with_the_candidates(iface: str, message: str) -> None:
    with pytest.raises(NoUnderlay) as caught:
        choose_underlay(HOST, iface=iface)
    assert str(caught.value) == message


def test_without_a_default_route_one_must_be_named() -> None:
    with pytest.raises(NoUnderlay, match="there is no default route; name one with --iface; candidates: eth1"):
        choose_underlay([LAN])
    with pytest.raises(NoUnderlay, match="no interface is up with an IPv4 address"):
        choose_underlay([])
