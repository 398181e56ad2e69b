"""Node ports, external addresses, load balancers' and who may call them, with real packets in both families."""

from __future__ import annotations

import pytest

from tests.kernel.proxyd_nets import (
    BOTH,
    FAR,
    NODE_TCP,
    NODE_UDP,
    POD1,
    POD2,
    POD3,
    TCP,
    V4,
    V6,
    endpoints,
    service,
    web,
)
from tests.kernel.proxyd_world import ask

pytestmark = pytest.mark.kernel


def everywhere(world):
    return world.client, world.pods[POD3], world.node, world.far


@BOTH
def test_a_node_port_is_served_to_everyone_and_masqueraded(world, net):
    world.serve(POD1, FAR, udp=5353)
    world.sync(*web(net, [POD1, FAR], NODE_TCP, NODE_UDP))
    for ns in everywhere(world):
        answers = [world.call(ns, net.node, 30080) for _ in range(20)]
        assert {name for name, _ in answers} == {POD1, FAR}
        assert {caller for _, caller in answers} == {net.bridge, net.node_elsewhere}
        assert ask(world.flow(ns, net.node, 30053))[0] in {POD1, FAR}
    # a pod that calls its own node port is sent to itself, too
    assert {world.call(world.pods[POD1], net.node, 30080)[0] for _ in range(20)} == {POD1, FAR}


@BOTH
def test_a_node_port_is_served_at_the_chosen_addresses_only(world, net):
    world.serve(POD1)
    world.sync(*web(net, [POD1], NODE_TCP))
    assert world.outcome(world.pods[POD3], net.node, 30080) == POD1
    assert world.outcome(world.pods[POD3], net.bridge, 30080) == "refused"
    assert world.outcome(world.far, net.node_elsewhere, 30080) == "refused"
    assert world.outcome(world.node, "127.0.0.1" if net is V4 else "::1", 30080) == "refused"
    world.store.internal_ips = (net.node_elsewhere,)
    world.sync(settle=True)
    assert world.outcome(world.far, net.node_elsewhere, 30080) == POD1
    assert world.outcome(world.client, net.node, 30080) == "refused"
    # a port of the node's own that no service has is left to the node
    listener = world.socket(world.node, 1, af=net.af)
    listener.bind((net.node, 30081))
    listener.listen()
    world.connect(world.client, net.node, 30081).close()


@BOTH
def test_without_an_endpoint_node_ports_and_external_addresses_are_refused_at_once(world, net):
    """Finding 8: thirty of thirty."""
    world.sync(*web(net, [], NODE_TCP, NODE_UDP, balancer=True, external_ips=(net.external,)))
    for ns in (world.client, world.pods[POD3], world.node):
        for address, port in ((net.node, 30080), (net.external, 80), (net.balancer, 80)):
            for _ in range(30):
                with pytest.raises(ConnectionRefusedError):
                    world.call(ns, address, port, timeout=5)
        # a local sender is told by the call itself, except of a local address
        with pytest.raises((ConnectionRefusedError, PermissionError)):
            ask(world.flow(ns, net.node, 30053, timeout=5))
    # and served as soon as there is one
    world.serve(POD1, udp=5353)
    world.sync(endpoints(net, [POD1], NODE_TCP, NODE_UDP))
    for ns in (world.client, world.pods[POD3], world.node):
        assert world.call(ns, net.node, 30080)[0] == POD1
        assert ask(world.flow(ns, net.node, 30053))[0] == POD1


@BOTH
def test_external_and_load_balancer_addresses_are_served_to_everyone(world, net):
    world.serve(POD1, FAR, udp=5353)
    world.sync(*web(net, [POD1, FAR], TCP, NODE_UDP, balancer=True, external_ips=(net.external,)))
    for ns in everywhere(world):
        for address in (net.external, net.balancer):
            answers = [world.call(ns, address) for _ in range(20)]
            assert {name for name, _ in answers} == {POD1, FAR}
            assert {caller for _, caller in answers} == {net.bridge, net.node_elsewhere}
            assert ask(world.flow(ns, address))[0] in {POD1, FAR}


@BOTH
def test_a_service_that_is_none_any_more_leaves_nothing(world, net):
    world.serve(POD1)
    web1 = web(net, [POD1], NODE_TCP, balancer=True, external_ips=(net.external,))
    world.sync(*web1)
    world.store.drop(web1[0])
    world.sync(settle=True)
    assert not any(world.nft.dump(net.family).maps.values())
    assert world.outcome(world.client, net.node, 30080) == "refused"
    assert world.outcome(world.client, net.vip) == "timeout"


# --- source ranges ---------------------------------------------------------------------


def ranged(net, *ranges):
    return service(net, NODE_TCP, balancer=True, load_balancer_source_ranges=ranges)


@BOTH
def test_source_ranges_admit_whom_they_name(world, net):
    """Finding 11: with the client's own address, before it and the destination are translated."""
    world.serve(POD1, FAR)
    other = net.lan(net.source(0))
    world.sync(ranged(net, f"{net.client}/{net.family.width * 8}"), endpoints(net, [POD1, FAR]))
    for _ in range(10):
        assert world.call(world.client, net.balancer)[0] in {POD1, FAR}
    for ns, source in ((world.client, net.source(1)), (world.pods[POD3], ""), (world.node, "")):
        assert world.outcome(ns, net.balancer, source=source) == "timeout"
    # the other addresses of the service are open
    assert world.outcome(world.client, net.node, 30080, source=net.source(1)) in {POD1, FAR}
    assert world.outcome(world.pods[POD3], net.vip) in {POD1, FAR}
    # a range that covers another, given twice, and pods, and one of the other family
    foreign = V6 if net is V4 else V4
    world.sync(
        ranged(net, other, f"{net.source(1)}/{net.family.width * 8}", other, net.pod_network, foreign.pod_network)
    )
    assert world.outcome(world.client, net.balancer) == "timeout"
    assert world.outcome(world.client, net.balancer, source=net.source(1)) in {POD1, FAR}
    assert world.outcome(world.client, net.balancer, source=net.source(250)) in {POD1, FAR}
    assert world.outcome(world.pods[POD3], net.balancer) in {POD1, FAR}
    # none of this family: nobody
    world.sync(ranged(net, foreign.pod_network))
    assert world.outcome(world.pods[POD3], net.balancer) == "timeout"
    # none at all: everybody
    world.sync(ranged(net))
    assert world.outcome(world.client, net.balancer) in {POD1, FAR}


@BOTH
def test_source_ranges_hold_where_the_client_keeps_its_address(world, net):
    world.serve(POD1, FAR)
    world.sync(
        service(
            net,
            NODE_TCP,
            balancer=True,
            external_traffic_policy="Local",
            load_balancer_source_ranges=(net.lan(net.client),),
        ),
        endpoints(net, [POD1, FAR]),
    )
    assert world.call(world.client, net.balancer) == (POD1, net.client)
    assert world.outcome(world.client, net.balancer, source=net.source(1)) == "timeout"
    assert world.outcome(world.pods[POD3], net.balancer) == "timeout"


def test_checked_after_the_translation_they_would_stop_nobody(world):
    """Finding 11 without its remedy."""
    world.serve(POD1)
    world.sync(ranged(V4, f"{V4.client}/32"), endpoints(V4, [POD1]))
    assert world.outcome(world.client, V4.balancer, source=V4.source(1)) == "timeout"
    world.nft_script(
        f"""flush chain ip podlane ranged
        add rule ip podlane ranged ip daddr . meta l4proto . th dport vmap @admitted
        table ip test {{ chain forward {{ type filter hook forward priority filter;
            ip daddr {V4.balancer} ip saddr != {V4.client} drop; }}; }}"""
    )
    assert world.outcome(world.client, V4.balancer, source=V4.source(1)) == POD1


def test_of_two_services_with_one_node_port_each_family_is_its_own(world):
    world.serve(POD1, POD2)
    world.sync(*web(V4, [POD1], NODE_TCP), *web(V6, [POD2], NODE_TCP, name="six"))
    assert world.outcome(world.client, V4.node, 30080) == POD1
    assert world.outcome(world.client, V6.node, 30080) == POD2
