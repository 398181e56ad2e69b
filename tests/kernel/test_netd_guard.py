"""The VXLAN guard with packets: who is admitted, who is dropped and counted, and what a change of peers costs."""

from __future__ import annotations

import socket
from dataclasses import replace
from ipaddress import IPv4Address, ip_address

import pytest

from netd.firewall import Firewall, FirewallRules, VxlanGuard
from podlane.errors import PodlaneError
from podlane.runtime import nftables
from podlane.runtime.netlink import NETLINK_NETFILTER, NetlinkSocket
from proxyd.nft import KernelNft
from proxyd.ruleset import Skeleton
from tests.kernel.conftest import NetnsMaker, eventually, inside
from tests.kernel.firewall_world import NODE, OUTSIDE, POD, RULES, World, guard

pytestmark = pytest.mark.kernel

FAMILIES = pytest.mark.parametrize("version", [4, 6])
PEER = {4: "192.168.64.12", 6: "fd00:64::12"}
STRANGER = {4: "192.168.64.66", 6: "fd00:64::66"}
GUARDED = replace(RULES, forward=False, masquerade=False, guard=guard(*PEER.values()))
PORT = 8472


class Guarded(World):
    """The world with a firewall on its node; `outside` has a peer's address and a stranger's too."""

    def __init__(self, netns: NetnsMaker) -> None:
        super().__init__(netns)
        for address in (*PEER.values(), *STRANGER.values()):
            self.outside.run(f"ip address add {address}{'/64 nodad' if ':' in address else '/24'} dev eth0")
        self.firewall = Firewall()

    def sync(self, rules: FirewallRules = GUARDED) -> None:
        with inside(self.node):
            self.firewall.sync(rules)

    def dropped(self) -> int:
        with inside(self.node):
            return self.firewall.dropped()

    def admits(self, source: str, *, port: int = PORT, data: bytes = b"x") -> bool:
        """Whether what `outside` sends from `source` reaches the node; if not, it must have been counted."""
        before = self.dropped()
        with (
            self.server(self.node, NODE[ip_address(source).version], port) as server,
            self.client(self.outside, source) as client,
        ):
            client.sendto(data, server.getsockname())
            server.setblocking(False)

            def outcome() -> str:
                try:
                    assert server.recv(65535) == data
                    return "admitted"
                except BlockingIOError:
                    return "dropped" if self.dropped() == before + 1 else ""

            return bool(eventually(outcome) == "admitted")

    def elements(self) -> set[str]:
        """The sources in the kernel, by nft's own listing."""
        found = set()
        for name in ("vxlan-sources", "vxlan-sources6"):
            text = self.node.run(f"nft list set inet podlane-netd {name}")
            if "elements" in text:
                found |= set(text.split("elements = {")[1].split("}")[0].replace(",", " ").split())
        return found

    def generation(self) -> int:
        with inside(self.node), NetlinkSocket(NETLINK_NETFILTER) as nl:
            return nftables.generation(nl)


@pytest.fixture
def world(netns: NetnsMaker) -> Guarded:
    return Guarded(netns)


def many(count: int, start: int = 0) -> frozenset[IPv4Address]:
    return frozenset(IPv4Address("10.0.0.0") + number for number in range(start, start + count))


def with_sources(sources: frozenset[IPv4Address]) -> FirewallRules:
    return replace(GUARDED, guard=VxlanGuard(PORT, sources))


# --- packets -----------------------------------------------------------------------------------


@FAMILIES
def test_only_peers_are_admitted_and_the_rest_is_counted(world: Guarded, version: int) -> None:
    assert world.admits(STRANGER[version])
    world.sync()
    assert [world.admits(each[version]) for each in (PEER, STRANGER, PEER, STRANGER)] == [True, False, True, False]
    assert world.dropped() == 2


@FAMILIES
def test_other_ports_are_open_to_everybody(world: Guarded, version: int) -> None:
    world.sync()
    assert world.admits(STRANGER[version], port=PORT + 1)
    with inside(world.node):
        server = socket.create_server((NODE[version], PORT), family=(socket.AF_INET, socket.AF_INET6)[version == 6])
    with server, inside(world.outside):
        socket.create_connection((NODE[version], PORT), timeout=5, source_address=(STRANGER[version], 0)).close()


@FAMILIES
def test_the_host_itself_is_not_guarded_against(world: Guarded, version: int) -> None:
    world.sync()
    assert world.seen(world.node, NODE[version], world.node, NODE[version]) == NODE[version]
    with world.server(world.node, NODE[version], PORT) as server, world.client(world.node, NODE[version]) as client:
        client.sendto(b"x", server.getsockname())
        assert server.recv(64) == b"x"


@FAMILIES
def test_what_is_on_its_way_elsewhere_is_not_guarded(world: Guarded, version: int) -> None:
    world.sync()
    with world.server(world.outside, OUTSIDE[version], PORT) as server, world.client(world.pod, POD[version]) as client:
        client.sendto(b"x", server.getsockname())
        assert server.recv(64) == b"x"


@FAMILIES
def test_fragments_are_judged_as_what_they_are_parts_of(world: Guarded, version: int) -> None:
    world.sync()
    assert world.admits(PEER[version], data=bytes(4000))
    assert not world.admits(STRANGER[version], data=bytes(4000))
    assert world.dropped() == 1


def test_the_kernels_own_vxlan_is_guarded(netns: NetnsMaker) -> None:
    hosts = [netns.host("a"), netns.host("b")]
    for number, (host, other) in enumerate(zip(hosts, reversed(hosts), strict=True)):
        host.run(f"ip link add flannel.1 type vxlan id 1 dstport {PORT} local {host.address} dev eth0 nolearning")
        host.run(f"ip link set flannel.1 address 02:00:00:00:00:0{number} up")
        host.run(f"ip address add 10.9.0.{number + 1}/24 dev flannel.1")
        host.run(f"bridge fdb append 00:00:00:00:00:00 dev flannel.1 dst {other.address}")
    firewall = Firewall()
    with inside(hosts[1]):
        firewall.sync(replace(GUARDED, guard=guard(hosts[0].address)))
        assert hosts[0].ping("10.9.0.2", count=3) == 3
        firewall.sync(GUARDED)
        assert hosts[0].ping("10.9.0.2", count=3) == 0
        assert firewall.dropped() >= 3


def test_another_port_moves_the_guard(world: Guarded) -> None:
    world.sync()
    world.sync(replace(GUARDED, guard=guard(PEER[4], port=4789)))
    assert world.admits(STRANGER[4])
    assert not world.admits(STRANGER[4], port=4789)
    world.sync(replace(GUARDED, guard=None))
    assert world.dropped() == 0
    assert "podlane-netd" not in world.node.run("nft list tables")


# --- changes -------------------------------------------------------------------------------------


def test_peers_come_and_go_without_the_rest_being_written(world: Guarded) -> None:
    world.sync()
    assert not world.admits(STRANGER[4])
    before = world.generation()
    world.sync(replace(GUARDED, guard=guard(*PEER.values(), STRANGER[4])))
    assert world.admits(STRANGER[4])
    assert world.dropped() == 1  # the counter would start anew with the table
    world.sync(replace(GUARDED, guard=guard(PEER[6], STRANGER[4])))
    assert not world.admits(PEER[4])
    assert world.admits(PEER[6])
    assert world.elements() == {PEER[6], STRANGER[4]}
    assert world.generation() == before + 2


def test_thousands_of_peers(world: Guarded) -> None:
    world.sync(with_sources(many(5000)))
    assert world.elements() == set(map(str, many(5000)))
    before = world.generation()
    world.sync(with_sources(many(6000)))
    assert world.generation() == before + 1
    world.sync(with_sources(many(6000, 3000)))
    assert world.generation() == before + 2
    assert world.elements() == set(map(str, many(6000, 3000)))
    world.sync(with_sources(frozenset()))
    assert world.elements() == set()


def test_a_sync_without_change_writes_nothing(world: Guarded) -> None:
    rules = replace(RULES, guard=guard(*PEER.values()))
    world.sync(rules)
    before = world.generation()
    for _ in range(3):
        world.sync(rules)
    world.node.run("nft add table ip other")
    world.sync(rules)
    assert world.generation() == before + 1


@pytest.mark.parametrize("again", [True, False], ids=["a resync", "a change"])
def test_what_somebody_did_to_the_sources_is_undone(world: Guarded, again: bool) -> None:
    world.sync()
    world.node.run(f"nft add element inet podlane-netd vxlan-sources {{ {STRANGER[4]} }}")
    world.node.run(f"nft delete element inet podlane-netd vxlan-sources6 {{ {PEER[6]} }}")
    assert not world.admits(PEER[6])
    sources = (*PEER.values(),) if again else (PEER[6], OUTSIDE[4])
    before = world.generation()
    world.sync(replace(GUARDED, guard=guard(*sources)))
    assert world.elements() == set(sources)
    assert world.generation() == before + 1


def test_what_was_right_before_the_last_change_is_not_right_again(world: Guarded) -> None:
    """A listing that is known from before must not pass for what is wanted now."""
    world.sync()
    world.node.run("nft add table ip other")
    world.sync()  # which looks at the sources
    world.sync(replace(GUARDED, guard=guard(PEER[6])))
    world.node.run(f"nft add element inet podlane-netd vxlan-sources {{ {PEER[4]} }}")
    world.sync(replace(GUARDED, guard=guard(PEER[6])))
    assert world.elements() == {PEER[6]}


def test_a_new_process_takes_over(world: Guarded) -> None:
    world.sync(with_sources(many(10)))
    world.firewall = Firewall()
    world.sync(with_sources(many(12, 1)))
    assert world.elements() == set(map(str, many(12, 1)))


def test_after_an_error_nothing_is_believed(world: Guarded) -> None:
    world.sync()
    with pytest.raises(PodlaneError):
        world.sync(replace(GUARDED, guard=guard(port=70000)))
    assert world.elements() == set(PEER.values())  # refused as a whole
    world.sync()
    assert world.admits(PEER[4])
    assert not world.admits(STRANGER[4])


def test_beside_proxyd_which_writes_all_the_time(world: Guarded) -> None:
    """Its commits are changes of nftables too: ours must neither fail nor be taken for undone."""
    with inside(world.node):
        proxyd = KernelNft(timeout=10)
        proxyd.load(Skeleton())
        proxyd.close()
    element = "element ip podlane cluster_ips '{ 192.0.2.1 }'"
    busy = world.node.popen(["sh", "-c", f"while nft add {element} && nft delete {element}; do :; done"])
    before = world.generation()
    for number in range(20):
        world.sync(with_sources(many(100, number)))
        assert world.elements() == set(map(str, many(100, number)))
    assert busy.poll() is None
    assert world.generation() > before + 20
    world.node.end(busy)


def test_the_counter_is_zero_before_there_is_one(world: Guarded) -> None:
    assert world.dropped() == 0
    world.sync()
    assert world.dropped() == 0
