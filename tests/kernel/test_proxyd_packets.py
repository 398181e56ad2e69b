"""Real packets through proxyd's rules; where the design names a finding, also without its remedy."""

from __future__ import annotations

import errno
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from proxyd_world import (
    CLIENT,
    FAR,
    POD1,
    POD2,
    POD3,
    TCP,
    UDP,
    VIP,
    NoConntrack,
    World,
    ask,
    endpoints,
    inside,
    service,
    web,
)

from proxyd.desired import Index
from proxyd.plan import plan_all, plan_retire
from proxyd.tables import ENDPOINTS, Frontend, Transaction

pytestmark = pytest.mark.kernel


@pytest.fixture
def world(netns: Any) -> Iterator[World]:
    made = World(netns)
    yield made
    made.close()


# --- reaching a service ------------------------------------------------------------------


def test_everyone_reaches_every_endpoint_and_only_outsiders_are_masqueraded(world):
    world.serve(POD1, POD2, FAR)
    world.sync(*web([POD1, POD2, FAR]))
    for ns, seen in ((world.pods[POD3], {POD3}), (world.node, None), (world.client, None)):
        answers = [world.call(ns) for _ in range(40)]
        assert {name for name, _ in answers} == {POD1, POD2, FAR}
        if seen is not None:
            assert {caller for _, caller in answers} == seen
        else:
            # the node's address towards that pod: the answer comes back here to be translated
            assert {caller for _, caller in answers} <= {"10.5.1.1", "172.16.0.1"}
    # a pod of another host keeps its address too
    world.sync(endpoints([POD1, POD2], TCP))
    with inside(world.far):
        far = socket.create_connection((VIP, 80), timeout=2, source_address=(FAR, 0))
    assert ask(far)[1] == FAR
    far.close()


def test_the_load_is_spread_evenly(world):
    world.serve(POD1, POD2, FAR)
    world.sync(*web([POD1, POD2, FAR]))
    spread = world.calls(world.pods[POD3], 300)
    assert set(spread) == {POD1, POD2, FAR}
    assert min(spread.values()) > 60  # 100 expected; less than 60 has a chance of 1 in 10 million


def test_several_ports_and_one_number_with_two_protocols(world):
    world.serve(POD1, tcp=8080)
    world.serve(POD1, tcp=9153, udp=5353)
    world.serve(POD1, tcp=5353)
    world.sync(*web([POD1], TCP, ("TCP", 9153, 9153), ("TCP", 53, 5353), UDP))
    for ns in (world.pods[POD2], world.node, world.client):
        for port in (80, 9153, 53):
            assert world.call(ns, port)[0] == POD1
        assert ask(world.flow(ns))[0] == POD1


def test_a_host_without_a_route_reaches_services(world):
    """Finding 12."""
    world.serve(POD1, udp=5353)
    assert not world.node.run("ip -j route show match 10.96.0.0/16").strip("[] \n")
    with pytest.raises(OSError, match="unreachable") as caught:
        world.call(world.node)
    assert caught.value.errno == errno.ENETUNREACH
    world.sync(*web([POD1], TCP, UDP))
    assert world.call(world.node)[0] == POD1
    # datagrams that need fragments on the real link, not on lo
    flow = world.flow(world.node)
    flow.send(bytes(6000))
    assert flow.recv(64).decode().startswith(POD1)


def test_pods_on_one_bridge_are_answered_through_the_translation(world):
    world.serve(POD1, POD2)
    world.sync(*web([POD1, POD2]))
    pod = world.pods[POD3]
    assert set(world.calls(pod, 30)) == {POD1, POD2}
    # without bridge traffic in netfilter the answer goes straight to the caller, who knows no such connection
    world.node.run("sysctl -qw net.bridge.bridge-nf-call-iptables=0")
    with pytest.raises(TimeoutError):
        world.call(pod, timeout=0.5)


def test_a_pod_that_is_sent_to_itself_is_answered(world):
    """Finding 9: it takes the masquerade, and the bridge's leave to send back."""
    world.serve(POD1)
    world.sync(*web([POD1]))
    pod = world.pods[POD1]
    assert world.call(pod) == (POD1, "10.5.1.1")
    world.node.run("ip link set v1 type bridge_slave hairpin off")
    with pytest.raises(TimeoutError):
        world.call(pod, timeout=0.3)
    world.sync()
    assert world.call(pod)[0] == POD1
    world.nft_script("flush set ip podlane hairpin")
    with pytest.raises(TimeoutError):
        world.call(pod, timeout=0.3)


# --- refusing ------------------------------------------------------------------------------


@pytest.mark.parametrize("port", [80, 81], ids=["no-endpoint", "no-such-port"])
def test_refused_at_once_every_time(world, port):
    """Finding 8: thirty of thirty; an ICMP answer alone is rate limited and lets most time out."""
    world.sync(*web([], TCP))
    for ns in (world.pods[POD1], world.node, world.client):
        for _ in range(30):
            with pytest.raises(ConnectionRefusedError):
                world.call(ns, port, timeout=5)
        # a local sender is told by the call itself
        with pytest.raises(PermissionError if ns is world.node else ConnectionRefusedError):
            ask(world.flow(ns, port))


def test_with_icmp_alone_some_time_out(world):
    """Finding 8 without its remedy."""
    world.sync(*web([], TCP))
    world.nft_script("flush chain ip podlane refuse\nadd rule ip podlane refuse reject with icmp type port-unreachable")
    results = []
    for _ in range(12):
        try:
            world.call(world.pods[POD1], timeout=0.05)
        except OSError as error:
            results.append(type(error))
    assert TimeoutError in results


def test_an_address_no_service_has_is_dropped(world):
    world.node.run(f"ip route add default via {CLIENT}")  # by which it would leave the node otherwise
    world.sync(*web([POD1]))
    for ns in (world.pods[POD1], world.node):
        flow = world.flow(ns, ip="10.96.7.7", timeout=0.2)
        with pytest.raises((TimeoutError, PermissionError)):
            ask(flow)
    with inside(world.node):
        assert not [f for f in world.conntrack.flows("UDP") if f.frontend.address == "10.96.7.7"]


# --- changes under load ----------------------------------------------------------------------

FLOOD = """
import socket, struct, sys, time
vip, seconds = sys.argv[1], float(sys.argv[2])
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
sent = 0
end = time.monotonic() + seconds
def sum16(data):
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
heads = []
for host in range(1, 5):
    ends = socket.inet_aton("192.168.64.%d" % (100 + host)) + socket.inet_aton(vip)
    head = struct.pack("!BBHHHBBH8s", 0x45, 0, 29, 0, 0, 64, 17, 0, ends)
    heads.append(head[:10] + struct.pack("!H", sum16(head)) + head[12:])
print("ready", flush=True)
for port in range(1024, 65000):
    if time.monotonic() > end:
        break
    for head in heads:
        sent += 1
        try:
            raw.sendto(head + struct.pack("!HHHHB", port, 53, 9, 0, 0), (vip, 0))
        except PermissionError:
            pass
print(sent, flush=True)
"""


def flood_while(world: World, seconds: float, change: Any) -> tuple[int, int]:
    """New UDP flows from the node, each from another port, while `change` runs again and again: (sent, missed)."""
    before = missed(world)
    flood = world.node.popen([sys.executable, "-c", FLOOD, VIP, str(seconds)], stdout=subprocess.PIPE)
    assert flood.stdout.readline() == b"ready\n"
    while flood.poll() is None:
        change()
    return int(flood.stdout.read()), missed(world) - before


def missed(world: World) -> int:
    """How many packets came to the end of a pick chain."""
    return sum(map(int, re.findall(r"counter packets (\d+)", world.node.run("nft list table ip podlane"))))


def shrink_and_grow(world: World, *, in_one: bool) -> Any:
    """4 targets, 1 target, 4 targets, as the plan has it, or with the shrinking in one transaction."""
    pods = [f"10.5.1.{i}" for i in range(2, 6)]
    tables = world.nft.dump()
    tables.chains = {"lb1", "lb4"}  # which the dump does not know again, with what the test put into them
    index = Index("node")
    index.replace(world.store.services, world.store.slices)

    def change() -> None:
        for wanted in (pods[:1], pods):
            index.update({}, {"default/web-1": endpoints(wanted, UDP)})
            plan = plan_all(tables, index)
            if in_one:
                plan.now.delete[ENDPOINTS] += plan.retire
            commit(plan.now)
            if plan.retire and not in_one:
                time.sleep(0.01)
                commit(plan_retire(tables, plan.retire))

    def commit(transaction: Transaction) -> None:
        world.nft.commit(transaction)
        tables.apply(transaction)

    return change


def prepare_flood(world: World) -> None:
    for host in range(101, 105):
        world.node.run(f"ip address add 192.168.64.{host}/32 dev eth0")
    # nothing but the flood's own packets; and unanswered flows, of which conntrack keeps only so many
    world.nft_script("table ip test { chain in { type filter hook postrouting priority 0; udp dport 5353 drop; }; }")
    pods = [f"10.5.1.{i}" for i in range(2, 6)]
    world.sync(*web(pods, UDP))
    world.sync(endpoints(pods[:1], UDP), settle=True)
    world.sync(endpoints(pods, UDP), settle=True)
    # the window between the two look-ups is some 100 ns; rules that match nothing make it a hundred times wider
    for chain in ("lb1", "lb4"):
        rules = world.node.run(["nft", "-a", "list", "chain", "ip", "podlane", chain])
        drop = re.search(r"drop # handle (\d+)", rules)
        assert drop is not None
        script = [f"insert rule ip podlane {chain} ip saddr 192.0.2.{i % 250}" for i in range(1000)]
        script += [f"delete rule ip podlane {chain} handle {drop[1]}", f"add rule ip podlane {chain} counter drop"]
        world.nft_script("\n".join(script))


def test_shrinking_in_two_transactions_loses_nobody(world):
    """Finding 1."""
    prepare_flood(world)
    sent, lost = flood_while(world, 2.0, shrink_and_grow(world, in_one=False))
    assert sent > 5_000
    assert lost == 0


def test_shrinking_in_one_transaction_loses_some(world):
    """Finding 1 without its remedy."""
    prepare_flood(world)
    lost = 0
    for _ in range(10):
        lost += flood_while(world, 1.0, shrink_and_grow(world, in_one=True))[1]
        if lost:
            break
    assert lost > 0


def test_an_established_connection_survives_its_endpoint_leaving(world):
    world.serve(POD1, POD2)
    world.sync(*web([POD1]))
    connections = [world.connect(ns) for ns in (world.pods[POD3], world.client, world.node)]
    for each in connections:
        assert ask(each)[0] == POD1
    world.sync(endpoints([POD2], TCP), settle=True)
    for each in connections:
        assert ask(each)[0] == POD1
    assert set(world.calls(world.pods[POD3], 5)) == {POD2}


def test_scaling_under_steady_calls_fails_none(world):
    world.serve(POD1, POD2, FAR)
    world.sync(*web([POD1, POD2, FAR]))
    failures: list[OSError] = []
    done = threading.Event()
    count = [0]

    def caller(ns: Any) -> None:
        while not done.is_set():
            try:
                world.call(ns)
                count[0] += 1
            except OSError as error:
                failures.append(error)

    threads = [threading.Thread(target=caller, args=(ns,)) for ns in (world.pods[POD3], world.client)]
    for thread in threads:
        thread.start()
    for wanted in ([POD1], [POD1, POD2], [POD2], [FAR, POD2], [POD1, POD2, FAR]) * 3:
        world.sync(endpoints(wanted, TCP))
        time.sleep(0.03)
    done.set()
    for thread in threads:
        thread.join(10)
    assert failures == []
    assert count[0] > 50


# --- conntrack ---------------------------------------------------------------------------------


def test_a_udp_flow_leaves_an_endpoint_that_left(world):
    """Finding 10: also to zero and from zero, and a neighbour's flow stays."""
    world.serve(POD1, POD2, FAR, tcp=None, udp=5353)
    world.sync(*web([POD1], UDP))
    other = (service(("UDP", 53), name="other", ip="10.96.0.2"), endpoints([POD1], UDP, name="other"))
    world.sync(*other)
    flows = [world.flow(ns) for ns in (world.pods[POD3], world.client, world.node)]
    neighbour = world.flow(world.pods[POD3], ip="10.96.0.2")
    for flow in (*flows, neighbour):
        assert ask(flow)[0] == POD1
    world.sync(endpoints([FAR], UDP))
    for flow in flows:
        assert ask(flow)[0] == FAR
    world.sync(endpoints([], UDP))
    for flow in flows:
        with pytest.raises((ConnectionRefusedError, PermissionError)):
            ask(flow)
    world.sync(endpoints([POD2], UDP))
    for flow in flows:
        assert ask(flow)[0] == POD2
    with inside(world.node):
        sources = {(f.frontend.address, f.replies_from.address) for f in world.conntrack.flows("UDP")}
    assert ("10.96.0.2", POD1) in sources
    assert ask(neighbour)[0] == POD1


def test_a_deleted_services_flows_end(world):
    world.serve(POD1, tcp=None, udp=5353)
    world.sync(*web([POD1], UDP))
    flow = world.flow(world.pods[POD3], timeout=0.2)
    assert ask(flow)[0] == POD1
    world.store.drop(service(("UDP", 53)))
    world.sync()
    with pytest.raises(OSError, match=r"timed out|refused"):
        ask(flow)


def test_without_the_cleaning_a_flow_stays_where_it_was(world):
    """Finding 10 without its remedy."""
    world.start(NoConntrack())
    world.serve(POD1, POD2, tcp=None, udp=5353)
    world.sync(*web([POD1], UDP))
    flow = world.flow(world.pods[POD3])
    assert ask(flow)[0] == POD1
    world.sync(endpoints([POD2], UDP))
    assert ask(flow)[0] == POD1


@pytest.mark.parametrize("remedy", [True, False], ids=["with", "without"])
def test_a_flow_that_began_before_the_service_is_taken_over(world, remedy):
    """Finding 2: conntrack remembers "no translation"."""
    if not remedy:
        world.start(NoConntrack())
    world.serve(POD1, tcp=None, udp=5353)
    world.node.run(["sh", "-c", f"ip route add default via {CLIENT}; sysctl -qw net.ipv4.ip_forward=1"])
    # as beside Docker: without a single NAT rule in the namespace there is no conntrack that could remember
    world.nft_script(
        "table ip test { chain nat { type nat hook prerouting priority -100; ip daddr 192.0.2.1 dnat to 192.0.2.2; }; }"
    )
    flow = world.flow(world.pods[POD3], timeout=0.3)
    with pytest.raises(OSError, match=r"timed out|refused"):
        ask(flow)
    world.sync(*web([POD1], UDP))
    if remedy:
        assert ask(flow)[0] == POD1
    else:
        with pytest.raises(OSError, match=r"timed out|refused"):
            ask(flow)


@pytest.mark.parametrize("remedy", [True, False], ids=["with", "without"])
def test_a_call_that_a_dead_pod_did_not_answer_goes_on_to_a_live_one(world, remedy):
    """Its SYN sent again would otherwise follow the first for two minutes."""
    if not remedy:
        world.start(NoConntrack())
    world.serve(POD1, POD2)
    drop = "table ip test { chain input { type filter hook input priority 0; tcp dport 8080 drop; }; }"
    world.pods[POD2].run(["nft", "-f", "-"], stdin=drop)
    world.sync(*web([POD2], TCP))
    answers: list[Any] = []

    def call() -> None:
        try:
            answers.append(world.call(world.pods[POD3], timeout=2.5)[0])
        except OSError as error:
            answers.append(type(error))

    thread = threading.Thread(target=call)
    thread.start()
    time.sleep(0.3)
    world.sync(endpoints([POD1], TCP))
    thread.join(10)
    assert answers == [POD1 if remedy else TimeoutError]


def test_a_missing_slot_drops_and_is_forgotten(world):
    """Finding 2: the drop at the end of a pick chain. The call comes through when the slot is back."""
    world.serve(POD1)
    world.sync(*web([POD1]))
    world.nft_script(f"delete element ip podlane endpoints {{ {VIP} . tcp . 80 . 0 }}")
    answers: list[Any] = []

    def caller() -> None:
        try:
            answers.append(world.call(world.pods[POD3], timeout=5))
        except OSError as error:
            answers.append(error)

    thread = threading.Thread(target=caller)
    thread.start()
    time.sleep(0.3)
    assert answers == []  # neither refused nor lost: the call's first packet is sent again
    while thread.is_alive():
        with inside(world.node):
            world.proxy.look()
            world.proxy.sync()
        thread.join(0.1)
    assert answers == [(POD1, POD3)]
    assert (*Frontend(VIP, "TCP", 80), 0) in world.nft.dump()[ENDPOINTS]
