"""Which endpoints serve whom: traffic policies, endpoints that end, hints; with real packets in both families."""

from __future__ import annotations

import pytest

from podlane.api.types import EndpointHints, ForNode, ForZone
from tests.kernel.proxyd_nets import (
    BOTH,
    FAR,
    NODE_TCP,
    POD1,
    POD2,
    POD3,
    V4,
    endpoint,
    endpoints,
    service,
    web,
)

pytestmark = pytest.mark.kernel


def seen(world, ns, ip, port=80, calls=12):
    """Who answers in so many calls; what is not answered raises."""
    return set(world.calls(ns, calls, ip=ip, port=port))


# --- traffic policies --------------------------------------------------------------------


@BOTH
def test_internal_local_leads_to_this_nodes_endpoints(world, net):
    world.serve(POD1, FAR)
    local = service(net, NODE_TCP, internal_traffic_policy="Local")
    world.sync(local, endpoints(net, [POD1, FAR]))
    for ns in (world.pods[POD3], world.node, world.client):
        assert seen(world, ns, net.vip) == {POD1}
        assert seen(world, ns, net.node, 30080, calls=20) == {POD1, FAR}  # for that is another policy
    # none here, but elsewhere: not refused, for there is a service
    world.sync(endpoints(net, [FAR]))
    for ns in (world.pods[POD3], world.client):
        assert world.outcome(ns, net.vip) == "timeout"
        assert world.outcome(ns, net.node, 30080) == FAR
    world.sync(endpoints(net, []))
    assert world.outcome(world.pods[POD3], net.vip) == "refused"
    assert world.outcome(world.client, net.node, 30080) == "refused"


def external_local(net, **spec):
    return service(net, NODE_TCP, balancer=True, external_ips=(net.external,), external_traffic_policy="Local", **spec)


@BOTH
def test_external_local_keeps_the_clients_address(world, net):
    world.serve(POD1, FAR)
    world.sync(external_local(net), endpoints(net, [POD1, FAR]))
    frontends = ((net.node, 30080), (net.external, 80), (net.balancer, 80))
    for address, port in frontends:
        for _ in range(8):
            assert world.call(world.client, address, port) == (POD1, net.client)
        # pods and the host itself are inside, where all endpoints are open
        answers = [world.call(world.pods[POD3], address, port) for _ in range(20)]
        assert {name for name, _ in answers} == {POD1, FAR}
        assert {caller for _, caller in answers} == {net.pods[POD3]}
        answers = [world.call(world.node, address, port) for _ in range(20)]
        assert {name for name, _ in answers} == {POD1, FAR}
        # its address of the link it would have left by is none that the answer finds
        assert {caller for _, caller in answers} == {net.bridge, net.node_elsewhere}
    # the cluster IP is not concerned
    assert seen(world, world.client, net.vip, calls=20) == {POD1, FAR}


@BOTH
def test_external_local_without_a_local_endpoint_is_silent_to_outsiders_only(world, net):
    world.serve(FAR)
    world.sync(external_local(net), endpoints(net, [FAR]))
    for address, port in ((net.node, 30080), (net.external, 80), (net.balancer, 80)):
        assert world.outcome(world.client, address, port) == "timeout"
        assert world.call(world.pods[POD3], address, port) == (FAR, net.pods[POD3])
        assert world.call(world.node, address, port)[0] == FAR
    assert world.outcome(world.client, net.vip) == FAR
    # nobody anywhere: refused, outsiders too
    world.sync(endpoints(net, []))
    for ns in (world.client, world.pods[POD3], world.node):
        assert world.outcome(ns, net.node, 30080) == "refused"
        assert world.outcome(ns, net.balancer) == "refused"


@BOTH
def test_a_policy_may_change_while_it_is_served(world, net):
    world.serve(POD1, FAR)
    world.sync(external_local(net), endpoints(net, [POD1, FAR]))
    held = world.connect(world.client, net.balancer)
    assert world.call(world.client, net.balancer) == (POD1, net.client)
    cluster = service(net, NODE_TCP, balancer=True, external_ips=(net.external,))
    world.sync(cluster, settle=True)
    answers = [world.call(world.client, net.balancer) for _ in range(20)]
    assert {name for name, _ in answers} == {POD1, FAR}
    assert {caller for _, caller in answers} == {net.bridge, net.node_elsewhere}
    world.sync(external_local(net), settle=True)
    assert world.call(world.client, net.balancer) == (POD1, net.client)
    held.sendall(b"?")
    assert held.recv(64).decode() == f"{POD1} {net.client}"


def test_without_the_masquerade_of_the_hosts_own_its_calls_are_not_answered(world):
    """What `masquerade-own` is for: the host took the address of the link that leads to the service's address."""
    world.serve(FAR)
    world.sync(external_local(V4), endpoints(V4, [FAR]))
    assert world.call(world.node, V4.balancer) == (FAR, V4.node_elsewhere)
    world.nft_script("flush chain ip podlane masquerade-own")
    world.far.run("ip route delete default")  # far knows the pods' nodes by the addresses of its own link only
    assert world.outcome(world.node, V4.balancer) == "timeout"


# --- endpoints that end ------------------------------------------------------------------


@BOTH
def test_terminating_endpoints_serve_while_no_ready_one_is_left(world, net):
    world.serve(POD1, POD2, POD3)
    ending1, ending2 = (endpoint(net, each, terminating=True) for each in (POD1, POD2))
    unready = endpoint(net, POD3, ready=False)
    world.sync(*web(net, [ending1, POD2, unready], NODE_TCP))
    for ns in (world.far, world.node, world.client):
        assert seen(world, ns, net.vip) == {POD2}
        assert seen(world, ns, net.node, 30080) == {POD2}
    world.sync(endpoints(net, [ending1, ending2, unready]))
    for ns in (world.far, world.node, world.client):
        assert seen(world, ns, net.vip, calls=20) == {POD1, POD2}
    world.sync(endpoints(net, [unready]))
    for ns in (world.far, world.node, world.client):
        assert world.outcome(ns, net.vip) == "refused"
        assert world.outcome(ns, net.node, 30080) == "refused"


@BOTH
def test_each_policys_set_has_its_own_last_resort(world, net):
    """Here only one that ends, elsewhere a ready one: who may go there goes there."""
    world.serve(POD1, FAR)
    ending = endpoint(net, POD1, terminating=True)
    world.sync(external_local(net, internal_traffic_policy="Local"), endpoints(net, [ending, FAR]))
    assert seen(world, world.client, net.balancer) == {POD1}
    assert seen(world, world.pods[POD3], net.balancer) == {FAR}
    assert seen(world, world.pods[POD3], net.vip) == {POD1}
    world.sync(external_local(net))
    assert seen(world, world.pods[POD3], net.vip) == {FAR}


# --- hints -------------------------------------------------------------------------------


def zone(*names):
    return EndpointHints(for_zones=tuple(ForZone(name=name) for name in names))


@BOTH
def test_hints_are_heeded_where_all_have_one_and_one_is_for_us(world, net):
    world.serve(POD1, POD2, FAR)
    near, far = endpoint(net, POD1, hints=zone("a")), endpoint(net, FAR, hints=zone("b", "c"))
    pod = world.pods[POD3]
    world.store.zone = "a"
    world.sync(*web(net, [near, far]))
    assert seen(world, pod, net.vip) == {POD1}
    for name, expected in (("c", {FAR}), ("d", {POD1, FAR}), ("", {POD1, FAR})):
        world.store.zone = name
        world.sync()
        assert seen(world, pod, net.vip, calls=20) == expected
    world.store.zone = "a"
    world.sync(endpoints(net, [near, far, POD2]))  # which has none
    assert seen(world, pod, net.vip, calls=40) == {POD1, POD2, FAR}
    # the node's own before the zone's
    mine = endpoint(net, POD2, hints=EndpointHints(for_nodes=(ForNode(name="node"),), for_zones=(ForZone(name="b"),)))
    other = endpoint(net, POD1, hints=EndpointHints(for_nodes=(ForNode(name="far"),), for_zones=(ForZone(name="a"),)))
    world.sync(endpoints(net, [mine, other]))
    assert seen(world, pod, net.vip) == {POD2}
