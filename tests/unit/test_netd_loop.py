"""netd as a whole on fakes: what it programs when leases, config, kernel or underlay change."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path

import pytest

from netd.ruleset import FirewallRules
from podlane.api.network import parse_config
from podlane.api.subnets import LeaseValue, Subnets
from podlane.errors import Invalid, PodlaneError
from podlane.runtime import metrics
from podlane.runtime.runner import NotReady
from podlane.store.memory import MemoryStore
from tests.unit.netd_host import NETWORK, PREFIX, Host, delete, peer, put

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


def _drift() -> dict[str, float]:
    kinds = ("SetRoute", "SetNeighbour", "SetFdb")
    return {kind: metrics.value("netd_drift_repaired_total", kind=kind) or 0 for kind in kinds}


def test_only_what_nobody_asked_for_counts_as_drift(host: Host) -> None:
    before = _drift()
    put(host.store, "subnets/10.5.9.0-24", peer(99))
    host.settle()
    put(host.store, "subnets/10.5.10.0-24", peer(98))
    host.settle()
    assert _drift() == before
    del host.kernel.routes[IPv4Network("10.5.9.0/24")]
    host.netd.sync_kernel()
    assert _drift() == {**before, "SetRoute": before["SetRoute"] + 1}
    host.netd.sync_kernel()
    assert _drift()["SetRoute"] == before["SetRoute"] + 1


def test_a_peer_is_routed_directly_while_the_prober_finds_that_it_can_be(host: Host) -> None:
    put(host.store, "config", '{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","DirectRouting":"auto"}}')
    put(host.store, "subnets/10.5.9.0-24", peer(99))
    host.settle()
    tunnel = host.kernel.routes[IPv4Network("10.5.9.0/24")]
    assert (host.prober.auto, host.prober.peers, tunnel.device) == (True, ("10.5.9.0-24",), "flannel.1")
    before = _drift()
    host.prober.found(IPv4Address("192.168.64.99"))
    host.netd.sync_kernel()
    direct = host.kernel.routes[IPv4Network("10.5.9.0/24")]
    assert (direct.gateway, direct.device, direct.onlink) == (IPv4Address("192.168.64.99"), "eth0", False)
    host.prober.found()
    host.netd.sync_kernel()
    assert host.kernel.routes[IPv4Network("10.5.9.0/24")] == tunnel
    assert _drift() == before


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
