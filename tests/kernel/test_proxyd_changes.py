"""Endpoints that come and go under load: nobody is lost (finding 1)."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from proxyd.desired import Index
from proxyd.plan import plan_all
from proxyd.serving import Place
from proxyd.slots import plan_retire
from proxyd.tables import ENDPOINTS, PICKS, Transaction
from tests.kernel.proxyd_nets import BOTH, FAR, POD1, POD2, POD3, UDP, V4, endpoints, web
from tests.kernel.proxyd_world import World, ask

pytestmark = pytest.mark.kernel

PODS = [POD1, POD2, POD3, FAR]

FLOOD = """
import socket, struct, sys, time
vip, seconds = sys.argv[1], float(sys.argv[2])
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
sent = 0
end = time.monotonic() + seconds
def sum16(data):
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
heads = []
for host in range(1, 5):
    ends = socket.inet_aton("192.168.64.%d" % (100 + host)) + socket.inet_aton(vip)
    head = struct.pack("!BBHHHBBH8s", 0x45, 0, 29, 0, 0, 64, 17, 0, ends)
    heads.append(head[:10] + struct.pack("!H", sum16(head)) + head[12:])
print("ready", flush=True)
for port in range(1024, 65000):
    if time.monotonic() > end:
        break
    for head in heads:
        sent += 1
        try:
            raw.sendto(head + struct.pack("!HHHHB", port, 53, 9, 0, 0), (vip, 0))
        except PermissionError:
            pass
print(sent, flush=True)
"""


def flood_while(world: World, seconds: float, change: Any) -> tuple[int, int]:
    """New UDP flows from the node, each from another port, while `change` runs again and again: (sent, missed)."""
    before = missed(world)
    flood = world.node.popen([sys.executable, "-c", FLOOD, V4.vip, str(seconds)], stdout=subprocess.PIPE)
    assert flood.stdout is not None
    assert flood.stdout.readline() == b"ready\n"
    while flood.poll() is None:
        change()
    return int(flood.stdout.read()), missed(world) - before


def missed(world: World) -> int:
    """How many packets came to the end of a pick chain."""
    return sum(map(int, re.findall(r"counter packets (\d+)", world.node.run("nft list table ip podlane"))))


def shrink_and_grow(world: World, affinity: int = 0, *, in_one: bool) -> Any:
    """4 targets, 1 target, 4 targets, as the plan has it, or with the shrinking in one transaction."""
    tables = world.nft.dump(V4.family)
    # which the dump does not know again, with what the test put into them
    tables.chains |= set(chains_of(affinity))
    index = Index(Place("node"))
    index.replace(world.store.services, world.store.slices)

    def change() -> None:
        for wanted in (PODS[:1], PODS):
            index.update({}, {"default/web-ip": endpoints(V4, wanted, UDP)})
            plan = plan_all(tables, index)
            if in_one:
                for name, key in plan.retire:
                    plan.now.delete[name].append(key)
            commit(plan.now)
            if plan.retire and not in_one:
                time.sleep(0.01)
                commit(plan_retire(tables, plan.retire))

    def commit(transaction: Transaction) -> None:
        world.nft.commit(transaction)
        tables.apply(transaction)

    return change


def chains_of(affinity: int) -> list[str]:
    return [f"lb{count}-aff{affinity}" if affinity else f"lb{count}" for count in (1, 4)]


def prepare_flood(world: World, affinity: int = 0) -> None:
    for host in range(101, 105):
        world.node.run(f"ip address add 192.168.64.{host}/32 dev eth0")
    # nothing but the flood's own packets; and unanswered flows, of which conntrack keeps only so many
    world.nft_script("table ip test { chain in { type filter hook postrouting priority 0; udp dport 5353 drop; }; }")
    world.sync(*web(V4, PODS, UDP, affinity=affinity))
    world.sync(endpoints(V4, PODS[:1], UDP), settle=True)
    world.sync(endpoints(V4, PODS, UDP), settle=True)
    # the window between the two look-ups is some 100 ns; rules that match nothing make it a hundred times wider
    for chain in chains_of(affinity):
        rules = world.node.run(["nft", "-a", "list", "chain", "ip", "podlane", chain])
        drop = re.search(r"drop # handle (\d+)", rules)
        assert drop is not None
        script = [f"insert rule ip podlane {chain} ip saddr 192.0.2.{i % 250}" for i in range(1000)]
        script += [f"delete rule ip podlane {chain} handle {drop[1]}", f"add rule ip podlane {chain} counter drop"]
        world.nft_script("\n".join(script))


@pytest.mark.parametrize("affinity", [0, 300])
def test_shrinking_in_two_transactions_loses_nobody(world, affinity):
    """Finding 1."""
    prepare_flood(world, affinity)
    sent, lost = flood_while(world, 2.0, shrink_and_grow(world, affinity, in_one=False))
    assert sent > 1_000
    assert lost == 0
    slots = PICKS if affinity else ENDPOINTS
    assert len(world.nft.dump(V4.family)[slots]) == 4


def test_shrinking_in_one_transaction_loses_some(world):
    """Finding 1 without its remedy."""
    prepare_flood(world)
    lost = 0
    for _ in range(10):
        lost += flood_while(world, 1.0, shrink_and_grow(world, in_one=True))[1]
        if lost:
            break
    assert lost > 0


@BOTH
def test_an_established_connection_survives_its_endpoint_leaving(world, net):
    world.serve(POD1, POD2)
    world.sync(*web(net, [POD1]))
    connections = [world.connect(ns, net.vip) for ns in (world.pods[POD3], world.client, world.node)]
    for each in connections:
        assert ask(each)[0] == POD1
    world.sync(endpoints(net, [POD2]), settle=True)
    for each in connections:
        assert ask(each)[0] == POD1
    assert set(world.calls(world.pods[POD3], 5, ip=net.vip)) == {POD2}


@BOTH
@pytest.mark.parametrize("how", [{}, {"balance": "maglev"}, {"affinity": 300}], ids=["random", "hash", "affinity"])
def test_scaling_under_steady_calls_fails_none(world, net, how):
    world.serve(POD1, POD2, FAR)
    world.sync(*web(net, [POD1, POD2, FAR], **how))
    failures: list[OSError] = []
    done = threading.Event()
    count = [0]

    def caller(ns: Any) -> None:
        while not done.is_set():
            try:
                world.call(ns, net.vip, timeout=10)
                count[0] += 1
            except OSError as error:
                failures.append(error)

    threads = [threading.Thread(target=caller, args=(ns,)) for ns in (world.pods[POD3], world.client)]
    for thread in threads:
        thread.start()
    for wanted in ([POD1], [POD1, POD2], [POD2], [FAR, POD2], [POD1, POD2, FAR]) * 3:
        world.sync(endpoints(net, wanted))
        time.sleep(0.03)
    done.set()
    for thread in threads:
        thread.join(20)
    assert failures == []
    assert count[0] > 20
