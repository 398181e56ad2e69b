"""What the doctor concludes from what its probes saw, and whom it probes."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

import pytest

from netd.desired import Lease, Peers
from netd.doctor.diagnosis import find_peer, targets
from netd.doctor.examine import ladder
from netd.doctor.facts import DoctorContext
from netd.doctor.finding import Finding, error, exit_code, ok
from netd.doctor.report import render
from netd.doctor.seen import Hop, Kind, Seen, Tally
from netd.doctor.verdict import judge
from netd.doctor.wire import Place
from netd.model import Actual
from podlane.api.network import parse_config
from podlane.api.subnets import LeaseValue, Subnets
from podlane.errors import UsageError
from tests.unit.doctor_objects import TARGET, UNDERLAY, context, lease, wrong

pytestmark = pytest.mark.unit

EVERYWHERE = frozenset(Place)


def heard(sent: int, answered: int, furthest: Place = Place.SOCKET, refused: str = "") -> Tally:
    numbers = set(range(answered))
    return Tally(
        sent, {place: numbers for place in Place if place <= furthest and numbers}, [0.001] * answered, refused
    )


def seen(**fields: Any) -> Seen:
    """A healthy peer, but for the tallies and other things given."""
    tallies = {
        Kind.VXLAN: heard(20, 20),
        Kind.PLAIN: heard(20, 20),
        Kind.KERNEL: heard(10, 10),
        Kind.FULL: heard(3, 3),
        Kind.BARE: heard(2, 2),
        Kind.SUMMED: heard(2, 2),
        Kind.FORWARDED: heard(3, 3),
    }
    given = {Kind(name.replace("_", "-")): fields.pop(name) for name in [*fields] if name in _KINDS}
    return Seen(fields.pop("target", TARGET), {**tallies, **given}, EVERYWHERE, **fields)


_KINDS = {kind.value.replace("-", "_") for kind in Kind}
NONE = {"vxlan": heard(20, 0), "kernel": heard(10, 0), "full": heard(3, 0), "bare": heard(2, 0), "summed": heard(2, 0)}


def test_a_healthy_peer_has_only_oks() -> None:
    found = judge(seen())

    assert [each.check for each in found] == ["reach", "loss", "path-mtu", "checksum", "peer-forwarding"]
    assert wrong(found) == []


@pytest.mark.parametrize(
    ("fields", "check"),
    [
        ({"back_plain": heard(3, 3), "back_vxlan": heard(3, 0)}, "vxlan-in"),
        ({"back_plain": heard(3, 0), "back_vxlan": heard(3, 3)}, "vxlan-out"),
        ({"back_plain": heard(3, 1), "back_vxlan": heard(3, 1)}, "vxlan"),
        ({"back_plain": heard(3, 0), "back_vxlan": heard(3, 0)}, "vxlan"),
        ({"plain": heard(20, 0), "hop": Hop("192.168.64.12", "", "FAILED")}, "reach"),
        ({"vxlan": heard(20, 0, refused="Operation not permitted")}, "vxlan-out"),
        ({"closed": "192.168.64.12"}, "vxlan-out"),
        ({"spoiled": 4, "back_plain": heard(3, 3)}, "checksum"),
        ({"bare": heard(2, 2), "altered": (50,), "back_vxlan": heard(3, 3)}, "checksum"),
        ({"macs": {"02:aa:aa:aa:aa:aa"}, "back_vxlan": heard(3, 3)}, "vtep-mac"),
    ],
)
def test_of_a_silent_peer_the_most_exact_cause_is_named(fields: dict[str, Any], check: str) -> None:
    assert [(each.check, each.severity) for each in judge(seen(**{**NONE, **fields}))] == [(check, "error")]


def test_a_peer_that_only_filters_pings_is_a_warning() -> None:
    assert wrong(judge(seen(**{**NONE, "bare": heard(2, 2)}))) == [("reach", "warning", "192.168.64.12")]


@pytest.mark.parametrize(
    ("fields", "check"),
    [
        ({"vxlan": heard(20, 20, Place.UNDERLAY)}, "firewall"),
        ({"vxlan": heard(20, 20, Place.DEVICE)}, "firewall"),
        ({"vxlan": heard(20, 20, Place.UNDERLAY), "rp_drops": 40}, "rp-filter"),
        ({"vxlan": heard(20, 20, Place.UNDERLAY), "rp_drops": 3}, "firewall"),
        ({"vxlan": heard(20, 20, Place.UNDERLAY), "vnis": {7}}, "vni"),
        ({"vxlan": heard(20, 20, Place.DEVICE), "misled": {"02:aa:aa:aa:aa:aa"}}, "peer-neighbour"),
        ({"kernel": heard(10, 0)}, "kernel-path"),
        ({"summed": heard(2, 0)}, "checksum"),
        ({"spoiled": 1}, "checksum"),
        ({"altered": (50, 51)}, "checksum"),
        ({"vxlan": heard(20, 15)}, "loss"),
        ({"full": heard(3, 0), "passed": 1350, "lost": 1351}, "path-mtu"),
    ],
)
def test_of_a_peer_that_answers_what_is_wrong_is_named(fields: dict[str, Any], check: str) -> None:
    assert wrong(judge(seen(**fields))) == [(check, "error", "192.168.64.12")]


@pytest.mark.parametrize(
    ("fields", "check"),
    [
        ({"vxlan": heard(20, 19)}, "loss"),
        ({"forwarded": heard(3, 0)}, "peer-forwarding"),
        ({"plainly": 20}, "reach"),
    ],
)
def test_of_a_peer_that_answers_what_may_be_wrong_is_a_warning(fields: dict[str, Any], check: str) -> None:
    assert wrong(judge(seen(**fields))) == [(check, "warning", "192.168.64.12")]


@pytest.mark.parametrize(
    "fields",
    [
        {"summed": heard(2, 0), "bare": heard(2, 1)},  # the peer had stopped sending ICMP errors
        {"summed": heard(2, 0), "bare": heard(2, 0)},
        {"full": heard(3, 0), "passed": 1450, "lost": 1451},  # lost by chance, passed when tried again
    ],
)
def test_silence_that_has_an_innocent_cause_is_no_finding(fields: dict[str, Any]) -> None:
    assert wrong(judge(seen(**fields))) == []


def test_loss_does_not_pass_for_bad_checksums_or_a_peer_that_does_not_forward() -> None:
    found = judge(seen(vxlan=heard(20, 12), summed=heard(2, 0), forwarded=heard(3, 0)))

    assert [each.check for each in found if each.severity != "ok"] == ["loss"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"bare_full": heard(2, 2)}, "so it is the way back"),
        ({"bare_full": heard(2, 0)}, "full-size packets do not arrive there"),
        ({"bare_full": heard(2, 0), "bare": heard(3, 2)}, "one of 1350 was"),
        ({"too_big": "192.168.64.1 says that 1400 bytes fit"}, "192.168.64.1 says that 1400 bytes fit"),
        ({"full": heard(3, 0, refused="Message too long")}, "this host itself says: message too long"),
    ],
)
def test_too_high_an_mtu_says_where_if_that_is_known(fields: dict[str, Any], said: str) -> None:
    (found,) = [
        each for each in judge(seen(**{"full": heard(3, 0), "passed": 1350, **fields})) if each.check == "path-mtu"
    ]

    assert found.evidence.endswith(said)
    assert found.fix.startswith("set Backend.MTU to 1400 ")


def test_direct_peers_are_judged_by_what_goes_without_vxlan() -> None:
    direct = replace(TARGET, direct=True)

    assert wrong(judge(seen(target=direct, vxlan=Tally()))) == []
    assert wrong(judge(seen(target=direct, kernel=heard(20, 0)))) == [("direct", "error", "192.168.64.12")]
    assert wrong(judge(seen(target=direct, kernel=heard(20, 0), plain=heard(20, 0)))) == [
        ("reach", "error", "192.168.64.12")
    ]
    # host-gw, and no bridge there yet
    assert wrong(judge(seen(target=replace(direct, device=""), kernel=heard(20, 0)))) == []


def test_every_error_and_warning_says_what_shows_it_and_what_to_type() -> None:
    with pytest.raises(AssertionError):
        Finding("x", "error", "", "something is wrong")


def test_the_ladder_closes_in_on_every_size() -> None:
    for limit in range(576, 1451):
        passed, lost, rounds = 0, 1451, 0
        while lost - passed > 1:
            sizes = ladder(passed, lost, 576)
            passed = max([passed, *(size for size in sizes if size <= limit)])
            lost = min([lost, *(size for size in sizes if size > passed)])
            rounds += 1
        assert passed == limit
        assert rounds <= 4


def test_a_ladder_under_the_least_size_ends() -> None:
    sizes = ladder(0, 1451, 576)

    assert sizes[0] == 576
    assert sizes[-1] == 1450


def test_peers_are_found_by_address_key_subnet_or_pod() -> None:
    given = context(lease(1), lease(2), lease(3))

    for name in ("192.168.64.13", "10.5.3.0-24", "10.5.3.0/24", "10.5.3.77"):
        assert find_peer(given, name) == lease(3)
    for name in ("192.168.64.11", "10.5.77.1", "host3"):  # this host, nobody, no address
        with pytest.raises(UsageError):
            find_peer(given, name)


def test_targets_are_what_leases_say() -> None:
    given = context()

    assert targets(given, [lease(2)]) == [TARGET]


def test_targets_of_a_network_of_both_families_over_hosts_of_one() -> None:
    config = parse_config('{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48"}')
    both = Subnets.parse_key("10.5.2.0-24&fd00:5:0:2::-64")
    value = LeaseValue.vxlan(IPv4Address("192.168.64.12"), 1, "02:00:00:00:00:02", mac6="02:00:00:00:00:02")
    own = Subnets.parse_key("10.5.1.0-24&fd00:5:0:1::-64")
    peer = Lease(both.key, both, value, 2)
    desired = Peers().desired(config, UNDERLAY, own, {"flannel.1": "02:00:00:00:00:01"}, [peer])
    given = DoctorContext(config, UNDERLAY, own, (peer,), {}, Actual(), desired)

    found = targets(given, [peer])

    assert [(each.family, str(each.vtep), each.device, each.mtu) for each in found] == [
        (4, "10.5.2.0", "flannel.1", 1450),
        (6, "fd00:5:0:2::", "flannel.1", 1450),
    ]
    assert found[1].public is None  # so that nothing IPv6 is asked of it without VXLAN


def test_host_gw_and_unusable_leases_have_their_targets() -> None:
    gateway = parse_config('{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}')
    routed = replace(lease(2), value=LeaseValue(IPv4Address("192.168.64.12"), None, "host-gw"))

    (found,) = targets(context(lease(1), routed, config=gateway), [routed])

    assert (found.direct, found.device, str(found.vtep), found.mtu) == (True, "", "10.5.2.1", 1500)
    assert targets(context(lease(1), routed), [routed]) == []


def test_the_report_has_a_line_a_check_and_three_lines_a_finding() -> None:
    found = [
        ok("forwarding", "on"),
        error("route", "no route to 10.5.2.0/24", evidence="nothing", fix="ip route replace", peer="192.168.64.12"),
    ]

    assert render(found, "table") == (
        "CHECK       PEER           RESULT  WHAT\n"
        "forwarding  -              ok      on\n"
        "route       192.168.64.12  error   no route to 10.5.2.0/24\n"
        "\n"
        "error: route (192.168.64.12)\n"
        "  what      no route to 10.5.2.0/24\n"
        "  evidence  nothing\n"
        "  fix       ip route replace\n"
        "\n"
        "1 errors, 0 warnings, 1 checks ok\n"
    )
    assert json.loads(render(found, "json"))[1] == {
        "check": "route",
        "severity": "error",
        "peer": "192.168.64.12",
        "what": "no route to 10.5.2.0/24",
        "evidence": "nothing",
        "fix": "ip route replace",
    }
    assert (exit_code(found), exit_code(found[:1])) == (1, 0)
