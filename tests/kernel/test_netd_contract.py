"""One suite for the fake kernel and the real one (in a namespace of its own), for IPv4, IPv6 and both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network

import pytest

from netd import plan as p
from netd.desired import Family
from netd.fake import FakeKernel
from netd.kernel import Kernel, LinuxKernel
from netd.model import Actual, Desired, Device, FdbEntry, Interface, LinkState, Neighbour, Route
from podlane.api.subnets import Address, Network
from podlane.errors import ApplyError
from tests.kernel.conftest import Netns, NetnsMaker, inside

pytestmark = [pytest.mark.contract, pytest.mark.kernel]

NETWORKS: dict[Family, Network] = {4: IPv4Network("10.5.0.0/16"), 6: IPv6Network("fd00:10:5::/48")}
NAMES: dict[Family, str] = {4: "flannel.7", 6: "flannel-v6.7"}
OWN: dict[Family, Address] = {4: IPv4Address("192.168.64.11"), 6: IPv6Address("fd64::11")}
SYSCTLS = {"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1"}


def remote(family: Family, number: int) -> Address:
    return IPv4Address(f"192.168.64.{number}") if family == 4 else IPv6Address(f"fd64::{number}")


def subnet(family: Family, number: int) -> Network:
    return IPv4Network(f"10.5.{number}.0/24") if family == 4 else IPv6Network(f"fd00:10:5:{number}::/64")


def mac(number: int) -> str:
    return f"02:00:00:00:00:{number:02x}"


@dataclass(frozen=True)
class Shape:
    """Which pod networks there are, and for each the family of the hosts' addresses it travels over."""

    name: str
    over: dict[Family, Family]

    @property
    def networks(self) -> tuple[Network, ...]:
        return tuple(NETWORKS[family] for family in self.over)

    def device(self, family: Family) -> Device:
        """The one that carries the pod network of this family."""
        over = self.over[family]
        carried = [each for each in self.over if self.over[each] == over]
        addresses = {
            IPv4Interface("10.5.1.0/32") if each == 4 else IPv6Interface("fd00:10:5:1::/128") for each in carried
        }
        return Device(
            name=NAMES[carried[0]],
            vni=7,
            port=8472,
            local=OWN[over],
            underlay="eth0",
            mtu=1450 if over == 4 else 1430,
            mac=mac(1),
            addresses=frozenset(addresses),
        )

    def peers(self, *numbers: int) -> Desired:
        want = Desired(self.networks, sysctls=SYSCTLS)
        devices, neighbours, fdb, routes = {}, {}, {}, {}
        for family in self.over:
            device = self.device(family)
            devices[device.name] = device
            for n in numbers:
                vtep = subnet(family, n).network_address
                neighbours[device.name, vtep] = Neighbour(mac(n))
                fdb[device.name, mac(n)] = FdbEntry(remote(self.over[family], n))
                routes[subnet(family, n)] = Route(vtep, device.name, onlink=True)
        return replace(want, devices=devices, neighbours=neighbours, fdb=fdb, routes=routes)


SHAPES = (
    Shape("v4", {4: 4}),
    Shape("v6", {6: 6}),
    Shape("dual", {4: 4, 6: 6}),
    Shape("v6_over_v4", {6: 4}),
    Shape("dual_over_v4", {4: 4, 6: 4}),
    Shape("dual_over_v6", {4: 6, 6: 6}),
)


@dataclass
class Bench:
    kernel: Kernel
    shape: Shape
    set_down: Callable[[str], object]
    delete_link: Callable[[str], object]
    set_sysctl: Callable[[str, str], object]
    add_route: Callable[[Network, Address | None], object]
    """As an administrator would: out of eth0 by way of an address, or to nowhere for None."""
    connect: Callable[[Network], object]
    """Give another interface, br0, an address in this network."""

    @property
    def devices(self) -> list[str]:
        return sorted({self.shape.device(family).name for family in self.shape.over})

    def observe(self) -> Actual:
        return self.kernel.observe([*self.devices, *NAMES.values()], self.shape.networks, SYSCTLS)

    def reach(self, desired: Desired) -> str:
        todo = p.plan(desired, self.observe())
        self.kernel.apply(todo)
        assert str(p.plan(desired, self.observe())) == ""
        return str(todo)


def fake_bench(shape: Shape) -> Bench:
    addresses = (IPv4Interface("192.168.64.11/24"), IPv6Interface("fd64::11/64"))
    fake = FakeKernel(
        Interface("lo", 1, 65536, True, True, "", ()),
        Interface("eth0", 2, 1500, True, False, "veth", addresses, 0, 1024),
    )

    def add_route(destination: Network, gateway: Address | None) -> None:
        fake.routes[destination] = Route(gateway, "eth0" if gateway is not None else "", onlink=False, protocol=3)

    def connect(network: Network) -> None:
        fake.routes[network] = Route(None, "br0", onlink=False, protocol=2)

    return Bench(fake, shape, fake.set_down, fake.delete_link, fake.sysctls.__setitem__, add_route, connect)


def linux_bench(shape: Shape, host: Netns) -> Bench:
    def add_route(destination: Network, gateway: Address | None) -> None:
        way = f"{destination} via {gateway}" if gateway is not None else f"unreachable {destination}"
        host.run(f"ip route replace {way}")

    def connect(network: Network) -> None:
        if not host.ok("ip link show br0"):
            host.run("ip link add br0 type veth peer name br1")
            host.run("ip link set br0 up")
        host.run(f"ip address add {network[1]}/{network.prefixlen} dev br0")

    return Bench(
        LinuxKernel(),
        shape,
        lambda name: host.run(f"ip link set {name} down"),
        lambda name: host.run(f"ip link delete {name}"),
        lambda path, value: host.run(f"sysctl -qw {path}={value}"),
        add_route,
        connect,
    )


def dual_stack_host(netns: NetnsMaker) -> Netns:
    host = netns.host("a")
    host.run("sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0")
    host.run("ip address add fd64::11/64 dev eth0 nodad")
    host.run("ip -6 route add default via fd64::1")
    return host


@pytest.fixture(params=["fake", "linux"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def benches(kind: str, shape: Shape, netns: NetnsMaker) -> Iterator[Bench]:
    if kind == "fake":
        yield fake_bench(shape)
        return
    host = dual_stack_host(netns)
    with inside(host):
        yield linux_bench(shape, host)


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
    assert dual.kernel.route_to(IPv6Address(address) if ":" in address else IPv4Address(address)) == name


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


# ---- what stands in the way --------------------------------------------------------------------


def test_what_an_administrator_put_in_a_route_s_place_is_replaced(bench: Bench) -> None:
    want = bench.shape.peers(2, 3)
    bench.reach(want)
    for family in bench.shape.over:
        bench.add_route(subnet(family, 2), remote(family, 99))
        bench.add_route(subnet(family, 3), None)
    bench.reach(want)
    assert bench.observe().routes == want.routes


def test_a_route_s_way_changes_between_device_and_underlay(bench: Bench) -> None:
    want = bench.shape.peers(2, 3)
    direct = {
        subnet(family, n): Route(remote(family, n), "eth0", onlink=False) for family in bench.shape.over for n in (2, 3)
    }
    bench.reach(replace(want, routes=direct))
    assert bench.observe().routes == direct
    bench.reach(want)
    bench.reach(replace(want, routes=direct))


def test_a_subnet_this_host_is_connected_to_is_not_stolen(bench: Bench) -> None:
    for family in bench.shape.over:
        bench.connect(subnet(family, 2))
    want = bench.shape.peers(2, 3)
    bench.reach(want)
    expected = [f"add route {subnet(family, 2)}: br0 has an address in that subnet" for family in bench.shape.over]
    assert list(p.plan(want, bench.observe()).problems) == expected
    routes = bench.observe().routes
    assert {destination: route.device for destination, route in routes.items()} == {
        subnet(family, n): "br0" if n == 2 else bench.shape.device(family).name
        for family in bench.shape.over
        for n in (2, 3)
    }


def test_foreign_routes_stay(bench: Bench) -> None:
    for family in bench.shape.over:
        bench.add_route(subnet(family, 200), remote(family, 99))
    bench.reach(bench.shape.peers(2))
    bench.reach(bench.shape.peers())
    routes = bench.observe().routes
    assert {destination: route.device for destination, route in routes.items()} == {
        subnet(family, 200): "eth0" for family in bench.shape.over
    }


def test_ipv6_is_turned_on_where_it_is_needed(kind: str, netns: NetnsMaker) -> None:
    for bench in benches(kind, SHAPES[2], netns):
        bench.set_sysctl("net/ipv6/conf/default/disable_ipv6", "1")
        bench.reach(bench.shape.peers(2))
        path = f"net/ipv6/conf/{NAMES[6]}/disable_ipv6"
        assert bench.kernel.observe([], (), [path]).sysctls == {path: "0"}


# ---- failures ----------------------------------------------------------------------------------


def test_an_entry_that_fails_does_not_stop_the_others(bench: Bench) -> None:
    want = bench.shape.peers(2, 3)
    bench.reach(replace(want, neighbours={}, fdb={}, routes={}))
    good = [p.SetRoute(destination, route) for destination, route in want.routes.items()]
    bad = p.SetRoute(good[0].destination, replace(good[0].route, device="nowhere0"))
    with pytest.raises(ApplyError) as caught:
        bench.kernel.apply(p.Plan(entry_steps=(bad, *good)))
    assert [step for step, _ in caught.value.failures] == [str(bad)]
    assert bench.observe().routes == want.routes


def test_an_entry_that_the_kernel_refuses_is_named(bench: Bench) -> None:
    want = bench.shape.peers(2)
    bench.reach(want)
    family = next(iter(bench.shape.over))
    nobody = IPv4Address("198.51.100.1") if family == 4 else IPv6Address("2001:db8::1")
    far = p.SetRoute(subnet(family, 3), Route(nobody, "eth0", onlink=False))
    (key, entry), *_ = want.fdb.items()
    other = p.SetFdb(*key, FdbEntry(remote(6 if entry.remote.version == 4 else 4, 2)))
    with pytest.raises(ApplyError) as caught:
        bench.kernel.apply(p.Plan(entry_steps=(far, other)))
    assert [step for step, _ in caught.value.failures] == [str(far), str(other)]
    assert "unreachable" in str(caught.value.failures[0][1]) or "no route to host" in str(caught.value.failures[0][1])
    assert "address family not supported" in str(caught.value.failures[1][1])
    assert bench.observe().fdb == want.fdb


def test_nothing_can_be_routed_to_a_device_that_is_down(bench: Bench) -> None:
    want = bench.shape.peers(2)
    bench.reach(want)
    for name in want.devices:
        bench.set_down(name)
    steps: Sequence[p.SetRoute] = [p.SetRoute(destination, route) for destination, route in want.routes.items()]
    with pytest.raises(ApplyError, match="not up") as caught:
        bench.kernel.apply(p.Plan(entry_steps=tuple(steps)))
    assert len(caught.value.failures) == len(steps)


def test_a_device_step_that_fails_stops_the_plan(bench: Bench) -> None:
    want = bench.shape.peers(2)
    orphan = replace(want, devices={name: replace(each, underlay="nowhere0") for name, each in want.devices.items()})
    with pytest.raises(ApplyError, match=r"ip link add flannel.*no interface nowhere0"):
        bench.kernel.apply(p.plan(orphan, bench.observe()))
    assert bench.observe() == Actual(sysctls=SYSCTLS)


def test_a_sysctl_that_fails_stops_nothing(bench: Bench) -> None:
    want = bench.shape.peers(2)
    plan = p.plan(want, bench.observe())
    nowhere = p.SetSysctl("net/ipv4/conf/nowhere0/rp_filter", "0")
    with pytest.raises(ApplyError) as caught:
        bench.kernel.apply(replace(plan, device_steps=(nowhere, *plan.device_steps)))
    assert [step for step, _ in caught.value.failures] == [str(nowhere)]
    assert str(p.plan(want, bench.observe())) == ""


def test_a_device_step_that_the_kernel_refuses_says_why(dual: Bench) -> None:
    device = dual.shape.device(4)
    group = p.CreateDevice(replace(device, mac="01:00:00:00:00:01"))
    with pytest.raises(ApplyError, match=r"ip link add flannel.7 .*address"):
        dual.kernel.apply(p.Plan(device_steps=(group,)))
    dual.reach(dual.shape.peers())
    again = p.CreateDevice(device)
    with pytest.raises(ApplyError, match=r"ip link add flannel.7 .*file exists"):
        dual.kernel.apply(p.Plan(device_steps=(again,)))


def test_removing_what_is_gone_is_no_error(bench: Bench) -> None:
    bench.reach(bench.shape.peers(2))
    plan = p.plan(bench.shape.peers(), bench.observe())
    assert plan
    bench.kernel.apply(plan)
    bench.kernel.apply(plan)
