"""Reserving and releasing subnets by hand, against both stores."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from netd.allocate import OutOfSubnets
from netd.reserve import SubnetTaken, release, reserve
from podlane.api.network import NetworkConfig, parse_config
from podlane.api.subnets import Subnets
from podlane.errors import NotFound, UsageError
from podlane.store.interface import Store
from tests.contract.netd_hosts import CONFIG, PREFIX, NewHost, at_once, lease_of, leases, put, revision, subnets

pytestmark = pytest.mark.contract

ONE = ip_address("192.168.64.1")
TWO = ip_address("192.168.64.2")
WHICH = subnets("10.5.34.0/24")
FEW = parse_config('{"Network":"10.5.0.0/28"}')  # three usable /30
DUAL = parse_config('{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48"}')


def test_a_reservation_is_flannels_and_its_node_uses_it(store: Store, host: NewHost) -> None:
    assert reserve(store, PREFIX, CONFIG, WHICH, [ONE]).done == "created"
    kv = lease_of(store, WHICH)
    assert kv is not None
    assert (kv.value, kv.lease) == (b'{"PublicIP":"192.168.64.1","PublicIPv6":null}', 0)
    assert host(2).ensure().subnets != WHICH
    tenancy = host(1).ensure()
    assert (tenancy.subnets, tenancy.reserved) == (WHICH, True)
    before = revision(store)
    assert reserve(store, PREFIX, CONFIG, WHICH, [ONE]).done == "unchanged"
    assert revision(store) == before


def test_a_nodes_lease_becomes_its_reservation_as_it_is(store: Store, host: NewHost) -> None:
    one = host(1)
    tenancy = one.ensure()
    done = reserve(store, PREFIX, CONFIG, tenancy.subnets, [ONE])
    assert (done.done, done.value) == ("converted", one.value)
    assert one.lease is not None
    assert one.lease.lease == 0
    assert one.ensure().reserved
    assert leases(store) == {tenancy.subnets.key: one.value}


def test_what_is_anothers_is_refused(store: Store, host: NewHost) -> None:
    one = host(1)
    one.start(WHICH)
    had = one.ensure().subnets
    with pytest.raises(SubnetTaken, match=r"leased by 192.168.64.1 \(host host1, whose netd runs\)"):
        reserve(store, PREFIX, CONFIG, had, [TWO])
    with pytest.raises(SubnetTaken, match=r"to make its lease a reservation, name it with --public-ip 192.168.64.1$"):
        reserve(store, PREFIX, CONFIG, had)
    reserve(store, PREFIX, CONFIG, had, [ONE])
    with pytest.raises(SubnetTaken, match=r"reserved for 192.168.64.1$"):
        reserve(store, PREFIX, CONFIG, had, [TWO])
    put(store, f"{PREFIX}/subnets/10.5.9.0-24", "garbage")
    with pytest.raises(SubnetTaken, match="reserved for somebody"):
        reserve(store, PREFIX, CONFIG, subnets("10.5.9.0/24"), [TWO])
    wide = parse_config('{"Network":"10.5.0.0/16","SubnetLen":20}')
    with pytest.raises(SubnetTaken, match=r"as 10\.5\.9\.0/24$"):
        reserve(store, PREFIX, wide, subnets("10.5.0.0/20"))


@pytest.mark.parametrize(
    ("config", "which", "why"),
    [
        (CONFIG, "10.6.1.0/24", "10.6.1.0/24 is not in the network 10.5.0.0/16"),
        (CONFIG, "10.5.1.0/25", "a node has a /24 from 10.5.1.0 to 10.5.255.0"),
        (CONFIG, "10.5.0.0/24", "a node has a /24 from 10.5.1.0 to 10.5.255.0"),
        (CONFIG, "fd00:5::/64", "fd00:5::/64 is not in the network 10.5.0.0/16"),
        (DUAL, "10.5.1.0/24", "and a /64 from fd00:5:0:1:: to fd00:5:0:ffff::"),
    ],
)
def test_what_no_node_can_have_is_refused(store: Store, config: NetworkConfig, which: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        reserve(store, PREFIX, config, subnets(which), [ONE])
    assert leases(store) == {}


def test_two_addresses_of_one_family_are_refused(store: Store) -> None:
    with pytest.raises(UsageError, match="one address of each family"):
        reserve(store, PREFIX, CONFIG, WHICH, [ONE, TWO])


def test_what_is_kept_out_of_use_may_have_any_length_and_is_nobodys(store: Store, host: NewHost) -> None:
    assert reserve(store, PREFIX, FEW, subnets("10.5.0.8/29")).done == "created"
    assert reserve(store, PREFIX, FEW, subnets("10.5.0.8/29")).done == "unchanged"
    kv = lease_of(store, subnets("10.5.0.8/29"))
    assert kv is not None
    assert kv.value == b'{"PublicIP":"0.0.0.0","PublicIPv6":null}'
    assert host(1).ensure(FEW).subnets == subnets("10.5.0.4/30")
    with pytest.raises(OutOfSubnets):
        host(2).ensure(FEW)


def test_dual_stack_subnets_are_reserved_together(store: Store, host: NewHost) -> None:
    both = subnets("10.5.34.0/24,fd00:5:0:34::/64")
    reserve(store, PREFIX, DUAL, both, [ONE])
    assert host(1).ensure(DUAL).subnets == both
    with pytest.raises(SubnetTaken, match=r"reserved for 192.168.64.1 as 10.5.34.0/24,fd00:5:0:34::/64$"):
        reserve(store, PREFIX, DUAL, subnets("10.5.35.0/24,fd00:5:0:34::/64"), [TWO])


def test_of_reservations_at_once_one_is_made(store: Store) -> None:
    failures = at_once([lambda n=n: _reserve(store, WHICH, n) for n in range(1, 9)])
    assert len(failures) == 7
    assert all(isinstance(each, SubnetTaken) for each in failures)
    assert len(leases(store)) == 1


def _reserve(store: Store, which: Subnets, number: int) -> None:
    reserve(store, PREFIX, CONFIG, which, [ip_address(f"192.168.64.{number}")])


def test_a_released_reservation_is_free(store: Store, host: NewHost) -> None:
    reserve(store, PREFIX, CONFIG, WHICH, [ONE])
    assert release(store, PREFIX, WHICH).was == "reservation"
    assert leases(store) == {}
    with pytest.raises(NotFound, match=r"release 10.5.34.0/24: it is neither reserved nor leased"):
        release(store, PREFIX, WHICH)


def test_a_released_reservation_in_use_goes_on_as_a_lease(store: Store, host: NewHost) -> None:
    reserve(store, PREFIX, CONFIG, WHICH, [ONE])
    one = host(1)
    one.ensure()
    release(store, PREFIX, WHICH)
    tenancy = one.ensure()
    assert (tenancy.subnets, tenancy.reserved) == (WHICH, False)


def test_a_lease_is_released_by_force_only(store: Store, host: NewHost) -> None:
    one = host(1)
    had = one.ensure().subnets
    with pytest.raises(SubnetTaken, match=r"leased by 192.168.64.1 \(host host1, whose netd runs\); use --force"):
        release(store, PREFIX, had)
    one.holder.stop()
    with pytest.raises(SubnetTaken, match=r"leased by 192.168.64.1 \(whose netd does not run now, but its pods may\)"):
        release(store, PREFIX, had)
    assert release(store, PREFIX, had, force=True).was == "lease"
    assert leases(store) == {}
    assert one.recent is None  # no quarantine either


def test_a_quarantine_can_be_ended(store: Store, host: NewHost) -> None:
    gone = host(1)
    had = gone.ensure().subnets
    gone.killed()
    gone.lease_expires()
    assert release(store, PREFIX, had).was == "quarantine"
    assert gone.recent is None


def test_garbage_is_released_like_any_reservation(store: Store) -> None:
    put(store, f"{PREFIX}/subnets/{WHICH.key}", "garbage")
    assert release(store, PREFIX, WHICH).was == "reservation"
