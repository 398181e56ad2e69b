"""netd's packet filters with netd itself: whom the guard admits, what is kept right, what a blackhole stops."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.kernel.conftest import Netns, NetnsEtcd, NetnsMaker, eventually, inside
from tests.kernel.netd_nodes import Cluster, Node

pytestmark = pytest.mark.kernel

VXLAN_HEADER = bytes.fromhex("0800000000000100")
"""Of a packet in the VNI 1."""


@pytest.fixture
def cluster(netns: NetnsMaker, netns_etcd: NetnsEtcd, tmp_path: Path) -> Cluster:
    return Cluster(netns, netns_etcd, tmp_path)


def send_vxlan(source: Netns, to: Node, count: int = 1) -> None:
    """Packets that the VXLAN device of `to` takes, if they get there."""
    mac = bytes.fromhex(to.ip("link show flannel.1")[0]["address"].replace(":", ""))
    frame = mac + bytes.fromhex("020000000001") + bytes.fromhex("88b5") + bytes(46)  # an ethertype for experiments
    with inside(source), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        for _ in range(count):
            s.sendto(VXLAN_HEADER + frame, (to.ns.address, 8472))


def received(node: Node) -> int:
    return int(node.ip("-s link show flannel.1")[0]["stats64"]["rx"]["packets"])


def test_vxlan_packets_are_admitted_from_hosts_of_the_network_and_from_nobody_else(cluster: Cluster) -> None:
    a, b = cluster(2, "--vxlan-guard")
    assert a.pings(b)
    before = received(a)
    send_vxlan(b.ns, a, 5)
    eventually(lambda: received(a) == before + 5)
    stranger = cluster.node("c", "--vxlan-guard")
    send_vxlan(stranger.ns, a, 7)
    eventually(lambda: a.metric("netd_vxlan_dropped_packets") == 7)
    assert received(a) == before + 5
    stranger.start()
    stranger.ready().add_pod()
    cluster.acquainted()
    eventually(lambda: stranger.pings(a) and b.pings(stranger))
    dropped = a.metric("netd_vxlan_dropped_packets")
    assert stranger.pings(a)
    assert a.metric("netd_vxlan_dropped_packets") == dropped


def test_packet_filters_and_forwarding_are_right_again_whoever_changed_them(cluster: Cluster) -> None:
    a, b = cluster(2, "--vxlan-guard", "--ip-masq")
    outside = cluster.netns.underlay
    assert a.pod is not None
    before = _filters(a)
    for damage in (
        "nft delete table inet podlane-netd",
        "nft flush ruleset",
        "nft flush set inet podlane-netd vxlan-sources",
        f"nft delete element inet podlane-netd vxlan-sources {{ {b.ns.address} }}",
        "nft add element inet podlane-netd vxlan-sources { 192.168.64.66 }",
        "nft flush chain inet podlane-netd postrouting",
        "iptables -w -F PODLANE-FORWARD",
        "iptables -w -F FORWARD",
        "iptables -w -I FORWARD -j DROP",
        "sysctl -qw net.ipv4.ip_forward=0",
    ):
        a.ns.run(damage)
        eventually(lambda: _is_right(a, before))
        assert a.pings(b, 1), damage
        assert a.pod.ping(outside.address) == 1, damage
    a.ready()


def _filters(node: Node) -> dict[str, list[str]]:
    return {
        "nft": node.ns.run("nft -s list table inet podlane-netd").split("\n"),
        "chain": node.ns.run("iptables -w -S PODLANE-FORWARD").split("\n"),
        "first": node.ns.run("iptables -w -S FORWARD").split("\n")[1:2],
        "forwarding": [node.ns.run("sysctl -n net.ipv4.ip_forward").strip()],
    }


def _is_right(node: Node, before: dict[str, list[str]]) -> bool:
    assert _filters(node) == before
    return True


def test_what_is_sent_to_a_pod_that_is_not_there_does_not_leave_the_host(cluster: Cluster) -> None:
    a, b = cluster(2, "--ip-blackhole-route", pods=False)
    nobody = str(a.subnet.gateway + 100)
    outside = cluster.netns.underlay
    outside.run(["nft", "-f", "-"], stdin=SEEN)
    assert not a.ns.ping(nobody)
    assert not b.ns.ping(nobody), "it comes through the overlay, and ends there"
    assert "packets 0 " in outside.run("nft list table ip seen")
    for node in (a, b):
        node.add_pod()
    assert a.pings(b)
    assert not a.ns.ping(nobody)
    for node in (a, b):
        node.ready()
        assert any(route.get("type") == "blackhole" for route in node.ip("route show type blackhole"))
    assert "packets 0 " in outside.run("nft list table ip seen")


SEEN = """table ip seen {
  chain prerouting {
    type filter hook prerouting priority raw
    ip daddr 10.5.0.0/16 counter
  }
}
"""
