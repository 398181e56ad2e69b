"""netd on virtual machines whose first interface leads to a NAT, with the same address on every one of them."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from netd.kernel import LinuxKernel
from podlane.host.machine import choose_address
from podlane.host.options import InstallOptions
from proxyd.addresses import NodeAddresses
from tests.kernel.conftest import NetnsEtcd, NetnsMaker, eventually, inside
from tests.kernel.netd_nodes import CONFIG, Cluster, Node

pytestmark = pytest.mark.kernel


@pytest.fixture
def cluster(netns: NetnsMaker, netns_etcd: NetnsEtcd, tmp_path: Path) -> Cluster:
    return Cluster(netns, netns_etcd, tmp_path)


def machine(cluster: Cluster, name: str, *options: str) -> Node:
    """Its default route leads to the NAT; by eth1 it reaches etcd and the others."""
    node, nat = cluster.node(name, *options, uplink="eth1"), cluster.netns.add(f"{name}nat")
    cluster.netns.link(node.ns, "eth0", nat, "vm")
    nat.run("ip address add 10.0.2.2/24 dev vm")
    node.ns.run("ip address add 10.0.2.15/24 dev eth0")
    node.ns.run("ip route replace default via 10.0.2.2")
    node.start()
    return node


def test_the_interface_to_the_nat_is_not_chosen(cluster: Cluster) -> None:
    cluster.configure(CONFIG)
    a, b = nodes = [machine(cluster, name) for name in "ab"]
    for node in nodes:
        node.ready().add_pod()
        assert json.loads(node.value)["PublicIP"] == node.ns.address
    cluster.acquainted()
    assert a.pings(b)
    # nor by the installation, nor for node ports, which are served where the Node says it is
    options = InstallOptions(role="node", join=cluster.etcd.endpoint.replace("http:", "https:"))
    with inside(a.ns):
        assert choose_address(options, LinuxKernel())[:2] == ((a.ns.address,), "eth1")
        assert NodeAddresses().select(primary=[a.ns.address]) == (a.ns.address,)
        assert NodeAddresses().select() == ("10.0.2.15",), "what it would be without the Node's word"


def test_a_second_host_with_the_same_public_address_is_refused_until_the_first_is_gone(cluster: Cluster) -> None:
    cluster.configure(CONFIG)
    a = machine(cluster, "a", "--iface=eth0").ready()
    b = machine(cluster, "b", "--iface=eth0")
    eventually(lambda: "claim public address" in b.get("/readyz")[1])
    why = b.get("/readyz")[1]
    for part in (
        f"claim public address 10.0.2.15: host {a.ns.name} uses it",
        "choose another interface with --iface or another address with --public-ip",
        f"candidates: eth1 ({b.ns.address}), eth0 (10.0.2.15, the same on every virtual machine behind such a NAT)",
    ):
        assert part in why
        assert b.said(part)
    assert not b.ip("link show type vxlan"), "it has touched nothing"
    a.ready()
    assert b.get("/readyz")[0] == 503
    assert a.end(signal.SIGTERM) == 0
    b.ready()
    assert json.loads(b.value)["PublicIP"] == "10.0.2.15"
