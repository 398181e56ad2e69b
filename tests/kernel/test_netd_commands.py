"""netd's commands as an operator types them, on hosts where netd runs, or ran: with --state-dir and nothing else."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.conftest import NetnsEtcd, NetnsMaker, eventually
from tests.kernel.netd_nodes import PREFIX, Cluster, Node

pytestmark = pytest.mark.kernel


@pytest.fixture
def cluster(netns: NetnsMaker, netns_etcd: NetnsEtcd, tmp_path: Path) -> Cluster:
    return Cluster(netns, netns_etcd, tmp_path)


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[str]:
        """Without what differs from one run to the next: times, process ids, and how wide columns are."""
        text = re.sub(r"\b(up|held for|word|last word) \d+s\b", r"\1 Ns", self.out)
        text = re.sub(r"\b2[34]h\b", "Nh", re.sub(r"\bpid \d+", "pid N", text))
        return [re.sub(r" {2,}", "  ", line).strip() for line in text.splitlines()]


def netd(node: Node, *args: str) -> Answer:
    argv = [sys.executable, "-m", "netd.cli", *args, f"--state-dir={node.folder}"]
    done = subprocess.run(node.ns.argv(argv), check=False, capture_output=True, text=True, timeout=60)
    return Answer(done.returncode, done.stdout, done.stderr)


def done(node: Node, *args: str) -> Answer:
    """The command's answer, which must be a good one."""
    answer = netd(node, *args)
    assert (answer.code, answer.err) == (0, ""), answer
    return answer


def keys(etcd: NetnsEtcd) -> str:
    return etcd.ctl("get", "--prefix", f"{PREFIX}/")


def free(*nodes: Node) -> str:
    """A subnet that none of them has, but might have."""
    taken = {str(node.subnet.subnets) for node in nodes}
    return next(each for each in (f"10.5.{number}.0/24" for number in range(77, 88)) if each not in taken)


def mac(node: Node) -> str:
    return str(node.ip("link show flannel.1")[0]["address"])


# ---- looking ---------------------------------------------------------------------------------------


def test_status_says_how_a_host_is_and_what_it_waits_for(cluster: Cluster) -> None:
    a, b = cluster(2)
    own, theirs = a.subnet.subnets, b.subnet.subnets
    link = f"flannel.1, mtu 1450, mac {mac(a)}, up"
    assert done(a, "status").lines == [
        "Netd:  ready, pid N, up Ns",
        "Etcd:  last word Ns ago",
        f"Lease:  {own}, for {a.ns.address} on eth0, held for Ns, good for Nh without renewal",
        f"Device:  {link}",
        "Peers:  1 of 1 other hosts",
        "Drift:  none",
    ]
    data = done(a, "status", "-o", "json").data
    assert (data["ok"], data["daemon"]["ready"], data["drift"], data["peers"], data["others"]) == (True, True, [], 1, 1)
    assert data["netd"]["pid"] == data["daemon"]["pid"]
    assert (data["daemon"]["lease"]["held"], data["lease"]["stored"]) == (True, True)

    a.end(signal.SIGTERM)
    a.ns.run(f"ip route delete {theirs}")
    stopped = netd(a, "status")
    assert (stopped.code, stopped.err) == (1, "")
    assert stopped.lines[0] == "Netd:  NOT RUNNING"
    assert stopped.lines[-2] == "Drift:  1 changes needed"
    assert stopped.lines[-1].startswith(f"ip route replace {theirs} via {theirs.v4.network_address} dev flannel.1")  # type: ignore[union-attr]
    found = netd(a, "status", "-o", "json")
    assert (found.code, found.data["ok"], found.data["daemon"], found.data["netd"]["pid"]) == (1, False, None, None)

    a.etcd.stop()
    dark = netd(a, "status")
    assert dark.code == 1
    assert f"Lease:  {own}, for {a.ns.address} on eth0, as remembered" in dark.lines
    assert "Peers:  1 of 1 other hosts" in dark.lines
    assert re.fullmatch(r"Error:  list /coreos\.com/network/: .*: Connection refused", dark.lines[-1])
    running = netd(b, "status")
    assert running.lines[0] == "Netd:  ready, pid N, up Ns", "it lives on what it knows"
    assert running.code == 1, "but all is not well"


def test_status_of_a_host_whose_subnet_somebody_took_and_whose_uplink_is_down(cluster: Cluster) -> None:
    (a,) = cluster(1, pods=False)
    own, value = a.subnet.subnets, a.value
    a.etcd.ctl("put", f"{PREFIX}/subnets/{own.key}", value.replace(a.ns.address, "192.168.64.99"))
    eventually(lambda: a.get("/readyz")[0] == 503)
    taken = netd(a, "status")
    assert taken.code == 1
    assert taken.lines[:2] == [
        "Netd:  NOT READY, pid N, up Ns",
        f"Waits for:  lease: lease subnet {own}: {own.key} is held by 192.168.64.99",
    ]
    assert f"Lease:  {own}, but in etcd it is that of 192.168.64.99" in taken.lines
    a.ns.run("ip link set eth0 down")
    down = netd(a, "status")
    assert (down.code, down.lines[-1]) == (1, "Error:  use underlay eth0: it is down")


def test_status_of_a_netd_that_has_no_health_port_and_of_none(cluster: Cluster) -> None:
    (a,) = cluster(1, pods=False)
    a.end(signal.SIGTERM)
    a.options = ("--healthz-port=0",)
    a.start()
    eventually(lambda: a.said("subnet leased") == 2)
    assert a.process is not None
    answer = netd(a, "status")
    assert answer.code == 1
    assert answer.out.startswith(f"Netd:     runs, pid {a.process.pid}, but has no health port to ask\n")
    a.folder = a.folder.with_name("elsewhere")
    assert f"NOT RUNNING, and never did with state directory {a.folder}\n" in netd(a, "status").out
    assert not a.folder.exists(), "looking makes nothing"


def test_leases_lists_every_host_and_what_is_reserved_and_what_cannot_be_read(cluster: Cluster) -> None:
    a, b = cluster(2, pods=False)
    for subnet in ("10.5.204.0/24", "10.5.0.0/24"):
        done(a, "reserve", subnet)
    a.etcd.ctl("put", f"{PREFIX}/subnets/10.5.254.0-24", "garbage")
    answer = netd(a, "leases")
    assert answer.code == 0
    assert "left out subnets/10.5.254.0-24: " in answer.err
    header, *rows = answer.lines
    assert header == "SUBNET  PUBLIC ADDRESS  HOST  BACKEND  MAC  KIND"
    hosts = [f"{n.subnet.subnets}  {n.ns.address}  {n.ns.name}  vxlan  {mac(n)}  lease" for n in (a, b)]
    nobody = [f"{subnet}  -  -  -  -  reserved" for subnet in ("10.5.0.0/24", "10.5.204.0/24")]
    assert sorted(rows) == sorted([*hosts, *nobody])
    assert [int(row.split(".")[2]) for row in rows] == sorted(int(row.split(".")[2]) for row in rows)
    wide = netd(a, "leases", "-o", "wide").lines
    assert wide[0].endswith("KIND  EXPIRES")
    assert sorted(line.rpartition("  ")[2] for line in wide[1:]) == ["Nh", "Nh", "never", "never"]
    data = netd(a, "leases", "-o", "json").data
    assert {row["host"] for row in data["leases"]} == {a.ns.name, b.ns.name, None}
    assert all(86_000 < row["expiresInSeconds"] <= 86_400 for row in data["leases"] if not row["reserved"])
    assert list(data["undecodable"]) == ["subnets/10.5.254.0-24"]


def test_plan_prints_commands_that_mend_a_host_without_netd(cluster: Cluster) -> None:
    a, b = cluster(2)
    assert done(a, "plan").out == ""
    before = a.state()
    peer, hw = b.subnet.subnets.v4, mac(b)
    a.end(signal.SIGTERM)
    damages = (
        ("ip link delete flannel.1",),
        (
            f"ip route delete {peer}",
            f"bridge fdb replace {hw} dev flannel.1 dst 192.168.64.99 self permanent",
            "ip link set flannel.1 mtu 1300",
            "sysctl -qw net.ipv4.ip_forward=0",
        ),
    )
    for damage in damages:
        for command in damage:
            a.ns.run(command)
        assert not a.pings(b, 1)
        commands = done(a, "plan").out.splitlines()
        for command in commands:
            a.ns.run(command)
        assert a.is_as(before)
        assert a.pings(b)
        assert done(a, "plan").out == ""
    a.etcd.stop()
    a.ns.run(f"ip route delete {peer}")
    dark = netd(a, "plan")
    assert dark.code == 0
    assert dark.err.startswith("going by what is remembered of the leases: ")
    a.ns.run(dark.out.strip())
    assert a.is_as(before)


def test_doctor_finds_a_healthy_pair_healthy(cluster: Cluster) -> None:
    a, b = cluster(2, pods=False)
    assert done(a, "reserve", free(a, b), "--public-ip=192.168.64.99").out, "nobody is there yet, and that is well"
    answer = netd(a, "doctor")
    assert answer.code == 0, answer.out + answer.err
    assert answer.out.splitlines()[-1].startswith("0 errors, 0 warnings, ")
    assert f"probing {b.ns.address} (1 to 1 of 1)\n" in answer.err
    findings = netd(a, "doctor", str(b.subnet.subnets), "-o", "json").data
    assert {finding["severity"] for finding in findings} == {"ok"}
    unknown = netd(a, "doctor", "192.168.64.99")
    assert (unknown.code, unknown.out) == (2, "")
    assert 'find peer "192.168.64.99": no other host' in unknown.err


# ---- the lease table -------------------------------------------------------------------------------


def test_a_reservation_is_taken_by_its_host_and_stays_one(cluster: Cluster) -> None:
    (a,) = cluster(1, pods=False)
    late = cluster.node("b")
    address, subnet = late.ns.address, free(a)
    key = subnet.replace("/", "-")
    assert done(a, "reserve", subnet, f"--public-ip={address}").out == f"{subnet}: reserved for {address}\n"
    again = done(a, "reserve", subnet, f"--public-ip={address}")
    assert again.out == f"{subnet}: reserved already for {address}\n"
    a.ready(5)
    assert not a.said(key), "nothing to complain of"
    late.start()
    late.ready()
    assert str(late.subnet.subnets) == subnet
    eventually(lambda: a.has_peers(1))
    lease = json.loads(a.etcd.ctl("get", "-w", "json", f"{PREFIX}/subnets/{key}"))["kvs"][0].get("lease", 0)
    assert lease == 0
    assert f"Lease:  {subnet}, for {address} on eth0, reserved, held for Ns" in done(late, "status").lines
    late.end(signal.SIGKILL)
    late.start()
    late.ready()
    assert str(late.subnet.subnets) == subnet


def test_a_lease_can_be_made_a_reservation_and_given_back(cluster: Cluster) -> None:
    (a,) = cluster(1, pods=False)
    own, address = str(a.subnet.subnets), a.ns.address
    refused = netd(a, "reserve", own)
    assert refused.code == 1
    assert f"it is leased by {address} (host {a.ns.name}, whose netd runs); to make its lease" in refused.err
    assert done(a, "reserve", own, f"--public-ip={address}").out == f"{own}: reserved (it was leased) for {address}\n"
    eventually(lambda: json.loads(a.get("/status")[1])["lease"]["reserved"])
    a.ready()
    assert done(a, "release", a.subnet.subnets.key).out == f"{own}: released, it was reserved\n"
    eventually(lambda: a.value)  # it runs, so it takes it again, as a lease
    refused = netd(a, "release", own)
    assert (refused.code, "use --force to remove the lease" in refused.err) == (1, True)
    a.end(signal.SIGTERM)
    assert "whose netd does not run now, but its pods may" in netd(a, "release", own).err
    assert done(a, "release", own, "--force").out == f"{own}: released, it was leased\n"
    gone = netd(a, "release", own)
    assert (gone.code, gone.err) == (1, f"error: release {own}: it is neither reserved nor leased\n")


BAD_INPUT = [
    (("reserve",), "Missing argument 'SUBNET'"),
    (("reserve", "10.5.3.0/99"), 'expected 10.5.34.0/24 or 10.5.34.0/24,fd00:12:13::/64, got "10.5.3.0/99"'),
    (("reserve", "10.5.3.1/24"), "has host bits set"),
    (("reserve", "10.5.3.0/24,10.5.4.0/24"), "expected one subnet of each family at most"),
    (("reserve", "10.9.0.0/24"), "10.9.0.0/24 is not in the network 10.5.0.0/16"),
    (("reserve", "10.5.3.0/25", "--public-ip=192.168.64.9"), "a node has a /24 from 10.5.1.0 to 10.5.199.0"),
    (("reserve", "10.5.3.0/24", "--public-ip=x"), "'--public-ip': expected an IP address, got \"x\""),
    (
        ("reserve", "10.5.3.0/24", "--public-ip=192.168.64.9", "--public-ip=192.168.64.8"),
        "expected one address of each family",
    ),
    (("release", "x"), 'expected 10.5.34.0/24 or 10.5.34.0/24,fd00:12:13::/64, got "x"'),
    (("leases", "-o", "yaml"), "'yaml' is not one of 'table', 'wide', 'json'"),
    (("status", "--etcd-endpoints=ftp://x"), "--etcd-endpoints: expected scheme http or https"),
    (("status", "--nonsense"), "No such option"),
    (("doctor", "x"), 'find peer "x": no other host'),
    (("uninstall", "everything"), "unexpected extra argument"),
    (("plam",), "No such command 'plam'"),
]


def test_what_makes_no_sense_is_refused_with_what_would_and_changes_nothing(cluster: Cluster) -> None:
    (a,) = cluster(1, pods=False)
    before = (keys(a.etcd), a.state(), sorted(each.name for each in a.folder.iterdir()))
    for args, message in BAD_INPUT:
        answer = netd(a, *args)
        assert (answer.code, answer.out, message in answer.err) == (2, "", True), (args, answer)
    assert (keys(a.etcd), a.state(), sorted(each.name for each in a.folder.iterdir())) == before


# ---- the end ---------------------------------------------------------------------------------------


def traces(node: Node) -> list[str]:
    """What a host has besides IP forwarding, of which it may not matter who turned it on."""
    commands = (
        *("ip -br link", "ip -br -4 address", "ip route", "ip route show table local", "ip neigh show nud permanent"),
        *("iptables -w -S", "ip6tables -w -S"),
    )
    named = re.findall("podlane.*", node.ns.run("nft list ruleset"), re.IGNORECASE)
    return [*(node.ns.run(command) for command in commands), *named]


def test_uninstall_leaves_no_trace_but_the_lease(cluster: Cluster) -> None:
    (b,) = cluster(1, pods=False)
    a = cluster.node("b", "--ip-masq", "--vxlan-guard", "--ip-blackhole-route")
    before = traces(a)
    a.start()
    a.ready()
    eventually(lambda: a.has_peers(1))
    assert a.process is not None
    refused = netd(a, "uninstall")
    assert (refused.code, refused.out) == (1, "")
    assert refused.err == f"error: remove netd: it runs, process {a.process.pid}; stop it first\n"
    a.ready(5)
    value, own = a.value, a.subnet.subnets
    a.ns.run("ip route add 10.5.250.0/24 via 192.168.64.1 proto static")
    a.end(signal.SIGTERM)
    removed = done(a, "uninstall")
    assert removed.lines == [
        "flannel.1 removed",
        "1 routes removed",
        "firewall rules removed",
        f"{a.folder / 'subnet.env'} removed",
    ]
    a.ns.run("ip route delete 10.5.250.0/24")  # another's, which was left alone
    assert traces(a) == before
    assert value == a.etcd.ctl("get", "--print-value-only", f"{PREFIX}/subnets/{own.key}").strip()
    assert done(a, "uninstall").out == "nothing of netd's is left on this host\n"
    assert b.ns.ok("ip link show flannel.1"), "the other host is as it was"

    assert done(a, "uninstall", "--release").out == f"lease {own} given back\n"
    assert not a.etcd.ctl("get", f"{PREFIX}/subnets/{own.key}")
    eventually(lambda: b.has_peers(0))
    assert done(a, "uninstall", "--release").out == f"lease {own} was gone\n"


def test_uninstall_begins_nothing_that_it_cannot_end(cluster: Cluster) -> None:
    (a,) = cluster(1, pods=False)
    a.end(signal.SIGKILL)
    before = (a.state(), a.ns.run("iptables -w -S"))
    a.etcd.stop()
    answer = netd(a, "uninstall", "--release")
    assert (answer.code, answer.out) == (1, "")
    assert answer.err.startswith(f"error: give lease {a.subnet.subnets} back: ")
    assert answer.err.endswith("; nothing was removed\n")
    folder, a.folder = a.folder, a.folder.with_name("mistyped")
    answer = netd(a, "uninstall")
    assert (answer.code, answer.out) == (1, "")
    assert answer.err.startswith(f"error: remove netd: {a.folder} does not exist; ")
    a.folder = folder
    assert (a.state(), a.ns.run("iptables -w -S")) == before
    assert not folder.with_name("mistyped").exists()


def test_uninstall_knows_what_the_first_version_left(cluster: Cluster) -> None:
    (a,) = cluster(1, pods=False)
    a.end(signal.SIGTERM)
    for file in a.folder.iterdir():
        if file.name not in {"vtep-mac", "subnet.env", "settings.json"}:
            file.unlink()
    assert done(a, "uninstall").lines[0] == "flannel.1 removed"
    assert not a.ns.ok("ip link show flannel.1")
