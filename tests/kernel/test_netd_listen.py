"""What wakes netd, and when what it remembers of the kernel may be used instead of looking."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netd import plan as p
from netd.kernel import LinuxKernel
from netd.model import Actual, Desired, FdbEntry, Neighbour, Route
from podlane.api.subnets import Network
from podlane.errors import ApplyError
from tests.kernel.conftest import Netns, NetnsMaker, eventually, inside
from tests.kernel.test_netd_contract import SHAPES, SYSCTLS, Shape, dual_stack_host, mac, subnet

pytestmark = pytest.mark.kernel

DUAL = SHAPES[2]
DEVICES = ("flannel.7", "flannel-v6.7")
FD = "fd00:10:5"


@dataclass
class Ear:
    """A host that is listened to, and how often something was heard."""

    host: Netns
    kernel: LinuxKernel
    count: int = 0
    watched: tuple[str, ...] = (*DEVICES, "eth0")
    networks: tuple[Network, ...] = DUAL.networks
    free: threading.Event = field(default_factory=threading.Event)

    def on_change(self) -> None:
        self.count += 1
        self.free.wait()

    def observe(self, *, verify: bool = True) -> Actual:
        return self.kernel.observe(DEVICES, self.networks, SYSCTLS, verify=verify)

    def fresh(self) -> Actual:
        """What a kernel adapter that remembers nothing sees."""
        return LinuxKernel().observe(DEVICES, self.networks, SYSCTLS)

    def reach(self, desired: Desired) -> None:
        self.kernel.apply(p.plan(desired, self.observe()))

    def settle(self) -> int:
        """Look until nothing is heard any more and memory can be trusted; the count by then."""

        def quiet() -> bool:
            self.observe()
            before = self.count
            threading.Event().wait(0.2)
            return self.count == before and self.kernel.remembers

        eventually(quiet)
        return self.count

    def catch_up(self) -> None:
        """Wait until all notifications that are on their way have been taken notice of."""

        def drained() -> bool:
            lines = Path("/proc/thread-self/net/netlink").read_text().splitlines()[1:]
            waiting = [line.split() for line in lines]
            return not any(groups != "00000000" and int(memory) for _, _, _, groups, memory, *_ in waiting)

        eventually(drained)
        threading.Event().wait(0.1)


def listening(host: Netns, **kernel: int) -> Iterator[Ear]:
    ear = Ear(host, LinuxKernel(**kernel))
    ear.free.set()
    stop = threading.Event()

    def listen() -> None:
        with inside(host):
            ear.kernel.listen(lambda: ear.watched, ear.on_change, stop)

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        eventually(lambda: ear.count)
        with inside(host):
            yield ear
    finally:
        stop.set()
        ear.free.set()
        host.run("ip address add 127.0.0.9/8 dev lo")  # something to hear, and then to see that it should stop
        thread.join(10)
    assert not thread.is_alive()


@pytest.fixture
def ear(netns: NetnsMaker) -> Iterator[Ear]:
    yield from listening(dual_stack_host(netns))


@pytest.fixture
def connected(ear: Ear) -> Ear:
    """With two peers of both families, and trust in what is remembered."""
    ear.reach(peers(2, 3))
    ear.settle()
    return ear


def peers(*numbers: int, shape: Shape = DUAL) -> Desired:
    own = frozenset(subnet(family, 1) for family in shape.over)
    return replace(shape.peers(*numbers), blackholes=own)


def thousand(shape: Shape, base: Desired) -> Desired:
    """Another thousand peers of both families."""
    want = Desired(base.networks, base.devices, sysctls=base.sysctls, blackholes=base.blackholes)
    neighbours, fdb, routes = dict(base.neighbours), dict(base.fdb), dict(base.routes)
    for family in shape.over:
        name = shape.device(family).name
        for n in range(1000):
            address = f"02:00:00:01:{n >> 8:02x}:{n & 255:02x}"
            v4 = IPv4Network((0x0A050A00 + 32 * n, 27))
            net = v4 if family == 4 else type(shape.networks[-1])((int(IPv6Address(f"{FD}:8000::")) + (n << 64), 64))
            remote = IPv4Address(0xC0A84100 + n) if shape.over[family] == 4 else IPv6Address(f"fd64::{n + 4096:x}")
            neighbours[name, net.network_address] = Neighbour(address)
            fdb[name, address] = FdbEntry(remote)
            routes[net] = Route(net.network_address, name, onlink=True)
    return replace(want, neighbours=neighbours, fdb=fdb, routes=routes)


# ---- our own changes ----------------------------------------------------------------------------


def test_two_thousand_of_our_own_peers_wake_nobody_and_are_remembered(connected: Ear) -> None:
    before = connected.count
    few, many = peers(2, 3), thousand(DUAL, peers(2, 3))
    for want in (many, few, many):
        connected.kernel.apply(p.plan(want, connected.observe(verify=False)))
        seen = connected.observe(verify=False)
        assert connected.kernel.remembers
        assert (seen.neighbours, seen.fdb, seen.routes) == (want.neighbours, want.fdb, want.routes)
        assert seen == connected.fresh()
        connected.catch_up()  # what is heard late is taken for somebody else's
    assert connected.count == before
    assert connected.kernel.remembers


def test_memory_is_not_used_while_nobody_listens(netns: NetnsMaker) -> None:
    host = dual_stack_host(netns)
    with inside(host):
        kernel = LinuxKernel()
        kernel.apply(p.plan(peers(2), kernel.observe(DEVICES, DUAL.networks, SYSCTLS)))
        kernel.observe(DEVICES, DUAL.networks, SYSCTLS)
        assert not kernel.remembers
        host.run("ip route delete 10.5.2.0/24")
        assert subnet(4, 2) not in kernel.observe(DEVICES, DUAL.networks, SYSCTLS, verify=False).routes


def test_memory_ends_with_the_listening(netns: NetnsMaker) -> None:
    host = dual_stack_host(netns)
    for ear in listening(host):
        ear.reach(peers(2))
        ear.settle()
    assert not ear.kernel.remembers


def test_another_question_is_not_answered_from_memory(connected: Ear) -> None:
    one = connected.kernel.observe(["flannel.7"], connected.networks, SYSCTLS, verify=False)
    assert set(one.devices) == {"flannel.7"}
    none = connected.kernel.observe([], (), {}, verify=False)
    assert (none.devices, none.neighbours, none.sysctls) == ({}, {}, {})
    assert set(none.routes) == set(peers(2, 3).routes)  # they carry netd's mark


def test_sysctls_are_always_read(connected: Ear) -> None:
    connected.host.run("sysctl -qw net.ipv4.ip_forward=0")
    assert connected.observe(verify=False).sysctls["net/ipv4/ip_forward"] == "0"
    assert connected.kernel.remembers


def test_a_step_that_fails_leaves_nothing_remembered(connected: Ear) -> None:
    nowhere = p.SetRoute(IPv4Network("10.5.9.0/24"), Route(IPv4Address("198.51.100.1"), "eth0", onlink=False))
    good = p.SetRoute(IPv4Network("10.5.8.0/24"), Route(IPv4Address("10.5.8.0"), "flannel.7", onlink=True))
    with pytest.raises(ApplyError):
        connected.kernel.apply(p.Plan(entry_steps=(nowhere, good)))
    assert not connected.kernel.remembers
    seen = connected.observe(verify=False)
    assert good.destination in seen.routes
    assert nowhere.destination not in seen.routes


def test_a_removal_of_what_is_gone_is_no_reason_to_doubt(connected: Ear) -> None:
    removal = p.DeleteFdb("flannel.7", mac(9), FdbEntry(IPv4Address("192.168.64.9")))
    connected.kernel.apply(p.Plan(entry_steps=(removal, p.DeleteBlackhole(subnet(4, 9)))))
    assert connected.kernel.remembers
    assert connected.observe(verify=False) == connected.fresh()


# ---- everybody else's ---------------------------------------------------------------------------

BY_HAND = (
    "ip route delete 10.5.2.0/24",
    "ip route replace 10.5.2.0/24 via 192.168.64.77",
    "ip route replace unreachable 10.5.2.0/24",
    "ip route append 10.5.2.0/24 via 192.168.64.77",
    "ip route add 10.5.200.0/24 via 192.168.64.77",
    "ip route add 172.30.0.0/16 via 192.168.64.77 protocol 117",
    "ip route delete blackhole 10.5.1.0/24 metric 1048576",
    f"ip route delete {FD}:2::/64",
    f"ip route replace {FD}:2::/64 via fd64::77",
    f"ip route add {FD}:200::/64 via fd64::77",
    f"ip route delete blackhole {FD}:1::/64 metric 1048576",
    "ip neigh delete 10.5.2.0 dev flannel.7",
    "ip neigh replace 10.5.2.0 lladdr 02:00:00:00:00:99 dev flannel.7 nud permanent",
    "ip neigh change 10.5.2.0 lladdr 02:00:00:00:00:02 dev flannel.7 nud reachable",
    "ip neigh add 10.5.77.0 lladdr 02:00:00:00:00:99 dev flannel.7 nud permanent",
    f"ip neigh delete {FD}:2:: dev flannel-v6.7",
    f"ip neigh replace {FD}:2:: lladdr 02:00:00:00:00:99 dev flannel-v6.7 nud permanent",
    "bridge fdb delete 02:00:00:00:00:02 dev flannel.7",
    "bridge fdb replace 02:00:00:00:00:02 dev flannel.7 dst 192.168.64.77 self permanent",
    "bridge fdb append 02:00:00:00:00:99 dev flannel.7 dst 192.168.64.77",
    "bridge fdb delete 02:00:00:00:00:02 dev flannel-v6.7",
    "bridge fdb append 02:00:00:00:00:99 dev flannel-v6.7 dst fd64::77",
    "ip address delete 10.5.1.0/32 dev flannel.7",
    "ip address add 10.9.1.0/32 dev flannel.7",
    f"ip address delete {FD}:1::/128 dev flannel-v6.7",
    "ip address add fd09::1/128 dev flannel-v6.7 nodad",
    "ip address add 192.168.64.99/24 dev eth0",
    "ip address add fd64::99/64 dev eth0 nodad",
    "ip link set flannel.7 down",
    "ip link set flannel-v6.7 down",
    "ip link set flannel.7 mtu 1400",
    "ip link set flannel.7 address 02:00:00:00:00:0b",
    "ip link set flannel.7 type vxlan learning",
    "ip link set flannel.7 name other",
    "ip link delete flannel.7",
    "ip link set eth0 mtu 1400",
    "ip link set eth0 down",
    "ip link delete eth0",
)


@pytest.mark.parametrize("command", BY_HAND)
def test_a_change_by_hand_wakes_and_is_seen_without_verifying(connected: Ear, command: str) -> None:
    before = connected.count
    connected.host.run(command)
    eventually(lambda: connected.count > before)
    assert not connected.kernel.remembers
    assert connected.observe(verify=False) == connected.fresh()


def test_a_link_that_comes_back_is_heard_and_so_is_its_address(connected: Ear) -> None:
    host = connected.host
    host.run("ip link delete eth0")
    eventually(lambda: connected.observe().devices == {})
    connected.catch_up()
    for command in (
        "ip link add eth0 type veth peer name other0",
        "ip link set eth0 up",
        "ip address add 192.168.64.11/24 dev eth0",
    ):
        before = connected.count
        host.run(command)
        eventually(lambda before=before: connected.count > before)


def test_names_that_are_watched_from_now_on_are_heard(connected: Ear) -> None:
    connected.watched = (*connected.watched, "eth1")
    before = connected.count
    connected.host.run("ip link add eth1 type veth peer name other1")
    eventually(lambda: connected.count > before)


def test_before_anything_was_looked_at_links_are_heard_all_the_same(ear: Ear) -> None:
    for command in ("ip address add 192.168.64.99/24 dev eth0", "ip link set eth0 down"):
        before = ear.count
        ear.host.run(command)
        eventually(lambda before=before: ear.count > before)


def test_a_local_subnet_among_the_pods_is_heard_and_held_beside_our_route(connected: Ear) -> None:
    """In IPv6 the kernel's own route for an address stands beside ours, and is the one in use."""
    host = connected.host
    host.run("ip link add br0 type veth peer name br1")
    host.run("ip link set br0 up")
    for subnet_, seen in ((f"{FD}:200::", True), (f"{FD}:2::", False)):
        before = connected.settle()
        for verb in ("add", "delete"):
            host.run(f"ip address {verb} {subnet_}1/64 dev br0")
            eventually(lambda before=before: connected.count > before)
            assert connected.observe(verify=False) == connected.fresh()
            routes = connected.observe(verify=False).routes
            assert any(route.device == "br0" for route in routes.values()) is (seen and verb == "add")
            before = connected.settle()


def test_a_route_out_of_a_link_that_goes_down_goes_without_a_word_and_is_noticed(connected: Ear) -> None:
    """Linux does not tell of IPv4 routes that go with their interface."""
    host = connected.host
    for command in (
        "ip link add br0 type bridge",
        "ip link set br0 up",
        "ip address add 10.5.200.1/24 dev br0",
    ):
        host.run(command)
    connected.settle()
    assert subnet(4, 200) in connected.observe(verify=False).routes
    host.run("ip link set br0 down")
    eventually(lambda: not connected.kernel.remembers)
    assert subnet(4, 200) not in connected.observe(verify=False).routes


def test_several_routes_with_one_destination_are_not_remembered(connected: Ear) -> None:
    """Which of them is left when one goes cannot be told."""
    connected.host.run("ip route append 10.5.2.0/24 via 192.168.64.77")
    eventually(lambda: not connected.kernel.remembers)
    connected.observe()
    assert not connected.kernel.remembers
    connected.host.run("ip route delete 10.5.2.0/24 via 192.168.64.77")
    connected.settle()


UNCONCERNED = (
    "ip link add br0 type bridge",
    "ip link add pod0 type veth peer name pod1",
    "ip link set pod0 master br0 up",
    "ip address add 10.9.3.1/24 dev pod1",
    "ip link set pod1 up",
    "ip route add 172.20.0.0/16 via 192.168.64.77",
    "ip route add 10.5.0.0/16 via 192.168.64.77 metric 5",
    "ip route add 10.5.2.0/24 via 192.168.64.77 metric 7",
    "ip route add 10.5.2.0/24 via 192.168.64.77 table 100",
    "ip route add fd99::/64 via fd64::77",
    "ip neigh replace 192.168.64.77 lladdr 02:00:00:00:00:77 dev eth0",
    "ip neigh replace fd64::77 lladdr 02:00:00:00:00:77 dev eth0",
    # what is there already
    "ip route replace 10.5.2.0/24 via 10.5.2.0 dev flannel.7 protocol 117 onlink",
    f"ip route replace {FD}:2::/64 via {FD}:2:: dev flannel-v6.7 protocol 117 onlink",
    "ip neigh replace 10.5.2.0 lladdr 02:00:00:00:00:02 dev flannel.7 nud permanent protocol 117",
    "bridge fdb replace 02:00:00:00:00:02 dev flannel.7 dst 192.168.64.2 self permanent extern_learn",
    "ip address replace 192.168.64.11/24 dev eth0",
    "ip address replace fd64::11/64 dev eth0 nodad",
    "ip link set eth0 mtu 1500",
    "ip link set eth0 alias uplink",
    "ip link set flannel.7 up",
    # nothing permanent
    "ip neigh add 10.5.77.0 lladdr 02:00:00:00:00:99 dev flannel.7 nud reachable",
    f"ip neigh add {FD}:77:: lladdr 02:00:00:00:00:99 dev flannel-v6.7 nud reachable",
    "bridge fdb append 00:00:00:00:00:00 dev flannel.7 dst 192.168.64.77",
    "ip link delete pod0",
    "ip link delete br0",
)


def test_what_concerns_nobody_or_is_there_already_wakes_nobody(connected: Ear) -> None:
    before = connected.count
    for command in UNCONCERNED:
        connected.host.run(command)
    connected.catch_up()
    assert (connected.count, connected.kernel.remembers) == (before, True)
    assert connected.observe(verify=False) == connected.fresh()


@pytest.fixture
def hard_of_hearing(netns: NetnsMaker) -> Iterator[Ear]:
    yield from listening(dual_stack_host(netns), backlog=4096)


def test_lost_notifications_void_what_is_remembered(hard_of_hearing: Ear) -> None:
    ear = hard_of_hearing
    ear.reach(peers(2, 3))
    before = ear.settle()
    ear.free.clear()
    ear.host.run("ip link set eth0 mtu 1400")  # the listener is busy with that
    eventually(lambda: ear.count > before)
    ear.observe()
    assert ear.kernel.remembers
    ear.kernel.apply(p.plan(thousand(DUAL, peers(2, 3)), ear.fresh()))
    assert ear.kernel.remembers
    ear.free.set()
    eventually(lambda: not ear.kernel.remembers)
    assert ear.observe(verify=False) == ear.fresh()
    ear.settle()


# ---- any mixture ---------------------------------------------------------------------------------

number = st.integers(2, 5)
family = st.sampled_from([4, 6])


def _entry_steps() -> st.SearchStrategy[p.EntryStep]:
    def name(each: int) -> str:
        return DEVICES[each == 6]

    def vtep(each: int, n: int) -> object:
        return subnet(each, n).network_address  # type: ignore[arg-type]

    def remote(each: int, n: int) -> object:
        return IPv4Address(f"192.168.64.{n}") if each == 4 else IPv6Address(f"fd64::{n}")

    def overlay(each: int, n: int) -> Route:
        return Route(vtep(each, n), name(each), onlink=True)  # type: ignore[arg-type]

    def direct(each: int, n: int) -> Route:
        return Route(remote(each, n), "eth0", onlink=False, protocol=3)  # type: ignore[arg-type]

    way = st.sampled_from([overlay, direct])
    return st.one_of(
        st.builds(lambda e, n, m: p.SetFdb(name(e), mac(n), FdbEntry(remote(e, m))), family, number, number),
        st.builds(lambda e, n, m: p.DeleteFdb(name(e), mac(n), FdbEntry(remote(e, m))), family, number, number),
        st.builds(lambda e, n, m: p.SetNeighbour(name(e), vtep(e, n), Neighbour(mac(m))), family, number, number),
        st.builds(lambda e, n: p.DeleteNeighbour(name(e), vtep(e, n)), family, number),
        st.builds(lambda e, n, w: p.SetRoute(subnet(e, n), w(e, n)), family, number, way),
        st.builds(lambda e, n, w: p.DeleteRoute(subnet(e, n), w(e, n)), family, number, way),
        st.builds(lambda e, n: p.AddBlackhole(subnet(e, n)), family, number),
        st.builds(lambda e, n: p.DeleteBlackhole(subnet(e, n)), family, number),
    )


ours = st.tuples(st.just("ours"), st.lists(_entry_steps(), min_size=1, max_size=5))
theirs = st.tuples(st.just("theirs"), st.lists(_entry_steps(), min_size=1, max_size=3))
flaps = st.tuples(
    st.just("run"),
    st.sampled_from(["ip link set flannel.7 down", "ip link set flannel-v6.7 down", "ip link set flannel.7 mtu 1400"]),
)
looks = st.tuples(st.just("look"), st.booleans())
mixtures = st.lists(st.one_of(ours, ours, theirs, flaps, looks, looks), max_size=12)


def _apply(kernel: LinuxKernel, steps: list[p.EntryStep]) -> None:
    try:
        kernel.apply(p.Plan(entry_steps=tuple(steps)))
    except ApplyError:
        return  # some are refused, in some order of things


def _play(ear: Ear, mixture: list[tuple[str, object]]) -> None:
    for what, how in mixture:
        match what:
            case "ours":
                _apply(ear.kernel, how)  # type: ignore[arg-type]
            case "theirs":
                _apply(LinuxKernel(), how)  # type: ignore[arg-type]
            case "run":
                ear.host.run(how)  # type: ignore[arg-type]
            case "look":
                ear.observe(verify=bool(how))


def test_whatever_happens_memory_is_void_or_right(ear: Ear) -> None:
    trusted = []

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(mixtures)
    def play(mixture: list[tuple[str, object]]) -> None:
        ear.reach(peers(2, 3))
        ear.observe()
        _play(ear, mixture)

        def right() -> bool:
            return not ear.kernel.remembers or ear.observe(verify=False) == ear.fresh()

        eventually(right)
        trusted.append(ear.kernel.remembers)

    play()
    assert any(trusted)


def test_what_netd_does_is_remembered_as_it_is(ear: Ear) -> None:
    trusted = []
    ear.reach(peers(2, 3))
    ear.settle()

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(st.lists(_entry_steps(), min_size=1, max_size=8))
    def play(steps: list[p.EntryStep]) -> None:
        ear.observe(verify=False)
        _apply(ear.kernel, steps)
        trusted.append(ear.kernel.remembers)
        assert ear.observe(verify=False) == ear.fresh()

    play()
    assert any(trusted)
