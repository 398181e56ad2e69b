"""netd with IPv4, IPv6 and both, for pods and between hosts: real processes, real packets."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.conftest import NetnsEtcd, NetnsMaker
from tests.kernel.netd_nodes import NETWORK, Cluster, Node

pytestmark = pytest.mark.kernel

NETWORK6 = "fd00:5::/48"


@pytest.fixture
def cluster(netns: NetnsMaker, netns_etcd: NetnsEtcd, tmp_path: Path) -> Cluster:
    return Cluster(netns, netns_etcd, tmp_path)


def config(backend: str = '"Type":"vxlan"', *, v4: bool = True, v6: bool = True) -> str:
    parts = [f'"EnableIPv4":{json.dumps(v4)},"EnableIPv6":{json.dumps(v6)}']
    parts += [f'"Network":"{NETWORK}"'] if v4 else []
    parts += [f'"IPv6Network":"{NETWORK6}"'] if v6 else []
    return f'{{{",".join(parts)},"Backend":{{{backend}}}}}'


@dataclass(frozen=True)
class Case:
    """`pods` and `hosts` are the families of the pod networks and of the underlay, `devices` what they make."""

    pods: str
    hosts: str
    devices: dict[str, int]
    """Each device's MTU."""


CASES = [
    Case("6", "6", {"flannel-v6.1": 1430}),
    Case("46", "46", {"flannel.1": 1450, "flannel-v6.1": 1430}),
    Case("46", "4", {"flannel.1": 1450}),
    Case("4", "6", {"flannel.1": 1430}),
    Case("46", "6", {"flannel.1": 1430}),
    Case("6", "4", {"flannel-v6.1": 1450}),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"pods {case.pods} over {case.hosts}")
def test_pods_reach_one_another_over_each_family(cluster: Cluster, case: Case) -> None:
    v4, v6 = "4" in case.hosts, "6" in case.hosts
    a, b = cluster(2, "--ip-masq", config=config(v4="4" in case.pods, v6="6" in case.pods), v4=v4, v6=v6)
    mtu = min(case.devices.values())
    for node in (a, b):
        assert devices(node) == case.devices
        assert node.subnet.mtu == mtu
        assert lease(node) == expected_lease(node, case)
        assert {str(n) for n in node.subnet.networks} == {
            network for family, network in (("4", NETWORK), ("6", NETWORK6)) if family in case.pods
        }
    assert a.pings(b)
    assert b.pings(a, 1, size=mtu)
    assert not a.pings(b, 1, size=mtu + 1), "the pod's own interface takes no more"
    assert all(a.ns.ping(address) == 1 for address in (b.address, b.address6) if address)


def devices(node: Node) -> dict[str, int]:
    return {link["ifname"]: link["mtu"] for link in node.ip("link show type vxlan")}


def lease(node: Node) -> dict[str, Any]:
    return {"key": node.subnet.subnets.key, **json.loads(node.value)}


def expected_lease(node: Node, case: Case) -> dict[str, Any]:
    """What flannel would write."""
    macs = {link["ifname"]: link["address"] for link in node.ip("link show type vxlan")}
    file = (node.folder / "subnet.env").read_text()
    env = dict(line.split("=") for line in file.splitlines())
    keys = []
    for family, none in (("", "0.0.0.0-0"), ("IPV6_", "")):
        subnet = env.get(f"FLANNEL_{family}SUBNET", "")
        address, _, length = subnet.partition("/")
        keys.append(f"{address.removesuffix('1')}{'' if family else '0'}-{length}" if subnet else none)
    want: dict[str, Any] = {
        "key": "&".join(key for key in keys if key),
        "PublicIP": node.ns.address or "0.0.0.0",
        "PublicIPv6": node.ns.address6 or None,
        "BackendType": "vxlan",
    }
    if "4" in case.pods:
        want["BackendData"] = {"VNI": 1, "VtepMAC": macs["flannel.1"]}
    if "6" in case.pods:
        want["BackendV6Data"] = {"VNI": 1, "VtepMAC": macs.get("flannel-v6.1", macs.get("flannel.1"))}
    return want
