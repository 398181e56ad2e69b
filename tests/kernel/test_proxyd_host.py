"""Host settings, hairpin ports and node addresses in real namespaces, both families."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading

import pytest

from podlane.runtime import netlink as nl
from proxyd.addresses import NodeAddresses
from proxyd.hairpin import Hairpin
from proxyd.healthcheck import HealthCheckServer, ServiceHealth
from proxyd.host import KernelHost
from tests.kernel.conftest import eventually, inside

pytestmark = pytest.mark.kernel

RANGE, RANGE6 = "10.96.0.0/16", "fd00:96::/112"
VIP, VIP6 = "10.96.0.1", "fd00:96::1"


def sysctl(ns, name):
    return ns.run(["sysctl", "-n", name]).strip()


def routes(ns, family):
    return json.loads(ns.run(f"ip -j {family} route show proto 253") or "[]")


def ensure(ns, *ranges, ipv6=True, **how):
    with inside(ns):
        return KernelHost(**how).ensure(ranges, ipv6=ipv6)


def nft(ns, family, chain):
    """A table with one chain: its type, hook and priority, then its rules."""
    ns.run(["nft", "-f", "-"], stdin=f"table {family} t {{\nchain c {{\n{chain}\n}}\n}}\n")


@pytest.fixture
def node(netns):
    ns = netns.add("node")
    # conntrack's settings are there once it is used in the namespace; bridges' always
    nft(ns, "inet", "type filter hook output priority 0; ct state invalid")
    return ns


# --- settings --------------------------------------------------------------------------


def test_settings_are_this_namespaces_and_set_once(netns, node):
    other = netns.add("other")
    host_before = sysctl(other, "net.netfilter.nf_conntrack_tcp_be_liberal")
    done = ensure(node)
    assert set(done) >= {"sysctl net.ipv6.conf.all.forwarding=1", "sysctl net.netfilter.nf_conntrack_tcp_be_liberal=1"}
    for name in (
        "net.ipv4.ip_forward",
        "net.ipv6.conf.all.forwarding",
        "net.bridge.bridge-nf-call-iptables",
        "net.bridge.bridge-nf-call-ip6tables",
        "net.netfilter.nf_conntrack_tcp_be_liberal",
    ):
        assert sysctl(node, name) == "1", name
    assert ensure(node) == []
    assert sysctl(other, "net.netfilter.nf_conntrack_tcp_be_liberal") == host_before == "0"


def test_ipv6_is_not_forwarded_without_ipv6_networks(node):
    ensure(node, RANGE, ipv6=False)
    assert sysctl(node, "net.ipv6.conf.all.forwarding") == "0"


def test_conntrack_may_be_left_strict(node):
    ensure(node, tcp_be_liberal=False)
    assert sysctl(node, "net.netfilter.nf_conntrack_tcp_be_liberal") == "0"


# --- router advertisements -------------------------------------------------------------


def advertise(ns, link):
    """Say "I am a router" once, as radvd does (RFC 4861 section 4.2)."""
    with inside(ns), socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as raw:
        raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, socket.if_nametoindex(link))
        with contextlib.suppress(OSError):  # the link has only just come up
            raw.sendto(struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0), ("ff02::1", 0))


def default6(ns):
    return [route["protocol"] for route in json.loads(ns.run("ip -j -6 route show default"))]


@pytest.fixture
def routed(netns, node):
    """A node whose IPv6 default route a router on eth0 gave it, and that has a pod on veth1."""
    router, pod = netns.add("router"), netns.add("pod")
    for ns in (router, node):
        ns.run("sysctl -qw net.ipv6.conf.default.accept_dad=0")
    router.run("sysctl -qw net.ipv6.conf.all.forwarding=1")
    netns.link(node, "eth0", router, "eth0")
    netns.link(node, "veth1", pod, "eth0")

    def told():
        advertise(router, "eth0")
        return default6(node) == ["ra"]

    eventually(told)
    return node, router


def test_forwarding_does_not_cost_the_host_its_default_route(routed):
    node, router = routed
    done = ensure(node)
    assert done.index("sysctl net.ipv6.conf.eth0.accept_ra=2") < done.index("sysctl net.ipv6.conf.all.forwarding=1")
    assert default6(node) == ["ra"]
    node.run("ip -6 route delete default")
    eventually(lambda: advertise(router, "eth0") or default6(node) == ["ra"])  # and it is renewed
    assert sysctl(node, "net.ipv6.conf.veth1.accept_ra") == "1"  # ignored while forwarding: a pod is no router


def test_without_that_it_would(routed):
    node, _ = routed
    node.run("sysctl -qw net.ipv6.conf.all.forwarding=1")
    assert default6(node) == []
    assert ensure(node) != []
    assert sysctl(node, "net.ipv6.conf.eth0.accept_ra") == "1"  # who turned it on has chosen


# --- routes ----------------------------------------------------------------------------


def test_without_a_default_route_the_ranges_lead_to_lo(netns, node):
    peer = netns.add("peer")
    netns.link(node, "eth0", peer, "eth0", mtu=1400)
    assert ensure(node, RANGE, RANGE6)[-2:] == [
        f"route replace {RANGE} dev lo proto 253 mtu 1400",
        f"route replace {RANGE6} dev lo proto 253 mtu 1400",
    ]
    for family, network in (("-4", RANGE), ("-6", RANGE6)):
        (route,) = routes(node, family)
        assert (route["dst"], route["dev"]) == (network, "lo")
    assert ensure(node, RANGE, RANGE6) == []
    with inside(node):
        KernelHost().remove()
    assert (routes(node, "-4"), routes(node, "-6")) == ([], [])


def test_a_route_that_covers_a_range_is_enough_unless_it_leads_nowhere(netns, node):
    peer = netns.add("peer")
    netns.link(node, "eth0", peer, "eth0")
    node.run(["ip", "-batch", "-"], stdin="address add 192.0.2.2/24 dev eth0\nroute add default via 192.0.2.1")
    node.run("ip -6 route add unreachable default")
    ensure(node, RANGE, RANGE6)
    assert routes(node, "-4") == []
    assert [route["dst"] for route in routes(node, "-6")] == [RANGE6]


PATHS = {
    "ip": (VIP, RANGE, ("10.5.1.1/24", "10.5.1.2/24")),
    "ip6": (VIP6, RANGE6, ("fd00:5::1/64", "fd00:5::2/64")),
}


@pytest.mark.parametrize("name", PATHS)
def test_with_the_route_the_hosts_own_connections_are_translated(netns, node, name):
    """Finding 12, in both families."""
    vip, network, ends = PATHS[name]
    family = socket.AF_INET6 if name == "ip6" else socket.AF_INET
    pod = netns.add("pod")
    netns.link(node, "eth0", pod, "eth0")
    for ns, address in zip((node, pod), ends, strict=True):
        ns.run(f"ip address add {address} dev eth0" + (" nodad" if name == "ip6" else ""))
    node_ip, pod_ip = (each.partition("/")[0] for each in ends)
    nft(node, name, f"type nat hook output priority -100; {name} daddr {vip} dnat to {pod_ip}")
    with inside(pod):
        listener = socket.create_server(("", 8080), family=family)

    def call():
        with inside(node), socket.socket(family, socket.SOCK_STREAM) as client:
            client.settimeout(5)
            client.connect((vip, 8080))
            made, caller = listener.accept()
            made.close()
            return caller[0]

    with listener:
        listener.settimeout(5)
        with pytest.raises(OSError, match="unreachable"):
            call()
        ensure(node, network)
        assert call() == node_ip


# --- segments out of window ------------------------------------------------------------


@pytest.mark.parametrize(("liberal", "source"), [(False, "10.5.1.2"), (True, VIP)])
def test_a_segment_out_of_window_reaches_the_client_from_the_service_address(netns, node, liberal, source):
    """With conntrack strict it comes from the pod's own address, and the client answers it with a reset."""
    client, pod = netns.add("client"), netns.add("pod")
    netns.link(node, "eth0", client, "eth0")
    netns.link(node, "eth1", pod, "eth0")
    node.run(["ip", "-batch", "-"], stdin="address add 192.0.2.1/24 dev eth0\naddress add 10.5.1.1/24 dev eth1")
    client.run(["ip", "-batch", "-"], stdin="address add 192.0.2.2/24 dev eth0\nroute add default via 192.0.2.1")
    pod.run(["ip", "-batch", "-"], stdin="address add 10.5.1.2/24 dev eth0\nroute add default via 10.5.1.1")
    nft(node, "ip", f"type nat hook prerouting priority dstnat; ip daddr {VIP} dnat to 10.5.1.2")
    ensure(node, tcp_be_liberal=liberal)
    with inside(pod):
        listener = socket.create_server(("", 8080))
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
    with inside(client):
        ear = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
        made = socket.create_connection((VIP, 8080), timeout=5)
    with listener, raw, ear, made:
        ear.settimeout(5)
        port = made.getsockname()[1]
        while True:
            packet = ear.recv(2048)
            if packet[9] == socket.IPPROTO_TCP and packet[33] == 0x12:  # SYN and ACK
                break
        (sequence,) = struct.unpack("!I", packet[24:28])
        # far beyond the window; what lies before it conntrack takes for an old segment, and translates
        beyond = (sequence + (1 << 30)) % (1 << 32)
        far_off = segment("10.5.1.2", "192.0.2.2", 8080, port, sequence=beyond, data=b"late")
        raw.sendto(far_off, ("192.0.2.2", 0))
        while True:
            packet = ear.recv(2048)
            if packet[-4:] == b"late":
                break
        assert socket.inet_ntoa(packet[12:16]) == source


def segment(source, destination, sport, dport, *, sequence, data):
    """A TCP segment with ACK and a right checksum, so that the sequence number is all that is wrong."""
    header = struct.pack("!HHIIBBHHH", sport, dport, sequence, 1, 5 << 4, 0x10, 1024, 0, 0)
    pseudo = socket.inet_aton(source) + socket.inet_aton(destination) + struct.pack("!BBH", 0, 6, len(header + data))
    words = pseudo + header + data
    total = sum(struct.unpack(f"!{len(words) // 2}H", words))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return header[:16] + struct.pack("!H", ~total & 0xFFFF) + header[18:] + data


# --- hairpin ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "networks", "on"),
    [
        ("fd00:5:0:1::1/64", ["10.5.0.0/16", "fd00:5::/48"], True),
        ("10.5.1.1/24", ["10.5.0.0/16", "fd00:5::/48"], True),
        ("fd00:6:0:1::1/64", ["10.5.0.0/16", "fd00:5::/48"], False),
    ],
)
def test_ports_of_a_pod_networks_bridge_get_the_hairpin_flag(netns, node, address, networks, on):
    pod = netns.add("pod")
    netns.link(node, "v1", pod, "eth0")
    node.run(
        ["ip", "-batch", "-"],
        stdin=f"link add cbr0 type bridge\naddress add {address} dev cbr0\nlink set cbr0 up\nlink set v1 master cbr0",
    )
    with inside(node):
        hairpin = Hairpin(lambda: networks)
    try:
        hairpin.sync()
        (port,) = json.loads(node.run("bridge -j -d link show dev v1"))
        assert port["hairpin"] is on
    finally:
        hairpin.close()


# --- node addresses --------------------------------------------------------------------


@pytest.fixture
def addressed(netns):
    """A node with addresses of every kind; its default routes lead over eth0."""
    host = netns.host("a", v6=True)
    host.run(
        ["ip", "-batch", "-"],
        stdin="\n".join(
            [
                "link add cbr0 type bridge",
                "address add 10.5.1.1/24 dev cbr0",
                "address add fd00:5::1/64 dev cbr0 nodad",
                "link set cbr0 up",
                "address add 192.168.64.200/24 dev eth0",
                "address add 169.254.7.7/16 dev eth0",
            ]
        ),
    )
    with inside(host):
        found = NodeAddresses()
    yield host, found
    found.close()


def test_the_nodes_addresses_and_which_of_them_serve_node_ports(addressed):
    host, found = addressed
    own = {host.address, "192.168.64.200", host.address6, "10.5.1.1", "fd00:5::1"}
    assert found.addresses() == own
    assert set(found.select()) == {host.address, host.address6}
    assert set(found.select(primary=["192.168.64.200"])) == {"192.168.64.200", host.address6}
    assert set(found.select(["192.168.64.0/24"])) == {host.address, "192.168.64.200"}
    assert found.select(["10.5.0.0/16"]) == ("10.5.1.1",)
    assert set(found.select(["0.0.0.0/0", "::/0"])) == own


def test_without_a_default_route_the_first_links_address_serves(addressed):
    host, found = addressed
    host.run("ip route delete default")
    host.run("ip -6 route delete default")
    assert set(found.select()) == {host.address, host.address6}


def test_a_change_of_addresses_is_heard_of_and_a_renewal_is_none(addressed):
    host, found = addressed
    heard, stop = threading.Semaphore(0), threading.Event()
    thread = threading.Thread(target=found.watch, args=(stop, heard.release))
    thread.start()
    try:
        host.run("ip address add 192.0.2.7/24 dev eth0")
        assert heard.acquire(timeout=5)
        assert "192.0.2.7" in found.addresses()
        host.run(f"ip address change {host.address6}/64 dev eth0 valid_lft 5000 preferred_lft 4000")
        host.run("ip address delete 192.0.2.7/24 dev eth0")
        assert heard.acquire(timeout=5)
        host.run("ip -6 address add 2001:db8::7/64 dev eth0 nodad")
        assert heard.acquire(timeout=5)
        assert not heard.acquire(blocking=False)  # three changes; the notice of the renewal lay between two of them
    finally:
        stop.set()
        thread.join(10)
    assert not thread.is_alive()


def test_an_address_still_being_checked_is_not_served_yet(netns):
    ns, peer = netns.add("node"), netns.add("peer")
    netns.link(ns, "eth0", peer, "eth0")
    with inside(ns):
        found = NodeAddresses()
    try:
        ns.run("ip address add 2001:db8::7/64 dev eth0")
        if "tentative" in ns.run("ip -6 address show dev eth0 scope global"):
            assert found.addresses() <= {"2001:db8::7"}
        eventually(lambda: found.addresses() == {"2001:db8::7"})
    finally:
        found.close()


def test_health_checks_are_served_at_node_addresses_only(addressed):
    host, found = addressed
    with inside(host):
        server = HealthCheckServer(lambda: True)
        assert server.set({31000: ServiceHealth("default", "web", 1)}, found.select()) == []
    stop = threading.Event()
    thread = threading.Thread(target=server.serve, args=(stop,))
    thread.start()
    try:
        for address in found.select():
            with inside(host), socket.create_connection((address, 31000), timeout=5) as client:
                client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                assert client.recv(4096).startswith(b"HTTP/1.1 200 OK\r\n")
        with inside(host), pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", 31000), timeout=5)
    finally:
        stop.set()
        thread.join(10)
        server.close()


def test_netlink_of_the_host_is_the_threads_own_namespace(addressed, netns):
    """Made inside, used anywhere."""
    host, found = addressed
    other = netns.add("other")
    with inside(other):
        assert host.address in found.addresses()
        with nl.NetlinkSocket(nl.NETLINK_ROUTE):
            assert NodeAddresses().addresses() == frozenset()
