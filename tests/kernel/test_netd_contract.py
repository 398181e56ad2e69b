"""One suite for the fake kernel and the real one, for IPv4, IPv6 and both: what is seen, and what is reached."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface

import pytest

from netd import plan as p
from netd.fake import FakeKernel
from netd.model import Actual, Device, FdbEntry, LinkState, Neighbour
from podlane.errors import ApplyError
from tests.kernel.conftest import NetnsMaker, eventually
from tests.kernel.netd_kernels import NAMES, SHAPES, SYSCTLS, Bench, Shape, benches, mac, subnet

pytestmark = [pytest.mark.contract, pytest.mark.kernel]


@pytest.fixture(params=["fake", "linux"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=SHAPES, ids=lambda shape: shape.name)
def bench(request: pytest.FixtureRequest, kind: str, netns: NetnsMaker) -> Iterator[Bench]:
    yield from benches(kind, request.param, netns)


@pytest.fixture
def dual(kind: str, netns: NetnsMaker) -> Iterator[Bench]:
    yield from benches(kind, SHAPES[2], netns)


# ---- looking around ----------------------------------------------------------------------------


def test_the_underlay_is_listed_with_both_families(dual: Bench) -> None:
    eth0 = next(each for each in dual.kernel.interfaces() if each.name == "eth0")
    assert (eth0.mtu, eth0.up, eth0.loopback) == (1500, True, False)
    assert (eth0.default_metric, eth0.default_metric6) == (0, 1024)
    assert eth0.addresses == (IPv4Interface("192.168.64.11/24"), IPv6Interface("fd64::11/64"))
    one = dual.kernel.interface("eth0")
    assert one is not None
    assert replace(one, default_metric=0, default_metric6=1024) == eth0
    assert dual.kernel.interface("nowhere0") is None
    assert dual.kernel.interface("a name that is too long for an interface") is None


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("192.168.64.12", "eth0"),
        ("8.8.8.8", "eth0"),
        ("192.168.64.11", "eth0"),
        ("fd64::12", "eth0"),
        ("2001:db8::1", "eth0"),
        ("fd64::11", "eth0"),
        ("10.5.1.0", "flannel.7"),
        ("10.5.2.7", "flannel.7"),
        ("fd00:10:5:1::", "flannel-v6.7"),
        ("fd00:10:5:2::7", "flannel-v6.7"),
        ("10.5.9.1", ""),
        ("fd00:10:5:9::1", ""),
    ],
)
def test_the_way_to_an_address(dual: Bench, address: str, name: str) -> None:
    dual.reach(replace(dual.shape.peers(2), blackholes=frozenset({subnet(4, 9), subnet(6, 9)})))
    wanted = IPv6Address(address) if ":" in address else IPv4Address(address)
    # Linux makes the local route of an IPv6 address a moment after its device is up
    assert eventually(lambda: dual.kernel.route_to(wanted) == name)


def test_nothing_there(bench: Bench) -> None:
    assert bench.observe() == Actual(sysctls=dict.fromkeys(SYSCTLS, "0"))
    assert bench.kernel.link("flannel.7") is None


def test_sysctls_that_do_not_exist_are_left_out(dual: Bench) -> None:
    seen = dual.kernel.observe([], (), ["net/ipv6/conf/nowhere0/accept_ra", "net/ipv6/conf/eth0/accept_ra"])
    assert seen == Actual(sysctls={"net/ipv6/conf/eth0/accept_ra": "1"})


def test_a_single_link(bench: Bench) -> None:
    assert bench.kernel.link("eth0") == LinkState("veth", 1500, up=True)
    want = bench.shape.peers()
    bench.reach(want)
    for device in want.devices.values():
        link = bench.kernel.link(device.name)
        assert link == LinkState("vxlan", device.mtu, up=True)
        assert link.mac == device.mac
        bench.set_down(device.name)
        assert bench.kernel.link(device.name) == LinkState("vxlan", device.mtu, up=False)


def test_a_name_that_something_else_has_is_foreign(dual: Bench) -> None:
    seen = dual.kernel.observe(["eth0"], dual.shape.networks, [])
    if isinstance(dual.kernel, FakeKernel):
        dual.kernel.foreign["eth0"] = "veth"
        seen = dual.kernel.observe(["eth0"], dual.shape.networks, [])
    assert (seen.devices, seen.foreign) == ({}, {"eth0": "veth"})


# ---- reaching a state --------------------------------------------------------------------------


def test_from_nothing_to_everything_in_one_plan_and_reads_back_what_was_written(bench: Bench) -> None:
    own = frozenset(subnet(family, 1) for family in bench.shape.over)
    want = replace(bench.shape.peers(2, 3, 4), blackholes=own)
    bench.reach(want)
    actual = bench.observe()
    assert actual.devices == want.devices
    assert (actual.neighbours, actual.fdb, actual.routes) == (want.neighbours, want.fdb, want.routes)
    assert (actual.blackholes, actual.sysctls) == (own, SYSCTLS)


def test_peers_come_go_and_change(bench: Bench) -> None:
    shape = bench.shape
    bench.reach(shape.peers(2, 3))
    bench.reach(shape.peers(3, 4))
    three = shape.peers(3)
    moved = {(name, each): FdbEntry(entry.remote + 90) for (name, each), entry in three.fdb.items()}
    bench.reach(replace(three, fdb=moved))
    new_mac = replace(
        three,
        neighbours=dict.fromkeys(three.neighbours, Neighbour(mac(0x33))),
        fdb={(name, mac(0x33)): entry for (name, _), entry in three.fdb.items()},
    )
    bench.reach(new_mac)
    assert bench.observe().fdb == new_mac.fdb
    bench.reach(shape.peers())
    actual = bench.observe()
    assert (actual.neighbours, actual.fdb, actual.routes) == ({}, {}, {})


def test_blackholes_come_and_go(bench: Bench) -> None:
    own = frozenset(subnet(family, 1) for family in bench.shape.over)
    bench.reach(replace(bench.shape.peers(2), blackholes=own))
    assert bench.observe().blackholes == own
    plan = p.plan(bench.shape.peers(2), bench.observe())
    bench.kernel.apply(plan)
    bench.kernel.apply(plan)  # what is gone is gone
    assert bench.observe().blackholes == frozenset()


def test_a_flap_takes_routes_neighbours_and_ipv6_addresses_and_keeps_the_fdb(bench: Bench) -> None:
    want = bench.shape.peers(2, 3)
    bench.reach(want)
    for name in want.devices:
        bench.set_down(name)
    actual = bench.observe()
    assert (actual.neighbours, actual.routes, actual.fdb) == ({}, {}, want.fdb)
    left = {each.version for device in actual.devices.values() for each in device.addresses}
    assert left == {4} & {family for device in want.devices.values() for family in _versions(device)}
    bench.reach(want)


def _versions(device: Device) -> set[int]:
    return {each.version for each in device.addresses}


def test_a_deleted_device_takes_all(bench: Bench) -> None:
    want = bench.shape.peers(2)
    bench.reach(want)
    for name in want.devices:
        bench.delete_link(name)
    assert bench.observe() == Actual(sysctls=SYSCTLS)
    bench.reach(want)


def test_a_deleted_underlay_takes_the_devices(bench: Bench) -> None:
    bench.reach(bench.shape.peers(2))
    bench.delete_link("eth0")
    assert bench.observe() == Actual(sysctls=SYSCTLS)
    assert bench.kernel.interface("eth0") is None


def test_a_new_mac_address_takes_the_neighbours(bench: Bench) -> None:
    want = bench.shape.peers(2)
    bench.reach(want)
    other = replace(want, devices={name: replace(each, mac=mac(10)) for name, each in want.devices.items()})
    lines = bench.reach(other).splitlines()
    assert lines[: len(want.devices)] == [f"ip link set {name} address {mac(10)}" for name in want.devices]
    assert [line.split()[1] for line in lines[len(want.devices) :]] == ["neigh"] * len(want.neighbours)


@pytest.mark.parametrize(
    "change",
    [
        {"mtu": 1400},
        {"port": 4789},
        {"learning": True},
        {"gbp": True},
        {"underlay": ""},
        {"local": "the peer's"},
        {"addresses": frozenset({IPv4Interface("10.5.9.0/32"), IPv6Interface("fd00:10:5:9::/128")})},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_devices_can_be_changed(bench: Bench, change: dict[str, object]) -> None:
    want = bench.shape.peers(2)
    bench.reach(want)
    devices = {}
    for name, device in want.devices.items():
        assert device.local is not None
        changes = {"local": device.local + 1} if "local" in change else change
        devices[name] = replace(device, **changes)
    bench.reach(replace(want, devices=devices))


@pytest.mark.parametrize(("before", "after"), [(a, b) for a in SHAPES for b in SHAPES if a != b], ids=lambda s: s.name)
def test_one_shape_becomes_another(kind: str, netns: NetnsMaker, before: Shape, after: Shape) -> None:
    """What has one VNI, port and family goes before what takes its place."""
    for bench in benches(kind, before, netns):
        bench.reach(before.peers(2, 3))
        bench.shape = after
        want = after.peers(3, 4)
        bench.reach(replace(want, obsolete=frozenset(NAMES.values()) - want.devices.keys()))
        for name, device in bench.observe().devices.items():
            # an address in a network that is no pod network any more may be anybody's
            assert device.addresses >= want.devices[name].addresses
            assert replace(device, addresses=want.devices[name].addresses) == want.devices[name]


def test_two_devices_with_one_vni_port_and_family_are_refused(dual: Bench) -> None:
    dual.reach(dual.shape.peers())
    for family in dual.shape.over:
        second = p.CreateDevice(replace(dual.shape.device(family), name="second"))
        with pytest.raises(ApplyError, match="VNI already exists"):
            dual.kernel.apply(p.Plan(device_steps=(second,)))
