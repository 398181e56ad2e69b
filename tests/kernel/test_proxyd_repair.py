"""Somebody else's hand in the ruleset: ours is put right, theirs is left alone, and costs nothing."""

from __future__ import annotations

import re

import pytest

from tests.kernel.conftest import eventually
from tests.kernel.proxyd_nets import NETS, NODE_TCP, POD1, POD2, POD3, TCP, V4, V6, endpoints, service
from tests.kernel.proxyd_run import answers

pytestmark = pytest.mark.kernel

OTHER = "table ip other { map m { type ipv4_addr : mark; }; chain in { type filter hook input priority 0; counter; }; }"


def test_whatever_is_broken_is_right_again(proxyd):
    world = proxyd.world
    world.serve(POD1)
    proxyd.begin([POD1], NODE_TCP)
    world.nft_script(OTHER)
    other = world.node.run("nft -s list table ip other")
    whole = normal(world)
    for net in NETS:
        name, slot = net.name, f"{net.vip} . tcp . 80 . 0"
        for script in (
            f"delete element {name} podlane endpoints {{ {slot} }}",
            f"delete element {name} podlane endpoints {{ {slot} }}\n"
            f"add element {name} podlane endpoints {{ {slot} : {net.pods[POD2]} . 8080 }}",
            f"add element {name} podlane endpoints {{ {net.other_vip} . tcp . 1 . 5 : {net.pods[POD2]} . 1 }}",
            f"delete element {name} podlane services {{ {net.vip} . tcp . 80 }}",
            f"flush map {name} podlane endpoints",
            f"flush set {name} podlane cluster_ips",
            f"flush set {name} podlane pod_networks",
            f"flush chain {name} podlane lb1",
            f"flush chain {name} podlane postrouting",
            f"insert rule {name} podlane prerouting drop",
            f"add chain {name} podlane lb7\nadd rule {name} podlane lb7 accept",
            f"flush table {name} podlane",
            f"delete table {name} podlane",
        ):
            world.nft_script(script)
            eventually(lambda: normal(world) == whole, timeout=30, interval=0.02)
            assert answers(world, world.client, net.vip) == POD1
            assert answers(world, world.client, net.node, 30080) == POD1
    assert world.node.run("nft -s list table ip other") == other
    world.nft_script("flush ruleset")
    for net in NETS:
        proxyd.wait_answer(POD1, net.vip)
    assert "changed by someone else" in proxyd.log.read_text()
    assert proxyd.metric("podlane_proxyd_repairs_total") >= 20


def normal(world):
    """Our tables, elements in one order, without chains nobody goes to, which go by and by."""
    found = {}
    for net in NETS:
        text = world.node.run(f"nft -s list table {net.name} podlane", check=False)
        text = re.sub(r"\tchain lb7 \{[^}]*\}\n+", "", text)
        parts = (part.strip(" ,\t{}=") for part in re.split(r"\n|, ", text.replace("elements", "")))
        found[net.name] = sorted(part for part in parts if part)
    return found


def test_what_others_do_often_makes_no_work(proxyd):
    world = proxyd.world
    world.serve(POD1, POD2)
    proxyd.begin([POD1])
    work = ("podlane_proxyd_commits_total", "podlane_proxyd_verify_duration_seconds_count")
    before = [proxyd.metric(name) for name in work]
    world.nft_script(OTHER)
    for number in range(100):
        world.nft_script(f"add element ip other m {{ 192.0.2.{number} : {number} }}\nadd rule ip other in counter")
    between = [proxyd.metric(name) for name in work]
    assert between[0] == before[0]
    assert between[1] - before[1] <= 2  # which it does now and then anyway
    # and its own changes leave theirs alone
    other = world.node.run("nft -s list table ip other")
    proxyd.put(service(V4, TCP, name="b", ip=V4.other_vip), endpoints(V4, [POD2], TCP, name="b"))
    proxyd.wait_answer(POD2, V4.other_vip)
    assert world.node.run("nft -s list table ip other") == other
    assert proxyd.metric("podlane_proxyd_repairs_total") == 0


DOCKER = """
iptables -w -N DOCKER
iptables -w -P FORWARD DROP
iptables -w -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
iptables -w -A FORWARD -o docker0 -j DOCKER
iptables -w -A FORWARD -i docker0 ! -o docker0 -j ACCEPT
iptables -w -A FORWARD -i docker0 -o docker0 -j ACCEPT
iptables -w -t nat -N DOCKER
iptables -w -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
iptables -w -t nat -A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
iptables -w -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
iptables -w -t nat -A DOCKER ! -i docker0 -p tcp -m tcp --dport 8081 -j DNAT --to-destination 172.17.0.2:80
"""
NETD = """
iptables -w -I FORWARD -s 10.5.0.0/16 -j ACCEPT
iptables -w -I FORWARD -d 10.5.0.0/16 -j ACCEPT
iptables -w -t nat -A POSTROUTING -s 10.5.0.0/16 ! -d 10.5.0.0/16 -j MASQUERADE
"""


@pytest.mark.parametrize("first", ["docker", "proxyd"])
def test_beside_docker_with_its_policy_to_drop_traffic_works(proxyd, first):
    """Docker's rules, and what netd adds for the pods; whoever came first."""
    world = proxyd.world
    world.serve(POD1)
    if first == "docker":
        world.node.run(["sh", "-ec", DOCKER + NETD])
    proxyd.begin([POD1], NODE_TCP)
    proxyd.put(service(V4, name="none", ip=V4.other_vip))
    if first == "proxyd":
        world.node.run(["sh", "-ec", DOCKER + NETD])
    theirs = world.node.run(["iptables-save"])
    eventually(lambda: V4.other_vip in world.node.run("nft list set ip podlane cluster_ips"), timeout=30)
    for ns in (world.pods[POD3], world.pods[POD1], world.client, world.node, world.far):
        assert answers(world, ns) == POD1
        assert answers(world, ns, V4.node, 30080) == POD1
        # an answer at once, where a FORWARD policy of DROP would leave the caller waiting
        assert world.outcome(ns, V4.other_vip) == "refused"
        assert answers(world, ns, V6.vip) == POD1
    # a pod keeps its address towards a service, whoever masquerades what leaves the pod network
    assert world.call(world.pods[POD3])[1] == V4.pods[POD3]
    proxyd.scale([], NODE_TCP)
    for ns in (world.pods[POD3], world.client, world.node):
        eventually(lambda ns=ns: world.outcome(ns, V4.node, 30080) == "refused", timeout=30)
    after = world.node.run(["iptables-save"])
    assert re.sub(r"#.*|\[.*\]", "", after) == re.sub(r"#.*|\[.*\]", "", theirs)
