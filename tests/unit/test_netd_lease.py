"""What a lease holder knows of its own etcd leases, with renewals that the test ends."""

from __future__ import annotations

import random
from collections.abc import Sequence
from ipaddress import IPv4Address
from typing import Any

import pytest

from netd.allocate import OutOfSubnets
from netd.claims import CLAIM_TTL
from netd.identity import NodeIdentity
from netd.lease import QUARANTINE, VERIFY, LeaseHolder
from netd.renewal import RenewedLease
from podlane.api.network import parse_config
from podlane.api.subnets import LEASE_TTL, LeaseValue
from podlane.errors import PodlaneError
from podlane.runtime.clock import FakeClock
from podlane.store.interface import Compare, LeaseNotFound, Listing, Op, Put, Store, TxnResult
from podlane.store.memory import MemoryStore

pytestmark = pytest.mark.unit

PREFIX = "/coreos.com/network"
CONFIG = parse_config('{"Network":"10.5.0.0/16"}')
OTHERS = LeaseValue.vxlan(IPv4Address("192.168.64.12"), 1, "02:00:00:00:00:0c")
VALUE = LeaseValue.vxlan(IPv4Address("192.168.64.11"), 1, "02:00:00:00:00:0b")


class Renewed:
    """An etcd lease that nobody renews and that is lost when the test says so."""

    def __init__(self, store: Store, ttl: int, lease_id: int) -> None:
        self._store, self.ttl, self.lease_id = store, ttl, lease_id
        self.lost = self.stopped = False

    def ttl_left(self) -> float:
        return float(self._store.time_to_live(self.lease_id))

    def start(self) -> None:
        if self.lease_id:
            self._store.keep_alive(self.lease_id)
        else:
            self.lease_id = self._store.grant(self.ttl)

    def stop(self, *, revoke: bool = False) -> None:
        self.stopped = True
        if revoke:
            self._store.revoke(self.lease_id)


class World:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.store = MemoryStore(self.clock)
        self.made: list[Renewed] = []

    def renewal(self, ttl: int, lease_id: int) -> Renewed:
        self.made.append(Renewed(self.store, ttl, lease_id))
        return self.made[-1]

    def holder(self) -> LeaseHolder:
        identity = NodeIdentity("node", "boot", "host")
        return LeaseHolder(self.store, PREFIX, identity, self.renewal, random.Random(1), clock=self.clock)

    def of_ttl(self, ttl: int) -> Renewed:
        """The one of this length that is in use."""
        (found,) = [each for each in self.made if each.ttl == ttl and not each.stopped]
        return found


@pytest.fixture
def world() -> World:
    return World()


def test_three_etcd_leases_of_three_lengths(world: World) -> None:
    holder = world.holder()
    assert (holder.witness, holder.ttl_left) == (0, 0.0)
    tenancy = holder.ensure(CONFIG, VALUE)
    assert sorted(each.ttl for each in world.made) == [CLAIM_TTL, LEASE_TTL, LEASE_TTL + QUARANTINE]
    assert holder.witness == world.of_ttl(LEASE_TTL + QUARANTINE).lease_id
    assert tenancy.lease_id == world.of_ttl(LEASE_TTL).lease_id
    assert holder.ttl_left == LEASE_TTL
    assert holder.holds(VALUE, tenancy.lease_id)


@pytest.mark.parametrize("ttl", [CLAIM_TTL, LEASE_TTL, LEASE_TTL + QUARANTINE], ids=["claim", "lease", "record"])
def test_with_any_of_them_lost_it_is_not_held_and_the_lost_one_is_made_again(world: World, ttl: int) -> None:
    holder = world.holder()
    before = holder.ensure(CONFIG, VALUE)
    lost = world.of_ttl(ttl)
    lost.lost = True
    world.store.revoke(lost.lease_id)
    assert not holder.holds(VALUE, before.lease_id)
    after = holder.ensure(CONFIG, VALUE)
    assert lost.stopped
    assert after.subnets == before.subnets
    assert holder.holds(VALUE, after.lease_id)
    assert world.of_ttl(ttl).lease_id != lost.lease_id


def test_one_that_only_seemed_lost_is_adopted_again(world: World) -> None:
    holder = world.holder()
    before = holder.ensure(CONFIG, VALUE)
    world.of_ttl(LEASE_TTL).lost = True  # frozen for a day, and the store's clock is slow
    revision = world.store.revision
    assert holder.ensure(CONFIG, VALUE) == before
    assert world.store.revision == revision


@pytest.mark.parametrize(
    ("seen", "lease", "held"),
    [(VALUE, "own", True), (VALUE, "other", False), (VALUE, "none", False), (None, "own", False)],
)
def test_what_the_store_shows_must_be_what_was_written(
    world: World, seen: LeaseValue | None, lease: str, held: bool
) -> None:
    holder = world.holder()
    assert not holder.holds(VALUE, 0)
    own = holder.ensure(CONFIG, VALUE).lease_id
    assert holder.holds(seen, {"own": own, "other": own + 1, "none": 0}[lease]) is held


def test_claim_and_record_are_looked_at_every_minute(world: World) -> None:
    holder = world.holder()
    assert holder.verify_due
    holder.ensure(CONFIG, VALUE)
    assert not holder.verify_due
    world.clock.advance(VERIFY)
    assert holder.verify_due


class Snatched(MemoryStore):
    """Somebody else creates the wanted subnet's key just before us, `times` times. Counts the listings."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self._times = times
        self.listed: list[str] = []

    def list(self, prefix: str, **options: Any) -> Listing:
        self.listed.append(prefix)
        return super().list(prefix, **options)

    def txn(self, compare: Sequence[Compare], then: Sequence[Op], *args: Any, **options: Any) -> TxnResult:
        for op in then:
            if isinstance(op, Put) and "/subnets/" in op.key and self._times:
                self._times -= 1
                super().txn([], [Put(op.key, OTHERS.encode())])
        return super().txn(compare, then, *args, **options)


def test_a_lost_race_costs_no_listing_and_the_same_subnet_is_not_tried_twice(world: World) -> None:
    world.store = store = Snatched(7)
    tenancy = world.holder().ensure(CONFIG, VALUE)
    stored = [LeaseValue.decode(kv.value) for kv in store.list(f"{PREFIX}/subnets/").items]
    assert sorted(stored.count(each) for each in (OTHERS, VALUE)) == [1, 7]
    assert tenancy.value == VALUE
    # eight draws from two listings, one check that nothing older overlaps, and the one above
    assert [prefix.split("/")[-2] for prefix in store.listed] == ["subnets", "recent"] * 2 + ["subnets"] * 2


def test_a_network_lost_to_the_last_subnet_is_full(world: World) -> None:
    world.store = Snatched(3)
    with pytest.raises(OutOfSubnets, match="all 3 /30 subnets"):
        world.holder().ensure(parse_config('{"Network":"10.5.0.0/28"}'), VALUE)


def test_stopping_ends_the_claim_and_only_that(world: World) -> None:
    holder = world.holder()
    holder.ensure(CONFIG, VALUE)
    holder.stop()
    assert all(each.stopped for each in world.made)
    assert [kv.key.split("/")[-2] for kv in world.store.list("/").items] == ["subnets", "recent"]


def test_a_store_whose_new_leases_vanish_is_an_error(world: World) -> None:
    holder = world.holder()
    holder.ensure(CONFIG, VALUE)
    world.store.faults.fail_next(10, LeaseNotFound("gone"))
    with pytest.raises(PodlaneError, match="3 new etcd leases vanished at once"):
        holder.ensure(CONFIG, VALUE)


def test_a_renewed_lease_adopts_what_lives_and_makes_what_does_not(world: World) -> None:
    living = world.store.grant(100)
    lease = RenewedLease(world.renewal, 100)
    assert (lease.id, lease.ttl_left) == (0, 0.0)
    assert lease.ensure(adopt=living) == living == lease.id
    assert lease.ensure(adopt=1) == living  # what it has is good
    lease.stop()
    assert lease.id == 0
    world.store.revoke(living)
    made = lease.ensure(adopt=living)
    assert made not in {0, living}
