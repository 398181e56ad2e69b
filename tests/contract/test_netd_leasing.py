"""Leasing against both stores: whoever starts at once, nobody shares a subnet."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest

from netd.lease import LeaseHolder, Renewal
from podlane.api.network import LEASE_TTL, LeaseValue, parse_config
from podlane.store.config import connect
from podlane.store.interface import Store
from podlane.store.lease import KeepAlive
from podlane.store.memory import MemoryStore
from tests.conftest import Etcd

pytestmark = pytest.mark.contract

PREFIX = "/coreos.com/network"
CONFIG = parse_config('{"Network":"10.5.0.0/22","SubnetLen":27}')  # 31 usable subnets
HOSTS = 20


@pytest.fixture(params=["memory", "etcd"])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    if request.param == "memory":
        yield MemoryStore()
        return
    etcd: Etcd = request.getfixturevalue("etcd")
    store = connect(etcd.client_config)
    yield store
    store.close()


def holder(store: Store, number: int, seed: int) -> LeaseHolder:
    def renewal(lease_id: int) -> Renewal:
        return KeepAlive(store, LEASE_TTL, lease_id=lease_id)

    return LeaseHolder(
        store=store,
        prefix=PREFIX,
        public_ip=IPv4Address(f"192.168.64.{number}"),
        renewal=renewal,
        rng=random.Random(seed),
    )


def value(number: int) -> LeaseValue:
    return LeaseValue.vxlan(IPv4Address(f"192.168.64.{number}"), 1, f"02:00:00:00:00:{number:02x}")


@pytest.mark.parametrize("same_dice", [False, True], ids=["own dice", "same dice"])
def test_20_hosts_at_once_get_20_subnets(store: Store, same_dice: bool) -> None:
    holders = {n: holder(store, n, 1 if same_dice else n) for n in range(1, HOSTS + 1)}
    failures: list[BaseException] = []
    together = threading.Barrier(HOSTS)

    def run(number: int) -> None:
        try:
            together.wait(10)
            holders[number].ensure(CONFIG, value(number))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in holders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    try:
        assert failures == []
        stored = store.list(f"{PREFIX}/subnets/").items
        assert len(stored) == HOSTS
        assert {LeaseValue.decode(kv.value).public_ip for kv in stored} == {h.public_ip for h in holders.values()}
        assert all(kv.lease for kv in stored)
    finally:
        for each in holders.values():
            each.stop()


def test_a_restart_adopts_the_etcd_lease_and_writes_nothing(store: Store) -> None:
    first = holder(store, 1, 1)
    tenancy = first.ensure(CONFIG, value(1))
    first.stop()
    (before,) = store.list(f"{PREFIX}/subnets/").items
    second = holder(store, 1, 2)
    assert second.ensure(CONFIG, value(1)) == tenancy
    assert store.list(f"{PREFIX}/subnets/").items == (before,)
    assert store.time_to_live(before.lease) > LEASE_TTL - 60
    second.stop()


def test_an_expired_lease_is_replaced_and_its_subnet_taken_again(store: Store) -> None:
    one = holder(store, 1, 1)
    tenancy = one.ensure(CONFIG, value(1))
    store.revoke(tenancy.lease_id)
    other = holder(store, 1, 2)
    other.previous = tenancy.subnet
    again = other.ensure(CONFIG, value(1))
    assert again.subnet == tenancy.subnet
    assert again.lease_id != tenancy.lease_id
    one.stop()
    other.stop()
