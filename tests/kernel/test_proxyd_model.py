"""The model of the rules (walk.py) and the kernel, held against each other with the same packets."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from podlane.api.types import LoadBalancerIngress, LoadBalancerStatus, ServiceStatus
from proxyd.ruleset import Skeleton
from proxyd.tables import Target
from proxyd.walk import Kernel, Packet, consistent, every_outcome
from tests.kernel.conftest import inside
from tests.kernel.proxyd_nets import BOTH, FAR, NODE_TCP, POD1, POD2, POD3, V6, endpoint, web

pytestmark = pytest.mark.kernel

SHOWN = {"reset": "refused", "drop": "timeout"}


def kinds(net):
    """A service of each kind, at addresses of its own: (service, slice)."""
    ending = endpoint(net, POD1, terminating=True)
    local = {"external_traffic_policy": "Local"}
    for number, (pods, how) in enumerate(
        (
            ([POD1, POD2, FAR], {}),
            ([POD1, FAR], local),
            ([FAR], local),
            ([], local),
            ([FAR], {"internal_traffic_policy": "Local"}),
            ([POD1, POD2, FAR], {"balance": "affinity-hash", **local}),
            ([POD1, POD2, FAR], {"balance": "maglev"}),
            ([POD1, POD2, FAR], {"affinity": 300}),
            ([POD1, POD2, FAR], {"affinity": 300, "balance": "maglev", **local}),
            ([POD1, FAR], {"load_balancer_source_ranges": (net.lan(net.client),), **local}),
            ([POD1, FAR], {"load_balancer_source_ranges": (net.pod_network,)}),
            ([ending, FAR], local),
        ),
        1,
    ):
        vip = f"{net.vip[:-1]}{number:x}" if net is V6 else f"{net.vip[:-1]}{number}"
        balancer = f"{net.balancer[:-1]}{number + 16:x}" if net is V6 else f"{net.balancer[:-1]}{number + 16}"
        port = NODE_TCP._replace(node_port=30080 + number)
        service, slices = web(net, pods, port, name=f"s{number}", ip=vip, balancer=True, **how)
        ingress = LoadBalancerIngress(ip=balancer)
        status = ServiceStatus(load_balancer=LoadBalancerStatus(ingress=(ingress,)))
        yield msgspec.structs.replace(service, status=status), slices, vip, balancer, port.node_port


@BOTH
def test_what_the_model_says_the_kernel_does(world, net):
    world.serve(POD1, POD2, FAR)
    places = []
    for service, slices, vip, balancer, node_port in kinds(net):
        world.store.put(service, slices)
        places += [(vip, 80), (vip, 81), (balancer, 80), (net.node, node_port)]
    world.sync(settle=True)
    pods = {Target(address, 8080): pod for pod, address in net.pods.items()}
    skeleton = Skeleton((net.pod_network,), (net.service_range,), family=net.family)
    local = {net.node, net.node_elsewhere, net.bridge}
    tables = world.nft.dump(net.family)
    assert consistent(tables) == []
    wrong = []
    callers = ((world.client, ""), (world.client, net.source(9)), (world.pods[POD3], ""), (world.node, ""))
    for (ns, source), (ip, port) in itertools.product(callers, places):
        with inside(world.node):
            affinity = world.nft.affinity(net.family)
        own = source or source_of(world, ns, ip)
        packet = Packet(own, ip, port)
        verdicts = list(every_outcome(packet, Kernel(tables, skeleton, local, affinity)))
        seen = happens(world, ns, packet, source)
        if not any(agrees(verdict, seen, pods, {own} if not verdict.masquerade else local) for verdict in verdicts):
            wrong.append((packet, seen, verdicts))
    assert wrong == []


def source_of(world, ns, ip):
    """The address a caller there has towards that one."""
    flow = world.flow(ns, ip, 9)
    return flow.getsockname()[0]


def agrees(verdict, seen, pods, callers):
    """Whether that is what was seen, by a pod that may have seen any of these as its caller."""
    if verdict.target is None:
        return seen == (SHOWN[verdict.action], "")
    return seen[0] == pods[verdict.target] and seen[1] in callers


def happens(world, ns, packet, source):
    """(pod, the caller it saw), or "refused" or "timeout" and ""."""
    try:
        return world.call(ns, packet.destination, packet.port, 0.4, source)
    except ConnectionRefusedError:
        return "refused", ""
    except TimeoutError:
        return "timeout", ""
