"""One suite for the fake kernel and the real one (in a namespace of its own)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest

from netd import plan as p
from netd.fake import FakeKernel
from netd.kernel import Kernel, LinuxKernel
from netd.model import Actual, Desired, Device, FdbEntry, Interface, LinkState, Neighbour, Route
from podlane.errors import ApplyError
from tests.kernel.conftest import NetnsMaker, inside

pytestmark = [pytest.mark.contract, pytest.mark.kernel]

NETWORK = IPv4Network("10.5.0.0/16")
DEVICE = Device(
    name="flannel.7",
    vni=7,
    port=8472,
    local=IPv4Address("192.168.64.11"),
    underlay="eth0",
    mtu=1450,
    mac="02:00:00:00:00:01",
    addresses=frozenset({IPv4Interface("10.5.1.0/32")}),
)


@dataclass
class Bench:
    kernel: Kernel
    set_down: Callable[[], None]
    delete_device: Callable[[], None]

    def observe(self) -> Actual:
        return self.kernel.observe("flannel.7", NETWORK)

    def reach(self, desired: Desired) -> None:
        self.kernel.apply(p.plan(desired, self.observe()))
        assert str(p.plan(desired, self.observe())) == ""


@pytest.fixture(params=["fake", "linux"])
def bench(request: pytest.FixtureRequest, netns: NetnsMaker) -> Iterator[Bench]:
    if request.param == "fake":
        eth0 = Interface("eth0", 2, 1500, True, False, "veth", (IPv4Interface("192.168.64.11/24"),), 0)
        fake = FakeKernel(eth0)
        yield Bench(fake, fake.set_down, fake.delete_device)
        return
    host = netns.host("a")
    host.run("sysctl -qw net.ipv4.ip_forward=0")
    with inside(host):
        yield Bench(
            LinuxKernel(),
            lambda: host.run("ip link set flannel.7 down") and None,
            lambda: host.run("ip link delete flannel.7") and None,
        )


def peers(*numbers: int) -> Desired:
    return Desired(
        NETWORK,
        DEVICE,
        neighbours={IPv4Address(f"10.5.{n}.0"): Neighbour(f"02:00:00:00:00:{n:02x}") for n in numbers},
        fdb={f"02:00:00:00:00:{n:02x}": FdbEntry(IPv4Address(f"192.168.64.{n}")) for n in numbers},
        routes={IPv4Network(f"10.5.{n}.0/24"): Route(IPv4Address(f"10.5.{n}.0"), "flannel.7", True) for n in numbers},
    )


def test_the_underlay_is_listed(bench: Bench) -> None:
    eth0 = next(each for each in bench.kernel.interfaces() if each.name == "eth0")
    assert (eth0.mtu, eth0.up, eth0.loopback, eth0.default_metric) == (1500, True, False, 0)
    assert eth0.addresses == (IPv4Interface("192.168.64.11/24"),)


def test_nothing_there(bench: Bench) -> None:
    assert bench.observe() == Actual()
    assert bench.kernel.link("flannel.7") is None


def test_a_single_link(bench: Bench) -> None:
    assert bench.kernel.link("eth0") == LinkState("veth", 1500, up=True)
    bench.reach(peers())
    assert bench.kernel.link("flannel.7") == LinkState("vxlan", 1450, up=True)
    bench.set_down()
    assert bench.kernel.link("flannel.7") == LinkState("vxlan", 1450, up=False)


def test_from_nothing_to_everything_in_one_plan_and_reads_back_what_was_written(bench: Bench) -> None:
    want = peers(2, 3, 4)
    bench.reach(want)
    actual = bench.observe()
    assert actual.device == DEVICE
    assert (actual.neighbours, actual.fdb, actual.routes) == (want.neighbours, want.fdb, want.routes)
    assert actual.forwarding


def test_peers_come_go_and_change(bench: Bench) -> None:
    bench.reach(peers(2, 3))
    bench.reach(peers(3, 4))
    moved = replace(peers(3), fdb={"02:00:00:00:00:03": FdbEntry(IPv4Address("192.168.64.99"))})
    bench.reach(moved)
    new_mac = replace(
        peers(3),
        neighbours={IPv4Address("10.5.3.0"): Neighbour("02:00:00:00:00:33")},
        fdb={"02:00:00:00:00:33": FdbEntry(IPv4Address("192.168.64.3"))},
    )
    bench.reach(new_mac)
    assert bench.observe().fdb == new_mac.fdb
    bench.reach(peers())
    actual = bench.observe()
    assert (actual.neighbours, actual.fdb, actual.routes) == ({}, {}, {})


def test_a_flap_takes_routes_and_neighbours_and_keeps_the_fdb(bench: Bench) -> None:
    want = peers(2, 3)
    bench.reach(want)
    bench.set_down()
    actual = bench.observe()
    assert (dict(actual.neighbours), dict(actual.routes), actual.fdb) == ({}, {}, want.fdb)
    bench.reach(want)


def test_a_deleted_device_takes_all(bench: Bench) -> None:
    bench.reach(peers(2))
    bench.delete_device()
    assert bench.observe() == Actual(forwarding=True)
    bench.reach(peers(2))


def test_a_new_mac_address_takes_the_neighbours(bench: Bench) -> None:
    bench.reach(peers(2))
    other = replace(peers(2), device=replace(DEVICE, mac="02:00:00:00:00:0a"))
    changes = str(p.plan(other, bench.observe()))
    assert changes == (
        "ip link set flannel.7 address 02:00:00:00:00:0a\n"
        "ip neigh replace 10.5.2.0 lladdr 02:00:00:00:00:02 dev flannel.7 nud permanent protocol 117\n"
    )
    bench.reach(other)


@pytest.mark.parametrize(
    "change",
    [
        {"mtu": 1400},
        {"port": 4789},
        {"learning": True},
        {"gbp": True},
        {"underlay": ""},
        {"local": IPv4Address("192.168.64.12")},
        {"addresses": frozenset({IPv4Interface("10.5.9.0/32")})},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_device_can_be_changed(bench: Bench, change: dict[str, object]) -> None:
    bench.reach(peers(2))
    bench.reach(replace(peers(2), device=replace(DEVICE, **change)))  # type: ignore[arg-type]


def test_an_entry_that_fails_does_not_stop_the_others(bench: Bench) -> None:
    bench.reach(peers())
    bad = p.SetRoute(IPv4Network("10.5.2.0/24"), Route(IPv4Address("10.5.2.0"), "nowhere0", True))
    good = p.SetRoute(IPv4Network("10.5.3.0/24"), Route(IPv4Address("10.5.3.0"), "flannel.7", True))
    with pytest.raises(ApplyError) as caught:
        bench.kernel.apply(p.Plan(entry_steps=(bad, good)))
    assert [step for step, _ in caught.value.failures] == [str(bad)]
    assert bench.observe().routes == {good.destination: good.route}


def test_a_device_step_that_fails_stops_the_plan(bench: Bench) -> None:
    orphan = replace(peers(2), device=replace(DEVICE, underlay="nowhere0"))
    with pytest.raises(ApplyError, match=r"ip link add flannel.7 .*no interface nowhere0"):
        bench.kernel.apply(p.plan(orphan, bench.observe()))
    assert bench.observe() == Actual(forwarding=True)


def test_a_device_step_that_the_kernel_refuses_says_why(bench: Bench) -> None:
    group = p.CreateDevice(replace(DEVICE, mac="01:00:00:00:00:01"))
    with pytest.raises(ApplyError, match=r"ip link add flannel.7 .*address"):
        bench.kernel.apply(p.Plan(device_steps=(group,)))
    bench.reach(peers())
    again = p.CreateDevice(DEVICE)
    with pytest.raises(ApplyError, match=r"ip link add flannel.7 .*file exists"):
        bench.kernel.apply(p.Plan(device_steps=(again,)))


def test_removing_what_is_gone_is_no_error(bench: Bench) -> None:
    bench.reach(peers(2))
    plan = p.plan(peers(), bench.observe())
    assert plan
    bench.kernel.apply(plan)
    bench.kernel.apply(plan)
