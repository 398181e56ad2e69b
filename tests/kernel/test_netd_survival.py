"""What netd lives through while pods go on talking: etcd lost or emptied, its own lease lost, restarts, bad peers."""

from __future__ import annotations

import json
import shutil
import signal
import time
from functools import partial
from pathlib import Path

import pytest

from podlane.api.subnets import Subnets
from tests.kernel.conftest import NetnsEtcd, NetnsMaker, eventually
from tests.kernel.netd_nodes import PREFIX, Cluster, Node
from tests.kernel.netd_pings import Pings

pytestmark = pytest.mark.kernel

OWN_PREFIX = "/podlane/netd/"


@pytest.fixture
def cluster(netns: NetnsMaker, netns_etcd: NetnsEtcd, tmp_path: Path) -> Cluster:
    return Cluster(netns, netns_etcd, tmp_path)


def wipe(etcd: NetnsEtcd) -> None:
    """Lose all that is in it, and start again with the same name on the same address."""
    etcd.stop(signal.SIGKILL)
    shutil.rmtree(etcd.data)
    etcd.start()


def etcd_lease(node: Node) -> int:
    """The lease that the node's subnet key hangs on."""
    key = f"{PREFIX}/subnets/{node.subnet.subnets.key}"
    found = json.loads(node.etcd.ctl("get", "-w", "json", key)).get("kvs")
    assert found, f"{key} is not there"
    return int(found[0].get("lease", 0))


# ---- the store loses what it knew ----------------------------------------------------------------


def test_etcd_started_empty_costs_no_packet_no_peer_and_no_subnet(cluster: Cluster) -> None:
    a, b, dead = cluster(3)
    subnets = [node.subnet.subnets for node in (a, b)]
    values = [node.value for node in (a, b)]
    dead.end(signal.SIGKILL)  # its overlay still works, but it will not register again
    before = [a.state(), b.state()]
    pings = [Pings.start(a, b), Pings.start(b, dead)]
    wipe(a.etcd)
    eventually(lambda: [a.value, b.value] == values)
    for node in (a, b):
        assert etcd_lease(node), "it is a lease again, and no reservation"
        node.ready()
        assert node.said("is gone from the store, keeping the one in use") == 1
    assert [a.state(), b.state()] == before
    cluster.configure('{"Network":"10.5.0.0/16","SubnetMax":"10.5.199.0","Backend":{"Type":"vxlan"}}')
    late = cluster.node("d")
    late.start()
    late.ready().add_pod()
    for node in (a, b):
        eventually(partial(node.has_peers, 3))
        assert node.pings(late)
    assert late.metric("netd_peers") == 2, "it never knew the dead one"
    assert [node.subnet.subnets for node in (a, b)] == subnets
    assert str(dead.subnet.subnets.v4) in {route[0] for route in a.state()["routes"]}
    for each in pings:
        assert each.stop() > 100


def test_etcd_wiped_while_netd_was_down_is_met_from_memory(cluster: Cluster) -> None:
    a, b = cluster(2)
    before, value = a.state(), a.value
    pings = Pings.start(a, b)
    for node in (a, b):
        node.end(signal.SIGTERM)
    wipe(a.etcd)
    a.start()  # b is not back yet: nothing in the store tells of it, nor is there a config
    a.ready()
    assert (a.state(), a.value) == (before, value)
    assert a.said("going on with the one remembered") == 1
    b.start()
    b.ready()
    assert (a.state(), a.value) == (before, value)
    pings.stop()


def test_a_host_that_boots_without_etcd_gets_its_overlay_from_memory(cluster: Cluster) -> None:
    a, b = cluster(2)
    before, subnets, value = a.state(), a.subnet.subnets, a.value
    a.end(signal.SIGTERM)
    a.etcd.stop()
    a.ns.run("ip link delete flannel.1")  # what a reboot takes: devices, routes, and what is in /run
    (a.folder / "subnet.env").unlink()
    assert not a.pings(b, 1)
    a.start()
    eventually(lambda: a.is_as(before))
    assert a.pings(b)
    eventually(lambda: a.subnet.subnets == subnets)
    code, text = a.get("/readyz")
    assert (code, "no complete list" in text) == (503, True)
    a.etcd.start()
    a.ready()
    assert (a.value, a.state()) == (value, before)
    assert etcd_lease(a)
    assert b.pings(a)


def test_a_peer_that_came_just_before_etcd_went_is_not_forgotten_by_a_restart(cluster: Cluster) -> None:
    a, b = cluster(2)
    pings, before = Pings.start(a, b), a.state()
    a.etcd.stop(signal.SIGKILL)  # some seconds after b came, when a's memory may not have it yet
    a.end(signal.SIGKILL)
    a.start()
    eventually(lambda: a.said("going on with what is remembered"))
    eventually(lambda: "kernel" not in json.loads(a.get("/status")[1])["waiting"])
    assert a.is_as(before)
    a.etcd.start()
    a.ready()
    assert a.is_as(before)
    pings.stop()


# ---- the lease is lost ---------------------------------------------------------------------------


def test_a_lease_whose_key_is_deleted_is_registered_again(cluster: Cluster) -> None:
    a, b = cluster(2)
    pings, value, before = Pings.start(a, b), a.value, a.state()
    a.etcd.ctl("del", "--prefix", f"{PREFIX}/subnets/")
    eventually(lambda: a.value == value and b.value)
    a.ready()
    eventually(lambda: a.is_as(before))  # a peer whose key is deleted is withdrawn until it is back
    assert a.pings(b)
    pings.source.pod.end(pings.process)  # type: ignore[union-attr]


def test_a_lease_that_is_revoked_is_replaced_under_the_same_subnet(cluster: Cluster) -> None:
    a, b = cluster(2)
    value, lease, before = a.value, etcd_lease(a), b.state()
    a.etcd.ctl("lease", "revoke", f"{lease:x}")
    eventually(lambda: a.value == value)
    assert etcd_lease(a) not in {0, lease}
    a.ready()
    eventually(lambda: b.is_as(before))
    assert a.pings(b)


def test_a_subnet_that_somebody_else_took_is_said_and_taken_back_when_it_is_free(cluster: Cluster) -> None:
    a, b = cluster(2)
    assert a.process is not None
    before, subnets, value = a.state(), a.subnet.subnets, a.value
    key = f"{PREFIX}/subnets/{subnets.key}"
    a.etcd.ctl("put", key, value.replace(a.ns.address, "192.168.64.99"))
    eventually(lambda: "is held by 192.168.64.99" in a.get("/readyz")[1])
    assert a.get("/readyz")[0] == 503
    time.sleep(1)
    assert a.process.poll() is None
    assert a.is_as(before), "its pods have addresses of that subnet: it does not move"
    assert a.etcd.ctl("get", "--print-value-only", key).strip() != value, "and does not fight for it"
    assert "192.168.64.99" in json.loads(a.get("/status")[1])["errors"]["lease"]
    a.etcd.ctl("del", key)
    eventually(lambda: a.value == value)
    assert etcd_lease(a)
    a.ready()
    eventually(lambda: b.pings(a, 1))


# ---- nothing that is done to netd or etcd costs a packet -----------------------------------------


@pytest.mark.timeout(240)
def test_a_minute_and_a_half_of_upgrade_kill_and_outage_loses_no_packet(cluster: Cluster) -> None:
    """100 pings a second in both directions over: an upgrade, SIGKILL and restart, and 60 s without etcd."""
    a, b = cluster(2, "--ip-masq")
    before = [a.state(), b.state()]
    for node in (a, b):
        node.end(signal.SIGTERM)
        _as_the_first_version_left_it(node)
    a.etcd.ctl("del", "--prefix", OWN_PREFIX)
    pings = [Pings.start(a, b), Pings.start(b, a)]
    for node in (a, b):
        node.start()
    for node in (a, b):
        node.ready()
        tables = node.ns.run("nft list tables")
        assert ("table inet podlane-netd" in tables, "table ip podlane-netd" in tables) == (True, False)
    assert [a.state(), b.state()] == before
    for _ in range(2):
        a.end(signal.SIGKILL)
        a.start()
        a.ready()
    a.etcd.stop(signal.SIGKILL)
    time.sleep(30)
    b.end(signal.SIGKILL)  # and once more where there is no etcd to ask
    b.start()
    time.sleep(30)
    assert [a.state(), b.state()] == before
    a.etcd.start()
    for node in (a, b):
        node.ready()
        assert etcd_lease(node)
    assert [a.state(), b.state()] == before
    counts = [each.stop() for each in pings]
    assert min(counts) > 6000


def _as_the_first_version_left_it(node: Node) -> None:
    """What netd's first version leaves: device, entries, lease and a table of another family, but no memory."""
    for file in node.folder.iterdir():
        if file.name not in {"vtep-mac", "subnet.env", "netd.log"}:
            file.unlink()
    node.ns.run("nft delete table inet podlane-netd")
    rule = "ip saddr 10.5.0.0/16 ip daddr != 10.5.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random"
    chain = f"chain postrouting {{ type nat hook postrouting priority srcnat; policy accept; {rule}; }}"
    node.ns.run(["nft", "-f", "-"], stdin=f"table ip podlane-netd {{\n{chain}\n}}\n")


# ---- others --------------------------------------------------------------------------------------

_VALUE = '{{"PublicIP":"192.168.64.{0}","BackendType":"{1}","BackendData":{{"VNI":1,"VtepMAC":"02:00:00:00:00:{0}"}}}}'

BAD = {
    "nonsense": "{}",
    "10.5.249.0-24": "garbage",
    "10.5.250.0-24": "[]",
    "10.5.251.0-24": _VALUE.format(97, "wireguard"),
    "10.5.252.0-24": '{"PublicIP":"192.168.64.96","BackendType":"vxlan","BackendData":{"VtepMAC":"no"}}',
}
UNREACHABLE = "10.5.253.0-24"


def _is_named(node: Node, key: str, times: int) -> bool:
    """Whether so many lines of the log are about the key."""
    assert sum(key in line for line in node.log.read_text().splitlines()) == times, key
    return True


def test_bad_peers_are_named_once_and_cost_nobody_else_anything(cluster: Cluster) -> None:
    a, b = cluster(2)
    pings = Pings.start(a, b)
    for key, value in {**BAD, UNREACHABLE: _VALUE.format(98, "vxlan")}.items():
        a.etcd.ctl("put", f"{PREFIX}/subnets/{key}", value)
    for runs in (1, 2):
        eventually(lambda: any(route[0] == "10.5.253.0/24" for route in a.state()["routes"]))
        a.ready()
        for key in BAD:
            eventually(partial(_is_named, a, key, runs))
        assert a.metric('podlane_mirror_undecodable{mirror="leases"}') == 3
        assert a.metric("netd_leases_skipped") == 2
        if runs == 1:
            a.end(signal.SIGKILL)
            a.start()
            a.ready()
    late = cluster.node("c")
    late.start()
    late.ready().add_pod()
    eventually(partial(a.has_peers, 3))
    assert a.pings(late)
    assert late.pings(b)
    pings.stop()
    a.etcd.ctl("put", f"{PREFIX}/subnets/10.5.248.0-24", "wakes everybody once more")
    eventually(lambda: a.said("10.5.248.0-24"))
    for key in BAD:
        assert _is_named(a, key, 2), "once by each netd"
        assert _is_named(late, key, 1)


def test_six_hosts_started_at_once_take_six_of_seven_subnets(cluster: Cluster) -> None:
    nodes = cluster(6, config='{"Network":"10.5.0.0/21"}', pods=False)
    taken = {node.subnet.subnets for node in nodes}
    assert len(taken) == 6
    assert all(isinstance(each, Subnets) and each.v4 is not None and each.v4.prefixlen == 24 for each in taken)
    stored = nodes[0].etcd.ctl("get", "--prefix", "--keys-only", f"{PREFIX}/subnets/").split()
    assert {f"{PREFIX}/subnets/{each.key}" for each in taken} == set(stored)


def test_a_second_netd_on_one_state_directory_ends_and_names_the_first(cluster: Cluster) -> None:
    (a,) = cluster(1, pods=False)
    first = a.process
    assert first is not None
    a.options = ("--healthz-port=0",)
    a.start()
    assert a.process is not None
    assert a.process.wait(20) == 1
    assert a.said(f"error: use state directory {a.folder}: another netd has it, process {first.pid}") == 1
    assert first.poll() is None
    a.ready()
