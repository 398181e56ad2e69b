"""One suite for the fake kernel and the real one: what stands in a plan's way, and what the kernel refuses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest

from netd import plan as p
from netd.model import Actual, FdbEntry, Route
from podlane.errors import ApplyError
from tests.kernel.conftest import NetnsMaker
from tests.kernel.netd_kernels import NAMES, SHAPES, SYSCTLS, Bench, benches, remote, subnet

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
