"""A segment out of conntrack's window, through proxyd's translation: the client's connection goes on."""

from __future__ import annotations

import socket

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6

from tests.kernel.proxyd_nets import BOTH, FAR, POD3, V4, web
from tests.kernel.proxyd_world import ask

pytestmark = pytest.mark.kernel

_ETH_P_ALL = 3


@BOTH
@pytest.mark.parametrize("liberal", [True, False], ids=["liberal", "strict"])
def test_a_segment_out_of_window_does_not_end_a_connection(world, net, liberal):
    """Strict, it reaches the client untranslated, who knows no such connection and resets the pod's end of it."""
    world.start(tcp_be_liberal=liberal)
    world.serve(FAR)
    world.sync(*web(net, [FAR]))
    layer = IP if net is V4 else IPv6
    kind = 0x0800 if net is V4 else 0x86DD
    ear = world.socket(world.far, socket.SOCK_DGRAM, 5, socket.AF_PACKET, socket.htons(_ETH_P_ALL))
    raw = world.socket(world.far, socket.SOCK_RAW, 5, net.af, socket.IPPROTO_RAW)
    held = world.connect(world.pods[POD3], net.vip)
    assert ask(held)[0] == FAR
    # the pod's answer: from it on both ends know each other's numbers
    packet = next(each for each in heard(ear, kind, layer) if each.src == net.pods[FAR] and data(each))
    beyond = (packet[TCP].seq + (1 << 30)) % (1 << 32)
    late = layer(src=packet.src, dst=packet.dst) / TCP(
        sport=8080, dport=packet[TCP].dport, flags="PA", seq=beyond, ack=packet[TCP].ack
    )
    raw.sendto(bytes(late / b"late"), (packet.dst, 0))
    # what the client thinks of it: a reset, or an acknowledgement of what it had
    said = packet[TCP].seq + len(data(packet))
    next(
        each
        for each in heard(ear, kind, layer)
        if each.src == net.pods[POD3]
        and each[TCP].seq == packet[TCP].ack
        and (each[TCP].flags.R or each[TCP].ack == said)
    )
    if liberal:
        assert [ask(held)[0] for _ in range(3)] == [FAR] * 3
    else:
        with pytest.raises(OSError, match=r"reset|closed|timed out"):
            ask(held)


def heard(ear, kind, layer):
    """Each TCP packet that comes or goes."""
    while True:
        data, (_, protocol, *_) = ear.recvfrom(2048)
        if protocol == kind and TCP in (packet := layer(data)):
            yield packet


def data(packet):
    return bytes(packet[TCP].payload)
