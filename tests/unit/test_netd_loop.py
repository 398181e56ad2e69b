"""netd as a whole on a store, a kernel and a firewall in memory."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path

import pytest

from netd.cache import NetworkCache
from netd.fake import FakeFirewall, FakeKernel, FakeRenewal
from netd.identity import NodeIdentity
from netd.lease import LeaseHolder, SubnetHeldByOther
from netd.loop import Netd, Settings
from netd.model import Actual, Interface
from netd.place import Surroundings, Wishes
from netd.prober import Prober
from netd.renewal import Renewal
from netd.ruleset import FirewallRules
from netd.state import State, previous_subnets
from netd.underlay import UnderlayWish
from netd.watched import ConfigEntry, Decoder, LeaseEntry, known
from podlane.api.network import NetworkConfig, parse_config
from podlane.api.subnets import LEASE_TTL, LeaseValue, Subnets
from podlane.errors import Invalid, PodlaneError, StoreUnavailable
from podlane.runtime.runner import NotReady
from podlane.store.interface import Compare, Delete, Put
from podlane.store.memory import MemoryStore
from podlane.store.mirror import Mirror

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
        """A new process on what the last one left."""
        self.stop = threading.Event()
        cache = NetworkCache(self.folder, interval=0)
        remembered = cache.load()
        rng = random.Random(self.seed)
        previous = remembered.own if remembered is not None else previous_subnets(self.subnet_file)
        decode = Decoder(PREFIX)
        surroundings = Surroundings(
            Wishes(PREFIX, UnderlayWish(), lambda: ()),
            kernel=self.kernel,
            store=self.store,
            state=State(self.folder),
            remembered=remembered,
            rng=rng,
            previous=previous,
        )
        identity = NodeIdentity(f"{self.folder}", "boot", f"host{self.number}")

        def holder(on_lost: Callable[[], None]) -> LeaseHolder:
            def renewal(ttl: int, lease_id: int) -> Renewal:
                self.renewals.append(FakeRenewal(self.store, ttl, on_lost, lease_id))
                return self.renewals[-1]

            return LeaseHolder(
                self.store, PREFIX, identity, renewal, rng, previous=previous, known=lambda: known(self.netd.mirror)
            )

        self.netd = Netd(
            Settings(self.subnet_file, ip_masq=True),
            surroundings=surroundings,
            mirror=lambda on_change: Mirror(
                self.store,
                decode.root,
                decode=decode,
                on_change=on_change,
                name="leases",
                witness=remembered.witness if remembered is not None else 0,
                witness_revision=remembered.revision if remembered is not None else 0,
            ),
            holder=holder,
            prober=Prober,
            kernel=self.kernel,
            firewall=self.firewall,
            cache=cache,
            remembered=remembered,
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

    def seen(self) -> Actual:
        return self.kernel.observe(["flannel.1"], [NETWORK], [])

    def renewal_of(self, ttl: int) -> FakeRenewal:
        """The last of those for so long."""
        return [each for each in self.renewals if each._ttl == ttl][-1]

    def settle(self) -> None:
        """Let the mirror catch up, then run both loops."""
        self.catch_up()
        self.netd.sync_lease()
        self.catch_up()
        self.netd.sync_kernel()

    def catch_up(self) -> None:
        """Let the mirror see what the store has below flannel's prefix."""
        end = time.monotonic() + 10
        while not self._caught_up():
            assert time.monotonic() < end, "the mirror does not catch up"
            time.sleep(0.002)

    def _caught_up(self) -> bool:
        stored = {kv.key.removeprefix(f"{PREFIX}/"): kv for kv in self.store.list(f"{PREFIX}/").items}
        entries, _ = self.netd.mirror.view()
        if entries.keys() | self.netd.mirror.undecodable.keys() != stored.keys():
            return False
        for key, entry in entries.items():
            if isinstance(entry, LeaseEntry) and entry.revision != stored[key].mod_revision:
                return False
            if isinstance(entry, ConfigEntry) and entry.raw != stored[key].value:
                return False
        return True

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
        assert (host.kernel.devices, host.firewall.asked, list(tmp_path.iterdir())) == ({}, None, [])
        put(store, "config", '{"Network":"10.5.0.0/16","SubnetMin":"10.5.7.0","SubnetMax":"10.5.7.0"}')
        put(store, "subnets/10.5.9.0-24", peer(99))
        host.settle()
        host.netd.sync_firewall()
        assert host.key == "subnets/10.5.7.0-24"
        assert host.kernel.devices["flannel.1"].addresses == {IPv4Interface("10.5.7.0/32")}
        assert list(host.kernel.routes) == [IPv4Network("10.5.9.0/24")]
        own = Subnets(IPv4Network("10.5.7.0/24"))
        assert host.firewall.asked == FirewallRules((NETWORK,), own, forward=True, masquerade=True)
        assert host.subnet_file.read_text() == (
            "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.7.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
        )
    finally:
        host.end()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('{"Network":"10.5.0.0/29"}', "is too small"),
        (
            '{"Network":"10.5.0.0/16","Backend":{"Type":"udp"}}',
            'Backend.Type: this netd builds vxlan and host-gw, got "udp"',
        ),
        ('{"Network":"192.168.0.0/16"}', "overlaps 192.168.64.0/24, the subnet of eth0"),
    ],
)
def test_a_config_that_cannot_be_used_is_refused_before_anything_is_touched(
    host: Host, config: str, message: str
) -> None:
    put(host.store, "config", config)
    host.catch_up()
    with pytest.raises(PodlaneError, match=message):
        host.netd.sync_lease()
    assert host.kernel.devices == {}
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


def test_a_kernel_that_was_changed_by_hand_is_made_right(host: Host) -> None:
    put(host.store, "subnets/10.5.9.0-24", peer(99))
    host.settle()
    right = host.seen()
    host.kernel.set_down("flannel.1")
    host.kernel.fdb.clear()
    host.kernel.sysctls["net/ipv4/ip_forward"] = "0"
    host.netd.sync_kernel()
    assert host.kernel.sysctls["net/ipv4/ip_forward"] == "1"
    assert host.seen() == right
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


def test_every_peer_is_programmed_before_it_is_ready(host: Host) -> None:
    host.settle()
    assert host.netd.peers_missing() is None
    put(host.store, "subnets/10.5.9.0-24", peer(99))
    host.catch_up()
    assert host.netd.peers_missing() is not None
    host.settle()
    assert host.netd.peers_missing() is None


def test_a_changed_config_is_applied_at_once_and_the_old_device_goes(host: Host) -> None:
    put(host.store, "subnets/10.5.9.0-24", peer(99))
    host.settle()
    key = host.key
    put(host.store, "config", '{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":7,"MTU":1400}}')
    host.settle()
    host.settle()
    assert list(host.kernel.devices) == ["flannel.7"]
    assert host.kernel.devices["flannel.7"].mtu == 1350
    assert "FLANNEL_MTU=1350" in host.subnet_file.read_text()
    kv = host.store.get(f"{PREFIX}/{key}")
    assert kv is not None
    assert LeaseValue.decode(kv.value).backend_data == {"VNI": 7, "VtepMAC": host.kernel.devices["flannel.7"].mac}
    assert list(host.kernel.routes) == [IPv4Network("10.5.9.0/24")]


@pytest.mark.parametrize("config", ['{"Network":"10.9.0.0/16"}', "garbage", None])
def test_a_config_that_would_pull_the_subnet_away_leaves_the_one_in_use(host: Host, config: str | None) -> None:
    host.settle()
    key, before = host.key, host.seen()
    if config is None:
        delete(host.store, "config")
    else:
        put(host.store, "config", config)
    host.settle()
    assert (host.key, host.seen()) == (key, before)


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


def test_after_a_reboot_without_the_store_the_overlay_comes_up_from_memory(host: Host) -> None:
    put(host.store, "subnets/10.5.9.0-24", peer(99))
    host.settle()
    before = host.seen()
    host.end()
    host.kernel.delete_link("flannel.1")
    fresh = Host(MemoryStore(), host.folder.with_name("other"))  # another store, in which nothing is
    fresh.end()
    fresh.folder, fresh.kernel = host.folder, host.kernel
    fresh.start()
    try:
        with pytest.raises(NotReady):
            fresh.netd.sync_kernel()  # the store has its time to answer
        fresh.netd._started -= 60
        fresh.netd.sync_kernel()
        assert fresh.seen() == before
        assert fresh.netd.place is not None
        assert not fresh.netd.place.confirmed
    finally:
        fresh.end()
        host.start()


def test_another_address_is_published_and_used_under_the_same_subnet(host: Host) -> None:
    host.settle()
    subnet = host.key
    eth0 = host.kernel.links["eth0"]
    host.kernel.links["eth0"] = replace(eth0, addresses=(IPv4Interface("192.168.64.12/24"),), mtu=1400)
    host.number = 12
    host.settle()
    host.settle()
    assert host.key == subnet
    device = host.kernel.devices["flannel.1"]
    assert (device.local, device.mtu) == (IPv4Address("192.168.64.12"), 1350)


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
