"""netd when the interface that carries the overlay changes under it: MTU, addresses, the interface itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.kernel.conftest import UNDERLAY, NetnsEtcd, NetnsMaker, eventually
from tests.kernel.netd_nodes import Cluster

pytestmark = pytest.mark.kernel


@pytest.fixture
def cluster(netns: NetnsMaker, netns_etcd: NetnsEtcd, tmp_path: Path) -> Cluster:
    return Cluster(netns, netns_etcd, tmp_path)


def test_another_mtu_another_address_and_another_link_are_followed(cluster: Cluster) -> None:
    a, b = cluster(2)
    subnet, mac = a.subnet.subnets, a.ip("link show flannel.1")[0]["address"]
    for mtu in (1400, 1500):
        a.ns.run(f"ip link set eth0 mtu {mtu}")
        eventually(lambda mtu=mtu: a.ip("link show flannel.1")[0]["mtu"] == a.subnet.mtu == mtu - 50)
        assert a.pings(b, 1, size=mtu - 50)
    before, theirs = a.state(), b.state()
    a.ns.run("ip route del default")
    # what DHCP does when it has another address for the host
    a.ns.run(f"ip address delete {a.ns.address}/24 dev eth0")
    a.ns.address = f"{UNDERLAY}.111"
    a.ns.run(f"ip address add {a.ns.address}/24 dev eth0")
    # the connection to etcd hangs on the old address, and is given up first
    eventually(lambda: json.loads(a.value)["PublicIP"] == a.ns.address, 20)
    eventually(lambda: b.is_as({**theirs, "fdb": [(mac, a.ns.address)]}))
    assert a.subnet.subnets == subnet
    assert a.ip("link show flannel.1")[0]["linkinfo"]["info_data"]["local"] == a.ns.address
    assert a.is_as(before)
    assert a.pings(b)
    a.ready()
    # the kernel removes the VXLAN device together with the link it is bound to
    a.ns.run("ip link delete eth0")
    eventually(lambda: "the interface is gone" in a.get("/readyz")[1])
    assert not a.ip("link show type vxlan")
    bridge = cluster.netns.underlay
    cluster.netns.link(a.ns, "eth0", bridge, "again")
    bridge.run("ip link set again master underlay")
    a.ns.run(f"ip address add {a.ns.address}/24 dev eth0")
    eventually(lambda: a.is_as(before))
    assert a.pings(b)
    a.ready()
    assert a.said("event=starting") == 1


DUAL = (
    '{"EnableIPv6":true,"Network":"10.5.0.0/16","IPv6Network":"fd00:5::/48",'
    '"Backend":{"Type":"vxlan","DirectRouting":true}}'
)


def test_without_the_uplink_s_ipv6_address_ipv4_goes_on_and_both_do_when_it_is_back(cluster: Cluster) -> None:
    a, b = cluster(2, config=DUAL, v6=True)
    assert a.pod is not None
    eventually(lambda: a.pings(b))
    # the kernel drops IPv6 addresses of a link that goes down, and all routes through it
    a.ns.run("ip link set eth0 down")
    assert not a.pings(b, 1)
    a.ns.run("ip link set eth0 up")
    eventually(lambda: a.pod.ping(b.address) == 1)
    eventually(lambda: f"its IPv6 address {a.ns.address6} is gone" in a.get("/readyz")[1])
    assert not a.pod.ping(b.address6)
    a.ns.run(f"ip address add {a.ns.address6}/64 dev eth0 nodad")
    eventually(lambda: a.pings(b))
    a.ready()
    assert json.loads(a.value)["PublicIPv6"] == a.ns.address6
