"""netd's firewall with packets: what is masqueraded, what is forwarded, and what is left of it in the end."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import proxyd_world
import pytest
from proxyd_nets import FAR as FAR_POD
from proxyd_nets import POD1, POD3, V4, web

from netd.firewall import Firewall, FirewallRules
from podlane.api.subnets import Subnets
from podlane.errors import PodlaneError
from tests.dockerd_process import dockerd
from tests.kernel.conftest import Netns, NetnsMaker, inside
from tests.kernel.firewall_world import (
    BRIDGE,
    FAR,
    NODE,
    NODE_TO_FAR,
    OUTSIDE,
    POD,
    RULES,
    VTEP,
    World,
    dump,
    guard,
)

pytestmark = pytest.mark.kernel

FAMILIES = pytest.mark.parametrize("version", [4, 6])
DOCKERS_CHAINS = """\
*filter
:FORWARD DROP [0:0]
:DOCKER - [0:0]
:DOCKER-USER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -j DOCKER
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-USER -j RETURN
COMMIT
"""
OTHERS_TABLES = """\
table inet other {
	set addresses { type ipv4_addr; elements = { 192.0.2.1 } }
	chain input { type filter hook input priority filter; policy accept; ip saddr @addresses counter drop; }
}
table ip podlane { chain postrouting { type nat hook postrouting priority srcnat; policy accept; }; }
"""


@pytest.fixture
def world(netns: NetnsMaker) -> World:
    return World(netns)


@pytest.fixture
def firewall() -> Firewall:
    return Firewall()


def sync(world: World, firewall: Firewall, rules: FirewallRules = RULES) -> None:
    with inside(world.node):
        firewall.sync(rules)


def docker(ns: Netns) -> None:
    """The filter table as a stock dockerd leaves it."""
    for program in ("iptables", "ip6tables"):
        ns.run([f"{program}-restore"], stdin=DOCKERS_CHAINS)


# --- masquerading ----------------------------------------------------------------------------


@FAMILIES
def test_pods_leave_with_the_nodes_address(world: World, firewall: Firewall, version: int) -> None:
    assert world.seen(world.pod, POD[version], world.outside, OUTSIDE[version]) == POD[version]
    sync(world, firewall)
    assert world.seen(world.pod, POD[version], world.outside, OUTSIDE[version]) == NODE[version]


@FAMILIES
def test_within_the_pod_network_addresses_are_kept(world: World, firewall: Firewall, version: int) -> None:
    sync(world, firewall)
    assert world.seen(world.pod, POD[version], world.far, FAR[version]) == POD[version]
    assert world.seen(world.far, FAR[version], world.pod, POD[version]) == FAR[version]
    # the node calls other hosts' pods from its VTEP's address, and its own from the bridge's
    assert world.seen(world.node, VTEP[version], world.far, FAR[version]) == VTEP[version]
    assert world.seen(world.node, BRIDGE[version], world.pod, POD[version]) == BRIDGE[version]


@FAMILIES
def test_multicast_is_not_masqueraded(world: World, firewall: Firewall, version: int) -> None:
    sync(world, firewall)
    assert world.seen(world.node, BRIDGE[version], world.outside, OUTSIDE[version]) == NODE[version]
    assert world.multicast(version, BRIDGE[version]) == BRIDGE[version]


@FAMILIES
def test_own_pods_see_who_calls_from_outside(world: World, firewall: Firewall, version: int) -> None:
    sync(world, firewall)
    assert world.seen(world.outside, OUTSIDE[version], world.pod, POD[version]) == OUTSIDE[version]
    assert world.seen(world.node, NODE[version], world.pod, POD[version]) == NODE[version]


@FAMILIES
def test_other_hosts_pods_answer_outsiders_by_this_way(world: World, firewall: Firewall, version: int) -> None:
    sync(world, firewall)
    assert world.seen(world.outside, OUTSIDE[version], world.far, FAR[version]) == NODE_TO_FAR[version]
    assert world.seen(world.node, NODE[version], world.far, FAR[version]) == NODE_TO_FAR[version]


@FAMILIES
@pytest.mark.parametrize(("mark", "kept"), [(0x4000, True), (0xC000, True), (0x8000, False)])
def test_what_kube_proxy_marked_is_left_to_it(
    world: World, firewall: Firewall, version: int, mark: int, kept: bool
) -> None:
    sync(world, firewall)
    source = world.seen(world.node, BRIDGE[version], world.outside, OUTSIDE[version], mark=mark)
    assert source == (BRIDGE if kept else NODE)[version]


@FAMILIES
def test_ports_are_kept_unless_fully_random(world: World, firewall: Firewall, version: int) -> None:
    def kept_ports() -> int:
        flows = [world.flow(world.pod, POD[version], world.outside, OUTSIDE[version]) for _ in range(5)]
        assert {who[0] for who, _ in flows} == {NODE[version]}
        return sum(who[1] == port for who, port in flows)

    sync(world, firewall)
    assert kept_ports() < 5  # a port is kept by chance in one of 64,000 flows
    sync(world, firewall, replace(RULES, random_fully=False))
    assert kept_ports() == 5


@FAMILIES
def test_nothing_is_masqueraded_unless_wanted(world: World, firewall: Firewall, version: int) -> None:
    sync(world, firewall)
    sync(world, firewall, replace(RULES, masquerade=False, guard=guard()))
    assert world.seen(world.pod, POD[version], world.outside, OUTSIDE[version]) == POD[version]
    assert "nat" not in world.node.run("nft list table inet podlane-netd")
    sync(world, firewall, replace(RULES, masquerade=False))
    assert "podlane-netd" not in world.node.run("nft list tables")


def test_a_network_of_one_family_leaves_the_other_alone(world: World, firewall: Firewall) -> None:
    sync(world, firewall, replace(RULES, networks=RULES.networks[:1], own=Subnets(RULES.own.v4)))
    assert world.seen(world.pod, POD[4], world.outside, OUTSIDE[4]) == NODE[4]
    assert world.seen(world.pod, POD[6], world.outside, OUTSIDE[6]) == POD[6]
    assert "PODLANE-FORWARD" not in world.node.run("ip6tables -S")


@FAMILIES
def test_restarts_and_rewrites_lose_no_packet_of_a_flow(world: World, version: int) -> None:
    sync(world, Firewall())
    with (
        world.server(world.outside, OUTSIDE[version]) as server,
        world.client(world.pod, POD[version]) as client,
    ):
        seen = set()
        for turn in range(20):
            sync(world, Firewall(), replace(RULES, guard=guard(port=4789 + turn % 2)))
            client.sendto(b"x", server.getsockname())
            who = server.recvfrom(64)[1]
            server.sendto(b"y", who)
            assert client.recvfrom(64)[0] == b"y"
            seen.add(who)
    assert len(seen) == 1


@pytest.mark.parametrize("first", ["netd", "proxyd"])
def test_services_work_with_proxyds_masquerading_before_ours_and_after(netns: NetnsMaker, first: str) -> None:
    world = proxyd_world.World(netns)
    services = web(V4, [POD1, FAR_POD])
    own, other = world.pods[POD1], world.pods[POD3]
    at = V4.pods
    try:
        world.serve(POD1, FAR_POD)
        if first == "proxyd":
            world.sync(*services)
        with inside(world.node):
            Firewall().sync(RULES)
        if first == "netd":
            world.sync(*services)
        # who answers, and what it sees as the caller
        assert {world.call(other) for _ in range(30)} == {(POD1, at[POD3]), (FAR_POD, at[POD3])}
        assert {world.call(own) for _ in range(30)} == {(POD1, V4.bridge), (FAR_POD, at[POD1])}
        assert {world.call(world.client) for _ in range(30)} == {(POD1, V4.bridge), (FAR_POD, V4.node_elsewhere)}
    finally:
        world.close()


# --- forwarding ------------------------------------------------------------------------------


@pytest.fixture(params=["iptables-nft", "iptables-legacy"])
def programs(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder at the head of PATH in which `iptables` and its like are one kind or the other."""
    kind = request.param.removeprefix("iptables")
    for name in ("iptables", "ip6tables"):
        for suffix in ("", "-restore"):
            real = shutil.which(f"{name}{kind}{suffix}")
            assert real is not None
            (tmp_path / f"{name}{suffix}").symlink_to(real)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return tmp_path


@FAMILIES
def test_pods_are_forwarded_though_docker_drops_the_rest(
    world: World, firewall: Firewall, programs: Path, version: int
) -> None:
    docker(world.node)
    assert not world.passes(version)
    sync(world, firewall, replace(RULES, masquerade=False))
    assert world.passes(version)
    # and not more than that
    with (
        world.server(world.far, {4: "172.16.0.2", 6: "fd00:172::2"}[version]) as server,
        world.client(world.outside, OUTSIDE[version]) as client,
    ):
        world.outside.run(["ip", "route", "add", server.getsockname()[0], "via", NODE[version]])
        client.sendto(b"x", server.getsockname())
        with pytest.raises(TimeoutError):
            server.recv(64)
    sync(world, firewall, replace(RULES, forward=False, masquerade=False))
    assert not world.passes(version)


def test_the_administrators_rules_come_first(world: World, firewall: Firewall, programs: Path) -> None:
    docker(world.node)
    sync(world, firewall)
    listed = world.node.run("iptables -S FORWARD").splitlines()
    assert listed[1:3] == ["-A FORWARD -j DOCKER-USER", "-A FORWARD -j PODLANE-FORWARD"]
    world.node.run(f"iptables -I DOCKER-USER -s {POD[4]} -j DROP")
    assert not world.passes(4)


def test_what_docker_moves_is_put_back_in_order(world: World, firewall: Firewall, programs: Path) -> None:
    docker(world.node)
    sync(world, firewall)
    right = world.node.run("iptables -S")
    for change in ("-I FORWARD -j DOCKER-ISOLATION-STAGE-1", "-D FORWARD -j PODLANE-FORWARD", "-F PODLANE-FORWARD"):
        world.node.run(f"iptables {change}")
        sync(world, firewall)
        listed = world.node.run("iptables -S FORWARD").splitlines()
        # where Docker puts something before its own chain, ours comes before that
        if change.startswith("-I"):
            assert listed[1] == "-A FORWARD -j PODLANE-FORWARD"
            world.node.run("iptables -D FORWARD -j DOCKER-ISOLATION-STAGE-1")
            sync(world, firewall)
        assert world.node.run("iptables -S") == right


def test_without_the_commands_there_is_no_forwarding_and_no_failure(
    world: World, firewall: Firewall, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nft = shutil.which("nft")
    assert nft is not None
    (tmp_path / "nft").symlink_to(nft)
    with inside(world.node), monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        firewall.sync(RULES)
        firewall.sync(RULES)
    assert world.seen(world.pod, POD[4], world.outside, OUTSIDE[4]) == NODE[4]
    assert "FORWARD" not in world.node.run("nft list ruleset")
    sync(world, firewall)  # installed meanwhile
    assert "-A FORWARD -j PODLANE-FORWARD" in world.node.run("iptables -S")


def test_one_part_that_fails_keeps_no_other_from_being_written(
    world: World, firewall: Firewall, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "iptables").write_text("#!/bin/sh\necho 'xtables lock is held' >&2\nexit 4\n")
    (tmp_path / "iptables").chmod(0o755)
    with inside(world.node), monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path), prepend=":")
        with pytest.raises(PodlaneError, match=r"iptables .*-S PODLANE-FORWARD: exit 4: xtables lock is held"):
            firewall.sync(RULES)
    assert world.seen(world.pod, POD[4], world.outside, OUTSIDE[4]) == NODE[4]
    assert "-A FORWARD -j PODLANE-FORWARD" in world.node.run("ip6tables -S")
    sync(world, firewall)
    assert "-A FORWARD -j PODLANE-FORWARD" in world.node.run("iptables -S")


def test_what_nft_refuses_is_named_and_the_rest_written(world: World, firewall: Firewall) -> None:
    with pytest.raises(PodlaneError, match=r"nft -f -: exit 1"):
        sync(world, firewall, replace(RULES, guard=guard(port=70000)))
    assert "-A FORWARD -j PODLANE-FORWARD" in world.node.run("iptables -S")
    assert "podlane-netd" not in world.node.run("nft list tables")
    sync(world, firewall)
    assert world.seen(world.pod, POD[4], world.outside, OUTSIDE[4]) == NODE[4]


# --- leaving ---------------------------------------------------------------------------------


@pytest.fixture(params=["hand-made", "dockerd"])
def beside(request: pytest.FixtureRequest, netns: NetnsMaker) -> Iterator[Netns]:
    """A host on which others have rules."""
    node = netns.host("node")
    with ExitStack() as stack:
        if request.param == "dockerd":
            stack.enter_context(dockerd(node.name))
        for program in ("iptables", "ip6tables"):
            # the chains of a table that was never used would be made by iptables itself
            node.run([program, "-P", "FORWARD", "DROP"])
        if request.param == "hand-made":
            docker(node)
        node.run(["nft", "-f", "-"], stdin=OTHERS_TABLES)
        yield node


def test_removing_leaves_no_trace(beside: Netns) -> None:
    before = dump(beside)
    assert "-P FORWARD DROP" in before
    rules = replace(RULES, guard=guard("192.0.2.1", "2001:db8::1"))
    with inside(beside):
        firewall = Firewall()
        firewall.sync(rules)
        assert dump(beside).count("PODLANE-FORWARD") > 8
        firewall.remove()
        assert dump(beside) == before
        firewall.remove()
        assert dump(beside) == before
        firewall.sync(rules)
        Firewall().remove()  # as `netd uninstall` does, another process
        assert dump(beside) == before


def test_the_first_versions_table_goes(world: World, firewall: Firewall) -> None:
    old = "table ip podlane-netd { chain postrouting { type nat hook postrouting priority srcnat; }; }"
    for wanted in (replace(RULES, masquerade=False), RULES):
        world.node.run(["nft", "-f", "-"], stdin=old)
        sync(world, Firewall(), wanted)
        assert "table ip podlane-netd" not in world.node.run("nft list tables")
    world.node.run(["nft", "-f", "-"], stdin=old)
    with inside(world.node):
        firewall.remove()
    assert "podlane-netd" not in world.node.run("nft list tables")


def test_removing_what_never_was_writes_nothing(world: World, firewall: Firewall) -> None:
    before = world.node.run("nft list ruleset")
    with inside(world.node):
        firewall.remove()
    assert world.node.run("nft list ruleset") == before == ""
