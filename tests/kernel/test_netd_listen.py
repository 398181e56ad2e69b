"""What wakes netd, and when what it remembers of the kernel may be used instead of looking."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from netd import plan as p
from tests.kernel.conftest import NetnsMaker, eventually
from tests.kernel.netd_ear import DUAL, FD, Ear, listening, peers, thousand
from tests.kernel.netd_kernels import dual_stack_host, subnet

pytestmark = pytest.mark.kernel


@pytest.fixture
def ear(netns: NetnsMaker) -> Iterator[Ear]:
    yield from listening(dual_stack_host(netns))


@pytest.fixture
def connected(ear: Ear) -> Ear:
    """With two peers of both families, and trust in what is remembered."""
    ear.reach(peers(2, 3))
    ear.settle()
    return ear


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
    "sysctl -qw net.ipv4.ip_forward=0",
    "sysctl -qw net.ipv6.conf.all.forwarding=0",
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


def test_an_address_that_is_back_before_anybody_looked_again_is_heard(connected: Ear) -> None:
    for command in ("delete", "add"):
        before = connected.count
        connected.host.run(f"ip address {command} 192.168.64.11/24 dev eth0")
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
