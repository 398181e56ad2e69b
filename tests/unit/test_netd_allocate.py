"""Which subnet: never one that is taken, always one that is free, and one's own again."""

from __future__ import annotations

import random
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netd.allocate import Create, Held, OutOfSubnets, Take, choose, read_held, superseded
from podlane.api.network import LeaseValue, NetworkConfig, parse_config, subnet_key

pytestmark = pytest.mark.unit

CONFIG: NetworkConfig = parse_config('{"Network":"10.5.0.0/16"}')
SMALL: NetworkConfig = parse_config('{"Network":"10.5.0.0/24"}')  # /26: three usable subnets
ME = IPv4Address("192.168.64.11")
OTHER = IPv4Address("192.168.64.12")


def held(subnet: str, ip: IPv4Address | None = OTHER, *, created: int = 1, lease: int = 7) -> Held:
    net = IPv4Network(subnet)
    value = LeaseValue.vxlan(ip, 1, "02:00:00:00:00:02") if ip else None
    return Held(subnet_key(net), net, value, created, created, lease)


def test_a_free_one_is_drawn_by_the_generator_alone() -> None:
    first = choose(CONFIG, ME, [], None, random.Random(1))
    assert first == choose(CONFIG, ME, [], None, random.Random(1))
    assert first != choose(CONFIG, ME, [], None, random.Random(2))


def test_the_lease_that_names_us_is_taken_again() -> None:
    own = held("10.5.7.0/24", ME)
    assert choose(CONFIG, ME, [held("10.5.3.0/24"), own], None, random.Random(1)) == Take(own)


def test_of_two_that_name_us_the_subnet_we_had_else_the_older() -> None:
    older, newer = held("10.5.7.0/24", ME, created=1), held("10.5.8.0/24", ME, created=2)
    assert choose(CONFIG, ME, [newer, older], None, random.Random(1)) == Take(older)
    assert choose(CONFIG, ME, [newer, older], newer.subnet, random.Random(1)) == Take(newer)


def test_the_subnet_we_had_if_it_is_free_and_allowed() -> None:
    had = IPv4Network("10.5.9.0/24")
    assert choose(CONFIG, ME, [], had, random.Random(1)) == Create(had)
    assert choose(CONFIG, ME, [held("10.5.9.0/24")], had, random.Random(1)) != Create(had)
    for wrong in ("10.6.9.0/24", "10.5.9.0/25", "10.5.0.0/24"):
        assert choose(CONFIG, ME, [], IPv4Network(wrong), random.Random(1)) != Create(IPv4Network(wrong))


def test_what_the_config_no_longer_allows_is_not_taken_again_and_given_up() -> None:
    old, reserved = held("10.9.7.0/24", ME), held("10.9.8.0/24", ME, lease=0)
    assert isinstance(choose(CONFIG, ME, [old, reserved], None, random.Random(1)), Create)
    assert superseded(CONFIG, ME, [old, reserved, held("10.9.9.0/24")]) == [old]


def test_a_value_that_cannot_be_read_still_takes_its_subnet() -> None:
    taken = [held("10.5.0.64/26", None), held("10.5.0.128/26")]
    last = IPv4Network("10.5.0.192/26")
    assert choose(SMALL, ME, taken, None, random.Random(1)) == Create(last)
    with pytest.raises(OutOfSubnets, match=r"all 3 /26 subnets from 10.5.0.64 to 10.5.0.192 are taken"):
        choose(SMALL, ME, [*taken, held("10.5.0.192/26")], None, random.Random(1))


def test_keys_that_name_no_subnet_are_in_nobodys_way() -> None:
    assert read_held("nonsense", b"", revision=1, created=1, lease=0) is None
    found = read_held("10.5.1.0-24", b"garbage", revision=3, created=2, lease=5)
    assert found == Held("10.5.1.0-24", IPv4Network("10.5.1.0/24"), None, 3, 2, 5)


def subnets(config: NetworkConfig) -> list[IPv4Network]:
    assert config.subnet_min is not None
    assert config.subnet_max is not None
    size = 1 << (32 - config.subnet_len)
    low, high = int(config.subnet_min), int(config.subnet_max)
    return [IPv4Network((start, config.subnet_len)) for start in range(low, high + 1, size)]


@settings(max_examples=200, deadline=None)
@given(
    network=st.sampled_from(["10.5.0.0/16", "10.5.0.0/20", "10.5.0.0/24", "10.5.0.0/28"]),
    seed=st.integers(),
    data=st.data(),
)
def test_a_choice_is_free_and_allowed_and_there_is_one_until_all_are_taken(
    network: str, seed: int, data: st.DataObject
) -> None:
    config = parse_config(f'{{"Network":"{network}"}}')
    every = subnets(config)
    free = data.draw(st.sets(st.sampled_from(every), max_size=3))
    # others' leases may have any length: left over from another config
    strange = data.draw(st.lists(st.sampled_from(["10.5.0.0/29", "10.5.0.8/30", "10.0.0.0/30", "10.5.8.0/21"])))
    taken = [held(str(s)) for s in every if s not in free] + [held(s) for s in strange]
    really_free = {s for s in free if not any(s.overlaps(h.subnet) for h in taken)}
    if not really_free:
        with pytest.raises(OutOfSubnets):
            choose(config, ME, taken, None, random.Random(seed))
        return
    choice = choose(config, ME, taken, None, random.Random(seed))
    assert isinstance(choice, Create)
    assert choice.subnet in really_free
    assert config.allows(choice.subnet)
