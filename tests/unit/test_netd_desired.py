"""From leases to what a host should hold: whom it reaches how, and whom it leaves out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netd.desired import Lease, Peers, carriers, lease_value, overlay_mtu
from netd.model import Desired, FdbEntry, Neighbour, Route, route_protocol
from podlane.api.subnets import LeaseValue, Subnets
from tests.unit.netd_world import Families, config, lease, mac, subnets, underlay, want

pytestmark = pytest.mark.unit

FAMILIES: tuple[Families, ...] = ("v4", "v6", "dual")
NET, NET6 = IPv4Network("10.5.2.0/24"), IPv6Network("fd00:10:5:2::/64")
VTEP, VTEP6 = NET.network_address, NET6.network_address
HOST, HOST6 = IPv4Address("192.168.64.12"), IPv6Address("fd64::12")


def entries(target: Desired) -> tuple[object, ...]:
    return target.neighbours, target.fdb, target.routes


# ---- which device carries what --------------------------------------------------------------------


def test_ipv4_over_ipv4() -> None:
    target = want(lease(2))
    (device,) = target.devices.values()
    assert (device.name, device.local, device.mtu) == ("flannel.1", IPv4Address("192.168.64.11"), 1450)
    assert device.addresses == {IPv4Interface("10.5.1.0/32")}
    assert target.networks == (IPv4Network("10.5.0.0/16"),)
    assert target.neighbours == {("flannel.1", VTEP): Neighbour(mac(2))}
    assert target.fdb == {("flannel.1", mac(2)): FdbEntry(HOST)}
    assert target.routes == {NET: Route(VTEP, "flannel.1", True, route_protocol(NET))}
    assert target.sysctls == {"net/ipv4/ip_forward": "1"}


def test_ipv6_over_ipv6() -> None:
    target = want(lease(2, "v6"), families="v6", blackhole=True)
    (device,) = target.devices.values()
    assert (device.name, device.local, device.mtu) == ("flannel-v6.1", IPv6Address("fd64::11"), 1430)
    assert device.addresses == {IPv6Interface("fd00:10:5:1::/128")}
    assert target.neighbours == {("flannel-v6.1", VTEP6): Neighbour(mac(2, 6))}
    assert target.fdb == {("flannel-v6.1", mac(2, 6)): FdbEntry(HOST6)}
    assert target.routes == {NET6: Route(VTEP6, "flannel-v6.1", True, route_protocol(NET6))}
    assert target.blackholes == {IPv6Network("fd00:10:5:1::/64")}
    assert target.sysctls == {"net/ipv6/conf/eth0/accept_ra": "2", "net/ipv6/conf/all/forwarding": "1"}


@pytest.mark.parametrize(
    ("hosts", "devices", "remotes", "mtu"),
    [
        ("dual", ["flannel.1", "flannel-v6.1"], [HOST, HOST6], 1430),
        ("v4", ["flannel.1"], [HOST, HOST], 1450),
        ("v6", ["flannel.1"], [HOST6, HOST6], 1430),
    ],
)
def test_both_networks_over_what_the_hosts_have(hosts: Families, devices: list[str], remotes: object, mtu: int) -> None:
    target = want(lease(2, "dual", hosts=hosts), families="dual", hosts=hosts)
    assert list(target.devices) == devices
    assert [key[0] for key in target.fdb] == [devices[0], devices[-1]]
    assert [entry.remote for entry in target.fdb.values()] == remotes
    assert target.routes == {
        NET: Route(VTEP, devices[0], True, route_protocol(NET)),
        NET6: Route(VTEP6, devices[-1], True, route_protocol(NET6)),
    }
    vteps = {IPv4Interface("10.5.1.0/32"), IPv6Interface("fd00:10:5:1::/128")}
    assert {address for device in target.devices.values() for address in device.addresses} == vteps
    assert not target.problems
    assert overlay_mtu(config("dual"), underlay(hosts)) == mtu


def test_ipv6_pods_over_ipv4_hosts() -> None:
    target = want(lease(2, "v6", hosts="v4"), families="v6", hosts="v4")
    assert target.fdb == {("flannel-v6.1", mac(2, 6)): FdbEntry(HOST)}
    assert target.devices["flannel-v6.1"].mtu == 1450


def test_a_peer_with_one_of_two_subnets_is_reached_by_that() -> None:
    target = want(lease(2, "v4"), lease(3, "v6"), families="dual")
    assert set(target.routes) == {NET, IPv6Network("fd00:10:5:3::/64")}
    assert not target.problems


def test_what_a_lease_says_of_this_host_is_what_its_peers_use() -> None:
    """Both ends agree on device, MAC address and remote, for every network on every host."""
    for families in FAMILIES:
        for hosts in FAMILIES:
            network, theirs = config(families), underlay(hosts, host=2)
            macs = {each.name: mac(2, each.over) for each in carriers(network, theirs)}
            value = lease_value(network, theirs, macs)
            assert LeaseValue.decode(value.encode()) == value
            own = subnets(2, families)
            target = want(Lease(own.key, own, value), families=families, hosts=hosts)
            assert not target.problems
            assert set(macs.items()) == set(target.fdb)
            assert {entry.remote for entry in target.fdb.values()} <= set(value.addresses)


def test_backend_options_reach_the_device() -> None:
    network = config("dual", VNI=9, Port=4789, MTU=1400, Learning=True, GBP=True)
    target = want(families="dual", network=network)
    assert {(d.name, d.vni, d.port, d.mtu, d.learning, d.gbp, d.underlay) for d in target.devices.values()} == {
        ("flannel.9", 9, 4789, 1350, True, True, "eth0"),
        ("flannel-v6.9", 9, 4789, 1330, True, True, "eth0"),
    }


def test_obsolete_devices_are_those_that_are_not_wanted() -> None:
    target = want(obsolete=["flannel.1", "flannel.7"])
    assert target.obsolete == {"flannel.7"}
    assert target.watched == {"flannel.1", "flannel.7"}


# ---- without encapsulation ------------------------------------------------------------------------


@pytest.mark.parametrize("families", FAMILIES)
def test_host_gw_needs_routes_only(families: Families) -> None:
    network = config(families, Type="host-gw")
    target = want(lease(2, families, backend_type="host-gw"), families=families, network=network)
    assert (target.devices, target.neighbours, target.fdb, target.problems) == ({}, {}, {}, {})
    direct = {
        NET: Route(HOST, "eth0", False, route_protocol(NET)),
        NET6: Route(HOST6, "eth0", False, route_protocol(NET6)),
    }
    assert target.routes == {to: route for to, route in direct.items() if to in set(subnets(2, families))}
    assert overlay_mtu(network, underlay(families)) == 1500


def test_host_gw_leaves_out_who_is_on_another_segment() -> None:
    far = lease(2, backend_type="host-gw", public_ip=IPv4Address("172.16.0.2"))
    target = want(far, lease(3, backend_type="host-gw"), network=config(Type="host-gw"))
    assert set(target.routes) == {IPv4Network("10.5.3.0/24")}
    assert target.problems == {far.key: "no address of it is in the subnet of eth0, which host-gw needs"}


def test_direct_routing_on_the_same_segment_only() -> None:
    far = lease(3, public_ip=IPv4Address("172.16.0.3"))
    target = want(lease(2), far, network=config(DirectRouting=True))
    assert target.routes[NET] == Route(HOST, "eth0", False, route_protocol(NET))
    assert target.routes[IPv4Network("10.5.3.0/24")].device == "flannel.1"
    assert set(target.fdb) == {("flannel.1", mac(3))}


def test_automatic_direct_routing_to_those_that_were_probed_alone() -> None:
    peers = Peers()
    network = config("dual", DirectRouting="auto")

    def routes(*direct: IPv4Address | IPv6Address) -> Mapping[Any, Route]:
        target = want(lease(2, "dual"), families="dual", network=network, peers=peers, direct=direct)
        assert len(target.fdb) == len(target.neighbours) == 2 - len(direct)
        return target.routes

    assert {route.device for route in routes().values()} == {"flannel.1", "flannel-v6.1"}
    assert routes(HOST)[NET] == Route(HOST, "eth0", False, route_protocol(NET))
    assert routes(HOST6) == {
        NET: Route(VTEP, "flannel.1", True, route_protocol(NET)),
        NET6: Route(HOST6, "eth0", False, route_protocol(NET6)),
    }
    assert {route.device for route in routes(HOST, HOST6).values()} == {"eth0"}
    assert {route.device for route in routes().values()} == {"flannel.1", "flannel-v6.1"}


# ---- leases that cannot be used -------------------------------------------------------------------


def test_the_own_lease_is_no_peer() -> None:
    assert want(lease(1), lease(2)) == want(lease(2))


def elsewhere(one: Lease, *nets: IPv4Network | IPv6Network) -> Lease:
    other = Subnets(*(next((n for n in nets if n.version == version), None) for version in (4, 6)))  # type: ignore[arg-type]
    return Lease(other.key, other, one.value, one.age)


BAD = {
    "another backend": (lease(2, backend_type="host-gw"), 'backend type "host-gw" is not vxlan'),
    "our public address": (lease(2, ip=11), "its public address 192.168.64.11 is this host's own"),
    "our MAC address": (lease(2, vtep=1), "VtepMAC 02:00:00:00:04:01 is this host's own"),
    "no MAC address": (lease(2, backend_data={"VNI": 1}), "BackendData.VtepMAC: required"),
    "no backend data": (lease(2, backend_data=None), "BackendData.VtepMAC: required"),
    "garbage for a MAC address": (
        lease(2, backend_data={"VtepMAC": "x"}),
        'expected a MAC address, got "x"',
    ),
    "a group's MAC address": (
        lease(2, backend_data={"VtepMAC": "01:00:5e:00:00:01"}),
        "expected a unicast MAC address, got 01:00:5e:00:00:01",
    ),
    "a part of our subnet": (
        elsewhere(lease(2), IPv4Network("10.5.1.128/25")),
        "it overlaps this host's 10.5.1.0/24",
    ),
    "our subnet in another": (
        elsewhere(lease(2), IPv4Network("10.5.0.0/20")),
        "it overlaps this host's 10.5.1.0/24",
    ),
    "another network": (elsewhere(lease(2), IPv4Network("10.9.2.0/24")), "it is not in the network 10.5.0.0/16"),
    "the whole of another network": (
        elsewhere(lease(2), IPv4Network("8.0.0.0/6")),
        "it overlaps this host's 10.5.1.0/24",
    ),
    "a family the network has not": (
        lease(2, "v6"),
        "it has the subnet fd00:10:5:2::/64, and the network has no IPv6",
    ),
    "no address to send to": (
        lease(2, hosts="v6"),
        "it has no public IPv4 address, over which this host sends",
    ),
    "a younger one with a peer's MAC address": (
        lease(2, vtep=3, age=9),
        "VtepMAC 02:00:00:00:04:03 is also that of 192.168.64.13, which has the older lease; 192.168.64.12 must take "
        "another",
    ),
    "a younger one with a peer's subnet": (
        replace(lease(3, ip=50, vtep=50, age=9), key="10.5.3.0-24&junk"),
        "its subnet 10.5.3.0/24 is also that of a peer with an older lease",
    ),
    "a younger one with a peer's VTEP address": (
        replace(elsewhere(lease(2), IPv4Network("10.5.3.0/25")), age=9),
        "its VTEP's address 10.5.3.0 is also that of a peer with an older lease",
    ),
}


@pytest.mark.parametrize(("bad", "why"), BAD.values(), ids=BAD)
def test_a_lease_that_cannot_be_used_costs_nobody_else_anything(bad: Lease, why: str) -> None:
    target = want(bad, lease(3))
    assert target.problems == {bad.key: why}
    assert replace(target, problems={}) == want(lease(3))


@pytest.mark.parametrize(
    ("bad", "families", "why"),
    [
        (lease(2, "dual"), "v4", "it has the subnet fd00:10:5:2::/64, and the network has no IPv6"),
        (lease(2, "dual", hosts="v4"), "dual", "it has no public IPv6 address, over which this host sends"),
        (lease(2, "dual", backend_v6_data={"VtepMAC": "x"}), "dual", 'expected a MAC address, got "x"'),
    ],
)
def test_what_is_wrong_with_one_family_of_a_peer_costs_the_other_nothing(
    bad: Lease, families: Families, why: str
) -> None:
    """As on the way to dual-stack, where hosts get there one by one."""
    peers = Peers()
    target = want(bad, lease(3, families), families=families, peers=peers)
    assert target.problems == {bad.key: why}
    assert entries(target) == entries(want(lease(2), lease(3, families), families=families))
    assert want(lease(3, families), families=families, peers=peers) == want(lease(3, families), families=families)


def test_two_leases_of_one_host_share_its_fdb_entry() -> None:
    """As after a change of subnet: the earlier lease lives on for a day."""
    earlier, later, peers = lease(2), lease(3, ip=12, vtep=2), Peers()
    target = want(earlier, later, peers=peers)
    assert not target.problems
    assert target.fdb == {("flannel.1", mac(2)): FdbEntry(HOST)}
    assert len(target.routes) == len(target.neighbours) == 2
    assert want(later, peers=peers) == want(later), "the entry stays for the other one"
    assert want(later, earlier, peers=peers) == target


def test_of_two_clones_the_older_stays_whatever_their_order() -> None:
    older, younger = lease(5, vtep=7, age=3), lease(2, vtep=7, age=4)
    for leases in ((older, younger), (younger, older)):
        target = want(*leases)
        assert set(target.routes) == {IPv4Network("10.5.5.0/24")}
        assert set(target.problems) == {younger.key}
    assert set(want(younger).routes) == {NET}, "and its place is taken when it has gone"


# ---- any sequence ---------------------------------------------------------------------------------

AUTO = config("dual", DirectRouting="auto")
CONTEXTS: tuple[dict[str, Any], ...] = (
    {},
    {"hosts": "v4"},
    {"hosts": "v6"},
    {"network": config("dual", DirectRouting=True)},
    {
        "network": config("dual", DirectRouting="auto"),
        "direct": [IPv4Address("192.168.64.22"), IPv6Address("fd64::23")],
    },
    {"network": config("dual", DirectRouting="auto"), "direct": [IPv4Address("192.168.64.23")]},
    {"network": config("dual", Type="host-gw")},
    {"own": 3},
    {"blackhole": True, "obsolete": ["flannel.7"]},
)

some_leases = st.builds(
    lease,
    st.integers(1, 6),
    st.sampled_from(FAMILIES),
    hosts=st.sampled_from(FAMILIES),
    ip=st.integers(20, 22) | st.just(11),
    vtep=st.integers(1, 4),
    age=st.integers(1, 4),
    backend_type=st.sampled_from(["vxlan", "vxlan", "vxlan", "host-gw"]),
)
events = st.lists(
    st.one_of(
        st.tuples(st.just("put"), some_leases),
        st.tuples(st.just("delete"), st.integers(0, 20)),
        st.tuples(st.just("context"), st.sampled_from(CONTEXTS)),
    ),
    max_size=12,
)


@settings(max_examples=300, deadline=None)
@given(events)
def test_any_sequence_of_lease_events_equals_one_rebuild(sequence: list[tuple[str, Any]]) -> None:
    peers, leases, context = Peers(), dict[str, Lease](), CONTEXTS[0]
    for what, how in sequence:
        match what:
            case "put":
                leases[how.key] = how
            case "delete" if leases:
                del leases[sorted(leases)[how % len(leases)]]
            case "context":
                context = how
        one = want(*leases.values(), families="dual", peers=peers, **context)
        assert one == want(*leases.values(), families="dual", **context)
        assert one == want(*reversed(leases.values()), families="dual", **context)


@settings(max_examples=200, deadline=None)
@given(st.lists(some_leases, max_size=6, unique_by=lambda each: each.key), some_leases, st.sampled_from(CONTEXTS))
def test_one_more_lease_changes_nothing_for_the_older_ones(
    leases: list[Lease], another: Lease, context: dict[str, Any]
) -> None:
    leases = [each for each in leases if each.key != another.key]
    before = want(*leases, families="dual", **context)
    youngest = replace(another, age=9)
    after = want(*leases, youngest, families="dual", **context)
    assert after.neighbours.items() >= before.neighbours.items()
    assert after.fdb.items() >= before.fdb.items()
    assert after.routes.items() >= before.routes.items()
    assert {key: after.problems[key] for key in before.problems} == before.problems
    more = after.routes.keys() - before.routes.keys()
    assert more <= set(youngest.subnets)
    if not more:
        assert entries(after) == entries(before)
    if youngest.key not in after.problems:
        assert more in (set(youngest.subnets), set())  # none of this host's own
