"""Two hosts with one public address: whoever is second is told so, until the first is gone. Against both stores."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import ip_address

import pytest

from netd.claims import CLAIM_TTL
from netd.lease import DuplicateAddress
from podlane.api.subnets import LeaseValue
from podlane.store.interface import Store
from tests.contract.netd_hosts import CONFIG, PREFIX, Host, NewHost, at_once, leases, put, revision, wipe

pytestmark = pytest.mark.contract

NAT = ip_address("10.0.2.15")  # what Vagrant gives to each of its machines


def test_a_claim_says_who_and_lives_for_a_minute(store: Store, host: NewHost) -> None:
    one = host()
    one.ensure()
    assert one.claim is not None
    said = json.loads(one.claim.value)
    assert one.claim.key == f"/podlane/netd{PREFIX}/nodes/192.168.64.1"
    assert (said["node"], said["boot"], said["host"]) == ("node-1", "first boot", "host1")
    assert said["since"].endswith("Z")
    assert CLAIM_TTL - 10 < store.time_to_live(one.claim.lease) <= CLAIM_TTL


def test_the_second_host_with_an_address_is_refused_and_told_what_to_do(store: Store, host: NewHost) -> None:
    first, second = host(1, address=NAT), host(2, address=NAT)
    tenancy = first.ensure()
    second.holder.candidates = "candidates: eth1 (192.168.64.12)"
    before = revision(store)
    for _ in range(3):
        with pytest.raises(DuplicateAddress) as refused:
            second.ensure()
    text = str(refused.value)
    assert text.startswith("claim public address 10.0.2.15: host host1 uses it since ")
    assert text.endswith(
        "choose another interface with --iface or another address with --public-ip (candidates: eth1 (192.168.64.12))"
    )
    assert revision(store) == before
    second.address = ip_address("192.168.64.12")
    assert not second.ensure().subnets.overlaps(tenancy.subnets)


def test_of_many_with_one_address_one_is_let_in(store: Store, host: NewHost) -> None:
    hosts = [host(n, address=NAT) for n in range(1, 11)]
    failures = at_once([lambda each=each: each.ensure() for each in hosts])
    assert len(failures) == len(hosts) - 1
    assert all(isinstance(each, DuplicateAddress) for each in failures)
    (winner,) = [each for each in hosts if each.holder.tenancy]
    assert list(leases(store).values()) == [winner.value]


def test_when_the_first_has_died_and_its_claim_with_it_the_second_takes_over(store: Store, host: NewHost) -> None:
    first, second = host(1), host(2, address=ip_address("192.168.64.1"))
    tenancy = first.ensure()
    first.killed()
    with pytest.raises(DuplicateAddress):
        second.ensure()
    first.claim_expires()
    assert second.ensure().subnets == tenancy.subnets  # the machine was set up anew: flannel's rule


def test_a_graceful_stop_frees_the_address_at_once_and_keeps_the_lease(store: Store, host: NewHost) -> None:
    first = host(1)
    first.ensure()
    kept = first.lease
    first.holder.stop()
    assert first.claim is None
    assert first.lease == kept
    host(2, address=first.address).ensure()


def test_a_restart_after_sigkill_has_its_claim_at_once(store: Store, host: NewHost) -> None:
    one = host(1)
    one.ensure()
    before = one.claim
    one.killed()
    one.start()
    one.ensure()
    assert one.claim == before
    assert before is not None
    assert store.time_to_live(before.lease) > CLAIM_TTL - 10


def test_a_reboot_waits_for_the_claim_of_the_boot_before(store: Store, host: NewHost) -> None:
    one = host(1)
    tenancy = one.ensure()
    one.killed()
    one.boot = "second boot"
    one.start()
    with pytest.raises(DuplicateAddress, match=r"under this host's own node id.*before it was rebooted.*within 60 s"):
        one.ensure()
    one.claim_expires()
    assert one.ensure() == tenancy


def test_hosts_in_namespaces_share_a_boot_and_are_two_nodes(host: NewHost) -> None:
    host(1, address=NAT, node="one", boot="same").ensure()
    with pytest.raises(DuplicateAddress):
        host(2, address=NAT, node="two", boot="same").ensure()


def test_a_copied_disk_with_an_address_of_its_own_takes_nothing_from_the_original(store: Store, host: NewHost) -> None:
    original = host(1)
    tenancy = original.ensure()
    copy = host(2, node="node-1", boot="the copy's")
    copy.start(tenancy.subnets)
    assert not copy.ensure().subnets.overlaps(tenancy.subnets)
    before = revision(store)
    original.ensure()
    copy.ensure()
    assert revision(store) == before


def test_a_running_host_that_finds_its_address_claimed_says_so_and_keeps_its_lease(store: Store, host: NewHost) -> None:
    first, second = host(1), host(2, address=ip_address("192.168.64.1"))
    tenancy = first.ensure()
    first.claim_expires()  # as when it was cut off from etcd for a minute
    second.ensure()
    with pytest.raises(DuplicateAddress, match="host host2 uses it"):
        first.ensure()
    assert first.holder.tenancy == tenancy
    second.holder.stop()
    assert first.ensure().subnets == tenancy.subnets
    assert leases(store)[tenancy.subnets.key] == first.value


def test_an_overwritten_claim_is_reported(store: Store, host: NewHost) -> None:
    one = host(1)
    one.ensure()
    assert one.claim is not None
    put(store, one.claim.key, json.dumps({"node": "x", "boot": "y", "host": "intruder", "since": ""}))
    with pytest.raises(DuplicateAddress, match="host intruder uses it"):
        one.ensure()


def test_a_claim_that_cannot_be_read_keeps_nobody_out(store: Store, host: NewHost) -> None:
    put(store, f"/podlane/netd{PREFIX}/nodes/192.168.64.1", "garbage")
    one = host(1)
    one.ensure()
    assert one.claim is not None
    assert json.loads(one.claim.value)["node"] == "node-1"


def test_each_public_address_has_a_claim(store: Store, host: NewHost) -> None:
    one, two = host(1), host(2)
    six = ip_address("2001:db8::1")
    one.holder.ensure(CONFIG, _both(one, six))
    keys = {kv.key.rpartition("/")[2] for kv in store.list(f"/podlane/netd{PREFIX}/nodes/").items}
    assert keys == {"192.168.64.1", "2001:db8::1"}
    with pytest.raises(DuplicateAddress, match="claim public address 2001:db8::1: host host1"):
        two.holder.ensure(CONFIG, _both(two, six))
    assert two.claim is None  # all or none
    one.ensure()  # it has no IPv6 address any more
    two.holder.ensure(CONFIG, _both(two, six))


def _both(host: Host, six: object) -> LeaseValue:
    return replace(host.value, public_ipv6=six)  # type: ignore[arg-type]


def test_after_the_store_was_emptied_the_first_to_come_has_the_address(store: Store, host: NewHost) -> None:
    first, second = host(1), host(2, address=ip_address("192.168.64.1"))
    first.ensure()
    wipe(store)
    first.ensure()
    with pytest.raises(DuplicateAddress):
        second.ensure()
