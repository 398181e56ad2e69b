"""The planner against the fake kernel: any start, any interruption, one end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netd.desired import Lease
from netd.fake import FakeKernel
from netd.model import Actual, Desired, Device, FdbEntry, Neighbour, Route
from netd.plan import CreateDevice, DeleteDevice, Plan, Refused, SetMac, SetRoute, plan
from podlane.api.subnets import Network
from podlane.errors import ApplyError
from tests.unit.netd_world import Families, config, kernel, lease, mac, want

pytestmark = pytest.mark.unit

V4, V6 = "flannel.1", "flannel-v6.1"


def steps(have: FakeKernel, target: Desired) -> Plan:
    return plan(target, have.observe(target.watched, target.networks, target.sysctls))


def reach(have: FakeKernel, target: Desired) -> Plan:
    todo = steps(have, target)
    have.apply(todo)
    return todo


# ---- the text ----------------------------------------------------------------------------------


def test_everything_from_nothing_ipv4() -> None:
    assert str(steps(kernel(), want(lease(1), lease(2), lease(3)))) == (
        "sysctl -w net/ipv4/ip_forward=1\n"
        "ip link add flannel.1 address 02:00:00:00:04:01 mtu 1450 type vxlan id 1 local 192.168.64.11 dev eth0"
        " dstport 8472 nolearning\n"
        "ip address add 10.5.1.0/32 dev flannel.1\n"
        "ip link set flannel.1 up\n"
        "bridge fdb replace 02:00:00:00:04:02 dev flannel.1 dst 192.168.64.12 self permanent extern_learn\n"
        "bridge fdb replace 02:00:00:00:04:03 dev flannel.1 dst 192.168.64.13 self permanent extern_learn\n"
        "ip neigh replace 10.5.2.0 lladdr 02:00:00:00:04:02 dev flannel.1 nud permanent protocol 117\n"
        "ip neigh replace 10.5.3.0 lladdr 02:00:00:00:04:03 dev flannel.1 nud permanent protocol 117\n"
        "ip route replace 10.5.2.0/24 via 10.5.2.0 dev flannel.1 protocol 119 onlink\n"
        "ip route replace 10.5.3.0/24 via 10.5.3.0 dev flannel.1 protocol 120 onlink\n"
    )


def test_everything_from_nothing_ipv6() -> None:
    have = kernel()
    target = want(lease(2, "v6"), families="v6", blackhole=True)
    assert str(steps(have, target)) == (
        "sysctl -w net/ipv6/conf/eth0/accept_ra=2\n"
        "sysctl -w net/ipv6/conf/all/forwarding=1\n"
        "ip link add flannel-v6.1 address 02:00:00:00:06:01 mtu 1430 type vxlan id 1 local fd64::11 dev eth0"
        " dstport 8472 nolearning\n"
        "ip address add fd00:10:5:1::/128 dev flannel-v6.1 nodad noprefixroute\n"
        "ip link set flannel-v6.1 up\n"
        "bridge fdb replace 02:00:00:00:06:02 dev flannel-v6.1 dst fd64::12 self permanent extern_learn\n"
        "ip neigh replace fd00:10:5:2:: lladdr 02:00:00:00:06:02 dev flannel-v6.1 nud permanent protocol 117\n"
        "ip route replace fd00:10:5:2::/64 via fd00:10:5:2:: dev flannel-v6.1 protocol 119 onlink\n"
        "ip route replace blackhole fd00:10:5:1::/64 metric 1048576 protocol 117\n"
    )
    reach(have, target)
    assert str(steps(have, want(families="v6"))) == (
        "ip route delete fd00:10:5:2::/64 via fd00:10:5:2:: dev flannel-v6.1 protocol 119 onlink\n"
        "ip route delete blackhole fd00:10:5:1::/64 metric 1048576 protocol 117\n"
        "bridge fdb delete 02:00:00:00:06:02 dev flannel-v6.1 dst fd64::12 self\n"
        "ip neigh delete fd00:10:5:2:: dev flannel-v6.1\n"
    )


def test_everything_from_nothing_dual_stack_on_hosts_with_ipv4_alone() -> None:
    target = want(lease(2, "dual", hosts="v4"), families="dual", hosts="v4")
    assert str(steps(kernel(), target)) == (
        "sysctl -w net/ipv4/ip_forward=1\n"
        "sysctl -w net/ipv6/conf/eth0/accept_ra=2\n"
        "sysctl -w net/ipv6/conf/all/forwarding=1\n"
        "ip link add flannel.1 address 02:00:00:00:04:01 mtu 1450 type vxlan id 1 local 192.168.64.11 dev eth0"
        " dstport 8472 nolearning\n"
        "ip address add 10.5.1.0/32 dev flannel.1\n"
        "ip address add fd00:10:5:1::/128 dev flannel.1 nodad noprefixroute\n"
        "ip link set flannel.1 up\n"
        "bridge fdb replace 02:00:00:00:04:02 dev flannel.1 dst 192.168.64.12 self permanent extern_learn\n"
        "bridge fdb replace 02:00:00:00:06:02 dev flannel.1 dst 192.168.64.12 self permanent extern_learn\n"
        "ip neigh replace 10.5.2.0 lladdr 02:00:00:00:04:02 dev flannel.1 nud permanent protocol 117\n"
        "ip neigh replace fd00:10:5:2:: lladdr 02:00:00:00:06:02 dev flannel.1 nud permanent protocol 117\n"
        "ip route replace 10.5.2.0/24 via 10.5.2.0 dev flannel.1 protocol 119 onlink\n"
        "ip route replace fd00:10:5:2::/64 via fd00:10:5:2:: dev flannel.1 protocol 119 onlink\n"
    )


def test_a_peer_leaves() -> None:
    have = kernel()
    reach(have, want(lease(2), lease(3)))
    assert str(steps(have, want(lease(3)))) == (
        "ip route delete 10.5.2.0/24 via 10.5.2.0 dev flannel.1 protocol 119 onlink\n"
        "bridge fdb delete 02:00:00:00:04:02 dev flannel.1 dst 192.168.64.12 self\n"
        "ip neigh delete 10.5.2.0 dev flannel.1\n"
    )


def test_a_peer_changes_its_mac_address() -> None:
    have = kernel()
    reach(have, want(lease(2)))
    assert str(steps(have, want(lease(2, vtep=34)))) == (
        "bridge fdb replace 02:00:00:00:04:22 dev flannel.1 dst 192.168.64.12 self permanent extern_learn\n"
        "ip neigh replace 10.5.2.0 lladdr 02:00:00:00:04:22 dev flannel.1 nud permanent protocol 117\n"
        "bridge fdb delete 02:00:00:00:04:02 dev flannel.1 dst 192.168.64.12 self\n"
    )


def test_a_peer_changes_its_public_address() -> None:
    have = kernel()
    reach(have, want(lease(2)))
    assert str(steps(have, want(lease(2, ip=99)))) == (
        "bridge fdb replace 02:00:00:00:04:02 dev flannel.1 dst 192.168.64.99 self permanent extern_learn\n"
    )


def test_an_ipv6_route_that_comes_back_to_the_device_goes_first() -> None:
    """Linux refuses the gateway that the route out of the other interface covers."""
    direct = want(lease(2, "v6"), families="v6", network=config("v6", DirectRouting=True))
    have = kernel()
    reach(have, direct)
    target = want(lease(2, "v6"), families="v6")
    text = str(steps(have, target))
    assert text.endswith(
        "ip route delete fd00:10:5:2::/64 via fd64::12 dev eth0 protocol 119\n"
        "ip route replace fd00:10:5:2::/64 via fd00:10:5:2:: dev flannel-v6.1 protocol 119 onlink\n"
    )
    with pytest.raises(ApplyError, match="invalid gateway"):
        have.apply(Plan(entry_steps=(SetRoute(*next(iter(target.routes.items()))),)))
    reach(have, target)
    assert not steps(have, target)


def test_an_unreachable_route_in_a_peer_s_place_has_neither_gateway_nor_device() -> None:
    have = kernel()
    target = want(lease(2, "v6"), families="v6")
    reach(have, target)
    have.routes[IPv6Network("fd00:10:5:2::/64")] = Route(None, "", onlink=False, protocol=3)
    assert str(steps(have, target)) == (
        "ip route delete fd00:10:5:2::/64 protocol 3\n"
        "ip route replace fd00:10:5:2::/64 via fd00:10:5:2:: dev flannel-v6.1 protocol 119 onlink\n"
    )


def test_a_device_that_does_not_fit_is_made_anew_with_all_entries() -> None:
    have = kernel()
    reach(have, want(lease(2)))
    have.devices[V4] = replace(have.devices[V4], port=4789)
    text = str(steps(have, want(lease(2))))
    assert text.startswith("ip link delete flannel.1\nip link add flannel.1 ")
    assert text.count("replace") == 3
    reach(have, want(lease(2)))
    assert not steps(have, want(lease(2)))


def test_what_has_the_same_vni_goes_before_its_successor() -> None:
    """Both networks on one device, and then each on its own: never two with one VNI, port and family."""
    have = kernel()
    reach(have, want(lease(2, "dual", hosts="v6"), families="dual", hosts="v6"))
    target = want(lease(2, "dual"), families="dual")
    text = str(steps(have, target)).splitlines()
    kinds = [line.split()[2:4] for line in text if line.startswith(("ip link add", "ip link delete"))]
    assert kinds == [["delete", "flannel.1"], ["add", "flannel.1"], ["add", "flannel-v6.1"]]
    reach(have, target)
    assert not steps(have, target)


def test_an_obsolete_device_goes_with_its_entries_at_once() -> None:
    have = kernel()
    reach(have, want(lease(2)))
    target = want(lease(2), network=config(VNI=7), obsolete=[V4])
    text = str(steps(have, target))
    assert "ip link delete flannel.1\n" in text
    assert "bridge fdb delete" not in text
    reach(have, target)
    assert not steps(have, target)


def test_the_own_lease_is_no_peer_and_an_earlier_address_goes() -> None:
    have = kernel()
    earlier = want(own=9)
    reach(have, earlier)
    foreign = IPv4Interface("172.20.0.1/32")
    addresses = {*earlier.devices[V4].addresses, foreign}
    have.devices[V4] = replace(have.devices[V4], addresses=frozenset(addresses))
    assert str(steps(have, want(lease(1)))) == (
        "ip address add 10.5.1.0/32 dev flannel.1\nip address delete 10.5.9.0/32 dev flannel.1\n"
    )


def test_router_advertisements_that_are_off_stay_off() -> None:
    have = kernel()
    have.sysctls["net/ipv6/conf/eth0/accept_ra"] = "0"
    assert "accept_ra" not in str(steps(have, want(families="v6")))
    del have.sysctls["net/ipv6/conf/eth0/accept_ra"]
    assert "accept_ra" not in str(steps(have, want(families="v6")))


def test_what_flannel_left_is_taken_over_and_removed_with_its_peer() -> None:
    have = kernel()
    reach(have, want())
    have.neighbours[V4, IPv4Address("10.5.2.0")] = Neighbour(mac(2), 0)
    have.fdb[V4, mac(2)] = FdbEntry(IPv4Address("192.168.64.12"), ours=False)
    have.routes[IPv4Network("10.5.2.0/24")] = Route(IPv4Address("10.5.2.0"), V4, True, 3)
    assert str(steps(have, want(lease(2)))) == (
        "ip neigh replace 10.5.2.0 lladdr 02:00:00:00:04:02 dev flannel.1 nud permanent protocol 117\n"
        "ip route replace 10.5.2.0/24 via 10.5.2.0 dev flannel.1 protocol 119 onlink\n"
    )
    reach(have, want(lease(2)))
    reach(have, want())
    assert (have.neighbours, have.fdb, have.routes) == ({}, {}, {})


@pytest.mark.parametrize("families", ["v4", "v6"])
def test_a_local_subnet_is_not_stolen_by_a_lease(families: Families) -> None:
    have = kernel()
    target = want(lease(2, families), families=families)
    (destination,) = target.routes
    have.routes[destination] = Route(None, "br0", False, 2)
    todo = steps(have, target)
    assert todo.problems == (f"add route {destination}: br0 has an address in that subnet",)
    assert "ip route" not in str(todo)


def test_a_device_name_taken_by_something_else_is_refused() -> None:
    with pytest.raises(Refused, match="a bridge link of that name exists"):
        plan(want(), Actual(foreign={V4: "bridge"}))


# ---- any state, any interruption ------------------------------------------------------------------

FAMILIES: tuple[Families, ...] = ("v4", "v6", "dual")
BACKENDS = ({}, {"DirectRouting": True}, {"DirectRouting": "auto"}, {"Type": "host-gw"}, {"VNI": 7}, {"Port": 4789})


@st.composite
def desires(draw: st.DrawFn) -> Desired:
    """What a host may want: any network on any host, some peers, some of them direct."""
    families, hosts = draw(st.sampled_from(FAMILIES)), draw(st.sampled_from(FAMILIES))
    backend = draw(st.sampled_from(BACKENDS))
    rows = st.tuples(st.integers(2, 9), st.integers(2, 9), st.integers(2, 9), st.booleans())
    leases: list[Lease] = []
    direct = []
    for number, ip, vtep, is_direct in draw(st.lists(rows, max_size=6, unique_by=lambda row: row[0])):
        kind = backend.get("Type", "vxlan")
        leases.append(lease(number, families, hosts=hosts, ip=ip + 20, vtep=vtep, backend_type=kind))
        direct += leases[-1].value.addresses if is_direct else ()
    network = config(families, **backend)
    target = want(
        *leases, families=families, hosts=hosts, network=network, direct=direct, blackhole=draw(st.booleans())
    )
    return replace(target, obsolete=frozenset({V4, V6, "flannel.7", "flannel-v6.7"}) - target.devices.keys())


changes = st.one_of(desires().map(lambda same: (same, same)), st.tuples(desires(), desires()))
"""What was wanted, and what is wanted now."""


def _devices(change: Callable[[Device], Device]) -> Callable[[FakeKernel], None]:
    def mutilate(have: FakeKernel) -> None:
        have.devices = {name: change(device) for name, device in have.devices.items()}

    return mutilate


def _each(what: Callable[[FakeKernel, str], None]) -> Callable[[FakeKernel], None]:
    def mutilate(have: FakeKernel) -> None:
        for name in list(have.devices):
            what(have, name)

    return mutilate


def _redirect(have: FakeKernel) -> None:
    """Somebody sends the peers' subnets elsewhere, and one to nowhere."""
    for n, (to, route) in enumerate(have.routes.items()):
        gateway = IPv4Address("192.168.64.99") if to.version == 4 else IPv6Address("fd64::99")
        elsewhere = Route(gateway, "eth0", onlink=False, protocol=3) if n else Route(None, "", False, 3)
        have.routes[to] = elsewhere if route.protocol != 2 else route


def _forget_marks(have: FakeKernel) -> None:
    """As after flanneld."""
    have.fdb = {key: replace(entry, ours=False) for key, entry in have.fdb.items()}
    have.neighbours = {key: replace(each, protocol=0) for key, each in have.neighbours.items()}
    have.routes = {to: replace(route, protocol=3) for to, route in have.routes.items()}


MUTILATIONS: dict[str, Callable[[FakeKernel], None]] = {
    "down": _each(lambda have, name: have.set_down(name)),
    "gone": _each(lambda have, name: have.delete_link(name)),
    "mac": _devices(lambda device: replace(device, mac=mac(99))),
    "mtu": _devices(lambda device: replace(device, mtu=1300)),
    "port": _devices(lambda device: replace(device, port=9999)),
    "addresses": _devices(lambda device: replace(device, addresses=frozenset({IPv4Interface("10.5.77.0/32")}))),
    "redirected": _redirect,
    "unmarked": _forget_marks,
    "no routes": lambda have: have.routes.clear(),
    "no fdb": lambda have: have.fdb.clear(),
    "no neighbours": lambda have: have.neighbours.clear(),
    "wrong remotes": lambda have: have.fdb.update(
        {key: replace(entry, remote=entry.remote + 1) for key, entry in have.fdb.items()}
    ),
    "sysctls": lambda have: have.sysctls.update(dict.fromkeys(have.sysctls, "0")),
}


def actual(have: FakeKernel) -> tuple[object, ...]:
    """All there is, but for what an earlier network left on a device's addresses."""
    return have.neighbours, have.fdb, have.routes, have.blackholes, set(have.devices)


@settings(max_examples=400, deadline=None)
@given(
    change=changes,
    harm=st.lists(st.sampled_from(sorted(MUTILATIONS)), max_size=3),
    cuts=st.lists(st.integers(0, 40), max_size=4),
)
def test_any_interruption_at_any_step_still_leads_to_the_end(
    change: tuple[Desired, Desired], harm: list[str], cuts: list[int]
) -> None:
    before, after = change
    have, straight = kernel(), kernel()
    for each in (have, straight):
        reach(each, before)
        for kind in harm:
            MUTILATIONS[kind](each)
    for cut in cuts:
        have.interrupt_after = cut
        try:
            reach(have, after)
        except ApplyError:
            continue
    have.interrupt_after = None
    reach(have, after)
    assert not steps(have, after), "one uninterrupted plan is enough"
    reach(straight, after)
    assert not steps(straight, after)
    if "unmarked" not in harm:  # what has lost its mark is taken over as long as it is wanted, and then stays
        assert actual(have) == actual(straight)
    for name, device in after.devices.items():
        assert have.devices[name].addresses >= device.addresses
    assert {to: have.routes[to] for to in after.routes} == after.routes


FOREIGN_ROUTES: dict[Network, Route] = {
    IPv4Network("10.5.200.0/24"): Route(IPv4Address("192.168.64.9"), "eth0", False, 4),
    IPv4Network("10.5.201.0/24"): Route(None, "", False, 3),
    IPv4Network("10.5.1.0/24"): Route(None, "br0", False, 2),
    IPv6Network("fd00:10:5:200::/64"): Route(IPv6Address("fd64::9"), "eth0", False, 4),
    IPv6Network("fd00:10:5:1::/64"): Route(None, "br0", False, 2),
}


@settings(max_examples=200, deadline=None)
@given(before=desires(), after=desires())
def test_foreign_entries_stay(before: Desired, after: Desired) -> None:
    have = kernel()
    reach(have, before)
    neighbours, fdb = {}, {}
    for device in before.devices.values():
        for number in (200, 201):
            address = IPv4Address(f"10.5.{number}.0") if number % 2 else IPv6Address(f"fd00:10:5:{number}::")
            remote = device.local + number if device.local is not None else None
            assert remote is not None
            neighbours[device.name, address] = Neighbour(mac(number, 9), 0)
            fdb[device.name, mac(number, 9)] = FdbEntry(remote, ours=False)
    have.routes |= FOREIGN_ROUTES
    have.neighbours |= neighbours
    have.fdb |= fdb
    todo = reach(have, after)
    assert not steps(have, after)
    assert have.routes.items() >= FOREIGN_ROUTES.items()
    remade = {step.name for step in todo.device_steps if isinstance(step, DeleteDevice | SetMac)}
    remade |= {step.device.name for step in todo.device_steps if isinstance(step, CreateDevice)}
    assert have.neighbours.items() >= {(k, v) for k, v in neighbours.items() if k[0] not in remade}
    assert have.fdb.items() >= {(k, v) for k, v in fdb.items() if k[0] not in remade}


@settings(max_examples=200, deadline=None)
@given(st.lists(desires(), min_size=1, max_size=5))
def test_any_sequence_of_wishes_equals_the_last_one_alone(sequence: list[Desired]) -> None:
    have, straight = kernel(), kernel()
    for target in sequence:
        reach(have, target)
        assert not steps(have, target)
    reach(straight, sequence[-1])
    assert actual(have) == actual(straight)
