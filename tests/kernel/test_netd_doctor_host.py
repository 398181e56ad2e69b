"""The doctor on real hosts: faults of the host it runs on, made with the commands an operator would break it with."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from netd.doctor.diagnosis import diagnose
from netd.doctor.finding import exit_code
from netd.doctor.offload import CHECKSUM, features
from netd.firewall import Firewall
from netd.model import Desired
from netd.ruleset import FirewallRules, VxlanGuard
from tests.kernel.conftest import NetnsMaker, inside
from tests.kernel.doctor_world import errors, make_overlay, with_address

pytestmark = pytest.mark.kernel

A, B = "192.168.64.11", "192.168.64.12"
STRANGE = "02:aa:aa:aa:aa:aa"


@pytest.mark.parametrize(
    ("command", "check", "said"),
    [
        ("bridge fdb replace 02:00:00:00:00:02 dev flannel.1 dst 192.168.64.99 self permanent", "fdb", "192.168.64.99"),
        (f"ip neigh replace 10.5.2.0 lladdr {STRANGE} dev flannel.1 nud permanent", "neighbour", STRANGE),
        ("ip route delete 10.5.2.0/24", "route", "nothing"),
    ],
    ids=["wrong-fdb-entry", "wrong-mac", "missing-route"],
)
def test_a_broken_entry_of_this_host_is_found_and_felt(netns: NetnsMaker, command: str, check: str, said: str) -> None:
    overlay = make_overlay(netns)
    host = overlay.hosts[0]
    host.ns.run(command)

    found = errors(overlay)

    assert list(found) == [check, "kernel-path"]
    assert found[check].peer == B
    assert said in found[check].evidence
    host.ns.run(found[check].fix.partition("  (")[0])  # what the operator is told to type
    assert exit_code(overlay.diagnose(host)) == 0


def test_a_device_that_is_down_is_one_finding(netns: NetnsMaker) -> None:
    overlay = make_overlay(netns)
    overlay.hosts[0].ns.run("ip link set flannel.1 down")

    found = errors(overlay)

    assert list(found) == ["device"]
    assert found["device"].what == "flannel.1 is down"


def test_ip_forward_off_is_found(netns: NetnsMaker) -> None:
    overlay = make_overlay(netns)
    overlay.hosts[0].ns.run("sysctl -qw net.ipv4.ip_forward=0")

    found = errors(overlay)

    assert list(found) == ["forwarding"]
    assert found["forwarding"].evidence == "net.ipv4.ip_forward = 0"


def test_a_strict_rp_filter_that_drops_is_found_by_reason_and_by_effect(netns: NetnsMaker) -> None:
    overlay = make_overlay(netns)
    host = overlay.hosts[0].ns
    host.run("sysctl -qw net.ipv4.conf.all.rp_filter=1")
    host.run("ip link add eth1 type veth peer name eth1-peer")
    host.run("ip link set eth1 up")
    host.run("ip link set eth1-peer up")
    host.run(f"ip route add {B}/32 dev eth1")  # and the peer's packets still come in by eth0

    found = [each for each in overlay.diagnose(overlay.hosts[0]) if each.severity == "error"]

    assert [each.check for each in found] == ["rp-filter", "rp-filter"]
    assert f"{B} is routed by eth1, but arrives on eth0" in found[0].evidence
    assert "none came out of flannel.1; meanwhile rp_filter dropped" in found[1].evidence


def test_a_strict_rp_filter_on_symmetric_paths_is_harmless(netns: NetnsMaker) -> None:
    overlay = make_overlay(netns)
    for host in overlay.hosts:
        host.ns.run("sysctl -qw net.ipv4.conf.all.rp_filter=1")

    found = overlay.diagnose(overlay.hosts[0])

    assert exit_code(found) == 0
    assert next(each.what for each in found if each.check == "rp-filter").startswith("strict on eth0, flannel.1")


def test_two_hosts_that_publish_one_address_are_found(netns: NetnsMaker) -> None:
    overlay = make_overlay(netns)
    overlay.relabel(overlay.hosts[1], with_address(overlay.hosts[1].lease, A))
    overlay.build(overlay.hosts[0])

    found = errors(overlay)

    assert list(found) == ["public-address"]
    assert "2 hosts have the public address" in found["public-address"].what
    assert "10.5.1.0-24, 10.5.2.0-24" in found["public-address"].evidence


def test_a_machine_without_a_lease_that_has_our_address_is_found(netns: NetnsMaker) -> None:
    overlay = make_overlay(netns)
    intruder = netns.host("intruder")
    intruder.run(f"ip address add {A}/24 dev eth0")

    found = errors(overlay)["public-address"]

    assert found.what == f"another machine has the address {A} on eth0"
    assert "ARP for it is answered by" in found.evidence


def test_this_hosts_own_firewall_is_found_by_rule_and_by_effect(netns: NetnsMaker) -> None:
    overlay = make_overlay(netns)
    host = overlay.hosts[0]
    host.ns.run("iptables -A INPUT -p udp --dport 8472 -j DROP")

    found = [each for each in overlay.diagnose(host) if each.severity == "error"]

    assert [each.check for each in found] == ["firewall", "firewall"]
    assert "nft chain ip filter INPUT" in found[0].evidence
    assert "none came out of flannel.1" in found[1].evidence
    host.ns.run(found[0].fix.partition("with iptables: ")[2])
    assert exit_code(overlay.diagnose(host)) == 0


def test_a_firewall_that_does_not_let_vxlan_out_is_found(netns: NetnsMaker) -> None:
    overlay = make_overlay(netns)
    overlay.hosts[0].ns.run("iptables -A OUTPUT -p udp --dport 8472 -j DROP")

    found = errors(overlay)

    assert list(found) == ["vxlan-out"]
    assert found["vxlan-out"].evidence == "the kernel refuses to: operation not permitted"


def test_netds_own_guard_is_understood(netns: NetnsMaker) -> None:
    overlay = make_overlay(netns, hosts=3)
    host, third = overlay.hosts[0], overlay.hosts[2].ns.address
    guard = VxlanGuard(8472, frozenset({ip_address(B)}))  # and a lease it has not heard of yet
    with inside(host.ns):
        Firewall().sync(FirewallRules(overlay.config.networks, host.own, forward=True, masquerade=True, guard=guard))

    found = [each for each in overlay.diagnose(host) if each.severity != "ok"]

    assert [(each.check, each.severity, each.peer) for each in found] == [("firewall", "error", third)] * 2
    assert "systemctl restart netd" in found[0].fix
    assert "none came out of flannel.1" in found[1].evidence


def test_offload_features_are_read_from_the_device(netns: NetnsMaker) -> None:
    overlay = make_overlay(netns)

    with inside(overlay.hosts[0].ns):
        known = features("flannel.1")
        missing = features("nonesuch")

    assert known is not None
    assert known[CHECKSUM]
    assert missing is None


def test_a_host_without_a_lease_is_not_told_to_remove_what_it_has(netns: NetnsMaker) -> None:
    overlay = make_overlay(netns)
    host = overlay.hosts[0]
    known = replace(
        overlay.context(host), own=None, desired=Desired(overlay.config.networks), leases=(overlay.hosts[1].lease,)
    )

    with inside(host.ns):
        found = diagnose(known, None)

    assert [(each.check, each.what) for each in found if each.severity != "ok"] == [("lease", "this host has no lease")]


def test_probes_that_cannot_be_sent_are_a_finding_beside_the_others(netns: NetnsMaker) -> None:
    overlay = make_overlay(netns)
    host = overlay.hosts[0]
    known = overlay.context(host)
    told: list[str] = []

    with inside(host.ns):
        found = diagnose(replace(known, underlay=replace(known.underlay, name="eth9")), None, told.append)

    assert [each.evidence for each in found if each.check == "probe"] == ["open sockets for probes: no such device"]
    assert len(found) > 10
    assert told == ["reading this host's state", f"probing {B} (1 to 1 of 1)"]
