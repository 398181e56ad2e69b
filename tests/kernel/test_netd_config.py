"""What netd is told while it runs: another network config, and none; and how packets go under each backend."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.conftest import NetnsEtcd, NetnsMaker, eventually
from tests.kernel.netd_nodes import NETWORK, PREFIX, Cluster, Node

pytestmark = pytest.mark.kernel

VXLAN = '"Type":"vxlan"'
UNDERLAY_DROPS = """table bridge cloud {
  chain forward {
    type filter hook forward priority 0
    ip saddr 10.5.0.0/16 drop
  }
}
"""


@pytest.fixture
def cluster(netns: NetnsMaker, netns_etcd: NetnsEtcd, tmp_path: Path) -> Cluster:
    return Cluster(netns, netns_etcd, tmp_path)


def config(backend: str, network: str = NETWORK) -> str:
    return f'{{"Network":"{network}","Backend":{{{backend}}}}}'


def vxlan_devices(node: Node) -> dict[str, tuple[int, int, int]]:
    """VNI, port and MTU of each."""
    links = node.ip("link show type vxlan")
    return {
        link["ifname"]: (link["linkinfo"]["info_data"]["id"], link["linkinfo"]["info_data"]["port"], link["mtu"])
        for link in links
    }


def ways(node: Node) -> set[tuple[str, str]]:
    """Interface and gateway of the routes to other hosts' pods."""
    return {(r["dev"], r["gateway"]) for r in node.ip(f"route show root {NETWORK}") if "gateway" in r}


def looks(nodes: list[Node], devices: dict[str, tuple[int, int, int]], mtu: int, *, direct: bool = False) -> bool:
    """Whether every host has these devices and sends packets to the others by them, or without."""
    for node in nodes:
        others = [other for other in nodes if other is not node]
        assert vxlan_devices(node) == devices
        if direct:
            assert ways(node) == {("eth0", other.ns.address) for other in others}
        else:
            (device,) = devices
            assert ways(node) == {(device, str(other.subnet.subnets.v4.network_address)) for other in others}
        assert node.subnet.mtu == mtu
        assert node.get("/readyz")[0] == 200
    return True


def settle(nodes: list[Node], devices: dict[str, tuple[int, int, int]], mtu: int, *, direct: bool = False) -> None:
    eventually(lambda: looks(nodes, devices, mtu, direct=direct))
    for node, other in zip(nodes, nodes[1:] + nodes[:1], strict=True):
        assert node.pings(other, 1)


def test_each_change_of_the_config_is_applied_by_every_host_as_it_runs(cluster: Cluster) -> None:
    nodes = cluster(3, config=config(VXLAN))
    subnets = [node.subnet.subnets for node in nodes]
    macs = [node.ip("link show flannel.1")[0]["address"] for node in nodes]
    settle(nodes, {"flannel.1": (1, 8472, 1450)}, 1450)
    indexes = [node.ip("link show flannel.1")[0]["ifindex"] for node in nodes]
    cluster.configure(config(f'{VXLAN},"MTU":1400'))
    settle(nodes, {"flannel.1": (1, 8472, 1350)}, 1350)
    assert [node.ip("link show flannel.1")[0]["ifindex"] for node in nodes] == indexes, "the device is the same"
    cluster.configure(config(f'{VXLAN},"VNI":7'))
    settle(nodes, {"flannel.7": (7, 8472, 1450)}, 1450)
    assert [_backend(node) for node in nodes] == [("vxlan", {"VNI": 7, "VtepMAC": mac}) for mac in macs]
    cluster.configure(config(f'{VXLAN},"VNI":7,"Port":4789'))
    settle(nodes, {"flannel.7": (7, 4789, 1450)}, 1450)
    cluster.configure(config('"Type":"host-gw"'))
    settle(nodes, {}, 1500, direct=True)
    assert [_backend(node) for node in nodes] == [("host-gw", None)] * 3
    cluster.configure(config(VXLAN))
    settle(nodes, {"flannel.1": (1, 8472, 1450)}, 1450)
    assert [_backend(node) for node in nodes] == [("vxlan", {"VNI": 1, "VtepMAC": mac}) for mac in macs]
    cluster.configure(config(f'{VXLAN},"DirectRouting":true'))
    settle(nodes, {"flannel.1": (1, 8472, 1450)}, 1450, direct=True)
    assert all(node.state()["fdb"] == node.state()["neighbours"] == [] for node in nodes)
    cluster.configure(config(VXLAN))
    settle(nodes, {"flannel.1": (1, 8472, 1450)}, 1450)
    assert [node.subnet.subnets for node in nodes] == subnets
    assert all(node.said("event=starting") == 1 for node in nodes)


def _backend(node: Node) -> tuple[str, Any]:
    value = json.loads(node.value)
    return value["BackendType"], value.get("BackendData")


def test_a_config_that_cannot_be_followed_leaves_the_one_in_use_and_is_said_once(cluster: Cluster) -> None:
    nodes = cluster(2, config=config(VXLAN))
    a, b = nodes
    before = a.state(), b.state()
    for text, said in (
        ("{nonsense", "config: not JSON: Expecting"),
        (config('"Type":"udp"'), 'this netd builds vxlan and host-gw, got \\"udp\\"'),
        (config(f'{VXLAN},"VNI":9', "10.77.0.0/16"), "no longer allows this host's"),
        ("", f"network config {PREFIX}/config is gone"),
    ):
        if text:
            cluster.configure(text)
        else:
            cluster.etcd.ctl("del", f"{PREFIX}/config")
        eventually(lambda said=said: all(node.said(said) for node in nodes))
        # something else that happens in the store is not a reason to say it again
        cluster.etcd.ctl("put", f"{PREFIX}/subnets/10.5.253.0-24", "garbage")
        cluster.etcd.ctl("del", f"{PREFIX}/subnets/10.5.253.0-24")
        assert a.pings(b)
        assert (a.state(), b.state()) == before
        for node in nodes:
            node.ready()
            assert node.said(said) == 1
    cluster.configure(config(f'{VXLAN},"VNI":9'))
    settle(nodes, {"flannel.9": (9, 8472, 1450)}, 1450)


def test_a_direct_path_is_taken_when_it_is_proved_and_left_when_it_fails(cluster: Cluster) -> None:
    nodes = a, b = cluster(2, config=config(f'{VXLAN},"DirectRouting":"auto"'))
    underlay = cluster.netns.underlay
    eventually(lambda: looks(nodes, {"flannel.1": (1, 8472, 1450)}, 1450, direct=True))
    assert a.pings(b)
    before = _received(b)
    # what a cloud does that knows which addresses a machine has: frames with pods' addresses are dropped
    underlay.run(["nft", "-f", "-"], stdin=UNDERLAY_DROPS)
    assert not a.pings(b, 1)
    settle(nodes, {"flannel.1": (1, 8472, 1450)}, 1450)
    assert _received(b) > before
    assert not a.metric("netd_direct_paths")
    underlay.run("nft delete table bridge cloud")
    eventually(lambda: looks(nodes, {"flannel.1": (1, 8472, 1450)}, 1450, direct=True))
    assert all(node.said("event=starting") == 1 for node in nodes)


def _received(node: Node) -> int:
    return int(node.ip("-s link show flannel.1")[0]["stats64"]["rx"]["packets"])
