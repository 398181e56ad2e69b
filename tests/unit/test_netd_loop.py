"""netd as a whole on a store, a kernel and a firewall in memory."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path

import pytest

from netd.desired import Underlay
from netd.fake import FakeFirewall, FakeKernel, FakeRenewal
from netd.lease import SubnetHeldByOther
from netd.loop import Netd, Settings
from netd.model import Interface
from podlane.api.network import LEASE_TTL, LeaseValue, NetworkConfig, parse_config
from podlane.errors import Invalid, PodlaneError, StoreUnavailable
from podlane.runtime.runner import NotReady
from podlane.store.interface import Compare, Delete, Put
from podlane.store.memory import MemoryStore

pytestmark = pytest.mark.unit

PREFIX = "/coreos.com/network"
NETWORK = IPv4Network("10.5.0.0/16")


def put(store: MemoryStore, key: str, value: str | bytes, *, lease: int = 0) -> None:
    data = value.encode() if isinstance(value, str) else value
    store.txn([], [Put(f"{PREFIX}/{key}", data, lease=lease)])


def delete(store: MemoryStore, key: str) -> None:
    store.txn([], [Delete(f"{PREFIX}/{key}")])


@dataclass
class Host:
    """One host's netd, its loops driven by hand; only the mirror has its thread."""

    store: MemoryStore
    folder: Path
    number: int = 11
    seed: int = 1
    kernel: FakeKernel = field(init=False)
    firewall: FakeFirewall = field(default_factory=FakeFirewall)
    renewals: list[FakeRenewal] = field(default_factory=list)
    triggered: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        address = IPv4Interface(f"192.168.64.{self.number}/24")
        self.kernel = FakeKernel(Interface("eth0", 2, 1500, True, False, "veth", (address,), 0))
        self.stop = threading.Event()
        self.start()

    def start(self) -> None:
        self.stop = threading.Event()
        address = self.kernel.links["eth0"].addresses[0]
        self.netd = Netd(
            Settings(PREFIX, Underlay("eth0", address, address.ip, 1500), self.subnet_file, self.folder, ip_masq=True),
            store=self.store,
            kernel=self.kernel,
            firewall=self.firewall,
            renewal=self._renewal,
            rng=random.Random(self.seed),
        )
        self.thread = threading.Thread(target=self.netd.mirror.run, args=(self.stop,), daemon=True)
        self.thread.start()
        assert self.netd.mirror.wait_synced(10)

    def end(self) -> None:
        """As SIGTERM does it."""
        self.stop.set()
        self.store.cut()
        self.thread.join(10)
        self.netd.stop()

    def _renewal(self, lost: Callable[[], None], lease_id: int) -> FakeRenewal:
        self.renewals.append(FakeRenewal(self.store, LEASE_TTL, lost, lease_id))
        return self.renewals[-1]

    def settle(self) -> None:
        """Let the mirror catch up, then run both loops."""
        self.catch_up()
        self.netd.sync_lease()
        self.catch_up()
        self.netd.sync_kernel()

    def catch_up(self) -> None:
        end = time.monotonic() + 10
        while self.netd.mirror.revision < self.store.revision:
            assert time.monotonic() < end, "the mirror does not catch up"
            time.sleep(0.002)

    @property
    def subnet_file(self) -> Path:
        return self.folder / "subnet.env"

    @property
    def key(self) -> str:
        """The key of the one lease that names this host."""
        mine = [
            kv.key
            for kv in self.store.list(f"{PREFIX}/subnets/").items
            if f'"192.168.64.{self.number}"'.encode() in kv.value
        ]
        assert len(mine) == 1, mine
        return mine[0].removeprefix(f"{PREFIX}/")

    @property
    def lease(self) -> int:
        kv = self.store.get(f"{PREFIX}/{self.key}")
        return kv.lease if kv else -1


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


def peer(number: int) -> bytes:
    return LeaseValue.vxlan(IPv4Address(f"192.168.64.{number}"), 1, f"02:00:00:00:00:{number:02x}").encode()


def test_nothing_is_touched_before_there_is_a_config_and_then_all_happens(tmp_path: Path) -> None:
    store = MemoryStore()
    host = Host(store, tmp_path)
    try:
        for sync in (host.netd.sync_lease, host.netd.sync_kernel, host.netd.sync_firewall):
            with pytest.raises(NotReady):
                sync()
        assert (host.kernel.device, host.firewall.asked, list(tmp_path.iterdir())) == (None, None, [])
        put(store, "config", '{"Network":"10.5.0.0/16","SubnetMin":"10.5.7.0","SubnetMax":"10.5.7.0"}')
        put(store, "subnets/10.5.9.0-24", peer(99))
        host.settle()
        host.netd.sync_firewall()
        assert host.key == "subnets/10.5.7.0-24"
        assert host.kernel.device is not None
        assert host.kernel.device.addresses == {IPv4Interface("10.5.7.0/32")}
        assert list(host.kernel.routes) == [IPv4Network("10.5.9.0/24")]
        assert host.firewall.asked == (NETWORK, True, True)
        assert host.subnet_file.read_text() == (
            "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.7.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
        )
    finally:
        host.end()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('{"Network":"10.5.0.0/29"}', "is too small"),
        ('{"Network":"10.5.0.0/16","Backend":{"Type":"udp"}}', 'Backend.Type: this netd builds vxlan, got "udp"'),
        ('{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/48"}', "EnableIPv6: this netd builds"),
        ('{"Network":"192.168.0.0/16"}', "overlaps 192.168.64.0/24 of eth0"),
    ],
)
def test_a_config_that_cannot_be_used_is_refused_before_anything_is_touched(
    host: Host, config: str, message: str
) -> None:
    put(host.store, "config", config)
    host.catch_up()
    with pytest.raises(PodlaneError, match=message):
        host.netd.sync_lease()
    assert host.kernel.device is None
    assert host.store.list(f"{PREFIX}/subnets/").items == ()


def test_a_bad_config_does_not_replace_a_good_one(host: Host) -> None:
    host.settle()
    put(host.store, "config", "garbage")
    put(host.store, "subnets/10.5.9.0-24", peer(99))
    host.settle()
    assert IPv4Network("10.5.9.0/24") in host.kernel.routes
    with pytest.raises(Invalid):
        parse_config("garbage")


def test_peers_come_and_go_and_garbage_harms_nobody(host: Host) -> None:
    put(host.store, "subnets/10.5.9.0-24", peer(99))
    put(host.store, "subnets/10.5.10.0-24", "garbage")
    put(host.store, "subnets/garbage", peer(98))
    put(host.store, "other", "something")
    put(host.store, "subnets/10.5.11.0-24", '{"PublicIP":"192.168.64.97","BackendType":"vxlan","BackendData":{}}')
    host.settle()
    assert list(host.kernel.routes) == [IPv4Network("10.5.9.0/24")]
    assert set(host.netd.mirror.undecodable) == {"subnets/10.5.10.0-24", "subnets/garbage"}
    delete(host.store, "subnets/10.5.9.0-24")
    put(host.store, "subnets/10.5.10.0-24", peer(96))
    host.settle()
    assert list(host.kernel.routes) == [IPv4Network("10.5.10.0/24")]


def test_a_second_sync_changes_nothing(host: Host) -> None:
    put(host.store, "subnets/10.5.9.0-24", peer(99))
    host.settle()
    revision, steps = host.store.revision, len(host.kernel.applied)
    host.settle()
    assert (host.store.revision, len(host.kernel.applied)) == (revision, steps)


def test_a_restart_adopts_lease_device_and_mac_address(host: Host) -> None:
    host.settle()
    key, device, steps = host.key, host.kernel.device, len(host.kernel.applied)
    revision = host.store.revision
    host.end()
    host.start()
    host.settle()
    assert (host.key, host.kernel.device, len(host.kernel.applied)) == (key, device, steps)
    assert host.lease == host.renewals[-1].lease_id
    assert host.store.revision == revision, "and writes nothing, so that no peer hears of it"


def test_a_reboot_keeps_the_mac_address_and_an_expired_lease_the_subnet(host: Host) -> None:
    host.settle()
    key, mac = host.key, (host.kernel.device or pytest.fail("no device")).mac
    host.end()
    host.kernel.delete_device()
    host.store.revoke(host.lease)
    host.seed = 2
    host.start()
    host.settle()
    assert host.key == key, "found again by the subnet file"
    assert host.kernel.device is not None
    assert host.kernel.device.mac == mac


def test_a_reinstalled_host_finds_subnet_and_mac_address_by_its_public_address(host: Host) -> None:
    host.settle()
    key, mac = host.key, (host.kernel.device or pytest.fail("no device")).mac
    host.end()
    host.kernel.delete_device()
    host.folder = host.folder.with_name("fresh")
    host.seed = 2
    host.start()
    host.settle()
    assert host.key == key
    assert host.kernel.device is not None
    assert host.kernel.device.mac == mac


def test_stopping_leaves_everything_in_place(host: Host) -> None:
    put(host.store, "subnets/10.5.9.0-24", peer(99))
    host.settle()
    before = host.kernel.observe("flannel.1", NETWORK)
    host.end()
    assert host.kernel.observe("flannel.1", NETWORK) == before
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
    host.store.revoke(host.lease)
    host.renewals[-1].lose()
    host.settle()
    assert host.key == key
    assert len(host.renewals) == 2
    assert host.lease == host.renewals[-1].lease_id
    assert host.renewals[0].stopped


def test_a_renewal_that_does_not_know_yet_that_its_lease_is_gone(host: Host) -> None:
    host.settle()
    key = host.key
    host.store.revoke(host.lease)
    host.catch_up()
    with pytest.raises(PodlaneError):
        host.netd.sync_lease()  # the lease is not found; the next attempt begins with a new one
    host.settle()
    assert host.key == key


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


def test_a_kernel_that_was_changed_by_hand_is_made_right(host: Host) -> None:
    put(host.store, "subnets/10.5.9.0-24", peer(99))
    host.settle()
    right = host.kernel.observe("flannel.1", NETWORK)
    host.kernel.set_down()
    host.kernel.fdb.clear()
    host.kernel.forwarding = False
    host.netd.sync_kernel()
    assert host.kernel.observe("flannel.1", NETWORK) == right
    host.subnet_file.unlink()
    host.netd.sync_kernel()
    assert host.subnet_file.exists()


def test_a_foreign_link_of_the_device_s_name_is_left_alone_and_docker_told_nothing(host: Host) -> None:
    host.kernel.foreign["flannel.1"] = "dummy"
    with pytest.raises(PodlaneError, match="a dummy link of that name exists"):
        host.settle()
    assert host.kernel.applied == []
    assert not host.subnet_file.exists()


def test_an_underlay_that_is_gone_is_named(host: Host) -> None:
    host.settle()
    del host.kernel.links["eth0"]
    with pytest.raises(PodlaneError, match="use underlay eth0: the interface is gone"):
        host.netd.sync_kernel()


def test_readiness_tells_what_is_missing(tmp_path: Path) -> None:
    host = Host(MemoryStore(), tmp_path)
    try:
        assert host.netd.ready_checks()["leases"]() is None
        assert host.netd.ready_checks()["lease"]() == "no sync yet"
    finally:
        host.end()


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
            assert SMALL.allows(IPv4Network(host.key.removeprefix("subnets/").replace("-", "/")))
    finally:
        for host in hosts:
            host.end()
