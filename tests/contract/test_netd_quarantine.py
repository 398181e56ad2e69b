"""Subnets that are nobody's just now: recently expired ones, and reservations. Against both stores."""

from __future__ import annotations

import json

import pytest

from netd.allocate import OutOfSubnets
from podlane.api.network import parse_config
from podlane.api.subnets import LeaseValue
from podlane.store.interface import Store
from tests.contract.netd_hosts import (
    CONFIG,
    PREFIX,
    NewHost,
    delete,
    leases,
    put,
    revision,
    subnets,
    wipe,
)

pytestmark = pytest.mark.contract


FOUR = parse_config('{"Network":"10.5.0.0/28"}')  # three usable /30


def test_an_expired_subnet_is_left_alone_while_others_are_free(store: Store, host: NewHost) -> None:
    gone = host(1)
    had = gone.ensure(FOUR).subnets
    gone.killed()
    gone.claim_expires()
    gone.lease_expires()
    assert host(2).ensure(FOUR).subnets != had
    assert host(3).ensure(FOUR).subnets != had
    last = host(4)
    assert last.ensure(FOUR).subnets == had  # rather than none
    with pytest.raises(OutOfSubnets):  # it was its, but is no more
        gone.start(had).ensure(FOUR, gone.value)
    assert last.recent is not None
    assert json.loads(last.recent.value)["node"] == "node-4"


def test_when_the_quarantine_is_over_it_is_free_as_any(store: Store, host: NewHost) -> None:
    gone = host(1)
    had = gone.ensure(FOUR).subnets
    gone.killed()
    for kv in (gone.claim, gone.lease, gone.recent):
        assert kv is not None
        store.revoke(kv.lease)
    drawn = set()
    for seed in range(20):
        two = host(2, seed=seed)
        drawn.add(two.ensure(FOUR).subnets)
        two.killed()
        wipe(store)
    assert had in drawn


def test_a_reserved_subnets_record_is_kept_too(store: Store, host: NewHost) -> None:
    one = host(1)
    put(store, f"{PREFIX}/subnets/10.5.34.0-24", '{"PublicIP":"192.168.64.1"}')
    assert one.ensure().reserved
    assert one.recent is not None
    assert one.recent.lease == one.holder.witness


# ---- reservations -------------------------------------------------------------------------------


def test_a_reservation_is_used_by_its_node_and_stays_one(store: Store, host: NewHost) -> None:
    put(store, f"{PREFIX}/subnets/10.5.34.0-24", '{"PublicIP":"192.168.64.1","PublicIPv6":null}')
    one, two = host(1), host(2)
    assert two.ensure().subnets != subnets("10.5.34.0/24")
    tenancy = one.ensure()
    assert (tenancy.subnets, tenancy.reserved, tenancy.lease_id) == (subnets("10.5.34.0/24"), True, 0)
    assert leases(store)["10.5.34.0-24"] == one.value
    changed = LeaseValue.vxlan(one.value.public_ip, 1, "02:00:00:00:aa:01")
    one.holder.ensure(CONFIG, changed)
    assert one.lease is not None
    assert one.lease.lease == 0
    assert LeaseValue.decode(one.lease.value) == changed
    assert one.holder.holds(changed, 0)
    one.holder.stop()
    assert one.lease.lease == 0


def test_a_reservation_for_nobody_is_never_allocated(store: Store, host: NewHost) -> None:
    put(store, f"{PREFIX}/subnets/10.5.0.4-30", '{"PublicIP":"0.0.0.0"}')
    host(1).ensure(FOUR)
    host(2).ensure(FOUR)
    with pytest.raises(OutOfSubnets):
        host(3).ensure(FOUR)


def test_a_lease_made_a_reservation_while_it_runs_is_left_so(store: Store, host: NewHost) -> None:
    one = host(1)
    tenancy = one.ensure()
    put(store, f"{PREFIX}/subnets/{tenancy.subnets.key}", one.value.encode())
    before = revision(store)
    assert not one.holder.holds(one.value, 0)
    assert one.ensure().reserved
    assert one.holder.holds(one.value, 0)
    assert revision(store) == before


def test_a_reservation_released_while_it_runs_becomes_a_lease(store: Store, host: NewHost) -> None:
    put(store, f"{PREFIX}/subnets/10.5.34.0-24", '{"PublicIP":"192.168.64.1"}')
    one = host(1)
    one.ensure()
    delete(store, f"{PREFIX}/subnets/10.5.34.0-24")
    tenancy = one.ensure()
    assert (tenancy.subnets, tenancy.reserved) == (subnets("10.5.34.0/24"), False)
    assert one.lease is not None
    assert one.lease.lease == tenancy.lease_id != 0
