"""Which address the next pod gets."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.agent.addresses import Addresses
from scheduler.agent.network import NetworkSpec

pytestmark = pytest.mark.unit

SMALL = NetworkSpec("10.5.3.0/29", "10.5.3.1", 1450)


def test_they_come_in_turn_and_a_freed_one_comes_last() -> None:
    small = Addresses(SMALL)
    assert list(small.free()) == ["10.5.3.2", "10.5.3.3", "10.5.3.4", "10.5.3.5", "10.5.3.6"]
    later = Addresses(SMALL, frozenset({"10.5.3.3"}), "10.5.3.4")
    assert list(later.free()) == ["10.5.3.5", "10.5.3.6", "10.5.3.2", "10.5.3.4"]


def test_a_full_subnet_has_none() -> None:
    used = frozenset(f"10.5.3.{n}" for n in range(2, 7))
    assert list(Addresses(SMALL, used).free()) == []


def test_a_last_one_of_an_earlier_subnet_is_no_harm() -> None:
    moved = Addresses(NetworkSpec("10.5.4.0/29", "10.5.4.1", 1450), last="10.5.3.6")
    assert len(set(moved.free())) == 5


def test_a_network_of_ipv6_alone() -> None:
    wide = NetworkSpec("fd00:5::/64", "fd00:5::1", 1450)
    assert list(islice(Addresses(wide).free(), 2)) == ["fd00:5::2", "fd00:5::3"]
    assert list(islice(Addresses(wide, last="fd00:5::ffff:ffff:ffff:fffe").free(), 3)) == [
        "fd00:5::ffff:ffff:ffff:ffff",
        "fd00:5::2",
        "fd00:5::3",
    ]
    assert list(Addresses(NetworkSpec("fd00:5::/126", "fd00:5::1", 1450)).free()) == ["fd00:5::2", "fd00:5::3"]


@st.composite
def pools(draw: st.DrawFn) -> Addresses:
    base = draw(st.integers(0, 2**32 - 1))
    network = IPv4Network((base, draw(st.integers(22, 30))), strict=False)
    hosts = list(network.hosts())
    gateway = draw(st.sampled_from(hosts))
    used = draw(st.frozensets(st.sampled_from(hosts), max_size=20))
    last = draw(st.sampled_from(["", *map(str, hosts)]))
    return Addresses(NetworkSpec(str(network), str(gateway), 1450), frozenset(map(str, used)), last)


@given(pools())
def test_all_that_are_free_and_nothing_else(pool: Addresses) -> None:
    free = list(pool.free())
    hosts = {str(a) for a in IPv4Network(pool.network.subnet).hosts()}
    assert len(set(free)) == len(free)
    assert set(free) == hosts - pool.used - {pool.network.gateway}


@given(pools())
def test_the_next_one_follows_the_last_one(pool: Addresses) -> None:
    for address in islice(pool.free(), 1):
        network = IPv4Network(pool.network.subnet)
        start = int(IPv4Address(pool.last)) if pool.last else int(network.network_address)
        passed = [start + n for n in range(1, (int(IPv4Address(address)) - start) % network.num_addresses)]
        inner = {network.network_address + (n - int(network.network_address)) % network.num_addresses for n in passed}
        edges = {str(network.network_address), str(network.broadcast_address), pool.network.gateway}
        assert {str(a) for a in inner} <= pool.used | edges
