"""Real netd processes on hosts in namespaces: pods reach one another, whatever happens to netd."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from tests.kernel.conftest import NetnsEtcd, NetnsMaker, eventually
from tests.kernel.netd_nodes import CONFIG, NETWORK, PREFIX, Cluster, Node
from tests.kernel.netd_pings import Pings

pytestmark = pytest.mark.kernel


@pytest.fixture
def cluster(netns: NetnsMaker, netns_etcd: NetnsEtcd, tmp_path: Path) -> Cluster:
    return Cluster(netns, netns_etcd, tmp_path)


def test_pods_of_three_hosts_reach_one_another_through_the_overlay(cluster: Cluster) -> None:
    nodes = cluster(3)
    assert len({node.subnet.subnets.v4 for node in nodes}) == 3
    for a in nodes:
        for b in nodes:
            if a is not b:
                assert a.pings(b)
                assert a.ns.ping(b.address) == 1, "a host reaches other hosts' pods too"
    link = nodes[0].ip("link show flannel.1")[0]
    data = link["linkinfo"]["info_data"]
    assert (link["mtu"], data["id"], data["port"], data["learning"]) == (1450, 1, 8472, False)
    assert (data["local"], data["link"]) == (nodes[0].ns.address, "eth0")
    received = nodes[1].ip("-s link show flannel.1")[0]["stats64"]["rx"]["packets"]
    assert received >= 6, "the packets came through the overlay"
    for node in nodes:
        assert node.ns.run("sysctl -n net.ipv4.ip_forward").strip() == "1"
        value = json.loads(node.value)
        assert value["PublicIP"] == node.ns.address
        assert value["BackendData"]["VtepMAC"] == node.ip("link show flannel.1")[0]["address"]


@pytest.mark.parametrize(
    "damage",
    [
        "ip route delete {peer}",
        "ip route replace {peer} via 192.168.64.1",
        "ip neigh delete {vtep} dev flannel.1",
        "ip neigh replace {vtep} lladdr 02:00:00:00:00:99 dev flannel.1 nud permanent",
        "bridge fdb delete {mac} dev flannel.1 dst {ip} self",
        "bridge fdb replace {mac} dev flannel.1 dst 192.168.64.99 self permanent",
        "ip link set flannel.1 down",
        "ip link set flannel.1 mtu 1300",
        "ip link set flannel.1 address 02:00:00:00:00:77",
        "ip link delete flannel.1",
        "ip address delete {own}/32 dev flannel.1",
        "ip link set eth0 down; ip link set eth0 up",
    ],
)
def test_what_is_damaged_by_hand_is_right_again(cluster: Cluster, damage: str) -> None:
    a, b = cluster(2)
    before = a.state()
    names = {
        "peer": b.subnet.subnets.v4,
        "vtep": b.subnet.subnets.v4.network_address,
        "own": a.subnet.subnets.v4.network_address,
        "mac": b.ip("link show flannel.1")[0]["address"],
        "ip": b.ns.address,
    }
    for command in damage.format(**names).split("; "):
        a.ns.run(command)
    eventually(lambda: a.is_as(before))
    assert a.pings(b)
    a.ready()


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGTERM])
def test_ending_and_starting_netd_loses_no_packet(cluster: Cluster, sig: signal.Signals) -> None:
    a, b = cluster(2)
    before, pings = a.state(), Pings.start(a, b)
    code = a.end(sig)
    assert code == (0 if sig == signal.SIGTERM else -sig)
    assert a.state() == before
    time.sleep(0.5)
    a.start()
    a.ready()
    pings.stop()
    assert a.state() == before


def test_a_start_removes_what_left_meanwhile_and_no_more(cluster: Cluster) -> None:
    a, b, c = cluster(3)
    gone = c.subnet.subnets.v4
    a.end(signal.SIGKILL)
    c.end(signal.SIGKILL)
    c.etcd.ctl("del", f"{PREFIX}/subnets/{gone.network_address}-{gone.prefixlen}")
    foreign = [
        "ip route add 10.5.250.0/24 via 192.168.64.1 proto static",
        "ip route add 10.5.251.0/24 via 10.5.251.0 dev flannel.1 onlink proto static",
        "ip neigh add 10.5.251.0 lladdr 02:00:00:00:00:fb dev flannel.1 nud permanent",
        "bridge fdb add 02:00:00:00:00:fb dev flannel.1 dst 192.168.64.1 self permanent",
        "bridge fdb append 00:00:00:00:00:00 dev flannel.1 dst 192.168.64.1 self permanent",
    ]
    for command in foreign:
        a.ns.run(command)
    a.start()
    a.ready()
    routes = {r["dst"] for r in a.ip(f"route show root {NETWORK}") if "gateway" in r}
    assert routes == {str(b.subnet.subnets.v4), "10.5.250.0/24", "10.5.251.0/24"}
    neighbours = {n["dst"] for n in a.ip("neigh show dev flannel.1 nud permanent")}
    assert neighbours == {str(b.subnet.subnets.v4.network_address), "10.5.251.0"}
    fdb = a.ns.run("bridge fdb show dev flannel.1")
    assert c.ns.address not in fdb
    assert fdb.count("dst 192.168.64.1 ") == 2
    assert a.pings(b)


def test_what_flanneld_left_is_taken_over_without_a_lost_packet(cluster: Cluster) -> None:
    a, b = cluster(2)
    a.end(signal.SIGTERM)
    peer, mac = b.subnet.subnets.v4, b.ip("link show flannel.1")[0]["address"]
    # the same entries as flanneld makes them: no marks, protocol boot
    for command in (
        f"bridge fdb delete {mac} dev flannel.1 dst {b.ns.address} self",
        f"bridge fdb add {mac} dev flannel.1 dst {b.ns.address} self permanent",
        f"ip neigh delete {peer.network_address} dev flannel.1",
        f"ip neigh add {peer.network_address} lladdr {mac} dev flannel.1 nud permanent",
        f"ip route replace {peer} via {peer.network_address} dev flannel.1 onlink proto boot",
    ):
        a.ns.run(command)
    pings = Pings.start(a, b)
    a.start()
    a.ready()
    pings.stop()
    b.end(signal.SIGTERM)
    b.etcd.ctl("del", f"{PREFIX}/subnets/{peer.network_address}-{peer.prefixlen}")
    eventually(lambda: a.is_as({**a.state(), "routes": [], "neighbours": [], "fdb": []}))


def test_garbage_in_the_store_is_said_once_and_harms_nobody(cluster: Cluster) -> None:
    a, b = cluster(2)
    a.etcd.ctl("put", f"{PREFIX}/subnets/10.5.254.0-24", "garbage")
    a.etcd.ctl("put", f"{PREFIX}/subnets/nonsense", "{}")
    value = '{"PublicIP":"192.168.64.77","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:77"}}'
    a.etcd.ctl("put", f"{PREFIX}/subnets/10.5.253.0-24", value)
    eventually(lambda: any("10.5.253.0/24" in str(route) for route in a.state()["routes"]))
    assert a.pings(b)
    a.ready()
    assert a.log.read_text().count("10.5.254.0-24") == 1


def test_etcd_can_go_and_come_back(cluster: Cluster) -> None:
    a, b = cluster(2)
    before = a.state()
    a.etcd.stop()
    a.ns.run(f"ip route delete {b.subnet.subnets.v4}")
    eventually(lambda: a.is_as(before))
    assert a.pings(b)
    a.etcd.start()
    value = '{"PublicIP":"192.168.64.77","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:77"}}'
    a.etcd.ctl("put", f"{PREFIX}/subnets/10.5.253.0-24", value)
    eventually(lambda: any("10.5.253.0/24" in str(route) for route in a.state()["routes"]), 15)
    assert a.pings(b)


def test_a_deleted_lease_is_registered_again(cluster: Cluster) -> None:
    (a,) = cluster(1)
    value = a.value
    assert a.ns.address in value
    a.etcd.ctl("del", "--prefix", f"{PREFIX}/subnets/")
    eventually(lambda: a.value == value)


def test_forwarding_beside_a_policy_of_drop(cluster: Cluster) -> None:
    a, b = cluster(2)
    for node in (a, b):
        node.ns.run("iptables -w -P FORWARD DROP")
        node.ns.run("iptables -w -N DOCKER-USER")
        node.ns.run("iptables -w -I FORWARD -j DOCKER-USER")
    assert a.pings(b)
    before = a.ns.run("iptables -w -S")
    a.ns.run("iptables -w -F PODLANE-FORWARD")
    eventually(lambda: a.ns.run("iptables -w -S") == before)
    assert a.pings(b)


def test_masquerading_what_leaves_the_pod_network(cluster: Cluster) -> None:
    a, b = cluster(2, "--ip-masq")
    assert a.pod is not None
    outside = a.netns.underlay
    # the outside knows no way back to pods: an answer comes only if the host's address was used
    assert a.pod.ping(outside.address, count=3) == 3
    capture = b.ns.run(["nft", "list", "table", "inet", "podlane-netd"])
    assert "masquerade" in capture
    b.ns.run("nft add table ip seen")
    b.ns.run(["nft", "add chain ip seen input { type filter hook forward priority 0; }"])
    b.ns.run(["nft", f"add rule ip seen input ip saddr {a.address} icmp type echo-request counter"])
    assert a.pings(b, 3)
    assert "counter packets 3 " in b.ns.run("nft list table ip seen"), "pod to pod keeps the pod's address"
    assert a.subnet.ip_masq


def test_netd_stays_small(cluster: Cluster) -> None:
    a, _ = cluster(2, pods=False)
    assert a.process is not None
    status = Path(f"/proc/{a.process.pid}/status").read_text()
    rss = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    print(f"netd RSS {rss / 1024:.1f} MB")
    assert rss < 65 * 1024  # three daemons a node are to stay below 180 MB


def test_an_interface_that_does_not_exist_is_an_error_with_the_candidates(
    netns: NetnsMaker, netns_etcd: NetnsEtcd, tmp_path: Path
) -> None:
    node = Node(netns, netns.host("a"), netns_etcd, tmp_path / "a", ("--iface=nowhere0",))
    node.start()
    assert node.process is not None
    assert node.process.wait(20) == 2
    assert (
        f"error: choose interface: --iface nowhere0: no such interface; candidates: eth0 ({node.ns.address})"
        in node.log.read_text()
    )


def test_it_waits_for_the_config_and_says_so_once(netns: NetnsMaker, netns_etcd: NetnsEtcd, tmp_path: Path) -> None:
    node = Node(netns, netns.host("a"), netns_etcd, tmp_path / "a")
    node.start()
    eventually(lambda: "waiting for the network config" in node.log.read_text())
    time.sleep(2.5)
    assert node.log.read_text().count("waiting for the network config") == 1
    assert node.get("/readyz")[0] == 503
    assert node.get("/healthz")[0] == 200
    netns_etcd.ctl("put", f"{PREFIX}/config", CONFIG)
    node.ready()
