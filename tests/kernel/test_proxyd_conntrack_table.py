"""Conntrack clean-up and counts against a kernel's table: both families, filtered dumps, SCTP.

    client ── node ── pod

What begins flows is the test; what translates them is a small table of the test's own.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from socket import AF_INET, AF_INET6
from typing import Any

import pytest

from podlane.runtime import metrics
from podlane.runtime import netlink as nl
from proxyd.conntrack import Flows, KernelConntrack, requests
from proxyd.ctmsg import Request, list_message, read_flow
from proxyd.tables import Frontend, Target
from tests.kernel.conftest import eventually, inside

pytestmark = pytest.mark.kernel

NAMES = {AF_INET: "ip", AF_INET6: "ip6"}
VIP = {AF_INET: "10.96.0.1", AF_INET6: "fd00:96::1"}
OTHER = {AF_INET: "10.96.0.2", AF_INET6: "fd00:96::2"}
CLIENT = {AF_INET: "192.0.2.2", AF_INET6: "2001:db8::2"}
POD = {AF_INET: "10.5.1.2", AF_INET6: "fd00:5::2"}
GONE = {AF_INET: "10.5.1.9", AF_INET6: "fd00:5::9"}
RANGE = {AF_INET: "10.96.0.0/16", AF_INET6: "fd00:96::/112"}
BOTH = pytest.mark.parametrize("family", [AF_INET, AF_INET6], ids=["ipv4", "ipv6"])


class World:
    def __init__(self, netns: Any) -> None:
        self.client, self.node, self.pod = (netns.add(name) for name in ("client", "node", "pod"))
        for ns in (self.client, self.node, self.pod):
            ns.run("sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0")
        netns.link(self.client, "eth0", self.node, "eth0")
        netns.link(self.pod, "eth0", self.node, "eth1")
        self.node.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
        for ns, link, addresses, gateways in (
            (self.client, "eth0", ("192.0.2.2/24", "2001:db8::2/64"), ("192.0.2.1", "2001:db8::1")),
            # what is not translated leaves the node again, or conntrack would not keep it
            (self.node, "eth0", ("192.0.2.1/24", "2001:db8::1/64"), ("192.0.2.2", "2001:db8::2")),
            (self.node, "eth1", ("10.5.1.1/24", "fd00:5::1/64"), ()),
            (self.pod, "eth0", ("10.5.1.2/24", "fd00:5::2/64"), ("10.5.1.1", "fd00:5::1")),
        ):
            batch = [f"address add {each} dev {link}" + (" nodad" if ":" in each else "") for each in addresses]
            batch += [f"route add default via {each}" for each in gateways]
            ns.run(["ip", "-batch", "-"], stdin="\n".join(batch))
        self.sockets: list[socket.socket] = []
        with inside(self.node):
            self.conntrack = KernelConntrack()
        for gateway in ("192.0.2.1", "2001:db8::1"):  # the first datagram is not to wait for a neighbour
            eventually(lambda gateway=gateway: self.client.ping(gateway))

    def translate(self, to: dict[int, str], vip: dict[int, str] = VIP) -> None:
        """Whatever goes to the service address goes to `to`; a flow that has begun keeps its way."""
        tables = [
            f"table {NAMES[family]} t {{\nchain c {{\ntype nat hook prerouting priority dstnat\n"
            f"{NAMES[family]} daddr {vip[family]} dnat to {to[family]}\n}}\n}}\n"
            for family in to
        ]
        deletes = [f"table {NAMES[family]} t\ndelete table {NAMES[family]} t\n" for family in to]
        self.node.run(["nft", "-f", "-"], stdin="".join(deletes + tables))

    def open(self, ns: Any, family: int, kind: int) -> socket.socket:
        with inside(ns):
            made = socket.socket(family, kind)
        made.settimeout(5)
        self.sockets.append(made)
        return made

    def say(self, family: int, port: int, address: str = "", *, made: socket.socket | None = None) -> socket.socket:
        """One datagram from the client to the service, or to `address`."""
        made = made or self.open(self.client, family, socket.SOCK_DGRAM)
        made.sendto(b"?", (address or VIP[family], port))
        return made

    def connect(self, family: int, port: int = 80) -> tuple[socket.socket, socket.socket]:
        """An established connection of the client to the service: (client's end, pod's end)."""
        listener = self.open(self.pod, family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((POD[family], port))
        listener.listen()
        made = self.open(self.client, family, socket.SOCK_STREAM)
        made.connect((VIP[family], port))
        there, _ = listener.accept()
        there.settimeout(5)
        self.sockets.append(there)
        return made, there

    def crowd(self, family: int, flows: int) -> None:
        """Flows to ports 20000 and on of another address, so that the kernel's table is no small one."""
        made = self.open(self.client, family, socket.SOCK_DGRAM)
        for port in range(20000, 20000 + flows):
            self.say(family, port, OTHER[family], made=made)

    def targets(self, protocol: str, family: int, port: int) -> set[str]:
        """Where the flows to that port go, and where replies come from of those nobody translated."""
        return {f.replies_from.address for f in self.conntrack.flows(protocol, family) if f.frontend.port == port}

    def went_to(self, target: str, family: int, port: int = 53) -> None:
        """Wait until the datagrams to that port have come through, all to `target`."""
        eventually(lambda: self.targets("UDP", family, port) == {target})

    def close(self) -> None:
        for each in self.sockets:
            each.close()
        self.conntrack.close()


DEAF = "table inet deaf { chain input { type filter hook input priority 0; tcp dport 80 drop; }; }"


@pytest.fixture
def world(netns) -> Iterator[World]:
    with contextlib.closing(World(netns)) as made:
        yield made


def listed(world: World, request: Request) -> set[tuple[str, int]]:
    """What the kernel itself selects."""
    with inside(world.node), nl.NetlinkSocket(nl.NETLINK_NETFILTER) as kernel:
        flows = [read_flow(body) for _, body in kernel.dump(list_message(request))]
    return {(flow.frontend.address, flow.frontend.port) for flow in flows if flow is not None}


# --- cleaning --------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("crowd", [0, 1600], ids=["small", "crowded"])
def test_udp_to_a_pod_that_serves_no_more_begins_anew(world, family, crowd):
    """Whether the kernel selects (in a crowded table) or all of UDP is listed, the same entries go."""
    vip = VIP[family]
    world.translate({family: GONE[family]})
    flow, other_port = world.say(family, 53), world.say(family, 54)
    world.went_to(GONE[family], family)
    world.went_to(GONE[family], family, 54)
    world.crowd(family, crowd)
    world.translate({family: POD[family]})
    world.say(family, 53, made=flow)
    assert world.targets("UDP", family, 53) == {GONE[family]}  # conntrack remembers
    wanted = {Frontend(vip, "UDP", 53): {Target(POD[family], 53)}, Frontend(vip, "TCP", 53): set()}
    wanted |= {Frontend(vip, "UDP", 9): set()}
    assert len(requests(wanted, [], crowd)) == (3 if crowd else 2)
    assert world.conntrack.clean(wanted) == 1
    assert world.targets("UDP", family, 53) == set()
    assert world.targets("UDP", family, 54) == {GONE[family]}
    world.say(family, 53, made=flow)
    world.went_to(POD[family], family)
    assert world.conntrack.clean(wanted) == 0
    assert len(world.conntrack.flows("UDP", family)) == crowd + 2
    del other_port


@BOTH
def test_what_began_while_nothing_was_served_is_forgotten(world, family):
    world.translate({family: POD[family]}, OTHER)  # without a single rule there is no conntrack that could remember
    flow = world.say(family, 53)
    world.went_to(VIP[family], family)
    world.translate({family: POD[family]})
    assert world.conntrack.clean({Frontend(VIP[family], "UDP", 53): {Target(POD[family], 53)}}) == 1
    world.say(family, 53, made=flow)
    world.went_to(POD[family], family)


@BOTH
def test_established_tcp_is_left_alone_and_an_unanswered_one_is_not(world, family):
    world.translate({family: POD[family]})
    client, pod = world.connect(family)
    world.translate({family: GONE[family]})
    waiting = world.open(world.client, family, socket.SOCK_STREAM)
    waiting.setblocking(False)
    waiting.connect_ex((VIP[family], 80))
    assert world.targets("TCP", family, 80) == {POD[family], GONE[family]}
    assert world.conntrack.clean({Frontend(VIP[family], "TCP", 80): set()}) == 1
    assert world.targets("TCP", family, 80) == {POD[family]}
    client.sendall(b"still here")
    assert pod.recv(64) == b"still here"


@BOTH
def test_what_ended_in_order_is_left_alone_and_what_was_reset_is_not(world, family):
    """A new SYN at the port of the former begins anew by itself; at the latter's it would go where the old one went."""
    world.translate({family: POD[family]})
    for end in ("orderly", "reset"):
        client, pod = world.connect(family, port={"orderly": 80, "reset": 81}[end])
        if end == "reset":
            pod.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        pod.close()
        assert ended(client)
        client.close()
    assert world.conntrack.clean({Frontend(VIP[family], "TCP", port): set() for port in (80, 81)}) == 1
    assert [f.frontend.port for f in world.conntrack.flows("TCP", family)] == [80]


def ended(client: socket.socket) -> bool:
    with contextlib.suppress(ConnectionResetError):
        return client.recv(1) == b""
    return True


@BOTH
def test_who_is_answered_while_the_entries_are_read_keeps_its_connection(world, family):
    """A pod that is on its way out answers late: without a second look the client would wait for ever."""
    world.translate({family: POD[family]})
    listener = world.open(world.pod, family, socket.SOCK_STREAM)
    listener.bind((POD[family], 80))
    listener.listen()
    world.pod.run(["nft", "-f", "-"], stdin=DEAF)
    client = world.open(world.client, family, socket.SOCK_STREAM)
    client.setblocking(False)
    client.connect_ex((VIP[family], 80))
    assert [f.answered for f in world.conntrack.flows("TCP", family)] == [False]
    answers = []

    class Wanted(dict):
        """Asked about an entry that was read: the pod answers just now."""

        def get(self, key, default=None):
            if not answers:
                world.pod.run(["nft", "delete", "table", "inet", "deaf"])
                answers.append(listener.accept()[0])
                answers[0].settimeout(5)
            return super().get(key, default)

    assert world.conntrack.clean(Wanted({Frontend(VIP[family], "TCP", 80): set()})) == 0
    client.setblocking(True)
    client.sendall(b"still here")
    assert answers[0].recv(64) == b"still here"
    answers[0].sendall(b"so am I")
    assert client.recv(64) == b"so am I"
    answers[0].close()


@BOTH
def test_a_connection_to_who_had_the_port_before_is_left_alone(world, family):
    """A node's own server has the port when a service gets it as its node port: what is connected stays."""
    node = {AF_INET: "192.0.2.1", AF_INET6: "2001:db8::1"}[family]
    world.translate({family: POD[family]})
    with inside(world.node):
        listener = socket.create_server((node, 30080), family=family)
    with listener:
        made = world.open(world.client, family, socket.SOCK_STREAM)
        made.connect((node, 30080))
        there, _ = listener.accept()
        world.sockets.append(there)
        world.say(family, 30080, node)
        both = {Frontend(node, "TCP", 30080): {Target(POD[family], 80)}, Frontend(node, "UDP", 30080): set()}
        assert world.conntrack.clean(both) == 1  # the datagram's
        made.sendall(b"on")
        assert there.recv(64) == b"on"


def test_ranges_of_both_families_are_nobodys_but_the_wanted(world):
    world.translate(GONE)
    for family in (AF_INET, AF_INET6):
        world.say(family, 53)
        world.say(family, 54)
        world.say(family, 53, OTHER[family])
        world.say(family, 53, POD[family])  # in no range
    before = {
        name: metrics.value("kubeproxy_conntrack_reconciler_deleted_entries_total", ip_family=name) or 0
        for name in ("IPv4", "IPv6")
    }
    wanted = {Frontend(VIP[f], "UDP", 53): {Target(GONE[f], 53)} for f in (AF_INET, AF_INET6)}
    assert world.conntrack.clean(wanted, tuple(RANGE.values())) == 4
    for family in (AF_INET, AF_INET6):
        left = {flow.frontend for flow in world.conntrack.flows("UDP", family)}
        assert left == {Frontend(VIP[family], "UDP", 53), Frontend(POD[family], "UDP", 53)}
    for name, old in before.items():
        assert metrics.value("kubeproxy_conntrack_reconciler_deleted_entries_total", ip_family=name) == old + 2


@BOTH
def test_sctp(world, family):
    """Not every kernel has SCTP sockets; conntrack knows the protocol all the same."""
    client, vip, gone = CLIENT[family], VIP[family], GONE[family]
    for sport, dport, state in ((1000, 3868, "ESTABLISHED"), (1001, 3868, "COOKIE_WAIT"), (1002, 3869, "COOKIE_WAIT")):
        world.node.run(
            f"conntrack -I -p sctp -s {client} -d {vip} -r {gone} -q {client} --sport {sport} --dport {dport} "
            f"--reply-port-src {dport} --reply-port-dst {sport} --state {state} --orig-vtag 1 --reply-vtag 2 -t 100"
            + (" -u SEEN_REPLY" if state == "ESTABLISHED" else "")
        )
    assert world.conntrack.clean({Frontend(vip, "SCTP", 3868): {Target(POD[family], 3868)}}) == 1
    left = {(f.frontend.port, f.answered) for f in world.conntrack.flows("SCTP", family)}
    assert left == {(3868, True), (3869, False)}


# --- what the kernel selects -------------------------------------------------------------


def test_what_the_kernel_selects_is_enough_and_little(world):
    world.translate(GONE)
    for family in (AF_INET, AF_INET6):
        for address in (VIP[family], OTHER[family]):
            for port in (53, 54):
                world.say(family, port, address)
    assert listed(world, Request(AF_INET, "UDP", 53, VIP[AF_INET])) == {(VIP[AF_INET], 53)}
    assert listed(world, Request(AF_INET6, "UDP", 53)) == {(VIP[AF_INET6], 53), (OTHER[AF_INET6], 53)}
    assert len(listed(world, Request(AF_INET, "UDP"))) == 4
    assert listed(world, Request(AF_INET, "TCP")) == set()
    for family in (AF_INET, AF_INET6):
        (request,) = requests([Frontend(VIP[family], "UDP", 53)], [], 1_000_000)
        assert (VIP[family], 53) in listed(world, request)


# --- counting ----------------------------------------------------------------------------


@BOTH
def test_flows_are_counted_by_where_they_go(world, family):
    vip, pod = VIP[family], POD[family]
    world.node.run("sysctl -qw net.netfilter.nf_conntrack_acct=1")
    world.translate({family: pod})
    client, there = world.connect(family)
    client.sendall(b"x" * 1000)
    received = b""
    while len(received) < 1000:
        received += there.recv(4096)
    for _ in range(3):
        world.say(family, 53)
    world.say(family, 53, pod)  # not translated: not counted
    counts = world.conntrack.counts()
    assert set(counts) == {
        (Frontend(vip, "TCP", 80), Target(pod, 80)),
        (Frontend(vip, "UDP", 53), Target(pod, 53)),
    }
    datagram = 20 + 8 + 1 if family == AF_INET else 40 + 8 + 1
    udp = counts[Frontend(vip, "UDP", 53), Target(pod, 53)]
    assert udp.connections == 3
    # and what the pod's kernel says to a port nobody listens at
    assert udp.packets is not None
    assert udp.bytes is not None
    assert udp.packets >= 3
    assert udp.bytes >= 3 * datagram
    tcp = counts[Frontend(vip, "TCP", 80), Target(pod, 80)]
    assert tcp.connections == 1
    assert tcp.bytes is not None
    assert tcp.bytes > 1000


def test_without_accounting_only_flows_are_counted(world):
    world.node.run("sysctl -qw net.netfilter.nf_conntrack_acct=0")
    world.translate(GONE)
    world.say(AF_INET, 53)
    world.say(AF_INET6, 53)
    assert world.conntrack.counts() == {
        (Frontend(VIP[f], "UDP", 53), Target(GONE[f], 53)): Flows(1, None, None) for f in (AF_INET, AF_INET6)
    }
