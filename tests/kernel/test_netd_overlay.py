"""Real netd processes on hosts in namespaces: pods reach one another, whatever happens to netd."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from podlane.api.subnets import SubnetFile
from tests.kernel.conftest import Netns, NetnsEtcd, NetnsMaker, eventually, inside

pytestmark = pytest.mark.kernel

PREFIX = "/coreos.com/network"
PORT = 10457
NETWORK = "10.5.0.0/16"
CONFIG = f'{{"Network":"{NETWORK}","SubnetMax":"10.5.199.0","Backend":{{"Type":"vxlan"}}}}'
"""Subnets from 10.5.200.0 on are for the tests: no host leases one by chance."""


@dataclass
class Node:
    """A host with netd, and one pod on it."""

    netns: NetnsMaker
    ns: Netns
    etcd: NetnsEtcd
    folder: Path
    options: tuple[str, ...] = ()
    process: subprocess.Popen[Any] | None = None
    pod: Netns | None = None
    address: str = field(default="", init=False)

    def start(self) -> None:
        self.folder.mkdir(exist_ok=True)
        options = {
            "etcd-endpoints": self.etcd.endpoint,
            "subnet-file": self.folder / "subnet.env",
            "state-dir": self.folder,
            "node-name": self.ns.name,
        }
        given = [f"--{name}={value}" for name, value in options.items()]
        argv = [sys.executable, "-m", "netd.cli", "run", *given, *self.options]
        self.process = self.ns.popen(argv, log=self.log)

    @property
    def log(self) -> Path:
        return self.folder / "netd.log"

    def ready(self, timeout: float = 20) -> Node:
        eventually(lambda: self.get("/readyz")[0] == 200, timeout)
        return self

    def get(self, path: str) -> tuple[int, str]:
        with inside(self.ns):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{PORT}{path}", timeout=5) as answer:
                    return answer.status, answer.read().decode()
            except urllib.error.HTTPError as error:
                return error.code, error.read().decode()
            except OSError as error:
                return 0, str(error)

    @property
    def subnet(self) -> SubnetFile:
        return SubnetFile.parse((self.folder / "subnet.env").read_text())

    def end(self, sig: signal.Signals) -> int:
        assert self.process is not None
        return self.ns.end(self.process, sig)

    def ip(self, command: str) -> Any:
        return json.loads(self.ns.run(f"ip -j -d {command}") or "[]")

    def add_pod(self) -> None:
        """What Docker does with the subnet file: a gateway on the host, the pod behind it."""
        pod, file = self.netns.add(self.ns.name.rpartition("-")[2] + "p"), self.subnet
        self.netns.link(self.ns, "pod0", pod, "eth0", mtu=file.mtu)
        self.address = str(file.gateway + 1)
        self.ns.run(f"ip address add {file.gateway}/{file.subnets.v4.prefixlen} dev pod0")
        pod.run(f"ip address add {self.address}/{file.subnets.v4.prefixlen} dev eth0")
        pod.run(f"ip route add default via {file.gateway}")
        self.pod = pod

    def pings(self, other: Node, count: int = 3) -> bool:
        assert self.pod is not None
        return self.pod.ping(other.address, count=count) == count


Cluster = Callable[..., list[Node]]


@pytest.fixture
def cluster(netns: NetnsMaker, netns_etcd: NetnsEtcd, tmp_path: Path) -> Cluster:
    """Make hosts with netd and a pod each, all ready."""

    def make(count: int, *options: str, pods: bool = True) -> list[Node]:
        netns_etcd.ctl("put", f"{PREFIX}/config", CONFIG)
        nodes = [Node(netns, netns.host(name), netns_etcd, tmp_path / name, options) for name in "abcdef"[:count]]
        for node in nodes:
            node.start()
        for node in nodes:
            node.ready()
            if pods:
                node.add_pod()
        eventually(lambda: all(f"netd_peers {count - 1}.0" in node.get("/metrics")[1] for node in nodes))
        return nodes

    return make


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
        value = json.loads(_value(node))
        assert value["PublicIP"] == node.ns.address
        assert value["BackendData"]["VtepMAC"] == node.ip("link show flannel.1")[0]["address"]


def _value(node: Node) -> str:
    subnet = node.subnet.subnets.v4
    return node.etcd.ctl("get", "--print-value-only", f"{PREFIX}/subnets/{subnet.network_address}-{subnet.prefixlen}")


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
    before = _state(a)
    names = {
        "peer": b.subnet.subnets.v4,
        "vtep": b.subnet.subnets.v4.network_address,
        "own": a.subnet.subnets.v4.network_address,
        "mac": b.ip("link show flannel.1")[0]["address"],
        "ip": b.ns.address,
    }
    for command in damage.format(**names).split("; "):
        a.ns.run(command)
    eventually(lambda: _same(_state(a), before))
    assert a.pings(b)
    a.ready(5)


def _state(node: Node) -> dict[str, Any]:
    link = node.ip("link show flannel.1")[0]
    return {
        "link": (link["mtu"], link["address"], "UP" in link["flags"]),
        "addresses": [
            address["local"] for shown in node.ip("-4 address show flannel.1") for address in shown.get("addr_info", ())
        ],
        "routes": sorted(
            (r["dst"], r["gateway"], r["dev"], r.get("protocol"), r["flags"])
            for r in node.ip(f"route show root {NETWORK}")
            if "gateway" in r
        ),
        "neighbours": sorted((n["dst"], n["lladdr"]) for n in node.ip("neigh show dev flannel.1 nud permanent")),
        "fdb": sorted(
            (f["mac"], f["dst"])
            for f in json.loads(node.ns.run("bridge -j fdb show dev flannel.1"))
            if "dst" in f and f["state"] == "permanent"
        ),
    }


def _same(now: dict[str, Any], before: dict[str, Any]) -> bool:
    assert now == before
    return True


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGTERM])
def test_ending_and_starting_netd_loses_no_packet(cluster: Cluster, sig: signal.Signals) -> None:
    a, b = cluster(2)
    assert a.pod is not None
    before = _state(a)
    argv = a.pod.ping_argv(b.address, count=600, interval=0.01)
    ping = a.pod.popen(argv, stdout=subprocess.PIPE)
    time.sleep(0.5)
    code = a.end(sig)
    assert code == (0 if sig == signal.SIGTERM else -sig)
    assert _state(a) == before
    time.sleep(0.5)
    a.start()
    a.ready()
    assert ping.poll() is None, "the pings are still running"
    out, _ = ping.communicate(timeout=30)
    assert len(out.split()) == 600
    assert _state(a) == before


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
    assert a.pod is not None
    ping = a.pod.popen(a.pod.ping_argv(b.address, count=400), stdout=subprocess.PIPE)
    time.sleep(0.3)
    a.start()
    a.ready()
    assert ping.poll() is None
    assert len(ping.communicate(timeout=30)[0].split()) == 400
    b.end(signal.SIGTERM)
    b.etcd.ctl("del", f"{PREFIX}/subnets/{peer.network_address}-{peer.prefixlen}")
    eventually(lambda: _same(_state(a), {**_state(a), "routes": [], "neighbours": [], "fdb": []}))


def test_garbage_in_the_store_is_said_once_and_harms_nobody(cluster: Cluster) -> None:
    a, b = cluster(2)
    a.etcd.ctl("put", f"{PREFIX}/subnets/10.5.254.0-24", "garbage")
    a.etcd.ctl("put", f"{PREFIX}/subnets/nonsense", "{}")
    value = '{"PublicIP":"192.168.64.77","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:77"}}'
    a.etcd.ctl("put", f"{PREFIX}/subnets/10.5.253.0-24", value)
    eventually(lambda: any("10.5.253.0/24" in str(route) for route in _state(a)["routes"]))
    assert a.pings(b)
    a.ready(5)
    assert a.log.read_text().count("10.5.254.0-24") == 1


def test_etcd_can_go_and_come_back(cluster: Cluster) -> None:
    a, b = cluster(2)
    before = _state(a)
    a.etcd.stop()
    a.ns.run(f"ip route delete {b.subnet.subnets.v4}")
    eventually(lambda: _same(_state(a), before))
    assert a.pings(b)
    a.etcd.start()
    value = '{"PublicIP":"192.168.64.77","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:77"}}'
    a.etcd.ctl("put", f"{PREFIX}/subnets/10.5.253.0-24", value)
    eventually(lambda: any("10.5.253.0/24" in str(route) for route in _state(a)["routes"]), 15)
    assert a.pings(b)


def test_a_deleted_lease_is_registered_again(cluster: Cluster) -> None:
    (a,) = cluster(1)
    value = _value(a)
    assert a.ns.address in value
    a.etcd.ctl("del", "--prefix", f"{PREFIX}/subnets/")
    eventually(lambda: _value(a) == value)


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
    eventually(lambda: "waiting for the network config" in node.log.read_text(), 20)
    time.sleep(2.5)
    assert node.log.read_text().count("waiting for the network config") == 1
    assert node.get("/readyz")[0] == 503
    assert node.get("/healthz")[0] == 200
    netns_etcd.ctl("put", f"{PREFIX}/config", CONFIG)
    node.ready()
