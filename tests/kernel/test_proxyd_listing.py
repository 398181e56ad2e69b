"""What we build can be listed with nft, and a fresh proxyd goes on with what another left (findings 3 to 5)."""

from __future__ import annotations

import itertools
import json
import re
import socket
import subprocess

import pytest

from podlane.runtime import netlink as nl
from podlane.runtime import nftables as nft
from proxyd import expressions as x
from proxyd.chains import Pick
from proxyd.ruleset import chains_of
from proxyd.tables import ADDRESSES, AFFINITY, MAPS, SERVICES, Target, Transaction, pack_address, pack_target
from tests.kernel.conftest import inside
from tests.kernel.proxyd_nets import BOTH, FAR, NODE_TCP, POD1, POD2, TCP, UDP, V4, V6, endpoints, service, web

pytestmark = pytest.mark.kernel


def listed(ns, *command):
    """What nft prints. A crash of it fails the test; in JSON, 1.0.6 has no words for `update @map`, and says so."""
    done = subprocess.run(ns.argv(["nft", *command]), check=False, capture_output=True, text=True, timeout=60)
    complaints = {line for line in done.stderr.splitlines() if line != "warning: stmt ops map have no json callback"}
    assert (done.returncode, complaints) == (0, set()), done.stderr[:2000]
    return done.stdout


def crashes(ns, *command):
    """Whether nft dies of a signal."""
    return subprocess.run(ns.argv(["nft", *command]), check=False, capture_output=True, timeout=60).returncode < 0


def has_1_0_6():
    return "v1.0.6" in subprocess.run(["nft", "--version"], check=True, capture_output=True, text=True).stdout


only_1_0_6 = pytest.mark.skipif(not has_1_0_6(), reason="another nft may have overcome this")


def everything(net):
    """Services of every kind, so that every map has elements."""
    both = [POD1, POD2, FAR]
    ip = itertools.count(1)

    def served(pods, *ports, **spec):
        number = next(ip)
        address = f"{net.vip[:-1]}{number:x}" if net is V6 else f"{net.vip[:-1]}{number}"
        ports = tuple(port._replace(node_port=port.node_port and port.node_port + number) for port in ports)
        return web(net, pods, *ports, name=f"s{number}", ip=address, **spec)

    yield from served(both, TCP, UDP, load_balancer_source_ranges=(net.lan(net.client),), balancer=True)
    yield from served(both, NODE_TCP, affinity=300, external_traffic_policy="Local")
    yield from served(both, NODE_TCP, affinity=300, balance="maglev", external_traffic_policy="Local")
    yield from served([FAR], NODE_TCP, balance="affinity-hash", external_traffic_policy="Local")
    yield from served([FAR], TCP, internal_traffic_policy="Local")
    yield from served([], NODE_TCP, external_ips=(net.external,))
    yield from served(both, TCP, affinity=10)


def test_nft_lists_whatever_we_build(world):
    """Finding 4: listing aborts on some rules of others; on none of ours."""
    world.serve(POD1, POD2, FAR)
    for net in (V4, V6):
        world.sync(*everything(net))
        forms = itertools.product((0, 331), (False, True), (0, 86400), (False, True))
        picks = [Pick(*form) for form in forms if form[0] or (form[3] and not form[1] and not form[2])]
        with inside(world.node):
            world.nft.commit(Transaction(net.family, chains=[pick.chain for pick in picks]))
        for number in range(2, 4):  # entries of clients
            ip = net.vip[:-1] + str(number)
            world.calls(world.client, 3, ip=ip)
        tables = world.nft.dump(net.family)
        assert {pick.chain for pick in picks} <= tables.chains
        assert [name for name in MAPS if not tables[name]] == []
        assert len(world.nft.affinity(net.family)) == 2
        wheres = [("chain", name) for name in tables.chains | {chain.name for chain in chains_of(net.family)}]
        wheres += [("map" if spec.is_map else "set", name) for name, spec in (*MAPS.items(), (AFFINITY.name, AFFINITY))]
        wheres += [("set", "pod_networks"), ("set", "service_ranges"), ("table", "")]
        for kind, name in wheres:
            shown = listed(world.node, "list", kind, net.name, "podlane", *([name] if name else []))
            assert kind in {"chain", "table"} or "elements = " in shown
        for name in (SERVICES, AFFINITY.name):
            listed(world.node, "-j", "list", "map", net.name, "podlane", name)
    for options in ((), ("-a",), ("-s",), ("-nn",)):
        assert "lb331-aff86400" in listed(world.node, *options, "list", "ruleset")
    items = json.loads(listed(world.node, "-j", "list", "ruleset"))["nftables"]
    rules = [item["rule"] for item in items if "rule" in item]
    assert {rule["table"] for rule in rules} == {"podlane"}
    assert len(rules) > 100
    for what in ("chains", "maps", "sets", "tables"):
        listed(world.node, "list", what)
        json.loads(listed(world.node, "-j", "list", what))


@only_1_0_6
def test_a_maps_value_as_anothers_key_would_crash_it(netns):
    """Finding 4 without its remedy, which is to pass the value through the packet's priority."""
    ns = netns.add("node")
    ns.run(
        ["nft", "-f", "-"],
        stdin="""table ip test {
            map ids { type ipv4_addr : mark; }
            map addresses { type mark : ipv4_addr . inet_service; }
            chain pick { }
        }""",
    )
    rule = x.payload(x.NETWORK_HEADER, 16, 4, 8) + x.lookup("ids", 8, 9) + x.lookup("addresses", 9, 10)
    rule += x.dnat(nft.NFPROTO_IPV4, 10, 11)
    add_rule(ns, rule + x.drop())
    assert crashes(ns, "list", "ruleset")
    assert crashes(ns, "list", "chain", "ip", "test", "pick")


def add_rule(ns, packed):
    message = nft.Table(nft.NFPROTO_IPV4, "test").message(
        nft.NEWRULE,
        nl.text(nft.RULE_CHAIN, "pick"),
        nl.nest(nft.RULE_EXPRESSIONS, packed),
        flags=nl.NLM_F_CREATE | nl.NLM_F_APPEND,
    )
    with inside(ns), nl.NetlinkSocket(nl.NETLINK_NETFILTER) as kernel:
        assert nft.commit(kernel, [nft.BEGIN, message, nft.END]) == []


@only_1_0_6
def test_an_update_with_an_ipv6_address_after_a_mark_would_remember_another(netns):
    """Finding 5: why affinity's keys begin with the frontend, and are written by messages of our own."""
    ns = netns.add("node")
    ns.run(
        ["nft", "-f", "-"],
        stdin="""table ip6 test {
            map aff { type mark . ipv6_addr : mark; flags dynamic,timeout; timeout 1m; }
            chain output { type filter hook output priority 0;
                udp dport 9 meta mark set 7 ct mark set 5 update @aff { meta mark . ip6 saddr : ct mark }
            }
        }""",
    )
    with inside(ns), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as made:
        made.sendto(b"?", ("::1", 9))
    remembered = re.search(r"0x00000007 \. (\S+) expires", ns.run("nft list map ip6 test aff"))
    assert remembered is not None
    assert remembered[1] != "::1"


@BOTH
def test_ours_remembers_the_client(world, net):
    """Finding 5 with its remedy."""
    world.serve(POD1)
    world.sync(*web(net, [POD1], affinity=300))
    for number in (1, 254):
        world.call(world.client, net.vip, source=net.source(number))
    shown = listed(world.node, "list", "map", net.name, "podlane", "affinity")
    for number in (1, 254):
        assert re.search(rf"{net.vip} \. tcp \. 80 \. {net.source(number)} timeout 5m ", shown)
    addresses = world.nft.dump(net.family)[ADDRESSES]
    pod = pack_target(Target(net.pods[POD1], 8080))
    assert {key[-net.family.width :]: addresses[number] for key, number in world.nft.affinity(net.family).items()} == {
        pack_address(net.source(number)): pod for number in (1, 254)
    }


# --- a process that did not load it ----------------------------------------------------------


@BOTH
def test_a_fresh_process_goes_on_with_what_another_left(world, net):
    """Finding 3: rules are added to maps that another process loaded, again and again."""
    world.serve(POD1, POD2, FAR)
    world.sync(*web(net, [POD1], affinity=300), *web(net, [POD1], name="other", ip=net.other_vip))
    held = world.connect(world.client, net.vip)
    for pods in ([POD1, POD2], [POD1, POD2, FAR], [FAR]):
        world.start()
        world.sync(endpoints(net, pods), endpoints(net, pods, name="other"))
        assert set(world.calls(world.client, 20, ip=net.other_vip)) == set(pods)
        assert world.call(world.client, net.vip)[0] == (POD1 if POD1 in pods else FAR)
    world.start()
    world.sync(service(net, balance="maglev", name="other", ip=net.other_vip))
    assert world.call(world.client, net.other_vip)[0] == FAR
    held.sendall(b"?")
    assert held.recv(64).decode().startswith(POD1)


@only_1_0_6
def test_nft_cannot_add_to_a_map_that_was_declared_by_its_expression(netns):
    """Finding 3 without its remedy."""
    ns = netns.add("node")
    ns.run(
        ["nft", "-f", "-"],
        stdin=r"""table ip test {
            map endpoints {
                typeof ip daddr . meta l4proto . th dport . numgen random mod 2 : ip daddr . th dport
            }
            chain lb2 {
                meta l4proto { tcp, udp } \
                    dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 2 map @endpoints
            }
        }""",
    )
    script = """add chain ip test lb3
        add rule ip test lb3 meta l4proto { tcp, udp } \
            dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 3 map @endpoints"""
    done = subprocess.run(ns.argv(["nft", "-f", "-"]), check=False, capture_output=True, text=True, input=script)
    assert done.returncode != 0
