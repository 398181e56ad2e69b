"""What the doctor concludes from leases, kernel state and sysctls."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Network, ip_address
from typing import Any

import pytest

from netd.doctor import checks
from netd.doctor.drift import drift
from netd.doctor.facts import HostFacts, HostRoute
from netd.doctor.finding import Finding
from netd.model import Desired, FdbEntry, Neighbour, Route
from podlane.api.network import parse_config
from tests.unit.doctor_objects import context, lease, wrong

pytestmark = pytest.mark.unit


def test_a_sound_lease_table_has_only_oks() -> None:
    given = context()

    assert wrong([*checks.own_lease(given), *checks.lease_table(given)]) == []


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"own": None}, "this host has no lease"),
        ({"leases": (lease(2),)}, "this host's lease is not in etcd"),
        ({"leases": (lease(1, address="192.168.64.77"),)}, "the lease has another public address than this host"),
        ({"leases": (lease(1, mac="02:aa:aa:aa:aa:aa"),)}, "the lease has another VtepMAC than this host's device"),
    ],
)
def test_an_own_lease_that_misleads_peers_is_an_error(fields: dict[str, Any], said: str) -> None:
    (found,) = checks.own_lease(context(**fields))

    assert (found.check, found.severity, found.what) == ("lease", "error", said)


def test_an_own_lease_of_another_backend_or_network_is_an_error() -> None:
    mine = lease(1)
    other = context(replace(mine, value=replace(mine.value, backend_type="host-gw", backend_data=None)))
    moved = context(config=parse_config('{"Network":"10.5.0.0/16","SubnetMin":"10.5.7.0"}'))

    assert [each.what for each in checks.own_lease(other)] == ["the lease is for host-gw, the network config for vxlan"]
    assert [each.what for each in checks.own_lease(moved)] == [
        "this host's subnet is not one the network config allows"
    ]


def test_two_hosts_with_one_address_are_named_once() -> None:
    found = checks.lease_table(context(lease(1), lease(2), lease(3, address="192.168.64.12")))

    assert wrong(found) == [("public-address", "error", "192.168.64.12")]
    assert "10.5.2.0-24, 10.5.3.0-24" in found[0].evidence


def test_an_address_of_this_host_in_anothers_lease_is_named_once() -> None:
    assert wrong(checks.lease_table(context(lease(1), lease(2, address="192.168.64.11")))) == [
        ("public-address", "error", "192.168.64.11")
    ]


def test_one_hosts_forgotten_lease_is_told_from_two_hosts_with_one_address() -> None:
    old = lease(3, address="192.168.64.12", mac="02:00:00:00:00:02")

    found = checks.lease_table(context(lease(1), replace(lease(2), age=9), old))

    assert wrong(found) == [("public-address", "warning", "192.168.64.12")]
    assert "netd release 10.5.3.0-24" in found[0].fix


def test_clones_with_one_mac_are_named_once() -> None:
    found = checks.lease_table(context(lease(1), lease(2), lease(3, mac="02:00:00:00:00:02")))

    assert wrong(found) == [("vtep-mac", "error", "192.168.64.13")]
    assert "192.168.64.12, 192.168.64.13" in found[0].evidence


def test_overlapping_subnets_are_named_with_both_hosts() -> None:
    found = checks.lease_table(context(lease(1), lease(2, subnet="10.5.2.0/23"), lease(3)))

    assert wrong(found) == [("leases", "error", "192.168.64.13")]
    assert found[0].what == "the subnets 10.5.2.0/23 and 10.5.3.0/24 overlap"


def test_a_subnet_inside_one_further_up_is_found_past_those_between() -> None:
    leases = (
        lease(1),
        lease(2, subnet="10.5.16.0/20"),
        lease(3, subnet="10.5.17.0/24"),
        lease(4, subnet="10.5.18.0/24"),
    )

    said = [each.what for each in checks.lease_table(context(*leases)) if each.severity == "error"]

    assert said == [
        "the subnets 10.5.16.0/20 and 10.5.17.0/24 overlap",
        "the subnets 10.5.16.0/20 and 10.5.18.0/24 overlap",
    ]


def test_leases_that_cannot_be_read_or_used_are_errors_and_foreign_ones_warnings() -> None:
    other = replace(lease(3), value=replace(lease(3).value, backend_type="udp"))
    abroad = lease(4, subnet="10.9.4.0/24")
    given = context(lease(1), lease(2), other, abroad, undecodable={"/coreos.com/network/subnets/x": "no JSON"})

    found = checks.lease_table(given)

    assert wrong(found) == [
        ("leases", "error", ""),
        ("leases", "error", "192.168.64.13"),
        ("leases", "warning", "192.168.64.14"),
    ]
    assert found[0].fix.endswith("etcdctl del /coreos.com/network/subnets/x")


# the kernel


def drifted(**changed: Any) -> list[Finding]:
    given = context(lease(1), lease(2), lease(3), changed=changed)
    return drift(given.desired, given.actual, checks.names(given.leases))


def right() -> Desired:
    return context(lease(1), lease(2), lease(3)).desired


def test_a_kernel_as_it_should_be_has_only_oks() -> None:
    assert {(each.check, each.severity) for each in drifted()} == {
        (check, "ok") for check in ("device", "route", "fdb", "neighbour")
    }


def without(mapping: Any, index: int) -> Any:
    return {key: value for i, (key, value) in enumerate(mapping.items()) if i != index}


def test_entries_that_are_missing_or_wrong_are_named_with_their_peer() -> None:
    key, mac = ("flannel.1", ip_address("10.5.3.0")), ("flannel.1", "02:00:00:00:00:03")
    network = IPv4Network("10.5.3.0/24")

    missing = drifted(routes=without(right().routes, 1), fdb=without(right().fdb, 0))
    wrong_ones = drifted(
        neighbours={**right().neighbours, key: Neighbour("02:bb:bb:bb:bb:bb")},
        fdb={**right().fdb, mac: FdbEntry(ip_address("192.168.64.99"))},
        routes={**right().routes, network: Route(ip_address("192.168.64.1"), "eth0", onlink=False, protocol=3)},
    )

    assert wrong(missing) == [("route", "error", "192.168.64.13"), ("fdb", "error", "192.168.64.12")]
    assert wrong(wrong_ones) == [(check, "error", "192.168.64.13") for check in ("route", "fdb", "neighbour")]
    route, fdb, neighbour = (each for each in wrong_ones if each.severity == "error")
    assert route.evidence == "it goes via 192.168.64.1 dev eth0, and should go via 10.5.3.0 dev flannel.1"
    assert fdb.evidence == "packets for 02:00:00:00:00:03 go to 192.168.64.99; the lease says 192.168.64.13"
    assert neighbour.evidence == "10.5.3.0 is taken to be 02:bb:bb:bb:bb:bb; the lease says 02:00:00:00:00:03"
    assert route.fix.startswith("ip route replace 10.5.3.0/24 via 10.5.3.0 dev flannel.1 protocol 120 onlink  (")


def test_a_missing_device_is_one_finding_and_not_one_an_entry() -> None:
    found = drifted(devices={}, neighbours={}, fdb={}, routes={})

    assert wrong(found) == [("device", "error", "")]
    assert found[0].what == "flannel.1 does not exist"


@pytest.mark.parametrize(
    ("fields", "what", "evidence"),
    [
        ({"mtu": 1400}, "flannel.1 has a wrong MTU", "it has 1400, and should have 1450"),
        ({"vni": 7}, "flannel.1 is another tunnel", "vni is 7 and should be 1"),
        ({"port": 4789}, "flannel.1 is another tunnel", "port is 4789 and should be 8472"),
        (
            {"mac": "02:cc:cc:cc:cc:cc"},
            "flannel.1 has another MAC address than its lease",
            "it has 02:cc:cc:cc:cc:cc; peers send to 02:00:00:00:00:01",
        ),
        ({"up": False}, "flannel.1 is down", "ip link show flannel.1: not UP"),
        (
            {"addresses": frozenset()},
            "flannel.1 lacks its address 10.5.1.0/32",
            "ip address show dev flannel.1: not there",
        ),
    ],
)
def test_a_device_that_is_not_as_it_should_be_says_how(fields: dict[str, Any], what: str, evidence: str) -> None:
    device = replace(right().devices["flannel.1"], **fields)

    found = [each for each in drifted(devices={"flannel.1": device}) if each.severity != "ok"]

    assert [(each.check, each.what, each.evidence) for each in found] == [("device", what, evidence)]


def test_a_name_taken_by_another_link_is_found() -> None:
    (found,) = drifted(devices={}, foreign={"flannel.1": "bridge"})

    assert found.what == "flannel.1 is taken by a link that is not VXLAN"
    assert "a bridge link" in found.evidence


def test_many_of_a_kind_are_one_finding() -> None:
    given = context(*(lease(number) for number in range(1, 40)), changed={"routes": {}})

    found = [each for each in drift(given.desired, given.actual, {}) if each.severity != "ok"]

    assert len(found) == 1
    assert found[0].what == "38 of this kind; the first: no route to 10.5.2.0/24"


def test_what_netd_left_over_is_a_warning() -> None:
    gone = IPv4Network("10.5.9.0/24")

    found = drifted(routes={**right().routes, gone: Route(ip_address("10.5.9.0"), "flannel.1", onlink=True)})

    assert wrong(found) == [("left-over", "warning", "")]
    assert "ip route delete 10.5.9.0/24" in found[-1].evidence


# sysctls, MTU, routes

STRICT_ETH0 = {"net/ipv4/conf/all/rp_filter": "0", "net/ipv4/conf/eth0/rp_filter": "1"}


def route(destination: str, device: str, **fields: Any) -> HostRoute:
    return HostRoute(IPv4Network(destination), device, **fields)


LAN = route("192.168.64.0/24", "eth0", protocol="kernel")


@pytest.mark.parametrize(
    "sysctls",
    [{"net/ipv4/ip_forward": "0"}, {"net/ipv4/ip_forward": "1", "net/ipv4/conf/flannel.1/forwarding": "0"}],
)
def test_forwarding_that_is_off_is_an_error(sysctls: dict[str, str]) -> None:
    assert wrong(checks.forwarding(context(), HostFacts(sysctls))) == [("forwarding", "error", "")]
    assert wrong(checks.forwarding(context(), HostFacts(dict.fromkeys(sysctls, "1")))) == []


def test_a_strict_rp_filter_matters_only_where_paths_differ() -> None:
    symmetric = HostFacts(STRICT_ETH0, routes=(LAN,))
    asymmetric = HostFacts(STRICT_ETH0, routes=(LAN, route("192.168.64.12/32", "eth1")))
    loose = replace(asymmetric, sysctls={**STRICT_ETH0, "net/ipv4/conf/all/rp_filter": "2"})
    auto = context(config=parse_config('{"Network":"10.5.0.0/16","Backend":{"DirectRouting":"auto"}}'))

    assert wrong(checks.reverse_path(context(), symmetric)) == []
    assert wrong(checks.reverse_path(context(), asymmetric)) == [("rp-filter", "error", "192.168.64.12")]
    assert wrong(checks.reverse_path(context(), loose)) == []  # the kernel takes the higher of the two
    assert wrong(checks.reverse_path(auto, symmetric)) == [("rp-filter", "warning", "")]


def test_an_mtu_that_does_not_fit_the_underlay_is_an_error() -> None:
    (found,) = checks.mtu(context(config=parse_config('{"Network":"10.5.0.0/16","Backend":{"MTU":9000}}')))

    assert found.evidence == "8950 + 50 for VXLAN is more than eth0's MTU of 1500"
    assert wrong(checks.mtu(context())) == []


@pytest.mark.parametrize(
    ("destination", "fields", "severity"),
    [
        ("10.5.7.0/24", {}, "error"),
        ("10.5.0.0/16", {}, "error"),
        ("10.0.0.0/8", {}, "warning"),
        ("0.0.0.0/0", {}, None),
        ("10.5.1.0/24", {"protocol": "kernel"}, None),
        ("10.5.9.0/24", {"protocol": "117"}, None),
        ("10.6.0.0/16", {}, None),
    ],
)
def test_routes_into_the_pod_network_are_found(destination: str, fields: dict[str, str], severity: str | None) -> None:
    found = checks.overlap(context(), HostFacts(routes=(route(destination, "eth1", **fields),)))

    assert [each.severity for each in found] == [severity or "ok"]
