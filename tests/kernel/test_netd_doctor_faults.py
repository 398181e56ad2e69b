"""The doctor on real hosts, one fault at a time: is it found, and by its name?

Here those of the network between, made by nft rules on the underlay's bridge,
and of the peer. test_netd_doctor_host.py has those of the host it runs on.
"""

from __future__ import annotations

import pytest

from netd.doctor.finding import exit_code
from netd.doctor.report import render
from podlane.errors import UsageError
from tests.kernel.conftest import NetnsMaker
from tests.kernel.doctor_world import errors, far_host, make_overlay, with_mac

pytestmark = pytest.mark.kernel

A, B = "192.168.64.11", "192.168.64.12"
A6, B6 = "fd00:64::1", "fd00:64::2"
MASQUERADE = """
table inet masq {
  chain out {
    type nat hook postrouting priority srcnat
    ip saddr 10.5.0.0/16 ip daddr != 10.5.0.0/16 masquerade
    ip6 saddr fd00:5::/48 ip6 daddr != fd00:5::/48 masquerade
  }
}
"""
STRANGE = "02:aa:aa:aa:aa:aa"


def test_a_healthy_pair_has_only_oks(netns: NetnsMaker) -> None:
    overlay = make_overlay(netns)

    found = overlay.diagnose(overlay.hosts[0])

    assert [each for each in found if each.severity != "ok"] == []
    assert exit_code(found) == 0
    of_peer = {each.check for each in found if each.peer == B}
    assert of_peer == {"reach", "loss", "path-mtu", "checksum", "peer-forwarding"}
    assert "0 errors, 0 warnings" in render(found, "table")


@pytest.mark.parametrize("v4", [False, True], ids=["ipv6", "dual-stack"])
def test_a_healthy_pair_with_ipv6_has_only_oks(netns: NetnsMaker, v4: bool) -> None:
    overlay = make_overlay(netns, v6=True, v4=v4)

    found = overlay.diagnose(overlay.hosts[0])

    assert [each for each in found if each.severity != "ok"] == []
    assert sum(each.check == "path-mtu" for each in found) == 1 + v4


def test_the_healthy_one_of_two_peers_is_not_blamed(netns: NetnsMaker) -> None:
    overlay = make_overlay(netns, hosts=3)
    third = overlay.hosts[2].ns.address
    overlay.between(f"ip daddr {third} udp dport 8472 drop")

    found = overlay.diagnose(overlay.hosts[0])

    assert {each.peer for each in found if each.severity != "ok"} == {third}
    for name in (B, "10.5.2.77", "10.5.2.0-24"):
        assert exit_code(overlay.diagnose(overlay.hosts[0], name)) == 0
    with pytest.raises(UsageError, match=r'find peer "10\.9\.9\.9"'):
        overlay.diagnose(overlay.hosts[0], "10.9.9.9")


@pytest.mark.parametrize(
    ("source", "destination", "check"),
    [(A, B, "vxlan-out"), (B, A, "vxlan-in"), (A6, B6, "vxlan-out"), (B6, A6, "vxlan-in")],
    ids=["out", "in", "out-ipv6", "in-ipv6"],
)
def test_vxlan_dropped_one_way_is_found_with_the_way(
    netns: NetnsMaker, source: str, destination: str, check: str
) -> None:
    v6 = ":" in source
    overlay = make_overlay(netns, v6=v6, v4=not v6)
    family = "ip6" if v6 else "ip"
    for host in overlay.hosts:
        host.ns.run(["nft", "-f", "-"], stdin=MASQUERADE)  # changes the source of plain probes, if they let it
    overlay.between(f"{family} saddr {source} {family} daddr {destination} udp dport 8472 drop")

    found = errors(overlay)

    assert list(found) == [check]
    assert f"UDP 8472 from {source} to {destination}" in found[check].fix


def test_vxlan_dropped_both_ways_is_not_given_a_way(netns: NetnsMaker) -> None:
    overlay = make_overlay(netns)
    overlay.between("udp dport 8472 drop")

    found = errors(overlay)

    assert list(found) == ["vxlan"]
    assert "though the host answers" in found["vxlan"].what


def test_a_host_that_is_down_is_told_from_a_broken_overlay(netns: NetnsMaker) -> None:
    overlay = make_overlay(netns)
    overlay.hosts[1].ns.run("ip link set eth0 down")

    found = errors(overlay)

    assert list(found) == ["reach"]
    assert found["reach"].what == f"{B} does not answer at all"


def test_a_peer_without_its_device_is_found(netns: NetnsMaker) -> None:
    overlay = make_overlay(netns)
    overlay.hosts[1].ns.run("ip link delete flannel.1")

    found = errors(overlay)

    assert list(found) == ["vxlan-out"]
    assert f"{B} does not take VXLAN packets at UDP port 8472" in found["vxlan-out"].what


def test_too_high_an_mtu_on_the_path_is_measured_to_the_byte(netns: NetnsMaker) -> None:
    overlay = make_overlay(netns)
    netns.underlay.run("ip link set h12 mtu 1400")

    found = errors(overlay)

    assert list(found) == ["path-mtu"]
    assert "packets above 1350 bytes do not arrive" in found["path-mtu"].what
    assert "set Backend.MTU to 1400 " in found["path-mtu"].fix
    assert "full-size packets do not arrive there" in found["path-mtu"].evidence


def test_too_high_an_mtu_on_the_way_back_only_is_said_to_be_there(netns: NetnsMaker) -> None:
    overlay = make_overlay(netns)
    overlay.between(f"ip saddr {B} ip daddr {A} ip length > 1300 drop")

    found = errors(overlay)

    assert "packets above 1250 bytes do not arrive" in found["path-mtu"].what
    assert "it is the way back" in found["path-mtu"].evidence


def test_a_router_that_says_what_fits_is_quoted(netns: NetnsMaker) -> None:
    overlay = make_overlay(netns, hosts=1)
    far = far_host(overlay, mtu=1400)

    found = errors(overlay)

    assert list(found) == ["path-mtu"]
    assert found["path-mtu"].peer == far.ns.address
    assert "set Backend.MTU to 1400 " in found["path-mtu"].fix
    assert found["path-mtu"].evidence.endswith("192.168.64.12 says that 1400 bytes fit")


def test_too_high_an_mtu_on_an_ipv6_path_is_measured(netns: NetnsMaker) -> None:
    overlay = make_overlay(netns, v6=True, v4=False)
    netns.underlay.run("ip link set h12 mtu 1400")

    assert "set Backend.MTU to 1400 " in errors(overlay)["path-mtu"].fix


def test_a_peer_whose_device_has_another_mac_than_its_lease_is_found(netns: NetnsMaker) -> None:
    overlay = make_overlay(netns)
    peer = overlay.hosts[1]
    overlay.relabel(peer, with_mac(peer.lease, STRANGE))
    overlay.build(overlay.hosts[0])

    found = errors(overlay)

    assert list(found) == ["vtep-mac"]
    assert f"the lease says {STRANGE}, which does not answer; {peer.mac} does" in found["vtep-mac"].evidence


def test_a_peer_that_has_a_wrong_mac_for_this_host_is_found(netns: NetnsMaker) -> None:
    overlay = make_overlay(netns)
    peer = overlay.hosts[1]
    peer.ns.run(f"ip neigh replace 10.5.1.0 lladdr {STRANGE} dev flannel.1 nud permanent")
    peer.ns.run(f"bridge fdb replace {STRANGE} dev flannel.1 dst {A} self permanent")

    found = errors(overlay)

    assert list(found) == ["peer-neighbour"]
    assert STRANGE in found["peer-neighbour"].what


def test_a_peer_that_does_not_forward_is_found_from_here(netns: NetnsMaker) -> None:
    overlay = make_overlay(netns)
    overlay.hosts[1].ns.run("sysctl -qw net.ipv4.ip_forward=0")

    found = overlay.diagnose(overlay.hosts[0])

    assert [each.check for each in found if each.severity != "ok"] == ["peer-forwarding"]


@pytest.mark.parametrize(
    ("source", "destination", "said"),
    [(B, A, f"packets from {B} arrive corrupted"), (A, B, f"packets to {B} arrive corrupted")],
    ids=["in", "out"],
)
def test_packets_spoiled_on_the_way_are_found_with_the_way(
    netns: NetnsMaker, source: str, destination: str, said: str
) -> None:
    overlay = make_overlay(netns)
    # a byte of the inner packet's payload, 80 bytes behind the outer UDP header's start
    overlay.between(f"ip saddr {source} ip daddr {destination} udp dport 8472 @th,640,8 set 0x55")

    found = errors(overlay)

    assert list(found) == ["checksum"]
    assert found["checksum"].what == said
    if source == A:
        # 80 less 8 of UDP, 8 of VXLAN and 14 of Ethernet
        assert found["checksum"].evidence.endswith("differs from what was sent at byte 50")


def test_checksums_this_host_makes_wrong_are_found(netns: NetnsMaker) -> None:
    """A peer drops what has a wrong checksum; here the bridge does, to whatever inner UDP packet has one."""
    overlay = make_overlay(netns)
    # of the inner packet, 30 bytes behind the outer UDP header: its protocol is 17, its UDP checksum not 0
    overlay.between(f"ip saddr {A} udp dport 8472 @th,312,8 17 @th,448,16 != 0 drop")

    found = errors(overlay)

    assert list(found) == ["checksum"]
    assert "with wrong checksums" in found["checksum"].what
    assert found["checksum"].fix == "here: ethtool -K flannel.1 tx-checksum-ip-generic off"


def test_lossy_paths_are_measured(netns: NetnsMaker) -> None:
    overlay = make_overlay(netns)
    overlay.between(f"ip saddr {A} udp dport 8472 numgen inc mod 3 < 1 drop")

    found = errors(overlay)

    assert list(found) == ["loss"]
    assert "0 of 20 plain pings" in found["loss"].evidence


def test_direct_routes_are_probed_as_they_go(netns: NetnsMaker) -> None:
    overlay = make_overlay(netns, '{"DirectRouting":true}')
    overlay.between("udp dport 8472 drop")  # nobody misses it

    assert exit_code(overlay.diagnose(overlay.hosts[0])) == 0

    overlay.between("ip saddr 10.5.0.0/16 drop")  # as clouds do with source addresses they do not know
    found = errors(overlay)
    assert list(found) == ["direct"]
    assert "set Backend.DirectRouting to false" in found["direct"].fix


def test_probes_change_nothing(netns: NetnsMaker) -> None:
    overlay = make_overlay(netns)
    before = [overlay.observe(host) for host in overlay.hosts]

    overlay.diagnose(overlay.hosts[0])

    assert [overlay.observe(host) for host in overlay.hosts] == before
