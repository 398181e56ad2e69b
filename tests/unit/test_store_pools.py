"""Which address or port is tried next."""

from __future__ import annotations

import random
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podlane.store import keys
from podlane.store.pools import RangeFull, address_error, address_pool, port_error, port_pool

pytestmark = pytest.mark.unit


@given(prefix=st.integers(20, 32), seed=st.integers(), share=st.floats(0, 1))
def test_a_free_address_is_found_if_there_is_one(prefix: int, seed: int, share: float) -> None:
    network = ip_network(f"10.96.0.0/{prefix}")
    usable = [str(host) for host in network.hosts()] if prefix < 31 else [str(a) for a in network]
    rng = random.Random(seed)
    pool = address_pool(network)
    taken_addresses = set(rng.sample(usable, int(len(usable) * share)))
    taken = {keys.service_ip_key(address) for address in taken_addresses}
    guess = pool.guess(taken, rng)
    assert guess is None or guess in set(usable) - taken_addresses
    if len(taken) == len(usable):
        with pytest.raises(RangeFull, match="range full"):
            pool.free(taken, rng)
    else:
        assert pool.free(taken, rng) in set(usable) - taken_addresses
    assert {address_error(address, network) for address in usable[:3] + usable[-3:]} == {None}


@given(first=st.integers(1, 65000), count=st.integers(1, 400), seed=st.integers(), share=st.floats(0, 1))
def test_a_free_port_is_found_if_there_is_one(first: int, count: int, seed: int, share: float) -> None:
    ports = range(first, first + count)
    rng = random.Random(seed)
    pool = port_pool(ports)
    busy = set(rng.sample(ports, int(count * share)))
    taken = {keys.service_node_port_key(port) for port in busy}
    if len(busy) == count:
        with pytest.raises(RangeFull, match=f"node port in {first}-{first + count - 1}: range full"):
            pool.free(taken, rng)
    else:
        assert int(pool.free(taken, rng)) in set(ports) - busy
        assert pool.guess(taken, rng) not in {str(port) for port in busy}


def test_the_lower_end_is_left_to_those_who_ask_until_the_rest_is_full() -> None:
    """30000-32767: the first 86 (a 32nd); a /24: the first 16."""
    rng = random.Random(1)
    ports = port_pool(range(30000, 32768))
    assert {int(ports.guess(set(), rng) or 0) < 30086 for _ in range(3000)} == {False}
    upper = {keys.service_node_port_key(port) for port in range(30086, 32768)}
    assert ports.guess(upper, rng) is None
    assert 30000 <= int(ports.free(upper, rng)) < 30086
    addresses = address_pool(ip_network("10.96.0.0/24"))
    assert min(int((addresses.guess(set(), rng) or ".0").rpartition(".")[2]) for _ in range(2000)) == 17


def test_large_and_ipv6_ranges() -> None:
    rng = random.Random(1)
    for cidr in ("10.0.0.0/8", "fd00:96::/108", "::/64"):
        network = ip_network(cidr)
        address = address_pool(network).guess(set(), rng)
        assert address is not None
        assert address_error(address, network) is None
        assert address_pool(network).free({keys.service_ip_key(address)}, rng) != address
    # there is no broadcast in IPv6
    assert address_error("fd00::f", ip_network("fd00::/124")) is None
    assert (
        address_error("fd00::", ip_network("fd00::/124"))
        == "fd00:: is not a usable address of the service range fd00::/124"
    )


def test_ports_out_of_range() -> None:
    assert port_error(30000, range(30000, 32768)) is None
    assert port_error(32768, range(30000, 32768)) == "32768 is not in the node port range 30000-32767"
