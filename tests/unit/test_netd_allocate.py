"""Which subnets: never any that are taken, always free ones while there are, and one's own again."""

from __future__ import annotations

import random
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netd.allocate import (
    Choice,
    Create,
    Held,
    OutOfSubnets,
    Recent,
    Table,
    Take,
    Who,
    choose,
    older_overlap,
    own_keys,
    owns,
    read_held,
)
from netd.records import RecentNode
from podlane.api.network import NetworkConfig, parse_config
from podlane.api.subnets import LeaseValue, Subnets

pytestmark = pytest.mark.unit

CONFIG: NetworkConfig = parse_config('{"Network":"10.5.0.0/16"}')
SMALL: NetworkConfig = parse_config('{"Network":"10.5.0.0/24"}')  # /26: three usable subnets
DUAL: NetworkConfig = parse_config('{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48"}')
SIX: NetworkConfig = parse_config(
    '{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:5::/32","IPv6SubnetLen":96}'
)
MY_IP = IPv4Address("192.168.64.11")
ME = Who("me", frozenset({MY_IP}))
OTHER = "192.168.64.12"


def subnets(text: str) -> Subnets:
    """`10.5.1.0/24`, `fd00::/64`, or both with a comma."""
    parts = text.split(",")
    v4 = next((IPv4Network(part) for part in parts if ":" not in part), None)
    return Subnets(v4, next((IPv6Network(part) for part in parts if ":" in part), None))


def held(text: str, ip: str | None = OTHER, *, created: int = 1, lease: int = 7) -> Held:
    """`ip` None: the value cannot be read; empty: it names nobody."""
    value = LeaseValue.vxlan(IPv4Address(ip) if ip else None, 1, "02:00:00:00:00:02") if ip is not None else None
    return Held(subnets(text).key, subnets(text), value, created, created, lease)


def recent(text: str, node: str, *addresses: str, revision: int = 1) -> Recent:
    return Recent(subnets(text), RecentNode(node, frozenset(map(ip_address, addresses))), revision, 9)


def table(held: Iterable[Held] = (), recents: Iterable[Recent] = (), claimed: Iterable[str] = ()) -> Table:
    return Table(tuple(held), {r.subnets.key: r for r in recents}, frozenset(map(ip_address, claimed)))


def pick(known: Table, previous: str = "", *, config: NetworkConfig = CONFIG, who: Who = ME, seed: int = 1) -> Choice:
    return choose(config, who, known, subnets(previous) if previous else None, random.Random(seed))


# ---- what is one's own --------------------------------------------------------------------------


def test_the_lease_that_names_us_is_taken_again() -> None:
    own = held("10.5.7.0/24", str(MY_IP))
    assert pick(table([held("10.5.3.0/24"), own])) == Take(own)


def test_of_several_that_name_us_what_we_had_then_a_reservation_then_the_oldest() -> None:
    older, newer = held("10.5.7.0/24", str(MY_IP), created=1), held("10.5.8.0/24", str(MY_IP), created=2)
    reserved = held("10.5.9.0/24", str(MY_IP), created=3, lease=0)
    assert pick(table([newer, older])) == Take(older)
    assert pick(table([newer, older, reserved])) == Take(reserved)
    assert pick(table([newer, older, reserved]), "10.5.8.0/24") == Take(newer)


def test_a_node_whose_address_changed_knows_its_lease_by_its_id() -> None:
    own = held("10.5.7.0/24", OTHER)
    assert pick(table([own], [recent("10.5.7.0/24", "me", OTHER)])) == Take(own)
    # flanneld has taken it since, and writes no record: the address is not the one recorded
    assert pick(table([own], [recent("10.5.7.0/24", "me", "192.168.64.99")])) != Take(own)
    # somebody uses that address now: this disk is a copy of its
    assert pick(table([own], [recent("10.5.7.0/24", "me", OTHER)], [OTHER])) != Take(own)
    assert pick(table([own], [recent("10.5.7.0/24", "another", OTHER)])) != Take(own)


def test_two_nodes_that_swapped_their_addresses_keep_their_subnets() -> None:
    mine, its = held("10.5.7.0/24", OTHER), held("10.5.8.0/24", str(MY_IP))
    known = table([mine, its], [recent("10.5.7.0/24", "me", OTHER), recent("10.5.8.0/24", "it", str(MY_IP))])
    it = Who("it", frozenset({ip_address(OTHER)}))
    assert pick(known, "10.5.7.0/24") == pick(known) == Take(mine)
    assert pick(known, "10.5.8.0/24", who=it) == pick(known, who=it) == Take(its)


def test_an_unreadable_value_of_a_subnet_that_was_ours_last_is_ours() -> None:
    broken = held("10.5.7.0/24", None)
    assert owns(ME, broken, recent("10.5.7.0/24", "me", str(MY_IP)), frozenset())
    assert not owns(ME, broken, recent("10.5.7.0/24", "another", OTHER), frozenset())
    assert not owns(ME, broken, None, frozenset())


def test_a_reservation_for_nobody_is_nobodys() -> None:
    kept_out = held("10.5.0.64/26", "", lease=0)
    assert not owns(ME, kept_out, recent("10.5.0.64/26", "me", str(MY_IP)), frozenset())
    everything_else = [held("10.5.0.128/26"), held("10.5.0.192/26")]
    with pytest.raises(OutOfSubnets):
        pick(table([kept_out, *everything_else]), "10.5.0.64/26", config=SMALL)


def test_an_ipv6_node_is_known_by_its_ipv6_address() -> None:
    address = IPv6Address("2001:db8::11")
    value = LeaseValue.vxlan(None, 1, public_ipv6=address, mac6="02:00:00:00:00:01")
    key = subnets("fd00:5:0:0:0:7::/96")
    own = Held(key.key, key, value, 1, 1, 7)
    assert key.key == "0.0.0.0-0&fd00:5::7:0:0-96"
    assert pick(table([own]), config=SIX, who=Who("me", frozenset({address}))) == Take(own)


def test_what_the_config_no_longer_allows_is_not_taken_again_and_given_up() -> None:
    old, reserved = held("10.9.7.0/24", str(MY_IP)), held("10.9.8.0/24", str(MY_IP), lease=0)
    known = table([old, reserved, held("10.9.9.0/24")])
    assert isinstance(pick(known), Create)
    assert own_keys(CONFIG, ME, known) == ([], [old, reserved])


def test_of_two_overlapping_keys_the_older_stands() -> None:
    own, older, newer = (
        held("10.5.7.0/24", str(MY_IP), created=5),
        held("10.5.7.128/25"),
        held("10.5.6.0/23", created=6),
    )
    assert older_overlap(own, [newer, own]) is None
    assert older_overlap(own, [newer, older]) == older
    assert own_keys(CONFIG, ME, table([own, older])) == ([], [own])
    assert own_keys(CONFIG, ME, table([own, newer])) == ([own], [])


def test_a_key_under_another_spelling_is_in_the_way_but_not_ours() -> None:
    name = "10.5.7.0-24&fd00:5:0:7:0::-64"
    odd = read_held(name, LeaseValue.vxlan(MY_IP, 1, "02:00:00:00:00:01").encode(), revision=1, created=1, lease=7)
    assert odd is not None
    assert not owns(ME, odd, None, frozenset())
    assert pick(table([odd]), "10.5.7.0/24,fd00:5:0:9::/64", config=DUAL) != Take(odd)


def test_keys_that_name_no_subnet_are_in_nobodys_way() -> None:
    assert read_held("nonsense", b"", revision=1, created=1, lease=0) is None
    found = read_held("10.5.1.0-24", b"garbage", revision=3, created=2, lease=5)
    assert found == Held("10.5.1.0-24", subnets("10.5.1.0/24"), None, 3, 2, 5)


# ---- what is free -------------------------------------------------------------------------------


def test_a_free_one_is_drawn_by_the_generator_alone() -> None:
    assert pick(table()) == pick(table())
    assert pick(table()) != pick(table(), seed=2)


def test_what_we_had_if_it_is_free_and_allowed() -> None:
    assert pick(table(), "10.5.9.0/24") == Create(subnets("10.5.9.0/24"), "previous")
    for in_the_way in ("10.5.9.0/24", "10.5.8.0/22", "10.5.9.64/26"):
        assert pick(table([held(in_the_way, None)]), "10.5.9.0/24") != Create(subnets("10.5.9.0/24"), "previous")
    for wrong in ("10.6.9.0/24", "10.5.9.0/25", "10.5.0.0/24", "10.5.9.0/24,fd00:5::/64", "fd00:5::/64"):
        assert pick(table(), wrong) != Create(subnets(wrong), "previous")


def test_what_we_had_last_by_the_record_the_latest_first() -> None:
    known = [recent("10.5.7.0/24", "me", revision=5), recent("10.5.8.0/24", "me", revision=6)]
    assert pick(table([], known)) == Create(subnets("10.5.8.0/24"), "recent")
    assert pick(table([held("10.5.8.0/24")], known)) == Create(subnets("10.5.7.0/24"), "recent")
    assert pick(table([], known), "10.5.9.0/24") == Create(subnets("10.5.9.0/24"), "previous")


def test_a_node_that_lost_its_id_is_known_by_its_address() -> None:
    old_self = recent("10.5.7.0/24", "me before", str(MY_IP), revision=5)
    assert pick(table([], [old_self])) == Create(subnets("10.5.7.0/24"), "recent")
    assert pick(table([], [old_self, recent("10.5.8.0/24", "me")])) == Create(subnets("10.5.8.0/24"), "recent")
    also_there = recent("10.5.7.0/24", "me before", str(MY_IP), OTHER)
    assert pick(table([], [also_there], [OTHER])) != Create(subnets("10.5.7.0/24"), "recent")


def test_what_we_had_is_left_alone_if_another_had_it_since() -> None:
    assert pick(table([], [recent("10.5.9.0/24", "gone", OTHER)]), "10.5.9.0/24") != Create(
        subnets("10.5.9.0/24"), "previous"
    )


def test_others_recent_subnets_are_left_alone_while_others_are_free() -> None:
    one, two, three = "10.5.0.64/26", "10.5.0.128/26", "10.5.0.192/26"
    quarantined = [recent(one, "gone"), recent(two, "gone")]
    for seed in range(20):
        assert pick(table([], quarantined), config=SMALL, seed=seed) == Create(subnets(three), "free")
    assert pick(table([held(three), held(two)], quarantined), config=SMALL) == Create(subnets(one), "quarantined")
    with pytest.raises(OutOfSubnets, match=r"all 3 /26 subnets from 10.5.0.64 to 10.5.0.192 are taken"):
        pick(table([held(one, None), held(two), held(three)]), config=SMALL)


def test_every_free_subnet_has_its_chance() -> None:
    taken = table([held("10.5.0.128/26")])
    found = {
        str(choice.subnets) for seed in range(50) if isinstance(choice := pick(taken, config=SMALL, seed=seed), Create)
    }
    assert found == {"10.5.0.64/26", "10.5.0.192/26"}


def test_a_range_of_2_to_the_64_subnets_is_drawn_from_at_once() -> None:
    choice = pick(table([held("fd00:5::/33")]), config=SIX)
    assert isinstance(choice, Create)
    assert SIX.allows(choice.subnets)
    assert not choice.subnets.overlaps(subnets("fd00:5::/33"))


def test_of_a_range_of_2_to_the_64_the_last_free_one_is_found() -> None:
    # everything but fd00:5::3:0:0/96: the halves beside it, from /33 to /96
    last = IPv6Network("fd00:5::3:0:0/96")
    taken = [held(str(part)) for part in IPv6Network("fd00:5::/32").address_exclude(last)]
    assert pick(table(taken), config=SIX) == Create(Subnets(None, last), "free")


def test_both_families_are_drawn_each_for_itself() -> None:
    taken = [held("10.5.0.0/17"), held("fd00:5::/49"), held("10.5.128.0/24,fd00:5:0:8000::/64")]
    choice = pick(table(taken), config=DUAL)
    assert isinstance(choice, Create)
    assert DUAL.allows(choice.subnets)
    assert not any(choice.subnets.overlaps(each.subnets) for each in taken)


def every(config: NetworkConfig) -> list[IPv4Network]:
    assert config.subnet_min is not None
    assert config.subnet_max is not None
    size = 1 << (32 - config.subnet_len)
    low, high = int(config.subnet_min), int(config.subnet_max)
    return [IPv4Network((start, config.subnet_len)) for start in range(low, high + 1, size)]


# others' keys may have any length and place: left over from another config, or made by hand
STRANGE = ["10.5.0.0/29", "10.5.0.8/30", "10.0.0.0/30", "10.5.8.0/21", "10.4.0.0/15", "10.5.0.112/28", "10.5.0.0/25"]


@settings(max_examples=300, deadline=None)
@given(
    network=st.sampled_from(
        ['"10.5.0.0/20"', '"10.5.0.0/24"', '"10.5.0.0/28"', '"10.5.0.0/24","SubnetMin":"10.5.0.128"']
    ),
    seed=st.integers(),
    data=st.data(),
)
def test_a_choice_is_free_and_allowed_and_there_is_one_until_all_are_taken(
    network: str, seed: int, data: st.DataObject
) -> None:
    config = parse_config(f'{{"Network":{network}}}')
    places = every(config)
    free = data.draw(st.sets(st.sampled_from(places), max_size=3))
    strange = data.draw(st.lists(st.sampled_from(STRANGE), max_size=2))
    recents = data.draw(st.lists(st.tuples(st.sampled_from(places), st.sampled_from(["me", "gone"])), max_size=4))
    previous = data.draw(st.none() | st.sampled_from(places))
    taken = [held(str(s)) for s in places if s not in free] + [held(s) for s in strange]
    known = table(taken, [recent(str(s), node) for s, node in recents])
    really_free = {s for s in free if not any(s.overlaps(h.subnets.v4) for h in taken if h.subnets.v4)}
    before = Subnets(previous) if previous is not None else None
    if not really_free:
        with pytest.raises(OutOfSubnets):
            choose(config, ME, known, before, random.Random(seed))
        return
    choice = choose(config, ME, known, before, random.Random(seed))
    assert isinstance(choice, Create)
    assert config.allows(choice.subnets)
    assert choice.subnets.v4 in really_free
    # the stated order, by brute force: the first class that has any
    last = dict(recents)
    classes = {
        "previous": {previous} & {s for s in really_free if last.get(s) != "gone"},
        "recent": {s for s in really_free if last.get(s) == "me"},
        "free": {s for s in really_free if last.get(s) is None},
        "quarantined": really_free,
    }
    origin = next(name for name, members in classes.items() if members)
    assert choice.origin == origin
    assert choice.subnets.v4 in classes[origin]


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(), data=st.data())
def test_both_families_of_a_choice_overlap_no_key(seed: int, data: st.DataObject) -> None:
    config = parse_config(
        '{"Network":"10.5.0.0/26","SubnetLen":28,"EnableIPv6":true,"IPv6Network":"fd00:5::/60","IPv6SubnetLen":62}'
    )
    fours = st.sampled_from(["10.5.0.0/28", "10.5.0.16/28", "10.5.0.32/28", "10.5.0.48/30", "10.5.0.0/27"])
    sixes = st.sampled_from(["fd00:5::/62", "fd00:5:0:4::/62", "fd00:5:0:8::/61", "fd00:5:0:c::/64", "fd00:5::/61"])
    names = st.one_of(fours, sixes, st.tuples(fours, sixes).map(",".join))
    taken = [
        held(each, data.draw(st.sampled_from([OTHER, "", None]))) for each in data.draw(st.sets(names, max_size=4))
    ]
    free4 = [s for s in every(config) if not any(h.subnets.v4 and s.overlaps(h.subnets.v4) for h in taken)]
    sub6 = [
        s for s in IPv6Network("fd00:5::/60").subnets(new_prefix=62) if s.network_address != IPv6Address("fd00:5::")
    ]
    free6 = [s for s in sub6 if not any(h.subnets.v6 and s.overlaps(h.subnets.v6) for h in taken)]
    if not free4 or not free6:
        with pytest.raises(OutOfSubnets):
            choose(config, ME, table(taken), None, random.Random(seed))
        return
    choice = choose(config, ME, table(taken), None, random.Random(seed))
    assert isinstance(choice, Create)
    assert config.allows(choice.subnets)
    assert choice.subnets.v4 in free4
    assert choice.subnets.v6 in free6
