"""netd as a whole on fakes: its lease and its memory, through restarts, reboots and the loss of the store."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from netd.cache import NetworkCache
from netd.lease import SubnetHeldByOther
from netd.seen import look
from netd.settings import HostSettings
from podlane.api.network import NetworkConfig, parse_config
from podlane.api.subnets import LEASE_TTL, LeaseValue, Subnets
from podlane.errors import StoreUnavailable
from podlane.runtime.runner import NotReady
from podlane.store.interface import Compare, Put
from podlane.store.memory import MemoryStore
from tests.unit.netd_host import PREFIX, Host, delete, peer, put

pytestmark = pytest.mark.unit


@pytest.fixture
def store() -> MemoryStore:
    memory = MemoryStore()
    put(memory, "config", '{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}')
    return memory


@pytest.fixture
def host(store: MemoryStore, tmp_path: Path) -> Iterator[Host]:
    one = Host(store, tmp_path / "a")
    yield one
    one.end()


def test_a_restart_adopts_lease_device_and_mac_address(host: Host) -> None:
    host.settle()
    key, devices, steps = host.key, dict(host.kernel.devices), len(host.kernel.applied)
    revision = host.store.revision
    host.end()
    host.start()
    host.settle()
    assert (host.key, host.kernel.devices, len(host.kernel.applied)) == (key, devices, steps)
    assert host.lease == host.renewal_of(LEASE_TTL).lease_id
    assert host.store.list(f"{PREFIX}/", since=revision + 1).items == (), "no peer hears of it"


def test_a_reboot_keeps_the_mac_address_and_an_expired_lease_the_subnet(host: Host) -> None:
    host.settle()
    key, mac = host.key, host.kernel.devices["flannel.1"].mac
    host.end()
    host.kernel.delete_link("flannel.1")
    host.store.revoke(host.lease)
    host.seed = 2
    host.start()
    host.settle()
    assert host.key == key, "found again by the subnet file"
    assert host.kernel.devices["flannel.1"].mac == mac


def test_a_reinstalled_host_finds_subnet_and_mac_address_by_its_public_address(host: Host) -> None:
    host.settle()
    key, mac = host.key, host.kernel.devices["flannel.1"].mac
    host.end()
    host.kernel.delete_link("flannel.1")
    host.folder = host.folder.with_name("fresh")
    host.seed = 2
    host.start()
    host.settle()
    assert host.key == key
    assert host.kernel.devices["flannel.1"].mac == mac


def test_stopping_leaves_everything_in_place(host: Host) -> None:
    put(host.store, "subnets/10.5.9.0-24", peer(99))
    host.settle()
    before = host.seen()
    host.end()
    assert host.seen() == before
    assert host.key
    host.start()


def test_a_deleted_key_is_written_again(host: Host) -> None:
    host.settle()
    key = host.key
    delete(host.store, key)
    host.settle()
    assert host.key == key


def test_a_lost_etcd_lease_is_replaced_and_the_subnet_stays(host: Host) -> None:
    host.settle()
    key = host.key
    first = host.renewal_of(LEASE_TTL)
    host.store.revoke(host.lease)
    first.lose()
    host.settle()
    assert host.key == key
    assert host.lease == host.renewal_of(LEASE_TTL).lease_id != first.lease_id
    assert first.stopped


def test_a_renewal_that_does_not_know_yet_that_its_lease_is_gone(host: Host) -> None:
    host.settle()
    key = host.key
    host.store.revoke(host.lease)
    host.settle()
    assert host.key == key
    assert host.lease == host.renewal_of(LEASE_TTL).lease_id


def test_a_subnet_that_another_host_took_meanwhile_is_reported_and_never_moved_from(host: Host) -> None:
    host.settle()
    key = host.key
    put(host.store, key, peer(99))
    for _ in range(2):
        host.catch_up()
        with pytest.raises(SubnetHeldByOther, match=r"is held by 192\.168\.64\.99"):
            host.netd.sync_lease()
    delete(host.store, key)
    host.settle()
    assert host.key == key


def test_a_reservation_is_used_and_stays_one(host: Host) -> None:
    value = LeaseValue.vxlan(IPv4Address("192.168.64.11"), 1, "02:00:00:00:00:0b")
    put(host.store, "subnets/10.5.77.0-24", value.encode())
    host.settle()
    assert host.key == "subnets/10.5.77.0-24"
    assert host.lease == 0
    revision = host.store.revision
    host.settle()
    assert host.store.revision == revision


def test_a_lost_answer_is_not_a_second_subnet(host: Host) -> None:
    host.store.faults.drop_after_apply()
    host.catch_up()
    with pytest.raises(StoreUnavailable):
        host.netd.sync_lease()
    host.settle()
    assert host.key


def test_a_wiped_store_withdraws_no_peer_and_the_lease_is_registered_again(host: Host) -> None:
    put(host.store, "subnets/10.5.9.0-24", peer(99))
    host.settle()
    key, before = host.key, host.seen()
    host.store.wipe()
    for each in list(host.renewals):
        each.lose()
    end = time.monotonic() + 10
    while host.netd.mirror.view()[1] == 1:
        assert time.monotonic() < end, "the mirror does not notice"
        time.sleep(0.002)
    host.settle()
    assert host.key == key
    assert host.seen() == before
    host.end()
    host.start()
    host.settle()
    assert host.seen() == before, "nor does a restart"


def _plan(host: Host) -> tuple[str, str]:
    """What `netd plan` prints, and why it does not go by the store's config."""
    seen = look(host.store, host.kernel, HostSettings(), host.folder, lambda: ())
    return str(seen.plan()), seen.remark


def test_looking_at_a_host_goes_by_what_its_netd_goes_by(host: Host) -> None:
    put(host.store, "subnets/10.5.9.0-24", peer(99))
    host.settle()
    assert _plan(host) == ("", "")
    host.kernel.delete_link("flannel.1")
    assert _plan(host)[0].startswith("ip link add flannel.1 ")
    host.netd.sync_kernel()
    put(host.store, "config", '{"Network":"10.9.0.0/16"}')
    host.settle()
    text, remark = _plan(host)
    assert (text, "restart netd to move" in remark) == ("", True)
    put(host.store, "config", "garbage")
    text, remark = _plan(host)
    assert (text, "the last good one is in use" in remark) == ("", True)
    host.store.wipe()
    for each in list(host.renewals):
        each.lose()
    end = time.monotonic() + 10
    while host.netd.mirror.view()[1] == 1:
        assert time.monotonic() < end, "the mirror does not notice"
        time.sleep(0.002)
    host.settle()
    text, remark = _plan(host)
    assert (text, "there is none" in remark) == ("", True), "the peer is kept, and not to be removed"
    host.store.faults.set_down(True)
    seen = look(host.store, host.kernel, HostSettings(), host.folder, lambda: ())
    assert (str(seen.plan()), "the store is down" in seen.store_error) == ("", True)
    host.store.faults.set_down(False)


def test_after_a_reboot_without_the_store_the_overlay_comes_up_from_memory(host: Host) -> None:
    put(host.store, "subnets/10.5.9.0-24", peer(99))
    host.settle()
    before, key = host.seen(), host.key
    host.end()
    host.kernel.delete_link("flannel.1")
    host.subnet_file.unlink()
    host.store.faults.set_down(True)
    host.start(wait=False)
    with pytest.raises(NotReady):
        host.netd.sync_kernel()  # the store has its time to answer
    assert host.kernel.devices == {}
    host.clock.advance(1)
    host.netd.sync_kernel()
    assert host.seen() == before
    assert host.subnet_file.exists()
    assert host.netd.place is not None
    assert not host.netd.place.confirmed
    checks = host.netd.ready_checks()
    assert (checks["leases"]() is None, checks["kernel"]()) == (False, "no sync yet"), (
        "all is well, but not known to be"
    )
    host.store.faults.set_down(False)
    assert host.netd.mirror.wait_synced(10)
    steps = len(host.kernel.applied)
    host.settle()
    assert host.netd.place.confirmed
    assert (host.seen(), host.key, len(host.kernel.applied)) == (before, key, steps)


def _remembered(host: Host) -> set[str]:
    found = NetworkCache(host.folder).load()
    return set(found.leases) if found is not None else set()


def test_a_peer_that_came_just_before_an_outage_and_a_kill_is_not_withdrawn(host: Host) -> None:
    host.end()
    host.interval = 10
    host.start()
    put(host.store, "subnets/10.5.9.0-24", peer(99))
    host.settle()
    put(host.store, "subnets/10.5.10.0-24", peer(98))
    host.settle()
    before = host.seen()
    assert "10.5.10.0-24" not in _remembered(host), "it came too soon to be written down"
    host.kill()
    host.store.faults.set_down(True)
    host.start(wait=False)
    host.clock.advance(1)
    host.netd.sync_kernel()
    assert host.seen() == before
    host.store.faults.set_down(False)
    assert host.netd.mirror.wait_synced(10)
    host.settle()
    assert host.seen() == before
    delete(host.store, "subnets/10.5.10.0-24")
    host.settle()
    assert list(host.kernel.routes) == [IPv4Network("10.5.9.0/24")]


def test_what_came_too_soon_to_be_written_down_is_written_though_nothing_else_happens(host: Host) -> None:
    host.end()
    host.interval = 10
    host.start()
    host.settle()
    put(host.store, "subnets/10.5.10.0-24", peer(98))
    host.catch_up()
    thread = threading.Thread(target=host.netd.kernel_runner.run, args=(host.stop,), daemon=True)
    thread.start()
    host.clock.await_sleepers(1)
    assert "10.5.10.0-24" not in _remembered(host)
    host.clock.advance(10)
    end = time.monotonic() + 10
    while "10.5.10.0-24" not in _remembered(host):
        assert time.monotonic() < end, "it is not written"
        time.sleep(0.002)
    host.stop.set()
    thread.join(10)


SMALL: NetworkConfig = parse_config('{"Network":"10.5.0.0/22","SubnetLen":27}')  # 31 subnets


@pytest.mark.parametrize("same_dice", [False, True], ids=["own dice", "same dice"])
def test_20_at_once_get_20_subnets(tmp_path: Path, same_dice: bool) -> None:
    store = MemoryStore()
    store.txn([Compare.absent("x")], [Put(f"{PREFIX}/config", b'{"Network":"10.5.0.0/22","SubnetLen":27}')])
    hosts = [Host(store, tmp_path / str(n), n, seed=1 if same_dice else n) for n in range(11, 31)]
    failures: list[BaseException] = []
    together = threading.Barrier(len(hosts))

    def run(host: Host) -> None:
        try:
            together.wait(10)
            host.netd.sync_lease()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(host,)) for host in hosts]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert failures == []
        assert len({host.key for host in hosts}) == 20
        for host in hosts:
            assert SMALL.allows(Subnets.parse_key(host.key.removeprefix("subnets/")))
    finally:
        for host in hosts:
            host.end()
