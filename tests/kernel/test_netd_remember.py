"""What netd does itself is remembered, and whatever happens, memory is void or right."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netd import plan as p
from netd.kernel import LinuxKernel
from netd.model import FdbEntry, Neighbour, Route
from podlane.errors import ApplyError
from tests.kernel.conftest import NetnsMaker, eventually, inside
from tests.kernel.netd_ear import DEVICES, DUAL, Ear, listening, peers, thousand
from tests.kernel.netd_kernels import SYSCTLS, dual_stack_host, mac, subnet

pytestmark = pytest.mark.kernel


@pytest.fixture
def ear(netns: NetnsMaker) -> Iterator[Ear]:
    yield from listening(dual_stack_host(netns))


@pytest.fixture
def connected(ear: Ear) -> Ear:
    """With two peers of both families, and trust in what is remembered."""
    ear.reach(peers(2, 3))
    ear.settle()
    return ear


# ---- our own changes ----------------------------------------------------------------------------


def test_two_thousand_of_our_own_peers_wake_nobody_and_are_remembered(connected: Ear) -> None:
    before = connected.count
    few, many = peers(2, 3), thousand(DUAL, peers(2, 3))
    for want in (many, few, many):
        connected.kernel.apply(p.plan(want, connected.observe(verify=False)))
        seen = connected.observe(verify=False)
        assert connected.kernel.remembers
        assert (seen.neighbours, seen.fdb, seen.routes) == (want.neighbours, want.fdb, want.routes)
        assert seen == connected.fresh()
        connected.catch_up()  # what is heard late is taken for somebody else's
    assert connected.count == before
    assert connected.kernel.remembers


def test_memory_is_not_used_while_nobody_listens(netns: NetnsMaker) -> None:
    host = dual_stack_host(netns)
    with inside(host):
        kernel = LinuxKernel()
        kernel.apply(p.plan(peers(2), kernel.observe(DEVICES, DUAL.networks, SYSCTLS)))
        kernel.observe(DEVICES, DUAL.networks, SYSCTLS)
        assert not kernel.remembers
        host.run("ip route delete 10.5.2.0/24")
        assert subnet(4, 2) not in kernel.observe(DEVICES, DUAL.networks, SYSCTLS, verify=False).routes


def test_memory_ends_with_the_listening(netns: NetnsMaker) -> None:
    host = dual_stack_host(netns)
    for ear in listening(host):
        ear.reach(peers(2))
        ear.settle()
    assert not ear.kernel.remembers


def test_another_question_is_not_answered_from_memory(connected: Ear) -> None:
    one = connected.kernel.observe(["flannel.7"], connected.networks, SYSCTLS, verify=False)
    assert set(one.devices) == {"flannel.7"}
    none = connected.kernel.observe([], (), {}, verify=False)
    assert (none.devices, none.neighbours, none.sysctls) == ({}, {}, {})
    assert set(none.routes) == set(peers(2, 3).routes)  # they carry netd's mark


def test_sysctls_are_always_read(connected: Ear) -> None:
    connected.host.run("sysctl -qw net.ipv4.ip_forward=0")
    assert connected.observe(verify=False).sysctls["net/ipv4/ip_forward"] == "0"
    assert connected.kernel.remembers


def test_a_step_that_fails_leaves_nothing_remembered(connected: Ear) -> None:
    nowhere = p.SetRoute(IPv4Network("10.5.9.0/24"), Route(IPv4Address("198.51.100.1"), "eth0", onlink=False))
    good = p.SetRoute(IPv4Network("10.5.8.0/24"), Route(IPv4Address("10.5.8.0"), "flannel.7", onlink=True))
    with pytest.raises(ApplyError):
        connected.kernel.apply(p.Plan(entry_steps=(nowhere, good)))
    assert not connected.kernel.remembers
    seen = connected.observe(verify=False)
    assert good.destination in seen.routes
    assert nowhere.destination not in seen.routes


def test_a_removal_of_what_is_gone_is_no_reason_to_doubt(connected: Ear) -> None:
    removal = p.DeleteFdb("flannel.7", mac(9), FdbEntry(IPv4Address("192.168.64.9")))
    connected.kernel.apply(p.Plan(entry_steps=(removal, p.DeleteBlackhole(subnet(4, 9)))))
    assert connected.kernel.remembers
    assert connected.observe(verify=False) == connected.fresh()


# ---- any mixture ---------------------------------------------------------------------------------

number = st.integers(2, 5)
family = st.sampled_from([4, 6])


def _entry_steps() -> st.SearchStrategy[p.EntryStep]:
    def name(each: int) -> str:
        return DEVICES[each == 6]

    def vtep(each: int, n: int) -> object:
        return subnet(each, n).network_address  # type: ignore[arg-type]

    def remote(each: int, n: int) -> object:
        return IPv4Address(f"192.168.64.{n}") if each == 4 else IPv6Address(f"fd64::{n}")

    def overlay(each: int, n: int) -> Route:
        return Route(vtep(each, n), name(each), onlink=True)  # type: ignore[arg-type]

    def direct(each: int, n: int) -> Route:
        return Route(remote(each, n), "eth0", onlink=False, protocol=3)  # type: ignore[arg-type]

    way = st.sampled_from([overlay, direct])
    return st.one_of(
        st.builds(lambda e, n, m: p.SetFdb(name(e), mac(n), FdbEntry(remote(e, m))), family, number, number),
        st.builds(lambda e, n, m: p.DeleteFdb(name(e), mac(n), FdbEntry(remote(e, m))), family, number, number),
        st.builds(lambda e, n, m: p.SetNeighbour(name(e), vtep(e, n), Neighbour(mac(m))), family, number, number),
        st.builds(lambda e, n: p.DeleteNeighbour(name(e), vtep(e, n)), family, number),
        st.builds(lambda e, n, w: p.SetRoute(subnet(e, n), w(e, n)), family, number, way),
        st.builds(lambda e, n, w: p.DeleteRoute(subnet(e, n), w(e, n)), family, number, way),
        st.builds(lambda e, n: p.AddBlackhole(subnet(e, n)), family, number),
        st.builds(lambda e, n: p.DeleteBlackhole(subnet(e, n)), family, number),
    )


ours = st.tuples(st.just("ours"), st.lists(_entry_steps(), min_size=1, max_size=5))
theirs = st.tuples(st.just("theirs"), st.lists(_entry_steps(), min_size=1, max_size=3))
flaps = st.tuples(
    st.just("run"),
    st.sampled_from(["ip link set flannel.7 down", "ip link set flannel-v6.7 down", "ip link set flannel.7 mtu 1400"]),
)
looks = st.tuples(st.just("look"), st.booleans())
mixtures = st.lists(st.one_of(ours, ours, theirs, flaps, looks, looks), max_size=12)


def _apply(kernel: LinuxKernel, steps: list[p.EntryStep]) -> None:
    try:
        kernel.apply(p.Plan(entry_steps=tuple(steps)))
    except ApplyError:
        return  # some are refused, in some order of things


def _play(ear: Ear, mixture: list[tuple[str, object]]) -> None:
    for what, how in mixture:
        match what:
            case "ours":
                _apply(ear.kernel, how)  # type: ignore[arg-type]
            case "theirs":
                _apply(LinuxKernel(), how)  # type: ignore[arg-type]
            case "run":
                ear.host.run(how)  # type: ignore[arg-type]
            case "look":
                ear.observe(verify=bool(how))


def test_whatever_happens_memory_is_void_or_right(ear: Ear) -> None:
    trusted = []

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(mixtures)
    def play(mixture: list[tuple[str, object]]) -> None:
        ear.reach(peers(2, 3))
        ear.observe()
        _play(ear, mixture)

        def right() -> bool:
            return not ear.kernel.remembers or ear.observe(verify=False) == ear.fresh()

        eventually(right)
        trusted.append(ear.kernel.remembers)

    play()
    assert any(trusted)


def test_what_netd_does_is_remembered_as_it_is(ear: Ear) -> None:
    trusted = []
    ear.reach(peers(2, 3))
    ear.settle()

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(st.lists(_entry_steps(), min_size=1, max_size=8))
    def play(steps: list[p.EntryStep]) -> None:
        ear.observe(verify=False)
        _apply(ear.kernel, steps)
        trusted.append(ear.kernel.remembers)
        assert ear.observe(verify=False) == ear.fresh()

    play()
    assert any(trusted)
