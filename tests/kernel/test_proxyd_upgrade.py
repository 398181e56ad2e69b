"""A proxyd that takes over the table of the first version: what that put into the kernel, word for word.

Frozen from what it wrote for a service with two pods; the new one has more maps
and chains, and other rules in those of the same name.
"""

from __future__ import annotations

import pytest

from podlane.runtime import netlink as nl
from podlane.runtime import nftables as nft
from proxyd.nftmsg import TABLES
from proxyd.tables import IPV4, MAPS
from tests.kernel.conftest import eventually, inside
from tests.kernel.proxyd_nets import FAR, NODE_TCP, NODE_UDP, POD1, POD2, POD3, UDP, V4, V6, service, web
from tests.kernel.proxyd_run import Callers
from tests.kernel.proxyd_world import ask

pytestmark = pytest.mark.kernel

FIRST = """
table ip podlane {
    map services {
        type ipv4_addr . inet_proto . inet_service : verdict
        elements = { 10.96.0.1 . udp . 53 : goto lb2,
                 10.96.0.1 . tcp . 80 : goto lb2 }
    }
    map endpoints {
        type ipv4_addr . inet_proto . inet_service . mark : ipv4_addr . inet_service
        elements = { 10.96.0.1 . udp . 53 . 0x00000000 : 10.5.1.2 . 5353,
                 10.96.0.1 . tcp . 80 . 0x00000000 : 10.5.1.2 . 8080,
                 10.96.0.1 . udp . 53 . 0x00000001 : 10.5.1.3 . 5353,
                 10.96.0.1 . tcp . 80 . 0x00000001 : 10.5.1.3 . 8080 }
    }
    set cluster_ips {
        type ipv4_addr
        elements = { 10.96.0.1 }
    }
    set hairpin {
        type ipv4_addr . ipv4_addr
        elements = { 10.5.1.2 . 10.5.1.2,
                 10.5.1.3 . 10.5.1.3 }
    }
    set pod_networks {
        type ipv4_addr
        flags interval
        elements = { 10.5.0.0/16 }
    }
    set service_ranges {
        type ipv4_addr
        flags interval
        elements = { 10.96.0.0/16 }
    }
    chain refuse {
        meta l4proto tcp reject with tcp reset
        reject
    }
    chain lb2 {
    }
    chain prerouting {
        type nat hook prerouting priority dstnat; policy accept;
        ip daddr . meta l4proto . th dport vmap @services
    }
    chain output {
        type nat hook output priority -100; policy accept;
        ip daddr . meta l4proto . th dport vmap @services
    }
    chain postrouting {
        type nat hook postrouting priority srcnat; policy accept;
        ct original ip daddr @cluster_ips ip saddr != @pod_networks masquerade fully-random
        ct original ip daddr @cluster_ips ip saddr . ip daddr @hairpin masquerade fully-random
    }
    chain filter-forward {
        type filter hook forward priority filter - 10; policy accept;
        ip daddr @cluster_ips goto refuse
        ip daddr @service_ranges drop
    }
    chain filter-output {
        type filter hook output priority filter - 10; policy accept;
        ip daddr @cluster_ips goto refuse
        ip daddr @service_ranges drop
    }
}
"""

LB2 = (
    "340001800c0001007061796c6f61640024000280080001000000000108000200000000010800030000000010080004000000000424000180"
    "090001006d657461000000001400028008000200000000100800010000000009340001800c0001007061796c6f6164002400028008000100"
    "0000000a0800020000000002080003000000000208000400000000022c0001800b0001006e756d67656e00001c000280080001000000000b"
    "08000200000000020800030000000001340001800b0001006c6f6f6b75700000240002800e000100656e64706f696e747300000008000200"
    "00000001080003000000000130000180080001006e6174002400028008000100000000010800020000000002080003000000000108000500"
    "00000009",
    "300001800e000100696d6d6564696174650000001c0002800800010000000000100002800c0002800800010000000000",
)
"""Its rules, which nft can list but not read: pick one of two slots and translate; drop."""


def install_first_version(world):
    world.nft_script(FIRST)
    table, where = TABLES[IPV4], nl.text(nft.RULE_CHAIN, "lb2")
    flags = nl.NLM_F_CREATE | nl.NLM_F_APPEND
    rules = [
        table.message(nft.NEWRULE, where, nl.nest(nft.RULE_EXPRESSIONS, bytes.fromhex(rule)), flags=flags)
        for rule in LB2
    ]
    with inside(world.node), nl.NetlinkSocket(nl.NETLINK_NETFILTER) as kernel:
        assert nft.commit(kernel, [nft.BEGIN, *rules, nft.END]) == []
    world.node.run(["sysctl", "-qw", "net.ipv4.ip_forward=1", "net.bridge.bridge-nf-call-iptables=1"])


def test_the_table_of_the_first_version_is_taken_over(proxyd):
    """Whoever is connected stays so, and no new connection is lost on the way."""
    world = proxyd.world
    world.serve(POD1, POD2, FAR, udp=5353)
    install_first_version(world)
    world.node.run("sysctl -qw net.netfilter.nf_conntrack_udp_timeout=600")  # longer than the test may take
    places = (world.pods[POD3], world.client, world.node)
    held = [world.connect(ns) for ns in places] + [world.flow(ns) for ns in places]
    kept = [ask(each)[0] for each in held]
    assert set(kept) <= {POD1, POD2}
    proxyd.configure()
    proxyd.serve([POD1, POD2], NODE_TCP, NODE_UDP)
    with Callers(world) as callers:
        callers.more()
        proxyd.start()
        proxyd.wait_ready()
        callers.more()
        proxyd.put(service(V4, NODE_TCP, UDP, affinity=300))
        proxyd.scale([POD1, POD2, FAR], NODE_TCP, NODE_UDP)
        eventually(lambda: f"{V4.pods[FAR]} . 8080" in world.node.run("nft list map ip podlane addresses"), timeout=30)
        callers.more()
    assert [failure for failure in callers.failures if failure[0] == V4.vip] == []
    assert [ask(each)[0] for each in held] == kept
    assert world.call(world.client, V4.node, 30080)[0] in {POD1, POD2, FAR}
    assert world.call(world.client, V6.vip)[0] in {POD1, POD2, FAR}
    listed = world.node.run("nft list table ip podlane")
    assert all(f" {name} {{" in listed for name in MAPS)


def test_maps_of_another_shape_are_built_anew(world):
    """They cannot be kept; what they held is written into the new ones in the same sync."""
    world.serve(POD1)
    world.nft_script(
        "table ip podlane { map services { type ipv4_addr : verdict; }; chain pick { drop; }; "
        "chain prerouting { type filter hook prerouting priority -150; }; }"
    )
    world.sync(*web(V4, [POD1]))
    assert world.call(world.client)[0] == POD1
    assert "chain pick" not in world.node.run("nft list table ip podlane")
