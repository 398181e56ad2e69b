"""Cluster IPs with real packets, in both families: who reaches whom, and whose address the pod sees."""

from __future__ import annotations

import errno
import socket
import struct
from typing import Any

import pytest

from proxyd.tables import pack_address
from tests.kernel.proxyd_nets import (
    BOTH,
    FAR,
    POD1,
    POD2,
    POD3,
    TCP,
    UDP,
    V4,
    V6,
    Port,
    endpoints,
    service,
    web,
)
from tests.kernel.proxyd_world import ask

pytestmark = pytest.mark.kernel


@BOTH
def test_everyone_reaches_every_endpoint_and_only_outsiders_are_masqueraded(world, net):
    world.serve(POD1, POD2, FAR)
    world.sync(*web(net, [POD1, POD2, FAR]))
    # an outsider's address is the node's towards that pod: the answer comes back here to be translated
    nodes = {net.bridge, net.node_elsewhere}
    for ns, seen in ((world.pods[POD3], {net.pods[POD3]}), (world.node, nodes), (world.client, nodes)):
        answers = [world.call(ns, net.vip) for _ in range(40)]
        assert {name for name, _ in answers} == {POD1, POD2, FAR}
        assert {caller for _, caller in answers} == seen
    # a pod of another host keeps its address too
    world.sync(endpoints(net, [POD1, POD2]))
    assert world.call(world.far, net.vip, source=net.pods[FAR])[1] == net.pods[FAR]


@BOTH
def test_the_load_is_spread_evenly(world, net):
    world.serve(POD1, POD2, FAR)
    world.sync(*web(net, [POD1, POD2, FAR]))
    spread = world.calls(world.pods[POD3], 300, ip=net.vip)
    assert set(spread) == {POD1, POD2, FAR}
    assert min(spread.values()) > 60  # 100 expected; less than 60 has a chance of 1 in 10 million


@BOTH
def test_several_ports_and_one_number_with_two_protocols(world, net):
    ports = (TCP, Port("TCP", 9153, 9153), Port("TCP", 53, 5300), UDP)
    world.serve(POD1, udp=5353)
    world.serve(POD1, tcp=9153)
    world.serve(POD2, tcp=5300)
    world.sync(*web(net, [POD1], TCP, ports[1], UDP))
    # a service's port is served by the endpoints that have one of that name
    world.sync(service(net, *ports), endpoints(net, [POD2], ports[2], part="second"))
    for ns in (world.pods[POD3], world.node, world.client):
        assert [world.call(ns, net.vip, port)[0] for port in (80, 9153, 53)] == [POD1, POD1, POD2]
        assert ask(world.flow(ns, net.vip))[0] == POD1


def test_a_service_of_both_families_is_served_in_both(world):
    world.serve(POD1, FAR, udp=5353)
    web4 = web(V4, [POD1, FAR], TCP, UDP, cluster_ips=(V4.vip, V6.vip))
    world.sync(*web4, endpoints(V6, [FAR], TCP, UDP))
    for ns in (world.pods[POD3], world.node, world.client):
        assert set(world.calls(ns, 20, ip=V4.vip)) == {POD1, FAR}
        assert set(world.calls(ns, 8, ip=V6.vip)) == {FAR}
        assert ask(world.flow(ns, V6.vip))[0] == FAR
    # one of the families has nobody left: only it is refused
    world.sync(endpoints(V6, [], TCP, UDP))
    assert world.outcome(world.client, V6.vip) == "refused"
    assert world.outcome(world.client, V4.vip) in {POD1, FAR}


@pytest.mark.parametrize("net", [V4])
def test_a_host_without_a_route_reaches_services(world, net):
    """Finding 12."""
    world.serve(POD1, udp=5353)
    assert not world.node.run(f"ip -j route show match {net.service_range}").strip("[] \n")
    with pytest.raises(OSError, match="unreachable") as caught:
        world.call(world.node, net.vip)
    assert caught.value.errno == errno.ENETUNREACH
    world.sync(*web(net, [POD1], TCP, UDP))
    assert world.call(world.node, net.vip)[0] == POD1
    # datagrams that need fragments on the real link, not on lo
    flow = world.flow(world.node, net.vip)
    flow.send(bytes(6000))
    assert flow.recv(64).decode().startswith(POD1)


@BOTH
def test_pods_on_one_bridge_are_answered_through_the_translation(world, net):
    world.serve(POD1, POD2)
    world.sync(*web(net, [POD1, POD2]))
    pod = world.pods[POD3]
    assert set(world.calls(pod, 30, ip=net.vip)) == {POD1, POD2}
    # without bridge traffic in netfilter the answer goes straight to the caller, who knows no such connection
    world.node.run(f"sysctl -qw net.bridge.bridge-nf-call-{net.name}tables=0")
    assert world.outcome(pod, net.vip) == "timeout"


@BOTH
def test_a_pod_that_is_sent_to_itself_is_answered(world, net):
    """Finding 9: it takes the masquerade, and the bridge's leave to send back."""
    world.serve(POD1)
    world.sync(*web(net, [POD1]))
    pod = world.pods[POD1]
    assert world.call(pod, net.vip) == (POD1, net.bridge)
    world.node.run("ip link set v1 type bridge_slave hairpin off")
    assert world.outcome(pod, net.vip) == "timeout"
    world.sync()
    assert world.call(pod, net.vip)[0] == POD1
    world.nft_script(f"flush set {net.name} podlane hairpin")
    assert world.outcome(pod, net.vip) == "timeout"


# --- SCTP ------------------------------------------------------------------------------


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def sctp(source: int, destination: int, tag: int, kind: int, cookie: bytes = b"") -> bytes:
    """A packet with one chunk, INIT or INIT ACK (RFC 9260, 3.3.2 and 3.3.3)."""
    body = struct.pack("!IIHHI", 7, 65536, 1, 1, 1) + cookie
    chunk = struct.pack("!BBH", kind, 0, 4 + len(body)) + body
    head = struct.pack("!HHI", source, destination, tag)
    return head + struct.pack("<I", crc32c(head + bytes(4) + chunk)) + chunk


@BOTH
def test_sctp_is_translated_both_ways(world, net):
    """By hand, for not every kernel has SCTP sockets; translating takes conntrack's knowledge only."""
    world.sync(*web(net, [POD1], Port("SCTP", 3868, 3869)))
    client, pod = (world.socket(ns, socket.SOCK_RAW, af=net.af, proto=132) for ns in (world.client, world.pods[POD1]))
    client.sendto(sctp(1000, 3868, 0, 1), (net.vip, 0))
    packet, (caller, *_) = received(pod, net.af)
    source, destination = struct.unpack_from("!HH", packet)
    assert (caller, destination) == (net.bridge, 3869)
    pod.sendto(sctp(destination, source, 7, 2, struct.pack("!HHI", 7, 8, 0)), (caller, 0))
    packet, (answerer, *_) = received(client, net.af)
    assert (answerer, *struct.unpack_from("!HH", packet)) == (net.vip, 3868, 1000)


def received(raw: socket.socket, af: int) -> tuple[bytes, Any]:
    """The next packet from its transport header on, and whence."""
    packet, sender = raw.recvfrom(2048)
    return packet[20 if af == socket.AF_INET else 0 :], sender


def test_without_an_endpoint_sctp_is_refused_and_answered_by_icmp(world):
    world.sync(*web(V4, [], Port("SCTP", 3868, 3869)))
    client = world.socket(world.client, socket.SOCK_RAW, proto=132)
    ear = world.socket(world.client, socket.SOCK_RAW, proto=socket.IPPROTO_ICMP)
    client.sendto(sctp(1000, 3868, 0, 1), (V4.vip, 0))
    packet, _ = received(ear, V4.af)
    assert packet[:2] == bytes([3, 3])  # destination unreachable, port
    assert packet[8 + 16 : 8 + 20] == pack_address(V4.vip)
