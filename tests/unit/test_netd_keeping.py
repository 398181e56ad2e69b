"""Which peers stay when the store loses them. Read as a protocol: lists in, leases in force out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netd.desired import Lease
from netd.keeping import KEPT_AGE, KeptPeers
from podlane.api.subnets import LEASE_TTL, LeaseValue, Subnets

pytestmark = pytest.mark.unit


def lease(n: int, *, address: int = 0, mac: int = 0, v4: str = "", v6: str = "", age: int = 1) -> Lease:
    """Host number n's, with another host's address, MAC address or subnets if so wanted."""
    subnets = Subnets(
        IPv4Network(v4 or f"10.5.{n}.0/24") if v4 or not v6 else None,
        IPv6Network(v6) if v6 else None,
    )
    value = LeaseValue.vxlan(IPv4Address(f"192.168.64.{address or n}"), 1, f"02:00:00:00:00:{mac or n:02x}")
    return Lease(subnets.key, subnets, value, age)


def by_key(*leases: Lease) -> dict[str, Lease]:
    return {each.key: each for each in leases}


def names(in_force: Mapping[str, Lease]) -> list[str]:
    return sorted(in_force)


A, B, C = lease(1), lease(2), lease(3)
ALL = by_key(A, B, C)


def wiped(**options: float) -> KeptPeers:
    """A, B and C were known; the new store is empty at time 0."""
    peers = KeptPeers(**options)
    peers.update(ALL, 1, 0)
    assert names(peers.update({}, 2, 0)) == names(ALL)
    return peers


def test_within_one_history_the_store_is_right() -> None:
    peers = KeptPeers()
    assert peers.update(ALL, 1, 0) is ALL
    assert peers.update(by_key(A), 1, 1) == by_key(A)
    empty: dict[str, Lease] = {}
    assert peers.update(empty, 1, 2) is empty


def test_a_store_that_comes_back_empty_withdraws_nobody() -> None:
    peers = wiped()
    assert peers.kept(0) == dict.fromkeys(ALL, LEASE_TTL)


def test_hosts_that_register_again_are_the_stores_again() -> None:
    peers = wiped()
    again = by_key(replace(A, age=9))
    in_force = peers.update(again, 2, 1)
    assert names(in_force) == names(ALL)
    assert in_force[A.key] is again[A.key]
    assert peers.kept(1).keys() == {B.key, C.key}
    all_again = {key: replace(each, age=9) for key, each in ALL.items()}
    assert peers.update(all_again, 2, 2) is all_again
    assert peers.update(by_key(all_again[B.key]), 2, 3) == by_key(all_again[B.key]), "and its word is final again"


def test_who_does_not_come_back_goes_when_its_lease_would_have_ended() -> None:
    peers = wiped(ttl=100)
    assert names(peers.update({}, 2, 99)) == names(ALL)
    assert peers.update({}, 2, 100) == {}
    assert peers.kept(100) == {}


def test_another_wipe_gives_nobody_more_time() -> None:
    peers = wiped(ttl=100)
    peers.update(by_key(A), 2, 50)
    assert peers.kept(60) == {B.key: 40, C.key: 40}
    assert names(peers.update({}, 3, 60)) == names(ALL)
    assert peers.kept(60) == {A.key: 100, B.key: 40, C.key: 40}
    assert names(peers.update({}, 3, 100)) == [A.key]


def test_any_lease_of_the_store_counts_as_older_than_one_that_is_kept() -> None:
    peers = wiped()
    in_force = peers.update(by_key(replace(A, age=10**12)), 2, 1)
    assert in_force[A.key].age < in_force[B.key].age
    assert peers.update({}, 3, 1)[B.key].age == B.age + KEPT_AGE, "and is not made younger each time"


@pytest.mark.parametrize(
    "news",
    [
        pytest.param(lease(9, address=2), id="public address"),
        pytest.param(lease(9, mac=2), id="MAC address"),
        pytest.param(lease(9, v4="10.5.2.0/25"), id="subnet within"),
        pytest.param(lease(9, v4="10.5.2.0/23"), id="subnet around"),
        pytest.param(lease(9, v4="10.5.2.0/24", v6="fd00::/64"), id="the same subnet beside another family's"),
    ],
)
def test_a_new_lease_withdraws_whom_it_contradicts(news: Lease) -> None:
    others = {A.key, C.key} - ({C.key} if news.subnets.overlaps(C.subnets) else set())
    peers = wiped()
    assert names(peers.update(by_key(news), 2, 1)) == sorted({news.key, *others})
    assert names(peers.update({}, 2, 2)) == sorted(others), "for good"


def test_a_lease_that_changed_contradicts_too_when_it_is_in_the_first_list_of_the_new_store() -> None:
    peers = KeptPeers()
    peers.update(ALL, 1, 0)
    moved = replace(A, value=B.value)
    assert peers.update(by_key(moved), 2, 0) == {A.key: moved, C.key: replace(C, age=C.age + KEPT_AGE)}


@pytest.mark.parametrize("v6", ["fd00:0:0:2::/64", "fd00:0:0:2::/80", "fd00::/48"])
def test_ipv6_subnets_are_compared_too(v6: str) -> None:
    old = replace(lease(7, v6="fd00:0:0:2::/64"), value=LeaseValue(None, IPv6Address("fd01::7"), "host-gw"))
    news = replace(lease(8, v6=v6), value=LeaseValue(None, IPv6Address("fd01::8"), "host-gw"))
    peers = KeptPeers()
    peers.update(by_key(old, A), 1, 0)
    assert names(peers.update(by_key(news), 2, 0)) == sorted([A.key, news.key])


def test_who_shared_an_address_before_may_share_it_again() -> None:
    """Two hosts behind one address, or a lease left over from another subnet of the same host."""
    twin = lease(4, address=2, mac=2)
    peers = KeptPeers()
    peers.update(by_key(B, twin), 1, 0)
    peers.update({}, 2, 0)
    back = by_key(replace(twin, age=9))
    assert names(peers.update(back, 2, 1)) == names(by_key(B, twin))
    assert names(peers.update({**back, B.key: B}, 2, 2)) == names(by_key(B, twin))


def test_garbage_in_a_lease_contradicts_nobody() -> None:
    peers = wiped()
    odd = replace(lease(9), value=LeaseValue(None, None, "vxlan", {"VtepMAC": "no"}))
    assert names(peers.update(by_key(odd), 2, 1)) == names({**ALL, odd.key: odd})


# --- restarts -------------------------------------------------------------------------------


class Unread(Mapping[str, Lease]):
    """Leases that nobody may look at."""

    def __getitem__(self, key: str) -> Lease:
        raise AssertionError(key)

    def __iter__(self) -> Iterator[str]:
        raise AssertionError

    def __len__(self) -> int:
        raise AssertionError


def test_after_a_restart_the_same_stores_first_list_is_final() -> None:
    peers = KeptPeers(Unread(), same_store=True)
    assert peers.update(by_key(A), 1, 0) == by_key(A)


def test_after_a_restart_another_store_withdraws_nobody() -> None:
    peers = KeptPeers(ALL, ttl=100, age=30)
    assert names(peers.update(by_key(B), 1, 1000)) == names(ALL)
    assert names(peers.update(by_key(B), 1, 1069)) == names(ALL)
    assert names(peers.update(by_key(B), 1, 1070)) == [B.key], "the time it was down counts"


def test_what_is_kept_survives_a_restart_and_gets_no_more_time() -> None:
    before = wiped(ttl=100)
    in_force = before.update(by_key(A), 2, 30)
    after = KeptPeers(in_force, same_store=True, kept=before.kept(40), age=10, ttl=100)
    assert names(after.update(by_key(A), 1, 7000)) == names(ALL)
    assert after.kept(7000) == {B.key: 50, C.key: 50}
    other = KeptPeers(in_force, same_store=False, kept=before.kept(40), age=10, ttl=100)
    assert names(other.update({}, 1, 7000)) == names(ALL)
    assert other.kept(7000) == {A.key: 90, B.key: 50, C.key: 50}


def test_a_restart_after_so_long_that_every_lease_has_ended() -> None:
    assert KeptPeers(ALL, age=LEASE_TTL + 1).update({}, 1, 0) == {}


# --- any sequence of events -------------------------------------------------------------------

TTL = 50
HOSTS = st.integers(1, 6)
EVENTS = st.one_of(
    st.tuples(st.just("register"), HOSTS),
    st.tuples(st.just("register"), HOSTS),
    st.tuples(st.just("delete"), HOSTS),
    st.tuples(st.just("wipe")),
    st.tuples(st.just("restore")),
    st.tuples(st.just("pass"), st.integers(0, 30)),
    st.tuples(st.just("restart"), st.integers(1, 30)),
    st.tuples(st.just("unseen")),
)
CHANGES = st.tuples(st.just("change"), HOSTS, HOSTS, st.integers(0, 3))


class World:
    """A store, and a netd that looks at it after each event but those that follow an `unseen`.

    `check` holds what it has in force to what every netd must keep to.
    """

    def __init__(self) -> None:
        self.hosts = {n: lease(n) for n in range(1, 7)}
        self.store: dict[str, Lease] = {}
        self.backup: dict[str, Lease] = {}
        self.exchanged = 0
        self.history = 1
        self.now = 0.0
        self.revision = 0
        self.peers = KeptPeers(ttl=TTL)
        self.seen_store: dict[str, Lease] = {}
        self.seen_exchanged = 0
        self.in_force: Mapping[str, Lease] = {}
        self.missing_until: dict[str, float] = {}
        self.down = 0.0

    def carry_out(self, event: tuple[object, ...]) -> None:
        match event:
            case ("register", int(n)):
                self.revision += 1
                mine = self.hosts[n]
                self.store = {**self.store, mine.key: replace(mine, age=self.revision)}
            case ("delete", int(n)):
                self.store = {key: each for key, each in self.store.items() if key != self.hosts[n].key}
            case ("change", int(n), int(other), int(what)):
                mine, others = self.hosts[n], self.hosts[other]
                if what == 0:
                    self.hosts[n] = replace(mine, value=others.value)
                elif what == 1:
                    self.hosts[n] = replace(mine, value=lease(n).value)
                else:
                    self.hosts[n] = replace(lease(n, v4=f"10.5.{other}.0/{22 + what}"), value=mine.value)
            case ("wipe",):
                self.backup, self.store = self.store, {}
                self._exchange()
            case ("restore",):
                self.store = self.backup
                self._exchange()
            case ("pass", int(seconds)):
                self.now += seconds
            case ("restart", int(seconds)):
                self.down = seconds

    def _exchange(self) -> None:
        self.exchanged += 1
        self.history += 1

    def look(self) -> None:
        same = self.exchanged == self.seen_exchanged
        age = 0.0
        if self.down:
            kept = self.peers.kept(self.now)
            self.now, age, self.down = self.now + self.down, self.down, 0.0
            self.peers = KeptPeers(self.in_force, same_store=same, kept=kept, age=age, ttl=TTL)
            self.history = 1
        before, self.in_force = self.in_force, self.peers.update(self.store, self.history, self.now)
        self._check(before, same, self.now - age)
        self.seen_store, self.seen_exchanged = self.store, self.exchanged

    def _check(self, before: Mapping[str, Lease], same: bool, known_at: float) -> None:
        for key in {*before, *self.store}:
            if key in self.store or (same and key in self.seen_store):
                self.missing_until.pop(key, None)
            else:
                self.missing_until.setdefault(key, known_at + TTL)
        kept = self.in_force.keys() - self.store.keys()
        news = [each for key, each in self.store.items() if key not in before or before[key].value != each.value]
        for key, each in self.store.items():
            assert self.in_force[key] is each, "what the store has is in force"
        for key in kept:
            assert key in before, "nobody comes out of nowhere"
            assert not (same and key in self.seen_store), "what the same store no longer has is gone"
            assert self.now < self.missing_until[key], "nobody is kept for ever"
            assert not any(contradicts(each, before[key]) for each in news)
            assert self.in_force[key].age >= KEPT_AGE
        for key in before.keys() - self.in_force.keys():
            assert (
                (same and key in self.seen_store)
                or self.now >= self.missing_until[key]
                or any(contradicts(each, before[key]) for each in news)
            ), "nobody is withdrawn without a reason"
        assert self.peers.kept(self.now).keys() == kept
        if not kept:
            assert self.in_force is self.store


def contradicts(one: Lease, other: Lease) -> bool:
    return (
        one.subnets.overlaps(other.subnets)
        or bool({*one.value.addresses} & {*other.value.addresses})
        or one.value.vtep_mac() == other.value.vtep_mac()
    )


def live(events: list[tuple[object, ...]]) -> World:
    world, unseen = World(), False
    for event in events:
        world.carry_out(event)
        if event == ("unseen",):
            unseen = True
        elif unseen:
            unseen = False
        else:
            world.look()
    world.look()
    return world


@settings(max_examples=400, deadline=None)
@given(st.lists(st.one_of(EVENTS, CHANGES), max_size=40))
def test_whatever_happens_every_withdrawal_has_a_reason(events: list[tuple[object, ...]]) -> None:
    live(events)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(EVENTS, CHANGES), max_size=40))
def test_within_one_history_the_store_is_always_right(events: list[tuple[object, ...]]) -> None:
    world = live([event for event in events if event[0] not in {"wipe", "restore"}])
    assert world.in_force is world.store


@settings(max_examples=200, deadline=None)
@given(st.lists(EVENTS, max_size=30), st.permutations(range(1, 7)), st.integers(0, TTL // 6 - 1))
def test_who_registers_again_as_before_is_never_missed(
    events: list[tuple[object, ...]], order: list[int], pause: int
) -> None:
    """A wipe, and each host comes back in its own time; some of them shared an address or a MAC address."""
    world = World()
    world.hosts[5] = replace(world.hosts[5], value=world.hosts[4].value)
    for event in [*events, *(("register", n) for n in range(1, 7))]:
        world.carry_out(event)
        world.look()
    everyone = names(world.in_force)
    world.carry_out(("wipe",))
    for n in order:
        world.look()
        assert names(world.in_force) == everyone
        world.carry_out(("pass", pause))
        world.carry_out(("register", n))
    world.look()
    assert names(world.in_force) == everyone == names(world.store)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(EVENTS, CHANGES), max_size=30))
def test_in_the_end_only_the_store_counts(events: list[tuple[object, ...]]) -> None:
    world = live(events)
    world.carry_out(("pass", TTL))
    world.look()
    assert world.in_force is world.store
