"""What is not served is refused or dropped, at once and every time; with real packets in both families."""

from __future__ import annotations

import pytest

from tests.kernel.conftest import inside
from tests.kernel.proxyd_nets import BOTH, POD1, TCP, V4, web
from tests.kernel.proxyd_world import ask

pytestmark = pytest.mark.kernel


@BOTH
@pytest.mark.parametrize("port", [80, 81], ids=["no-endpoint", "no-such-port"])
def test_refused_at_once_every_time(world, net, port):
    """Finding 8: thirty of thirty; an ICMP answer alone is rate limited and lets most time out."""
    world.sync(*web(net, [], TCP))
    for ns in (world.pods[POD1], world.node, world.client, world.far):
        for _ in range(30):
            with pytest.raises(ConnectionRefusedError):
                world.call(ns, net.vip, port, timeout=5)
        # a local sender is told by the call itself
        with pytest.raises(PermissionError if ns is world.node else ConnectionRefusedError):
            ask(world.flow(ns, net.vip, port, timeout=5))


def test_with_icmp_alone_some_time_out(world):
    """Finding 8 without its remedy."""
    world.sync(*web(V4, [], TCP))
    world.nft_script("flush chain ip podlane refuse\nadd rule ip podlane refuse reject with icmp type port-unreachable")
    results = []
    for _ in range(12):
        try:
            world.call(world.pods[POD1], timeout=0.05)
        except OSError as error:
            results.append(type(error))
    assert TimeoutError in results


@BOTH
def test_an_address_no_service_has_is_dropped(world, net):
    world.node.run(f"ip route add default via {net.client}")  # by which it would leave the node otherwise
    world.sync(*web(net, [POD1]))
    for ns in (world.pods[POD1], world.node):
        flow = world.flow(ns, net.unallocated, timeout=0.2)
        with pytest.raises((TimeoutError, PermissionError)):
            ask(flow)
    with inside(world.node):
        assert not [f for f in world.conntrack.flows("UDP", net.af) if f.frontend.address == net.unallocated]


@BOTH
def test_a_host_with_a_default_route_refuses_the_same(world, net):
    world.node.run(f"ip route add default via {net.client}")
    world.sync(*web(net, [], TCP))
    for ns in (world.pods[POD1], world.node, world.client):
        assert world.outcome(ns, net.vip) == "refused"
