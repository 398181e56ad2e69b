"""netd's probing against real kernels: who is silent, and which paths pod packets can take without encapsulation."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network

import pytest

from netd.desired import Lease, Underlay
from netd.paths import Timing
from netd.prober import Prober
from netd.reachability import Silent
from netd.segment import Segment
from podlane.api.subnets import Address, LeaseValue, Subnets
from podlane.errors import PodlaneError
from podlane.runtime import metrics
from tests.kernel.conftest import Netns, NetnsMaker, eventually, inside

pytestmark = pytest.mark.kernel

QUICK = Timing(interval=0.1, confirm=0.1, timeout=0.2, pause=0.2, longest_pause=0.4, hold=0.2, gains=0.1)
DROP = """table bridge test {
  counter dropped {}
  chain forward {
    type filter hook forward priority 0
    ip saddr 10.5.0.0/16 counter name dropped drop
    ip6 saddr fd00:5::/48 counter name dropped drop
  }
}
"""
"""What a network does that knows which addresses each machine has: VXLAN packets pass, pods' own do not."""


@dataclass
class Host:
    """A host whose VXLAN devices and routes are as netd makes them."""

    ns: Netns
    number: int

    @property
    def subnets(self) -> Subnets:
        return Subnets(IPv4Network(f"10.5.{self.number}.0/24"), IPv6Network(f"fd00:5:0:{self.number}::/64"))

    @property
    def public(self) -> IPv4Address:
        return IPv4Address(self.ns.address)

    @property
    def public6(self) -> IPv6Address:
        return IPv6Address(f"fd00:64::{self.number}")

    def mac(self, family: int) -> str:
        return f"02:00:00:00:0{family}:{self.number:02x}"

    @property
    def lease(self) -> Lease:
        value = LeaseValue.vxlan(self.public, 1, self.mac(4), public_ipv6=self.public6, mac6=self.mac(6))
        return Lease(self.subnets.key, self.subnets, value)

    @property
    def underlay(self) -> Underlay:
        v4, v6 = IPv4Interface(f"{self.public}/24"), IPv6Interface(f"{self.public6}/64")
        return Underlay("eth0", 1500, v4, v6, self.public, self.public6)

    def build(self) -> Host:
        self.ns.run(f"ip address add {self.public6}/64 dev eth0 nodad")
        for key in ("net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.eth0.rp_filter=0"):
            self.ns.run(f"sysctl -qw {key}")
        for name, family, local in (("flannel.1", 4, self.public), ("flannel-v6.1", 6, self.public6)):
            self.ns.run(
                f"ip link add {name} address {self.mac(family)} mtu 1430 type vxlan id 1 local {local} dev eth0 "
                "dstport 8472 nolearning"
            )
            self.ns.run(f"sysctl -qw net.ipv4.conf.{name.replace('.', '/')}.rp_filter=0")
            self.ns.run(f"ip link set {name} up")
        self.ns.run(f"ip address add 10.5.{self.number}.0/32 dev flannel.1")
        self.ns.run(f"ip address add fd00:5:0:{self.number}::/128 dev flannel-v6.1 nodad")
        return self

    def peer(self, other: Host) -> None:
        """Add the three entries of a peer, for both families."""
        assert other.subnets.v4 is not None
        assert other.subnets.v6 is not None
        for name, family, remote, subnet in (
            ("flannel.1", 4, other.public, other.subnets.v4),
            ("flannel-v6.1", 6, other.public6, other.subnets.v6),
        ):
            vtep = subnet.network_address
            self.ns.run(f"bridge fdb append {other.mac(family)} dev {name} dst {remote} self permanent")
            self.ns.run(f"ip neigh add {vtep} lladdr {other.mac(family)} dev {name} nud permanent")
            self.ns.run(f"ip route add {subnet} via {vtep} dev {name} onlink")


def hosts(netns: NetnsMaker, count: int) -> list[Host]:
    made = [Host(netns.host(f"h{number}"), number).build() for number in range(1, count + 1)]
    for one in made:
        for other in made:
            if one is not other:
                one.peer(other)
    return made


@contextmanager
def probing(host: Host, prober: Prober) -> Iterator[None]:
    """The prober's thread, in the host's namespace."""
    stop, failed = threading.Event(), list[BaseException]()

    def body() -> None:
        try:
            with inside(host.ns):
                prober.run(stop)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(10)
    assert not thread.is_alive()
    assert not failed


def auto(host: Host, peers: list[Host], on_change: Callable[[], object] = lambda: None) -> Prober:
    prober = Prober(on_change, interval=0, timing=QUICK)
    prober.set_peers(host.subnets, [each.lease for each in (host, *peers)], host.underlay, auto=True)
    return prober


def both(*peers: Host) -> set[Address]:
    return {address for peer in peers for address in (peer.public, peer.public6)}


def dropped(netns: NetnsMaker) -> int:
    words = netns.underlay.run("nft list counter bridge test dropped").split()
    return int(words[words.index("packets") + 1])


def value(name: str) -> float:
    return metrics.value(name) or 0.0


def above(name: str, before: float) -> Callable[[], bool]:
    return lambda: value(name) > before


# ---- over the overlay ----------------------------------------------------------------------------


def test_peers_are_probed_over_the_overlay_and_the_silent_are_named(netns: NetnsMaker) -> None:
    a, b, c = hosts(netns, 3)
    sent, lost, heard = (value(f"netd_probe{each}") for each in ("s_total", "s_lost_total", "_rtt_seconds_count"))
    prober = Prober(lambda: None, interval=0.2)
    prober.set_peers(a.subnets, [a.lease, b.lease, c.lease], a.underlay, auto=False)
    c.ns.run("ip link set eth0 down")
    with probing(a, prober):
        eventually(lambda: prober.unreachable() == Silent(1, (c.lease.key,)))
        assert value("netd_peers_unreachable") == 1
        assert value("netd_probes_total") - sent >= 12  # three rounds, two peers, two addresses
        assert value("netd_probes_lost_total") - lost >= 6
        assert value("netd_probe_rtt_seconds_count") - heard >= 6
        c.ns.run("ip link set eth0 up")
        c.ns.run(f"ip address replace {c.public6}/64 dev eth0 nodad")  # the kernel drops it with the link
        eventually(lambda: prober.unreachable() == Silent())
        assert value("netd_peers_unreachable") == 0
        # one family is enough to be told
        b.ns.run("ip address delete fd00:5:0:2::/128 dev flannel-v6.1")
        eventually(lambda: prober.unreachable() == Silent(1, (b.lease.key,)))
        prober.set_peers(a.subnets, [a.lease, c.lease], a.underlay, auto=False)
        eventually(lambda: prober.unreachable() == Silent())
    assert prober.direct == frozenset()


def test_probing_begins_when_the_host_is_ready_and_survives_the_loss_of_its_device(netns: NetnsMaker) -> None:
    a, b = hosts(netns, 2)
    a.ns.run("ip link delete flannel.1")
    prober = Prober(lambda: None, interval=0.2)
    prober.set_peers(Subnets(a.subnets.v4), [b.lease], a.underlay, auto=False)
    with probing(a, prober):
        for _ in range(2):
            heard = value("netd_probe_rtt_seconds_count")
            threading.Event().wait(1)
            assert value("netd_probe_rtt_seconds_count") == heard
            for command in (
                f"link add flannel.1 address {a.mac(4)} type vxlan id 1 local {a.public} dev eth0 dstport 8472",
                "link set flannel.1 up",
                "address add 10.5.1.0/32 dev flannel.1",
                f"neigh add 10.5.2.0 lladdr {b.mac(4)} dev flannel.1 nud permanent",
                "route add 10.5.2.0/24 via 10.5.2.0 dev flannel.1 onlink",
            ):
                a.ns.run(f"ip {command}")
            a.ns.run(f"bridge fdb append {b.mac(4)} dev flannel.1 dst {b.public} self permanent")
            eventually(above("netd_probe_rtt_seconds_count", heard))
            eventually(lambda: prober.unreachable() == Silent())
            a.ns.run("ip link delete flannel.1")
            eventually(lambda: prober.unreachable().count == 1)


# ---- without encapsulation -----------------------------------------------------------------------


def test_auto_goes_direct_where_pod_packets_pass(netns: NetnsMaker) -> None:
    a, b, c = hosts(netns, 3)
    changes: list[frozenset[Address]] = []
    prober = auto(a, [b, c], lambda: changes.append(prober.direct))
    with probing(a, prober):
        eventually(lambda: prober.direct == both(b, c))
        assert changes[-1] == both(b, c)
        assert value("netd_direct_paths") == 4
        # and as it says: with direct routes out, and the way back as before
        for subnet, gateway in ((b.subnets.v4, b.public), (b.subnets.v6, b.public6)):
            a.ns.run(f"ip route replace {subnet} via {gateway} dev eth0")
        netns.underlay.run("nft -f -", stdin=DROP.replace(" drop\n", "\n"))
        assert a.ns.ping("10.5.2.0", count=3, source="10.5.1.0") == 3
        eventually(lambda: dropped(netns) >= 3)  # seen unencapsulated on the way
        prober.set_peers(a.subnets, [a.lease, c.lease], a.underlay, auto=True)
        eventually(lambda: prober.direct == both(c))
        prober.set_peers(a.subnets, [a.lease, c.lease], a.underlay, auto=False)
        assert prober.direct == changes[-1] == frozenset()
        eventually(lambda: value("netd_direct_paths") == 0)


def test_auto_stays_with_vxlan_where_the_network_drops_pod_addresses(netns: NetnsMaker) -> None:
    a, b = hosts(netns, 2)
    netns.underlay.run("nft -f -", stdin=DROP)
    prober = auto(a, [b])
    with probing(a, prober):
        eventually(lambda: dropped(netns) >= 10)
        assert prober.direct == frozenset()


def test_auto_falls_back_when_the_network_begins_to_drop_and_comes_back_later(netns: NetnsMaker) -> None:
    a, b = hosts(netns, 2)
    prober = auto(a, [b])
    with probing(a, prober):
        eventually(lambda: prober.direct == both(b))
        netns.underlay.run("nft -f -", stdin=DROP)
        eventually(lambda: prober.direct == frozenset())
        assert a.ns.ping("10.5.2.0", source="10.5.1.0") == 1  # VXLAN was never in doubt
        netns.underlay.run("nft delete table bridge test")
        eventually(lambda: prober.direct == both(b))


def test_what_only_one_family_loses_the_other_keeps(netns: NetnsMaker) -> None:
    a, b = hosts(netns, 2)
    prober = auto(a, [b])
    with probing(a, prober):
        eventually(lambda: prober.direct == both(b))
        netns.underlay.run("nft -f -", stdin=DROP.replace("ip saddr 10.5.0.0/16", "ip saddr 10.99.0.0/16"))
        eventually(lambda: prober.direct == {b.public})


def test_the_usual_timing_falls_back_within_seconds(netns: NetnsMaker) -> None:
    """Three seconds on an idle machine; the bound here only tells seconds from the minutes of other checks."""
    a, b = hosts(netns, 2)
    prober = Prober(lambda: None)
    prober.set_peers(a.subnets, [b.lease], a.underlay, auto=True)
    with probing(a, prober):
        eventually(lambda: prober.direct == both(b))
        netns.underlay.run("nft -f -", stdin=DROP)
        eventually(lambda: prober.direct == frozenset(), timeout=10)


def test_a_strict_rp_filter_at_the_peer_keeps_vxlan(netns: NetnsMaker) -> None:
    a, b = hosts(netns, 2)
    b.ns.run("sysctl -qw net.ipv4.conf.eth0.rp_filter=1")
    prober = auto(a, [b])
    with probing(a, prober):
        eventually(lambda: prober.direct == {b.public6})
        lost = value("netd_direct_probes_lost_total")
        eventually(lambda: value("netd_direct_probes_lost_total") >= lost + 5)
        assert prober.direct == {b.public6}
        b.ns.run("sysctl -qw net.ipv4.conf.eth0.rp_filter=2")
        eventually(lambda: prober.direct == both(b))


def test_a_strict_rp_filter_here_keeps_vxlan_for_what_peers_still_send_encapsulated(netns: NetnsMaker) -> None:
    a, b = hosts(netns, 2)
    a.ns.run("sysctl -qw net.ipv4.conf.flannel/1.rp_filter=1")
    prober = Prober(lambda: None, interval=0, timing=QUICK)
    leases = [b.lease]
    prober.set_peers(a.subnets, leases, a.underlay, auto=True, devices=["flannel.1", "flannel-v6.1"])
    with probing(a, prober):
        eventually(lambda: prober.direct == {b.public6})
        # what would become of it: replies over VXLAN no longer come in by the interface they would leave by
        a.ns.run(f"ip route replace 10.5.2.0/24 via {b.public} dev eth0")
        assert a.ns.ping("10.5.2.0", source="10.5.1.0") == 0
        a.ns.run("ip route replace 10.5.2.0/24 via 10.5.2.0 dev flannel.1 onlink")
        assert a.ns.ping("10.5.2.0", source="10.5.1.0") == 1
        assert prober.direct == {b.public6}
        a.ns.run("sysctl -qw net.ipv4.conf.flannel/1.rp_filter=2")
        eventually(lambda: prober.direct == both(b))


def test_an_answer_by_way_of_a_third_host_proves_nothing(netns: NetnsMaker) -> None:
    """A router on the segment that knows the way to the peer's pods must not look like the peer."""
    a, b, c = hosts(netns, 3)
    c.ns.run("sysctl -qw net.ipv4.ip_forward=1")
    c.ns.run("sysctl -qw net.ipv6.conf.all.forwarding=1")
    mac = c.ns.run("ip -o link show eth0").split("link/ether ")[1].split()[0]
    for address in (b.public, b.public6):
        a.ns.run(f"ip neigh replace {address} lladdr {mac} dev eth0 nud permanent")
    for subnet, gateway in ((b.subnets.v4, b.public), (b.subnets.v6, b.public6)):
        a.ns.run(f"ip route replace {subnet} via {gateway} dev eth0")
    assert a.ns.ping("10.5.2.0", source="10.5.1.0") == 1  # it is indeed forwarded
    prober = auto(a, [b, c])
    with probing(a, prober):
        eventually(lambda: prober.direct == both(c))
        lost = value("netd_direct_probes_lost_total")
        eventually(lambda: value("netd_direct_probes_lost_total") >= lost + 6)
        assert prober.direct == both(c)
    # nor has asking the kernel for it undone what the operator made permanent
    assert a.ns.run("ip neigh show dev eth0 nud permanent").count(mac) == 2


def test_a_peer_that_restarts_with_another_mac_address_is_found_again(netns: NetnsMaker) -> None:
    a, b = hosts(netns, 2)
    prober = auto(a, [b])
    with probing(a, prober):
        eventually(lambda: prober.direct == both(b))
        b.ns.run("ip link set eth0 down")
        eventually(lambda: prober.direct == frozenset())
        b.ns.run("ip link set eth0 address 02:00:00:00:99:99 up")
        b.ns.run(f"ip address replace {b.public6}/64 dev eth0 nodad")
        # whoever has restarted sends something before long, and by that is known by its new address
        assert b.ns.ping(str(a.public)) == 1
        b.ns.run(["bash", "-c", f"echo > /dev/udp/{a.public6}/9"])
        eventually(lambda: prober.direct == both(b))


def test_an_interface_that_is_not_there_is_waited_for(netns: NetnsMaker) -> None:
    a, b = hosts(netns, 2)
    prober = auto(a, [b])
    with probing(a, prober):
        eventually(lambda: prober.direct == both(b))
        a.ns.run("ip link set eth0 down")
        a.ns.run("ip link set eth0 name eth9")
        eventually(lambda: prober.direct == frozenset())
        a.ns.run("ip link set eth9 name eth0")
        a.ns.run("ip link set eth0 up")
        a.ns.run(f"ip address replace {a.public6}/64 dev eth0 nodad")
        a.ns.run(f"ip route replace {b.subnets.v6} via fd00:5:0:2:: dev flannel-v6.1 onlink")
        eventually(lambda: prober.direct == both(b))


def test_no_more_neighbours_are_looked_for_than_leave_room_for_those_pods_talk_to(netns: NetnsMaker) -> None:
    a = netns.host("a")
    known = IPv4Address(netns.underlay.address)
    unknown = [IPv4Address("192.168.64.100") + number for number in range(6)]
    assert a.ping(str(known)) == 1
    with inside(a), closing(Segment("eth0", most=4)) as segment:
        with pytest.raises(PodlaneError, match="half of the neighbour table is in use"):
            segment.resolve(unknown)
        assert len(a.run("ip neigh show dev eth0").splitlines()) == 4
        segment.resolve([known])  # which has its place already
        assert segment.mac(known) is not None
        assert segment.mac(unknown[0]) is None
        with closing(Segment("eth0")) as usual:
            words = a.run("ip ntable show name arp_cache").split()
            assert usual.most(4) == usual.most(6) == int(words[words.index("thresh3") + 1]) // 2
            usual.resolve(unknown)
        assert len(a.run("ip neigh show dev eth0").splitlines()) == 7


def test_an_error_of_whoever_is_told_does_not_end_the_probing(netns: NetnsMaker) -> None:
    a, b = hosts(netns, 2)
    told: list[int] = []

    def on_change() -> None:
        told.append(len(prober.direct))
        if len(told) == 1:
            raise RuntimeError("no")

    prober = Prober(on_change, interval=0.2, timing=QUICK)
    prober.set_peers(a.subnets, [b.lease], a.underlay, auto=True)
    with probing(a, prober):
        eventually(lambda: told and prober.direct == both(b))
        eventually(above("netd_probe_rtt_seconds_count", value("netd_probe_rtt_seconds_count")))
        b.ns.run("ip link set eth0 down")
        eventually(lambda: len(told) > 1 and told[-1] == 0)
        eventually(lambda: prober.unreachable().count == 1)


def test_peers_behind_a_router_are_not_probed(netns: NetnsMaker) -> None:
    a, b = hosts(netns, 2)
    far = Lease("far", Subnets(IPv4Network("10.5.9.0/24")), LeaseValue.vxlan(IPv4Address("192.168.65.9"), 1, b.mac(4)))
    prober = Prober(lambda: None, interval=0, timing=QUICK)
    prober.set_peers(a.subnets, [b.lease, far], a.underlay, auto=True)
    with probing(a, prober):
        eventually(lambda: prober.direct == both(b))
    assert value("netd_direct_candidates") == 2
