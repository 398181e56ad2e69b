"""Hosts that start at the same moment, and answers that are lost: one subnet each. Against both stores."""

from __future__ import annotations

import itertools
from ipaddress import ip_address
from typing import Any

import pytest

from netd.allocate import OutOfSubnets
from podlane.api.network import parse_config
from podlane.errors import StoreUnavailable
from podlane.store.interface import Store, TxnResult
from podlane.store.memory import MemoryStore
from tests.contract.netd_hosts import (
    CONFIG,
    Host,
    NewHost,
    at_once,
    leases,
    revision,
)

pytestmark = pytest.mark.contract

MANY = 200
ENOUGH = parse_config('{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.200.0"}')  # 200 of them


@pytest.mark.parametrize("same_dice", [False, True], ids=["own dice", "same dice"])
@pytest.mark.parametrize("config", [CONFIG, ENOUGH], ids=["ample", "just enough"])
def test_200_hosts_at_once_get_200_subnets(store: Store, host: NewHost, config: object, same_dice: bool) -> None:
    hosts = [host(n, address=ip_address(0xC0A80000 + n), seed=7 if same_dice else None) for n in range(1, MANY + 1)]
    assert at_once([lambda each=each: each.ensure(config) for each in hosts]) == []
    stored = leases(store)
    assert len(stored) == MANY
    assert {value.public_ip for value in stored.values()} == {each.address for each in hosts}
    assert len({each.holder.tenancy.subnets for each in hosts if each.holder.tenancy}) == MANY


def test_dual_stack_hosts_at_once_share_neither_subnet(store: Store, host: NewHost) -> None:
    # the same IPv4 subnet with two IPv6 ones is two keys, which a comparison of one key does not see:
    # with few subnets of each family and unequal dice this happens all the time
    config = parse_config(
        '{"Network":"10.5.0.0/24","SubnetLen":28,"EnableIPv6":true,"IPv6Network":"fd00:5::/60","IPv6SubnetLen":64}'
    )
    hosts = [host(n) for n in range(1, 13)]  # of 15
    assert at_once([lambda each=each: each.ensure(config) for each in hosts]) == []
    held = [each.holder.tenancy.subnets for each in hosts if each.holder.tenancy]
    assert len(held) == len(hosts)
    assert {subnet.key for subnet in held} == set(leases(store))
    assert not [(a, b) for a, b in itertools.combinations(held, 2) if a.overlaps(b)]


def test_when_all_are_taken_that_is_said(store: Store, host: NewHost) -> None:
    tiny = parse_config('{"Network":"10.5.0.0/28"}')
    for number in (1, 2, 3):
        host(number).ensure(tiny)
    with pytest.raises(OutOfSubnets, match=r"all 3 /30 subnets from 10.5.0.4 to 10.5.0.12 are taken"):
        host(4).ensure(tiny)


class LosesAnswers(MemoryStore):
    """Carries out the transaction numbered `at`, and its answer is lost."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.left = at

    def txn(self, *args: Any, **options: Any) -> TxnResult:
        self.left -= 1
        if self.left == 0:
            self.faults.drop_after_apply()
        return super().txn(*args, **options)


@pytest.mark.parametrize("restart", [False, True], ids=["goes on", "is killed and restarted"])
def test_whichever_answer_is_lost_there_is_one_lease(restart: bool) -> None:
    for at in itertools.count(1):
        store = LosesAnswers(at)
        one = Host(store, 1)
        try:
            one.ensure()
        except StoreUnavailable:
            if restart:
                one.killed()
                one.seed = at
                one.start()
            one.ensure()
            lost = True
        else:
            lost, store.left = False, 0
        assert list(leases(store).values()) == [one.value]
        assert one.lease is not None
        assert one.recent is not None
        assert one.claim is not None
        before = revision(store)
        one.ensure()
        assert revision(store) == before
        one.killed()
        if not lost:
            assert at > 3  # the claim, and the lease with its record, were among them
            return
