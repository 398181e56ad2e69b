"""Flows that would stay where they no longer belong (findings 2 and 10), in both families."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from proxyd.tables import ENDPOINTS, Frontend, pack_frontend, pack_mark
from tests.kernel.conftest import inside
from tests.kernel.proxyd_nets import (
    BOTH,
    FAR,
    NODE_UDP,
    POD1,
    POD2,
    POD3,
    TCP,
    UDP,
    V4,
    endpoints,
    service,
    web,
)
from tests.kernel.proxyd_world import NoConntrack, ask

pytestmark = pytest.mark.kernel


@BOTH
def test_a_udp_flow_leaves_an_endpoint_that_left(world, net):
    """Finding 10: also to zero and from zero, at node ports too, and a neighbour's flow stays."""
    world.serve(POD1, POD2, FAR, tcp=None, udp=5353)
    world.sync(*web(net, [POD1], NODE_UDP, balancer=True))
    world.sync(*web(net, [POD1], UDP, name="other", ip=net.other_vip))
    fronts = ((net.vip, 53), (net.node, 30053), (net.balancer, 53))
    flows = [world.flow(ns, *front) for ns in (world.pods[POD3], world.client, world.node) for front in fronts]
    neighbour = world.flow(world.pods[POD3], net.other_vip)
    for flow in (*flows, neighbour):
        assert ask(flow)[0] == POD1
    world.sync(endpoints(net, [FAR], UDP))
    for flow in flows:
        assert ask(flow)[0] == FAR
    world.sync(endpoints(net, [], UDP))
    for flow in flows:
        with pytest.raises((ConnectionRefusedError, PermissionError, TimeoutError)):  # ICMP is rate limited
            ask(flow)
    world.sync(endpoints(net, [POD2], UDP))
    for flow in flows:
        assert settled(flow) == POD2
    with inside(world.node):
        sources = {(f.frontend.address, f.replies_from.address) for f in world.conntrack.flows("UDP", net.af)}
    assert (net.other_vip, net.pods[POD1]) in sources
    assert ask(neighbour)[0] == POD1


def settled(flow: Any) -> str:
    """Who answers, past the refusal of an earlier message that arrives late."""
    for _ in range(5):
        try:
            return ask(flow)[0]
        except ConnectionRefusedError:
            continue
    return "refused"


@BOTH
def test_a_deleted_services_flows_end(world, net):
    world.serve(POD1, tcp=None, udp=5353)
    world.sync(*web(net, [POD1], UDP))
    flow = world.flow(world.pods[POD3], net.vip, timeout=0.2)
    assert ask(flow)[0] == POD1
    world.store.drop(service(net, UDP))
    world.sync()
    with pytest.raises(OSError, match=r"timed out|refused"):
        ask(flow)


@BOTH
def test_without_the_cleaning_a_flow_stays_where_it_was(world, net):
    """Finding 10 without its remedy."""
    world.start(NoConntrack())
    world.serve(POD1, POD2, tcp=None, udp=5353)
    world.sync(*web(net, [POD1], NODE_UDP))
    flows = [world.flow(world.client, net.vip), world.flow(world.client, net.node, 30053)]
    for flow in flows:
        assert ask(flow)[0] == POD1
    world.sync(endpoints(net, [POD2], NODE_UDP))
    for flow in flows:
        assert ask(flow)[0] == POD1


@BOTH
@pytest.mark.parametrize("remedy", [True, False], ids=["with", "without"])
def test_a_flow_that_began_before_the_service_is_taken_over(world, net, remedy):
    """Finding 2: conntrack remembers "no translation"."""
    if not remedy:
        world.start(NoConntrack())
    world.serve(POD1, tcp=None, udp=5353)
    world.node.run(
        [
            "sh",
            "-c",
            f"ip route add default via {net.client}; sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1",
        ]
    )
    # as beside Docker: without a single NAT rule in the namespace there is no conntrack that could remember
    world.nft_script(
        f"table {net.name} test {{ chain nat {{ type nat hook prerouting priority -100; "
        f"{net.name} daddr {net.source(1)} dnat to {net.source(2)}; }}; }}"
    )
    flow = world.flow(world.pods[POD3], net.vip, timeout=0.3)
    with pytest.raises(OSError, match=r"timed out|refused|route"):
        ask(flow)
    world.sync(*web(net, [POD1], UDP))
    if remedy:
        assert ask(flow)[0] == POD1
    else:
        with pytest.raises(OSError, match=r"timed out|refused|route"):
            ask(flow)


@pytest.mark.parametrize("remedy", [True, False], ids=["with", "without"])
def test_a_call_that_a_dead_pod_did_not_answer_goes_on_to_a_live_one(world, remedy):
    """Its SYN sent again would otherwise follow the first for two minutes."""
    if not remedy:
        world.start(NoConntrack())
    world.serve(POD1, POD2)
    drop = "table ip test { chain input { type filter hook input priority 0; tcp dport 8080 drop; }; }"
    world.pods[POD2].run(["nft", "-f", "-"], stdin=drop)
    world.sync(*web(V4, [POD2], TCP))
    answers: list[Any] = []
    patience = 10.0 if remedy else 2.5

    def call() -> None:
        try:
            answers.append(world.call(world.pods[POD3], timeout=patience)[0])
        except OSError as error:
            answers.append(type(error))

    thread = threading.Thread(target=call)
    thread.start()
    time.sleep(0.3)
    world.sync(endpoints(V4, [POD1], TCP))
    thread.join(20)
    assert answers == [POD1 if remedy else TimeoutError]


@BOTH
@pytest.mark.parametrize("remedy", [True, False], ids=["with", "without"])
def test_a_missing_slot_drops_and_is_forgotten(world, net, remedy):
    """Finding 2: the drop at the end of a pick chain. A flow comes through when the slot is back."""
    world.serve(POD1, udp=5353)
    world.node.run(f"ip route add default via {net.client}")  # or what is untranslated would go nowhere
    world.sync(*web(net, [POD1], UDP))
    if not remedy:
        chain = world.node.run(f"nft -a list chain {net.name} podlane lb1")
        handle = chain.partition("drop # handle ")[2].split()[0]
        world.nft_script(f"delete rule {net.name} podlane lb1 handle {handle}")
        world.nft_script(f"flush chain {net.name} podlane filter-{'forward' if net is V4 else 'prerouting'}")
    world.nft_script(f"delete element {net.name} podlane endpoints {{ {net.vip} . udp . 53 . 0 }}")
    flow = world.flow(world.pods[POD3], net.vip)
    for _ in range(2):
        with pytest.raises(OSError, match=r"timed out|route"):
            ask(flow)
    world.nft_script(
        f"add element {net.name} podlane endpoints {{ {net.vip} . udp . 53 . 0 : {net.pods[POD1]} . 5353 }}"
    )
    if remedy:
        assert ask(flow)[0] == POD1
    else:
        with pytest.raises(OSError, match=r"timed out|route"):
            ask(flow)


def test_a_call_waits_for_the_repair(world):
    """It is neither refused nor lost: its first packet is sent again."""
    world.serve(POD1)
    world.sync(*web(V4, [POD1]))
    world.nft_script(f"delete element ip podlane endpoints {{ {V4.vip} . tcp . 80 . 0 }}")
    answers: list[Any] = []

    def caller() -> None:
        try:
            answers.append(world.call(world.pods[POD3], timeout=20))
        except OSError as error:
            answers.append(error)

    thread = threading.Thread(target=caller)
    thread.start()
    time.sleep(0.3)
    assert answers == []
    while thread.is_alive():
        world.repair()
        thread.join(0.1)
    assert answers == [(POD1, V4.pods[POD3])]
    slot = pack_frontend(Frontend(V4.vip, "TCP", 80)) + pack_mark(0)
    assert slot in world.nft.dump(V4.family)[ENDPOINTS]
