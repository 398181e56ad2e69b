"""Balancing by a hash of the client's address: the same pod from every node, with real packets in both families."""

from __future__ import annotations

import pytest

from proxyd import hashing
from proxyd.chains import HASH_SEED
from proxyd.tables import Target, pack_address, pack_target
from tests.kernel.proxyd_nets import BOTH, FAR, NODE_TCP, POD1, POD2, POD3, V4, endpoints, service, web
from tests.kernel.proxyd_world import World

pytestmark = pytest.mark.kernel

PODS = [POD1, POD2, POD3, FAR]
CLIENTS = range(1, 121)
HASHES = pytest.mark.parametrize("balance", ["affinity-hash", "maglev"])
FILL = {"affinity-hash": hashing.rendezvous, "maglev": hashing.maglev}


def chosen(world, net, ip="", clients=CLIENTS):
    return {number: world.call(world.client, ip or net.vip, source=net.source(number))[0] for number in clients}


@BOTH
@HASHES
def test_two_nodes_send_a_client_to_the_same_pod(world, netns, net, balance):
    second = World(netns, suffix="b")
    try:
        for each in (world, second):
            each.serve(*PODS)
        world.sync(*web(net, PODS, balance=balance))
        # the other got there by another way
        second.sync(*web(net, PODS[1:3], balance=balance))
        second.sync(endpoints(net, [FAR, POD3, POD2]))
        second.sync(endpoints(net, PODS[::-1]))
        first = chosen(world, net, clients=range(1, 41))
        assert chosen(second, net, clients=range(1, 41)) == first
        assert set(first.values()) == set(PODS)
        # and where its packets come from changes nothing: another connection, another time
        assert chosen(world, net, clients=range(1, 41)) == first
    finally:
        second.close()


def test_at_random_they_do_not(world, netns):
    second = World(netns, suffix="b")
    try:
        for each in (world, second):
            each.serve(*PODS)
            each.sync(*web(V4, PODS))
        assert chosen(world, V4, clients=range(1, 41)) != chosen(second, V4, clients=range(1, 41))
    finally:
        second.close()


@BOTH
@HASHES
def test_when_one_of_four_pods_goes_its_clients_move(world, net, balance):
    world.serve(*PODS)
    world.sync(*web(net, PODS, balance=balance))
    before = chosen(world, net)
    world.sync(endpoints(net, [POD1, POD3, FAR]))
    after = chosen(world, net)
    orphans = {number for number, pod in before.items() if pod == POD2}
    moved = {number for number in CLIENTS if after[number] != before[number]}
    print(f"{balance} {net.name}: {len(orphans)} of {len(CLIENTS)} were its own, {len(moved)} moved")
    assert orphans <= moved
    if balance == "affinity-hash":
        assert moved == orphans
    else:  # a few more, as the slots' owners say
        owners = [table_of(balance, net, pods) for pods in (PODS, [POD1, POD3, FAR])]
        share = sum(a != b for a, b in zip(*owners, strict=False)) / len(owners[0])
        assert len(owners[0]) == len(owners[1])
        assert len(moved) < 2 * share * len(CLIENTS)
    # come back, it has its own again
    world.sync(endpoints(net, PODS), settle=True)
    assert chosen(world, net) == before


def table_of(balance, net, pods):
    targets = tuple(sorted(pack_target(Target(net.pods[pod], 8080)) for pod in pods))
    return FILL[balance](targets, hashing.table_size(len(targets)))


@BOTH
@HASHES
def test_the_kernel_picks_what_the_table_says(world, net, balance):
    """The plan of who is where is pure; here it meets the kernel's own hash."""
    world.serve(*PODS)
    world.sync(*web(net, PODS, balance=balance))
    owners = table_of(balance, net, PODS)
    pods = {pack_target(Target(net.pods[pod], 8080)): pod for pod in PODS}
    expected = {
        number: pods[owners[hashing.slot_of(pack_address(net.source(number)), len(owners), HASH_SEED)]]
        for number in CLIENTS
    }
    assert chosen(world, net) == expected


@BOTH
def test_with_local_policy_those_outside_are_hashed_among_the_local_pods(world, net):
    world.serve(*PODS)
    local = service(
        net, NODE_TCP, balancer=True, balance="affinity-hash", affinity=300, external_traffic_policy="Local"
    )
    world.sync(local, endpoints(net, PODS))
    first = chosen(world, net, net.balancer)
    assert set(first.values()) == {POD1, POD2, POD3}
    assert chosen(world, net, net.balancer) == first
    assert len(set(world.calls(world.pods[POD3], 8, ip=net.balancer))) == 1
    # the affinity remembers, where the hash would send some back
    world.sync(endpoints(net, [POD1, POD2, FAR]))
    second = chosen(world, net, net.balancer)
    assert {n for n in first if second[n] != first[n]} == {n for n in first if first[n] == POD3}
    world.sync(endpoints(net, PODS), settle=True)
    assert chosen(world, net, net.balancer) == second
