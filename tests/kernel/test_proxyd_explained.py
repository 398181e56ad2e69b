"""proxyd's commands as an operator types them, where it runs or ran, against real tables and with real packets."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from podlane.api.codec import encode
from podlane.api.types import ClusterConfig, EndpointSlice, Service
from podlane.store import keys
from proxyd.explain.frames import Ends
from tests.kernel.conftest import NetnsEtcd, NetnsMaker, eventually
from tests.kernel.proxyd_nets import (
    BOTH,
    FAR,
    NETS,
    NODE_TCP,
    POD1,
    POD2,
    POD3,
    TCP,
    UDP,
    V4,
    Net,
    endpoints,
    service,
)
from tests.kernel.proxyd_world import World

pytestmark = pytest.mark.kernel


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        return json.loads(self.out)


class Place:
    """The world's node, with an etcd that has the same objects as its kernel."""

    def __init__(self, world: World, etcd: NetnsEtcd, log: Path) -> None:
        self.world, self.etcd, self.log = world, etcd, log
        self.process: Any = None
        networks = {"Network": V4.pod_network, "EnableIPv6": True, "IPv6Network": NETS[1].pod_network}
        etcd.ctl("put", "/coreos.com/network/config", json.dumps(networks))
        ranges = ",".join(net.service_range for net in NETS)
        etcd.ctl("put", keys.CLUSTER_CONFIG, encode(ClusterConfig(service_cidr=ranges)).decode())

    def put(self, *objects: Service | EndpointSlice) -> None:
        for each in objects:
            key = keys.key_for(type(each), each.metadata.namespace, each.metadata.name)
            self.etcd.ctl("put", key, encode(each).decode())

    def sync(self, *objects: Service | EndpointSlice) -> None:
        """Put them into the store, and into the kernel as proxyd would."""
        self.put(*objects)
        self.world.sync(*objects, settle=True)

    def argv(self, *args: str, etcd: bool = True) -> list[str]:
        found = [sys.executable, "-m", "proxyd.cli", *args]
        return found + ([f"--etcd-endpoints={self.etcd.endpoint}", "--node-name=node"] if etcd else [])

    def proxyd(self, *args: str, etcd: bool = True) -> Answer:
        argv = self.world.node.argv(self.argv(*args, etcd=etcd))
        done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=60)
        return Answer(done.returncode, done.stdout, done.stderr)

    def start(self) -> None:
        self.process = self.world.node.popen(self.argv("run"), log=self.log)
        eventually(lambda: self.proxyd("status", etcd=False).code == 0, timeout=30)

    def stop(self) -> None:
        assert self.world.node.end(self.process, signal.SIGTERM) == 0

    def trace(self, source: str, destination: str, *args: str) -> dict[str, Any]:
        """A live trace that agrees."""
        answer = self.proxyd("trace", source, destination, "--live", "-o", "json", *args)
        assert answer.code == 0, answer
        found: dict[str, Any] = answer.data
        assert found["live"]["agrees"]
        return found

    def left(self) -> str:
        """What a trace might have left: its table, connections, remembered clients."""
        run = self.world.node.run
        remembered = "".join(run(f"nft list map {net.name} podlane affinity") for net in NETS)
        entries = run("conntrack -L", check=False) + run("conntrack -L -f ipv6", check=False)
        tables = run("nft list tables")
        return "\n".join(
            [
                *(line for line in tables.splitlines() if "trace" in line),
                *(line for line in remembered.splitlines() if "expires" in line),
                *(line for line in entries.splitlines() if "dport=80 " in line or "dport=53 " in line),
            ]
        )


@pytest.fixture
def place(netns: NetnsMaker, netns_etcd: NetnsEtcd, tmp_path: Path) -> Iterator[Place]:
    world = World(netns, node=netns.host("node", v6=True), client=netns.underlay)
    try:
        made = Place(world, netns_etcd, tmp_path / "proxyd.log")
        yield made
        print(made.log.read_text() if made.log.exists() else "proxyd was not run")
    finally:
        world.close()


def bracketed(net: Net, ip: str, port: int) -> str:
    return f"[{ip}]:{port}" if net is not V4 else f"{ip}:{port}"


# --- looking -----------------------------------------------------------------------------


def test_a_node_where_proxyd_runs_and_stops(place: Place):
    """No option is given to a command where proxyd runs: it tells them."""
    nothing = place.proxyd("status", etcd=False)
    assert nothing.code == 1
    assert "NOT RUNNING" in nothing.out
    assert "no service address works on this host" in nothing.out
    place.world.serve(POD1, FAR)
    for family in ("-4", "-6"):  # so that proxyd has to make a route of its own
        place.world.node.run(f"ip {family} route del default")
    place.put(service(V4, NODE_TCP, type="NodePort"), endpoints(V4, [POD1, FAR], NODE_TCP))
    place.start()

    status = place.proxyd("status", etcd=False)
    assert (status.code, status.err) == (0, "")
    assert "ready, pid" in status.out
    assert "192.168.64.11" in status.out
    assert f"pods {V4.pod_network}, services {V4.service_range}" in status.out
    document = place.proxyd("status", "-o", "json", etcd=False).data
    assert document["ok"] is True
    assert document["daemon"]["services"] == 1
    assert document["daemon"]["acknowledgedRevision"] > 0
    assert "password" not in document["daemon"]["options"]

    connection = place.world.connect(place.world.client, V4.node, 30080)
    wide = place.proxyd("services", "-o", "json", etcd=False).data["services"]
    assert [each["name"] for each in wide] == ["default/web"]
    frontends = {f"{each['address']}:{each['port']}": each for each in wide[0]["frontends"]}
    assert set(frontends) == {f"{V4.vip}:80", f"{V4.node}:30080"}
    assert {each["problem"] for each in frontends.values()} == {""}
    assert sum(each["connections"] for each in frontends[f"{V4.node}:30080"]["endpoints"]) == 1
    connection.close()
    table = place.proxyd("services", etcd=False).out
    assert "default/web" in table
    assert "2 endpoints" in table
    one = place.proxyd("services", "web", "-o", "wide", etcd=False).out
    assert f"{V4.pods[FAR]}" in one
    assert "elsewhere" in one
    assert "node-port" in one

    listed = place.proxyd("ruleset", etcd=False)
    assert (listed.code, listed.err) == (0, "")
    line = next(each for each in listed.out.splitlines() if f"{V4.vip} . tcp . 80 : goto lb2" in each)
    assert line.endswith("# default/web:tcp-80")
    assert "table ip6 podlane {" in listed.out

    equal = place.proxyd("plan", etcd=False)
    assert (equal.code, equal.out, equal.err) == (0, "# nothing to do\n", "")

    refused = place.proxyd("uninstall", etcd=False)
    assert refused.code == 1
    assert "it runs, process" in refused.err
    place.stop()

    alone = place.proxyd("status")
    assert alone.code == 1
    assert "the kernel goes on serving what it had" in alone.out
    assert "2 frontends served" in alone.out
    assert "/podlane/proxies/node" in place.etcd.ctl("get", "--prefix", "/podlane/proxies/")
    removed = place.proxyd("uninstall")
    assert (removed.code, removed.err) == (0, "")
    for what in ("table ip podlane removed", "table ip6 podlane removed", "acknowledgement of node node withdrawn"):
        assert what in removed.out
    for net in NETS:
        assert f"route to {net.service_range} removed" in removed.out
    assert place.world.node.run("nft list tables") == ""
    assert place.etcd.ctl("get", "--prefix", "/podlane/proxies/") == ""
    assert place.proxyd("uninstall").out == "nothing of proxyd's is left on this host\n"


def test_uninstall_without_etcd_removes_the_rest_and_says_what_is_left_to_do(place: Place):
    place.world.sync(service(V4), endpoints(V4, [POD1]))
    place.etcd.stop(signal.SIGKILL)
    answer = place.proxyd("uninstall")
    assert answer.code == 0
    assert "table ip podlane removed" in answer.out
    assert "acknowledgement of node node not withdrawn, run this again" in answer.err
    assert place.world.node.run("nft list tables") == ""


def test_plan_is_what_proxyd_would_do_and_changes_nothing(place: Place):
    place.put(service(V4), endpoints(V4, [POD1, POD2]))
    whole = place.proxyd("plan")
    assert whole.code == 1
    assert "table ip podlane {" in whole.out
    assert f"add element ip podlane services {{ {V4.vip} . tcp . 80 : goto lb2 }}" in whole.out
    assert place.world.node.run("nft list tables") == ""
    place.world.sync(service(V4), endpoints(V4, [POD1, POD2]), settle=True)
    assert place.proxyd("plan").out == "# nothing to do\n"
    # an element, then a rule, by somebody's hand
    place.world.nft_script(f"delete element ip podlane services {{ {V4.vip} . tcp . 80 }}")
    missing = place.proxyd("plan")
    assert missing.code == 1
    # proxyd would find out what flows had begun meanwhile, too
    assert missing.out.splitlines()[0] == f"add element ip podlane services {{ {V4.vip} . tcp . 80 : goto lb2 }}"
    assert f"--orig-dst {V4.vip} " in missing.out
    place.world.nft_script("flush chain ip6 podlane filter-output")
    assert "flush chain ip6 podlane filter-output" in place.proxyd("plan").out
    place.world.repair()
    assert place.proxyd("plan").code == 0


# --- tracing -----------------------------------------------------------------------------


@BOTH
def test_the_packet_takes_the_way_foretold_from_everywhere(place: Place, net: Net):
    pods = [POD1, POD2, FAR]
    place.world.serve(*pods, udp=5353)
    place.sync(service(net, TCP, UDP), endpoints(net, pods, TCP, UDP))
    targets = {net.pods[each] for each in pods}
    vip, dns = bracketed(net, net.vip, 80), bracketed(net, net.vip, 53)
    for source, arrives, masqueraded in (
        (net.pods[POD3], "port of bridge cbr0", False),
        (net.pods[FAR], "arriving at eth1", False),
        (net.client, "arriving at eth0", True),
        (net.source(7), "arriving at eth0", True),
        (net.node, "sent by this host", True),
    ):
        if source == net.pods[POD3]:
            place.world.call(place.world.pods[POD3], net.vip)  # so that the bridge has heard of it
            place.world.node.run("conntrack -F", check=False)
        for destination, protocol in ((vip, "tcp"), (dns, "udp")):
            found = place.trace(source, destination)
            assert found["protocol"] == protocol.upper()
            live = found["live"]
            assert arrives in live["arrives"]
            assert live["action"] == "translate"
            assert live["endpoint"]["address"] in targets
            assert live["masqueraded"] is masqueraded
            assert found["service"] == f"default/web:{protocol}-{destination.rpartition(':')[2]}"
            assert {each["endpoint"]["address"] for each in found["outcomes"]} == targets
            assert sum(each["chance"] for each in found["outcomes"]) == pytest.approx(1)
            chains = [each["chain"] for each in live["rules"] if each["table"] == "podlane"]
            assert chains[0] == ("output" if source == net.node else "prerouting")
            assert "lb3" in chains
            rule = next(each for each in live["rules"] if each["chain"] == "lb3")
            assert "numgen random mod 3 map @endpoints" in rule["rule"]
    assert place.left() == ""


@BOTH
def test_refused_dropped_and_not_ours(place: Place, net: Net):
    """Each by a packet: what conntrack never gets to know is told from the rule that ended it."""
    balancer = f"{net.lan(net.client)}"
    place.world.serve(POD1)
    place.sync(
        service(net, TCP, UDP, type="LoadBalancer", balancer=True, load_balancer_source_ranges=(balancer,)),
        endpoints(net, [POD1], TCP),
        service(net, TCP, UDP, name="empty", ip=net.other_vip),
    )
    pod, outside = net.pods[POD3], net.source(9)
    for source, ip, port, protocol, action in (
        (pod, net.other_vip, 80, "tcp", "reset"),
        (net.node, net.other_vip, 80, "tcp", "reset"),
        (net.client, net.other_vip, 53, "udp", "unreachable"),
        (pod, net.vip, 81, "tcp", "reset"),
        (pod, net.vip, 80, "sctp", "unreachable"),
        (net.node, net.unallocated, 80, "tcp", "drop"),
        (pod, net.unallocated, 80, "udp", "drop"),
        (net.client, net.balancer, 80, "tcp", "translate"),
        (outside, net.balancer, 80, "tcp", "drop"),
        (pod, net.pods[FAR], 80, "tcp", "pass"),
        (net.client, net.pods[POD1], 80, "sctp", "pass"),
    ):
        found = place.trace(source, bracketed(net, ip, port), f"--proto={protocol}")
        assert (source, ip, port, found["live"]["action"]) == (source, ip, port, action)
    assert place.left() == ""


def test_affinity_is_foretold_and_a_trace_is_not_remembered(place: Place):
    place.world.serve(POD1, POD2)
    place.sync(service(V4, affinity=100), endpoints(V4, [POD1, POD2]))
    pod, vip = V4.pods[POD3], f"{V4.vip}:80"
    assert len(place.trace(pod, vip)["outcomes"]) == 2
    assert place.left() == ""
    chosen, _ = place.world.call(place.world.pods[POD3])
    found = place.trace(pod, vip)
    (only,) = found["outcomes"]
    assert (only["chance"], only["endpoint"]["address"]) == (1.0, V4.pods[chosen])
    assert found["live"]["endpoint"]["address"] == V4.pods[chosen]
    assert any("was sent before" in step for step in (*found["steps"], *only["steps"]))
    # what the client itself had made it keep is kept
    assert pod in place.left()


def test_somebody_elses_rule_is_named_and_so_is_an_element_that_should_not_be(place: Place):
    place.world.serve(POD1)
    place.sync(service(V4), endpoints(V4, [POD1]))
    client, vip = V4.client, f"{V4.vip}:80"
    place.world.nft_script(
        "table ip other { chain forward { type filter hook forward priority 10; tcp dport 8080 counter drop; }; }"
    )
    answer = place.proxyd("trace", client, vip, "--live")
    assert answer.code == 1
    assert "ip other forward: tcp dport 8080 counter drop  -> drop" in answer.out
    assert "now for 10.5.1.2:8080/tcp" in answer.out
    assert answer.out.splitlines()[-2:] == [
        "It is dropped.",
        f"DISAGREE: by the model it goes to {V4.pods[POD1]}:8080 on node, which sees this host's address (masqueraded)",
    ]
    place.world.nft_script("delete table ip other")
    assert place.proxyd("trace", client, vip, "--live").out.endswith("agree\n")
    # a rule of ours that somebody changed: the model says what it ought to do
    place.world.nft_script("flush chain ip podlane prerouting")
    assert place.proxyd("trace", client, vip, "--live").code == 1
    assert place.left() == ""


def test_rp_filter_loses_it_before_any_rule(place: Place):
    """The packet arrives where packets from its source come in: the same checks are made of it."""
    place.sync(service(V4), endpoints(V4, [POD1]))
    place.world.node.run("ip route add unreachable 203.0.114.0/24")
    answer = place.proxyd("trace", "203.0.114.5", f"{V4.vip}:80", "--live")
    assert answer.code == 1
    assert "find where packets from 203.0.114.5 arrive: no route leads to it" in answer.err


def test_without_etcd_it_traces_without_names(place: Place):
    place.sync(service(V4), endpoints(V4, [POD1]))
    place.etcd.stop(signal.SIGKILL)
    answer = place.proxyd("trace", V4.client, f"{V4.vip}:80", "--live")
    assert answer.code == 0
    assert "without the services' names" in answer.err
    assert answer.out.endswith("agree\n")
    named = place.proxyd("trace", V4.client, "web")
    assert named.code == 1
    assert "etcd does not answer; give its address and port" in named.err
    listed = place.proxyd("ruleset")
    assert listed.code == 0
    assert f"{V4.vip} . tcp . 80 : goto lb1," in listed.out


# --- leaving nothing behind ------------------------------------------------------------------

_HELD = """
import time
from proxyd.explain.frames import Ends
from proxyd.explain.nftrace import Tracer
with Tracer().marking({ends!r}):
    print("marked", flush=True)
    time.sleep(60)
"""


def test_a_killed_trace_leaves_no_table(place: Place):
    place.sync(service(V4), endpoints(V4, [POD1]))
    script = _HELD.format(ends=Ends(V4.client, 40000, V4.vip, 80, "TCP"))
    argv = place.world.node.argv([sys.executable, "-c", script])
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "marked\n"
        assert "table ip podlane-trace" in place.world.node.run("nft list tables")
        # a second one would mark nothing; it says so
        answer = place.proxyd("trace", V4.client, f"{V4.vip}:80", "--live")
        assert answer.code == 1
        assert "another trace is running" in answer.err
        process.kill()
    eventually(lambda: "podlane-trace" not in place.world.node.run("nft list tables"))
    assert place.proxyd("trace", V4.client, f"{V4.vip}:80", "--live").code == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_ended_at_any_moment_it_leaves_nothing(place: Place, number: signal.Signals):
    place.sync(service(V4), endpoints(V4, [POD1]))
    argv = place.world.node.argv(place.argv("trace", V4.client, f"{V4.vip}:80", "--live"))
    started = time.monotonic()
    assert subprocess.run(argv, check=False, capture_output=True, timeout=60).returncode == 0
    whole = time.monotonic() - started
    for part in (0.6, 0.75, 0.85, 0.95):
        with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            time.sleep(whole * part)
            process.send_signal(number)
        assert place.left() == ""
