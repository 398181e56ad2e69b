"""Session affinity by client address with real packets, in both families (finding 6)."""

from __future__ import annotations

import re
import time

import pytest

from podlane.runtime import netlink as nl
from podlane.runtime import nftables as nft
from proxyd import expressions as x
from proxyd.chains import expressions_of
from proxyd.nftmsg import TABLES
from proxyd.ruleset import AFFINITY_SIZE, Skeleton
from tests.kernel.conftest import eventually, inside
from tests.kernel.proxyd_nets import BOTH, FAR, NODE_TCP, POD1, POD2, POD3, TCP, UDP, V4, endpoints, service, web
from tests.kernel.proxyd_world import ask

pytestmark = pytest.mark.kernel

PODS = [POD1, POD2, POD3]
LONG = 300  # seconds; longer than any test


def chosen(world, net, clients=range(1, 25), ip=""):
    """Who answers each of the client's addresses."""
    return {number: world.call(world.client, ip or net.vip, source=net.source(number))[0] for number in clients}


@BOTH
def test_a_client_stays_with_its_pod_and_others_have_others(world, net):
    world.serve(*PODS, udp=5353)
    world.sync(*web(net, PODS, TCP, UDP, affinity=LONG))
    first = chosen(world, net)
    assert set(first.values()) == set(PODS)
    for _ in range(3):
        assert chosen(world, net) == first
    for ns in (world.far, world.node):
        assert len(set(world.calls(ns, 12, ip=net.vip))) == 1
    # another port is another matter, but as steady
    flows = {ask(world.flow(world.client, net.vip, source=net.source(1)))[0] for _ in range(6)}
    assert len(flows) == 1
    assert len(world.nft.affinity(net.family)) == 24 + 2 + 1


@BOTH
def test_without_affinity_one_client_is_sent_to_all(world, net):
    world.serve(*PODS)
    world.sync(*web(net, PODS))
    assert {world.call(world.client, net.vip, source=net.source(1))[0] for _ in range(30)} == set(PODS)


@BOTH
def test_who_is_idle_for_long_enough_is_picked_for_anew(world, net):
    world.serve(*PODS)
    world.sync(*web(net, PODS, affinity=1))
    first = chosen(world, net)
    eventually(lambda: not world.nft.affinity(net.family))
    # all 24 the same again: 1 of 3**24
    assert chosen(world, net) != first


def test_each_new_connection_makes_the_time_begin_anew(world):
    world.serve(*PODS)
    world.sync(*web(V4, PODS, affinity=3))
    first = chosen(world, V4, range(1, 9))
    since = time.monotonic()
    seen = 0
    while time.monotonic() < since + 5:
        before = time.monotonic()
        now = chosen(world, V4, range(1, 9))
        if time.monotonic() - before < 1:  # else the machine slept, and any of them may have run out
            seen += 1
        assert now == first
        time.sleep(0.3)
    assert seen > 3
    assert time.monotonic() - since > 3


@BOTH
def test_when_a_pod_goes_its_clients_move_and_nobody_else(world, net):
    world.serve(*PODS)
    world.sync(*web(net, PODS, affinity=LONG))
    first = chosen(world, net)
    world.sync(endpoints(net, [POD1, POD3]))
    second = chosen(world, net)
    assert set(second.values()) == {POD1, POD3}
    assert {number for number in first if second[number] != first[number]} == {n for n in first if first[n] == POD2}
    assert chosen(world, net) == second
    # nor does anybody when it comes back, with the same address
    world.sync(endpoints(net, PODS), settle=True)
    assert chosen(world, net) == second
    assert POD2 in set(chosen(world, net, range(25, 60)).values())


def test_it_outlives_proxyd_and_its_own_being_turned_off_for_others(world):
    world.serve(*PODS, FAR)
    world.sync(*web(V4, PODS, affinity=LONG))
    world.sync(*web(V4, PODS, name="other", ip=V4.other_vip, affinity=LONG))
    first, others = chosen(world, V4), chosen(world, V4, ip=V4.other_vip)
    assert first != others  # each service picks for itself
    world.start()
    world.sync(endpoints(V4, [*PODS, FAR]))
    assert chosen(world, V4) == first
    world.sync(service(V4, name="other", ip=V4.other_vip))
    assert {world.call(world.client, V4.other_vip, source=V4.source(1))[0] for _ in range(30)} == set(PODS)
    assert chosen(world, V4) == first


@BOTH
def test_with_local_policy_those_outside_stay_with_a_local_pod(world, net):
    world.serve(*PODS, FAR)
    local = service(net, NODE_TCP, balancer=True, affinity=LONG, external_traffic_policy="Local")
    world.sync(local, endpoints(net, [POD1, POD2, FAR]))
    first = chosen(world, net, ip=net.balancer)
    assert set(first.values()) == {POD1, POD2}
    assert chosen(world, net, ip=net.balancer) == first
    assert world.call(world.client, net.balancer, source=net.source(1))[1] == net.source(1)
    inside_pods = {world.call(world.pods[POD3], net.balancer)[0] for _ in range(8)}
    assert len(inside_pods) == 1


class Small(Skeleton):
    """With room for four clients."""

    def script(self, *, anew=False):
        return super().script(anew=anew).replace(f"size {AFFINITY_SIZE}", "size 4")


@BOTH
def test_when_the_map_is_full_everybody_is_served(world, net):
    world.serve(*PODS)
    world.sync(*web(net, PODS, affinity=LONG))
    with inside(world.node):
        world.nft.load(Small((net.pod_network,), (net.service_range,), family=net.family))
    world.repair()
    assert len(chosen(world, net)) == 24
    known = world.nft.affinity(net.family)
    assert len(known) == 4
    first = chosen(world, net)
    assert all(chosen(world, net)[n] == first[n] for n in range(1, 5) for _ in range(3))


# --- the packet's priority ---------------------------------------------------------------

HOOKS = {"pre": "prerouting priority dstnat + 5", "out": "output priority 0", "post": "postrouting priority srcnat + 5"}
WATCHED = "tcp dport { 80, 8080 } ct state new meta priority != 0 counter"  # the kernel's own IGMP, too, has one


def watch(world, net):
    """Count first packets with a priority, behind ours in every hook."""
    chains = [f"chain {name} {{ type filter hook {hook}; {WATCHED}; }}" for name, hook in HOOKS.items()]
    world.nft_script("\n".join([f"table {net.name} test {{", *chains, "}"]))


def with_priority(world, net):
    """How many first packets of a connection had one."""
    listed = world.node.run(f"nft list table {net.name} test")
    return sum(map(int, re.findall(r"counter packets (\d+)", listed)))


@BOTH
def test_the_packets_priority_is_as_it_was(world, net):
    """The affinity chains keep an id in it for a moment. Without their setting it back it would stay there."""
    world.serve(*PODS)
    world.sync(*web(net, PODS, affinity=LONG))
    watch(world, net)
    callers = (world.client, world.far, world.node)
    for ns in callers:
        world.calls(ns, 6, ip=net.vip)
    assert with_priority(world, net) == 0
    rebuild(world, net, "lb3-aff300", without=set_back)
    for ns in callers:
        world.calls(ns, 6, ip=net.vip)
    assert with_priority(world, net) >= 18


def set_back(register):
    return x.zero(register) + x.set_meta(x.META_PRIORITY, register)


def rebuild(world, net, chain, *, without):
    """The chain's rules, as proxyd has them, but for some expressions."""
    rules = expressions_of(chain, net.name)
    found = [register for register in range(8, 24) if any(without(register) in rule for rule in rules)]
    assert found, "no such expressions in any rule"
    table, where = TABLES[net.family], nl.text(nft.RULE_CHAIN, chain)
    create = nl.NLM_F_CREATE | nl.NLM_F_APPEND
    messages = [nft.BEGIN, table.message(nft.DELRULE, where)]
    for rule in rules:
        expressions = nl.nest(nft.RULE_EXPRESSIONS, rule.replace(without(found[0]), b""))
        messages.append(table.message(nft.NEWRULE, where, expressions, flags=create))
    with inside(world.node), nl.NetlinkSocket(nl.NETLINK_NETFILTER) as kernel:
        assert nft.commit(kernel, [*messages, nft.END]) == []


# --- what the kernel does with its map ---------------------------------------------------


def test_update_leaves_an_elements_data_as_it_is(netns):
    """Why an entry is deleted before it is added, where its pod is gone."""
    ns = netns.add("node")
    ns.run(
        ["nft", "-f", "-"],
        stdin="""table ip test {
            map seen { type ipv4_addr : mark; flags dynamic,timeout; timeout 1m; }
            chain output { type filter hook output priority 0;
                udp dport 1 ct mark set 1 update @seen { ip daddr : ct mark }
                udp dport 2 ct mark set 2 update @seen { ip daddr : ct mark }
                udp dport 3 ct mark set 3 delete @seen { ip daddr : ct mark } add @seen { ip daddr : ct mark }
            }
        }""",
    )

    def after(port):
        with inside(ns):
            import socket

            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
                made.sendto(b"?", ("127.0.0.1", port))
        return int(re.findall(r": (0x\w+)", ns.run("nft list map ip test seen"))[0], 16)

    assert [after(port) for port in (1, 2, 3)] == [1, 1, 3]
