"""Leasing against both stores: everybody finds its own again, keeps to it, and writes nothing in vain."""

from __future__ import annotations

import json
import signal
from ipaddress import ip_address

import pytest

from netd.lease import SubnetHeldByOther
from netd.records import recent_key
from podlane.api.network import parse_config
from podlane.api.subnets import LEASE_TTL, LeaseValue, Subnets
from podlane.errors import UsageError
from podlane.store.config import connect
from podlane.store.interface import Store
from tests.conftest import Etcd
from tests.contract.netd_hosts import (
    CONFIG,
    PREFIX,
    Host,
    NewHost,
    delete,
    lease_of,
    leases,
    put,
    revision,
    subnets,
    wipe,
)

pytestmark = pytest.mark.contract

DUAL = parse_config('{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48"}')
SIX = parse_config('{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:5::/32","IPv6SubnetLen":96}')


# ---- the forms of a lease -----------------------------------------------------------------------


def test_one_key_names_both_families(store: Store, host: NewHost) -> None:
    held = host().ensure(DUAL)
    (key,) = leases(store)
    assert key == held.subnets.key
    assert DUAL.allows(Subnets.parse_key(key))
    assert "&" in key


def test_an_ipv6_network_has_flannels_empty_ipv4_part(store: Store, host: NewHost) -> None:
    host(address=ip_address("2001:db8::11")).ensure(SIX)
    (key,) = leases(store)
    assert key.startswith("0.0.0.0-0&fd00:5:")


def test_a_lease_lives_a_day_and_the_record_of_it_an_hour_longer(store: Store, host: NewHost) -> None:
    one = host()
    tenancy = one.ensure()
    assert LEASE_TTL - 60 < store.time_to_live(tenancy.lease_id) <= LEASE_TTL
    assert one.recent is not None
    assert one.recent.lease == one.holder.witness != tenancy.lease_id
    assert LEASE_TTL + 3540 < store.time_to_live(one.holder.witness) <= LEASE_TTL + 3600
    assert json.loads(one.recent.value) == {"node": "node-1", "addresses": ["192.168.64.1"]}
    assert LEASE_TTL - 60 < one.holder.ttl_left <= LEASE_TTL


def test_a_host_without_public_address_has_no_lease(host: NewHost) -> None:
    with pytest.raises(UsageError, match="no public address"):
        host().holder.ensure(CONFIG, LeaseValue(None))


# ---- the same subnet again ----------------------------------------------------------------------


@pytest.mark.parametrize("file", [True, False], ids=["subnet file", "no subnet file"])
def test_a_restart_after_sigkill_writes_nothing(store: Store, host: NewHost, file: bool) -> None:
    one = host()
    tenancy = one.ensure()
    witness = one.holder.witness
    one.killed()
    before = store.list("/").items
    one.start(tenancy.subnets if file else None)
    assert one.ensure() == tenancy
    assert one.holder.witness == witness
    assert store.list("/").items == before
    assert one.lease is not None
    assert one.holder.holds(one.value, one.lease.lease)


def test_asking_again_writes_nothing(store: Store, host: NewHost) -> None:
    one = host()
    one.ensure()
    before = revision(store)
    one.ensure()
    assert revision(store) == before


@pytest.mark.parametrize("file", [True, False], ids=["subnet file", "no subnet file"])
def test_after_the_lease_has_expired_the_same_subnet(store: Store, host: NewHost, file: bool) -> None:
    one = host()
    tenancy = one.ensure()
    one.killed()
    one.claim_expires()
    one.lease_expires()
    assert leases(store) == {}
    one.seed = 99
    one.start(tenancy.subnets if file else None)
    again = one.ensure()
    assert again.subnets == tenancy.subnets
    assert again.lease_id != tenancy.lease_id


@pytest.mark.parametrize("expired", [False, True], ids=["leased", "expired"])
def test_a_host_that_lost_its_memory_is_known_by_its_address(store: Store, host: NewHost, expired: bool) -> None:
    one = host(1)
    tenancy = one.ensure()
    one.killed()
    one.claim_expires()
    if expired:
        one.lease_expires()
    one.node, one.seed = "new id", 99
    one.start()
    assert one.ensure().subnets == tenancy.subnets
    assert one.recent is not None
    assert json.loads(one.recent.value)["node"] == "new id"


def test_a_lease_that_flanneld_left_is_taken_over_in_place(store: Store, host: NewHost) -> None:
    one = host()
    lease = store.grant(LEASE_TTL)
    put(store, f"{PREFIX}/subnets/10.5.34.0-24", one.value.encode(), lease)
    flannels = lease_of(store, subnets("10.5.34.0/24"))
    assert one.ensure().subnets == subnets("10.5.34.0/24")
    assert one.lease == flannels


def test_a_changed_address_keeps_the_subnet_and_frees_the_old_address(store: Store, host: NewHost) -> None:
    one = host(1)
    tenancy = one.ensure()
    before = one.claim
    one.address = ip_address("192.168.64.77")
    moved = one.ensure()
    assert (moved.subnets, moved.lease_id) == (tenancy.subnets, tenancy.lease_id)
    assert before is not None
    assert store.get(before.key) is None
    assert one.claim is not None
    host(1, node="newcomer").ensure()  # the old address is anybody's now
    assert one.ensure() == moved


def test_an_address_that_changed_while_netd_was_down_keeps_the_subnet(store: Store, host: NewHost) -> None:
    one = host(1)
    tenancy = one.ensure()
    one.holder.stop()
    one.address, one.boot, one.seed = ip_address("192.168.64.77"), "second boot", 99
    one.start()
    assert one.ensure().subnets == tenancy.subnets
    assert leases(store) == {tenancy.subnets.key: one.value}


def test_what_a_flanneld_took_since_is_not_mistaken_for_ones_own(store: Store, host: NewHost) -> None:
    one = host(1)
    tenancy = one.ensure()
    one.killed()
    one.claim_expires()
    one.lease_expires()
    flannels = LeaseValue.vxlan(host(9).value.public_ip, 1, "02:00:00:00:09:09")
    put(store, f"{PREFIX}/subnets/{tenancy.subnets.key}", flannels.encode(), store.grant(LEASE_TTL))
    one.start(tenancy.subnets)
    assert one.ensure().subnets != tenancy.subnets
    assert leases(store)[tenancy.subnets.key] == flannels


def test_a_subnet_the_config_no_longer_allows_is_given_up(store: Store, host: NewHost) -> None:
    one = host(1)
    old = one.ensure()
    one.holder.stop()
    one.start(old.subnets)
    other = parse_config('{"Network":"10.6.0.0/16"}')
    new = one.ensure(other)
    assert other.allows(new.subnets)
    assert set(leases(store)) == {new.subnets.key}
    assert store.get(recent_key(PREFIX, old.subnets)) is None


# ---- changes of what it says --------------------------------------------------------------------


def test_a_changed_value_is_rewritten_under_the_same_key_and_lease(store: Store, host: NewHost) -> None:
    one = host(1)
    tenancy = one.ensure()
    before = one.lease
    assert before is not None
    changed = LeaseValue.vxlan(one.value.public_ip, 42, "02:00:00:00:aa:01")
    again = one.holder.ensure(CONFIG, changed)
    after = one.lease
    assert after is not None
    assert (again.subnets, again.lease_id) == (tenancy.subnets, tenancy.lease_id)
    assert (after.key, after.lease, after.create_revision) == (before.key, before.lease, before.create_revision)
    assert LeaseValue.decode(after.value) == changed


def test_a_value_somebody_broke_is_mended(store: Store, host: NewHost) -> None:
    one = host(1)
    tenancy = one.ensure()
    put(store, f"{PREFIX}/subnets/{tenancy.subnets.key}", "garbage", tenancy.lease_id)
    assert not one.holder.holds(None, tenancy.lease_id)
    assert one.ensure() == tenancy
    assert leases(store) == {tenancy.subnets.key: one.value}


# ---- loss ---------------------------------------------------------------------------------------


def test_a_lost_lease_is_made_again_on_the_same_subnet(store: Store, host: NewHost) -> None:
    one = host(1)
    tenancy = one.ensure()
    one.lease_expires()
    again = one.ensure()
    assert again.subnets == tenancy.subnets
    assert leases(store) == {tenancy.subnets.key: one.value}
    assert one.holder.holds(one.value, again.lease_id)


@pytest.mark.parametrize("other", ["10.5.7.0/24", "10.5.7.128/25", "10.5.0.0/21"], ids=["same", "inside", "around"])
def test_what_another_holds_meanwhile_is_waited_for_and_never_moved_from(
    store: Store, host: NewHost, other: str
) -> None:
    one = host(1)
    one.start(subnets("10.5.7.0/24"))
    tenancy = one.ensure()
    assert tenancy.subnets == subnets("10.5.7.0/24")
    one.lease_expires()
    key = f"{PREFIX}/subnets/{subnets(other).key}"
    put(store, key, host(2).value.encode(), store.grant(LEASE_TTL))
    for _ in range(2):
        with pytest.raises(SubnetHeldByOther, match=r"is held by 192.168.64.2$"):
            one.ensure()
        assert set(leases(store)) == {subnets(other).key}
    before = revision(store)
    with pytest.raises(SubnetHeldByOther):
        one.ensure()
    assert revision(store) == before  # it does not wake every peer with each attempt
    delete(store, key)
    assert one.ensure().subnets == tenancy.subnets


def test_a_newcomer_chooses_another_when_what_it_had_is_taken(store: Store, host: NewHost) -> None:
    had = host(1).ensure().subnets
    two = host(2)
    two.start(had)
    assert not two.ensure().subnets.overlaps(had)


def test_an_emptied_store_gets_lease_claim_and_record_again(store: Store, host: NewHost) -> None:
    hosts = [host(n) for n in (1, 2, 3)]
    before = [each.ensure() for each in hosts]
    witnesses = [each.holder.witness for each in hosts]
    wipe(store)
    after = [each.ensure() for each in hosts]
    assert [each.subnets for each in after] == [each.subnets for each in before]
    assert leases(store) == {each.subnets.key: one.value for one, each in zip(hosts, after, strict=True)}
    for one, witness in zip(hosts, witnesses, strict=True):
        assert one.claim is not None
        assert one.recent is not None
        assert one.recent.lease == one.holder.witness != witness  # so that a restart knows: another store


def test_an_etcd_that_lost_its_disk_gets_them_again(etcd: Etcd) -> None:
    store = connect(etcd.client_config)
    one = Host(store, 1)
    tenancy, witness = one.ensure(), one.holder.witness
    etcd.stop(signal.SIGKILL)
    etcd.wipe()
    etcd.start()
    again = one.ensure()
    assert again.subnets == tenancy.subnets
    assert leases(store) == {tenancy.subnets.key: one.value}
    assert one.claim is not None
    assert one.holder.witness not in {0, witness}
    assert one.holder.holds(one.value, again.lease_id)
    one.killed()
    store.close()


@pytest.mark.parametrize("what", ["claim", "recent"])
def test_a_claim_or_record_that_was_deleted_is_written_again(store: Store, host: NewHost, what: str) -> None:
    one = host(1)
    one.ensure()
    key = one.claim if what == "claim" else one.recent
    assert key is not None
    delete(store, key.key)
    one.ensure()
    again = store.get(key.key)
    assert again is not None
    assert again.lease == key.lease
