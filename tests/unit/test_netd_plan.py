"""The planner against the fake kernel: any start, any interruption, one end."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netd.desired import Lease, Underlay, desired
from netd.fake import FakeKernel
from netd.model import Actual, Desired, Device, FdbEntry, Interface, Neighbour, Route
from netd.plan import Plan, Refused, plan
from podlane.api.network import LeaseValue, NetworkConfig, parse_config
from podlane.errors import ApplyError

pytestmark = pytest.mark.unit

CONFIG: NetworkConfig = parse_config('{"Network":"10.5.0.0/16"}')
UNDERLAY = Underlay("eth0", IPv4Interface("192.168.64.11/24"), IPv4Address("192.168.64.11"), 1500)
OWN = IPv4Network("10.5.1.0/24")
MAC = "02:00:00:00:00:01"
NETWORK = IPv4Network("10.5.0.0/16")


def lease(number: int, *, ip: str = "", mac: str = "", age: int | None = None, kind: str = "vxlan") -> Lease:
    value = LeaseValue.vxlan(IPv4Address(ip or f"192.168.64.{number + 10}"), 1, mac or f"02:00:00:00:00:{number:02x}")
    subnet = IPv4Network(f"10.5.{number}.0/24")
    value = replace(value, backend_type=kind)
    return Lease(f"10.5.{number}.0-24", subnet, value, number if age is None else age)


def want(*leases: Lease, config: NetworkConfig = CONFIG) -> Desired:
    return desired(config, UNDERLAY, OWN, MAC, leases)


def kernel() -> FakeKernel:
    return FakeKernel(Interface("eth0", 2, 1500, True, False, "veth", (UNDERLAY.address,), 0))


def steps(have: FakeKernel, target: Desired) -> Plan:
    return plan(target, have.observe("flannel.1", NETWORK))


def reach(have: FakeKernel, target: Desired) -> Plan:
    todo = steps(have, target)
    have.apply(todo)
    return todo


def test_everything_from_nothing() -> None:
    assert str(steps(kernel(), want(lease(1), lease(2), lease(3)))) == (
        "sysctl -w net.ipv4.ip_forward=1\n"
        "ip link add flannel.1 address 02:00:00:00:00:01 mtu 1450 type vxlan id 1 local 192.168.64.11 dev eth0"
        " dstport 8472 nolearning\n"
        "ip address add 10.5.1.0/32 dev flannel.1\n"
        "ip link set flannel.1 up\n"
        "bridge fdb replace 02:00:00:00:00:02 dev flannel.1 dst 192.168.64.12 self permanent extern_learn\n"
        "bridge fdb replace 02:00:00:00:00:03 dev flannel.1 dst 192.168.64.13 self permanent extern_learn\n"
        "ip neigh replace 10.5.2.0 lladdr 02:00:00:00:00:02 dev flannel.1 nud permanent protocol 117\n"
        "ip neigh replace 10.5.3.0 lladdr 02:00:00:00:00:03 dev flannel.1 nud permanent protocol 117\n"
        "ip route replace 10.5.2.0/24 via 10.5.2.0 dev flannel.1 protocol 117 onlink\n"
        "ip route replace 10.5.3.0/24 via 10.5.3.0 dev flannel.1 protocol 117 onlink\n"
    )


def test_a_peer_leaves() -> None:
    have = kernel()
    reach(have, want(lease(2), lease(3)))
    assert str(steps(have, want(lease(3)))) == (
        "ip route delete 10.5.2.0/24 via 10.5.2.0 dev flannel.1 protocol 117 onlink\n"
        "bridge fdb delete 02:00:00:00:00:02 dev flannel.1 dst 192.168.64.12 self\n"
        "ip neigh delete 10.5.2.0 dev flannel.1\n"
    )


def test_a_peer_changes_its_mac_address() -> None:
    have = kernel()
    reach(have, want(lease(2)))
    assert str(steps(have, want(lease(2, mac="02:00:00:00:00:22")))) == (
        "bridge fdb replace 02:00:00:00:00:22 dev flannel.1 dst 192.168.64.12 self permanent extern_learn\n"
        "ip neigh replace 10.5.2.0 lladdr 02:00:00:00:00:22 dev flannel.1 nud permanent protocol 117\n"
        "bridge fdb delete 02:00:00:00:00:02 dev flannel.1 dst 192.168.64.12 self\n"
    )


def test_a_peer_changes_its_public_address() -> None:
    have = kernel()
    reach(have, want(lease(2)))
    assert str(steps(have, want(lease(2, ip="192.168.64.99")))) == (
        "bridge fdb replace 02:00:00:00:00:02 dev flannel.1 dst 192.168.64.99 self permanent extern_learn\n"
    )


def test_a_device_that_does_not_fit_is_made_anew_with_all_entries() -> None:
    have = kernel()
    reach(have, want(lease(2)))
    have.device = replace(have.device or pytest.fail("no device"), port=4789)
    text = str(steps(have, want(lease(2))))
    assert text.startswith("ip link delete flannel.1\nip link add flannel.1 ")
    assert text.count("replace") == 3
    reach(have, want(lease(2)))
    assert not steps(have, want(lease(2)))


def test_the_own_lease_is_no_peer_and_an_earlier_address_goes() -> None:
    have = kernel()
    earlier = desired(CONFIG, UNDERLAY, IPv4Network("10.5.9.0/24"), MAC, ())
    reach(have, earlier)
    foreign = IPv4Interface("172.20.0.1/32")
    have.device = replace(have.device or pytest.fail("no device"), addresses={*earlier.device.addresses, foreign})
    assert str(steps(have, want(lease(1)))) == (
        "ip address add 10.5.1.0/32 dev flannel.1\nip address delete 10.5.9.0/32 dev flannel.1\n"
    )


def test_what_flannel_left_is_taken_over_and_removed_with_its_peer() -> None:
    have = kernel()
    reach(have, want())
    have.neighbours[IPv4Address("10.5.2.0")] = Neighbour("02:00:00:00:00:02", 0)
    have.fdb["02:00:00:00:00:02"] = FdbEntry(IPv4Address("192.168.64.12"), ours=False)
    have.routes[IPv4Network("10.5.2.0/24")] = Route(IPv4Address("10.5.2.0"), "flannel.1", True, 3)
    assert str(steps(have, want(lease(2)))) == (
        "ip neigh replace 10.5.2.0 lladdr 02:00:00:00:00:02 dev flannel.1 nud permanent protocol 117\n"
        "ip route replace 10.5.2.0/24 via 10.5.2.0 dev flannel.1 protocol 117 onlink\n"
    )
    reach(have, want(lease(2)))
    reach(have, want())
    assert (have.neighbours, have.fdb, have.routes) == ({}, {}, {})


def test_foreign_entries_stay() -> None:
    have = kernel()
    reach(have, want(lease(2)))
    have.neighbours[IPv4Address("10.5.200.0")] = Neighbour("02:00:00:00:00:c8", 0)
    have.fdb["02:00:00:00:00:c9"] = FdbEntry(IPv4Address("192.168.64.200"), ours=False)
    have.routes[IPv4Network("10.5.200.0/24")] = Route(IPv4Address("192.168.64.9"), "eth0", False, 4)
    assert not steps(have, want(lease(2)))


def test_a_local_subnet_is_not_stolen_by_a_lease() -> None:
    have = kernel()
    have.routes[IPv4Network("10.5.2.0/24")] = Route(None, "br0", False, 2)
    todo = steps(have, want(lease(2)))
    assert todo.problems == ("add route 10.5.2.0/24 via flannel.1: br0 has an address in that subnet",)
    assert "ip route" not in str(todo)


def test_a_device_name_taken_by_something_else_is_refused() -> None:
    with pytest.raises(Refused, match="a bridge link of that name exists"):
        plan(want(), Actual(foreign_kind="bridge"))


def test_direct_routing_on_the_same_segment_only() -> None:
    config = parse_config('{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","DirectRouting":true}}')
    target = want(lease(2), lease(3, ip="172.16.0.3"), config=config)
    assert target.routes[IPv4Network("10.5.2.0/24")] == Route(IPv4Address("192.168.64.12"), "eth0", False)
    assert target.routes[IPv4Network("10.5.3.0/24")].device == "flannel.1"
    assert set(target.fdb) == {"02:00:00:00:00:03"}


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (lease(2, kind="host-gw"), 'use lease 10.5.2.0-24: backend type "host-gw" is not vxlan'),
        (lease(2, ip="192.168.64.11"), "use lease 10.5.2.0-24: PublicIP 192.168.64.11 is this host's own"),
        (lease(2, mac=MAC), "use lease 10.5.2.0-24: VtepMAC 02:00:00:00:00:01 is this host's own"),
        (
            lease(2, mac="02:00:00:00:00:03", age=9),
            "use lease 10.5.2.0-24: VtepMAC 02:00:00:00:00:03 is also that of 192.168.64.13, which has the older "
            "lease; 192.168.64.12 must take another",
        ),
        (
            replace(lease(2), subnet=IPv4Network("10.5.1.128/25")),
            "use lease 10.5.2.0-24: it overlaps this host's subnet 10.5.1.0/24",
        ),
        (
            replace(lease(2), subnet=IPv4Network("10.9.2.0/24")),
            "use lease 10.5.2.0-24: it is not in the network 10.5.0.0/16",
        ),
    ],
)
def test_a_lease_that_cannot_be_used_costs_nobody_else_anything(bad: Lease, why: str) -> None:
    target = want(bad, lease(3))
    assert target.problems == (why,)
    assert replace(target, problems=()) == want(lease(3))


leases_of = st.lists(
    st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(1, 12)), max_size=8, unique_by=lambda t: t[0]
).map(lambda rows: [lease(n, ip=f"192.168.64.{ip + 20}", mac=f"02:00:00:00:01:{mac:02x}") for n, ip, mac in rows])


def devices() -> st.SearchStrategy[Device | None]:
    base = want().device
    return st.none() | st.builds(
        lambda port, mtu, up, mac: replace(base, port=port, mtu=mtu, up=up, mac=mac),
        st.sampled_from([8472, 4789]),
        st.sampled_from([1450, 1400]),
        st.booleans(),
        st.sampled_from([MAC, "02:00:00:00:00:0f"]),
    )


@settings(max_examples=300, deadline=None)
@given(before=leases_of, after=leases_of, device=devices(), cuts=st.lists(st.integers(0, 30), max_size=4))
def test_any_interruption_at_any_step_still_leads_to_the_end(
    before: list[Lease], after: list[Lease], device: Device | None, cuts: list[int]
) -> None:
    have, straight = kernel(), kernel()
    reach(have, want(*before))
    if device is None:
        have.delete_device()
    else:
        if not device.up:
            have.set_down()
        have.device = device
    target = want(*after)
    for cut in cuts:
        have.interrupt_after = cut
        try:
            reach(have, target)
        except ApplyError:
            continue
    have.interrupt_after = None
    reach(have, target)
    assert not steps(have, target), "one uninterrupted plan is enough"
    reach(straight, target)
    assert have.observe("flannel.1", NETWORK) == straight.observe("flannel.1", NETWORK)


@settings(max_examples=100, deadline=None)
@given(st.lists(leases_of, min_size=1, max_size=5))
def test_any_sequence_of_lease_changes_equals_one_rebuild(sequence: list[list[Lease]]) -> None:
    have, straight = kernel(), kernel()
    for leases in sequence:
        reach(have, want(*leases))
    reach(straight, want(*sequence[-1]))
    assert have.observe("flannel.1", NETWORK) == straight.observe("flannel.1", NETWORK)
