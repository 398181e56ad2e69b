"""A node with a pod, a neighbour with another host's pod, and somebody outside; both address families.

    outside 192.168.64.1, fd00:64::1 ── eth0 node .11, ::11 ── v1 10.5.1.1 ── pod 10.5.1.2, fd00:5:0:1::2
                                               └── eth1 172.16.0.1 ── far 172.16.0.2, its pod's address 10.5.2.2

The node's VTEP address, from which it calls other hosts' pods, is 10.5.1.0 (fd00:5:0:1::), and `far` is reached
by a plain route: what a packet looks like when it leaves does not depend on the tunnel.
"""

from __future__ import annotations

import re
import socket
from ipaddress import IPv4Network, IPv6Network, ip_address

from netd.firewall import FirewallRules, VxlanGuard
from podlane.api.subnets import Subnets
from tests.kernel.conftest import Netns, NetnsMaker, inside

SO_MARK = 36
RULES = FirewallRules(
    networks=(IPv4Network("10.5.0.0/16"), IPv6Network("fd00:5::/48")),
    own=Subnets(IPv4Network("10.5.1.0/24"), IPv6Network("fd00:5:0:1::/64")),
    forward=True,
    masquerade=True,
)
OUTSIDE = {4: "192.168.64.1", 6: "fd00:64::1"}
NODE = {4: "192.168.64.11", 6: "fd00:64::11"}
NODE_TO_FAR = {4: "172.16.0.1", 6: "fd00:172::1"}
BRIDGE = {4: "10.5.1.1", 6: "fd00:5:0:1::1"}
POD = {4: "10.5.1.2", 6: "fd00:5:0:1::2"}
VTEP = {4: "10.5.1.0", 6: "fd00:5:0:1::"}
FAR = {4: "10.5.2.2", 6: "fd00:5:0:2::2"}
GROUP = {4: "239.1.2.3", 6: "ff15::123"}


def guard(*sources: str, port: int = 8472) -> VxlanGuard:
    return VxlanGuard(port, frozenset(map(ip_address, sources)))


class World:
    def __init__(self, netns: NetnsMaker) -> None:
        self.node, self.outside, self.pod, self.far = map(netns.add, ("node", "outside", "pod", "far"))
        for ns in (self.node, self.outside, self.pod, self.far):
            # a link's own address could not be used for the first second or two
            ns.run(["sysctl", "-qw", "net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0"])
        netns.link(self.node, "eth0", self.outside, "eth0")
        netns.link(self.node, "v1", self.pod, "eth0")
        netns.link(self.node, "eth1", self.far, "eth0")
        self.node.run(["sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"])
        self._addresses(self.node, "eth0", f"{NODE[4]}/24", f"{NODE[6]}/64")
        self._addresses(self.node, "v1", f"{BRIDGE[4]}/24", f"{BRIDGE[6]}/64")
        self._addresses(self.node, "eth1", f"{NODE_TO_FAR[4]}/24", f"{NODE_TO_FAR[6]}/64")
        self._addresses(self.node, "lo", f"{VTEP[4]}/32", f"{VTEP[6]}/128")
        self._addresses(self.pod, "eth0", f"{POD[4]}/24", f"{POD[6]}/64")
        self._addresses(self.far, "eth0", "172.16.0.2/24", "fd00:172::2/64")
        self._addresses(self.far, "lo", f"{FAR[4]}/32", f"{FAR[6]}/128")
        self._addresses(self.outside, "eth0", f"{OUTSIDE[4]}/24", f"{OUTSIDE[6]}/64")
        self.node.run("ip route add 10.5.2.0/24 via 172.16.0.2")
        self.node.run("ip route add fd00:5:0:2::/64 via fd00:172::2")
        for ns, device, via, via6 in (
            (self.pod, "eth0", BRIDGE[4], BRIDGE[6]),
            (self.far, "eth0", NODE_TO_FAR[4], NODE_TO_FAR[6]),
        ):
            ns.run(f"ip route add default via {via} dev {device}")
            ns.run(f"ip route add default via {via6} dev {device}")
        self.outside.run(f"ip route add 10.5.0.0/16 via {NODE[4]}")
        self.outside.run(f"ip route add fd00:5::/48 via {NODE[6]}")

    @staticmethod
    def _addresses(ns: Netns, device: str, *addresses: str) -> None:
        for address in addresses:
            # without nodad it could not be used until a kernel thread has come round to it
            ns.run(f"ip address add {address} dev {device}{' nodad' if ':' in address else ''}")

    @staticmethod
    def server(ns: Netns, address: str, port: int = 0) -> socket.socket:
        """A UDP socket that waits a second for a packet."""
        with inside(ns):
            made = socket.socket(_family(address), socket.SOCK_DGRAM)
        made.bind((address, port))
        made.settimeout(1)
        return made

    @staticmethod
    def client(ns: Netns, address: str, mark: int = 0) -> socket.socket:
        made = World.server(ns, address)
        if mark:
            made.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
        return made

    def seen(self, sender: Netns, source: str, receiver: Netns, destination: str, *, mark: int = 0) -> str:
        """The address a packet has as its source when it arrives."""
        return self.flow(sender, source, receiver, destination, mark=mark)[0][0]

    def flow(
        self, sender: Netns, source: str, receiver: Netns, destination: str, *, mark: int = 0
    ) -> tuple[tuple[str, int], int]:
        """Address and port a packet has as its source when it arrives, and the port it was sent from.

        The answer must find its way back.
        """
        with self.server(receiver, destination) as server, self.client(sender, source, mark) as client:
            client.sendto(b"question", server.getsockname())
            data, who = server.recvfrom(64)
            assert data == b"question"
            server.sendto(b"answer", who)
            assert client.recvfrom(64)[0] == b"answer"
            return who[:2], client.getsockname()[1]

    def multicast(self, version: int, source: str, *, mark: int = 0) -> str:
        """The source that `outside` sees in a packet the node sends to a group from `source`."""
        family, level = (socket.AF_INET, socket.IPPROTO_IP) if version == 4 else (socket.AF_INET6, socket.IPPROTO_IPV6)
        with inside(self.outside):
            index = socket.if_nametoindex("eth0")
            receiver = socket.socket(family, socket.SOCK_DGRAM)
        with inside(self.node):
            eth0 = socket.if_nametoindex("eth0")
        with receiver, self.client(self.node, source, mark) as sender:
            receiver.bind((GROUP[version], 9999))
            receiver.settimeout(1)
            group = socket.inet_pton(family, GROUP[version])
            if version == 4:
                local, here = socket.inet_aton(OUTSIDE[4]), socket.inet_aton(NODE[4])
                receiver.setsockopt(level, socket.IP_ADD_MEMBERSHIP, group + local)
                sender.setsockopt(level, socket.IP_MULTICAST_IF, here)
            else:
                receiver.setsockopt(level, socket.IPV6_JOIN_GROUP, group + index.to_bytes(4, "little"))
                sender.setsockopt(level, socket.IPV6_MULTICAST_IF, eth0)
            sender.sendto(b"all", (GROUP[version], 9999))
            return str(receiver.recvfrom(64)[1][0])

    def passes(self, version: int) -> bool:
        """Whether the pod and the outside reach each other through the node's forward chain."""
        try:
            self.flow(self.pod, POD[version], self.outside, OUTSIDE[version])
            self.flow(self.outside, OUTSIDE[version], self.pod, POD[version])
        except TimeoutError:
            return False
        return True


def dump(ns: Netns) -> str:
    """Everything in the packet filters, without what packets count."""
    listed = "\n".join([ns.run("nft list ruleset"), ns.run("iptables -S"), ns.run("ip6tables -S")])
    return re.sub(r"packets \d+ bytes \d+", "counted", listed)


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET
