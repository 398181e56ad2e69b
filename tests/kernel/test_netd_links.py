"""Links and addresses: made by pyroute2, which must leave nothing behind however it ends, and read by our own."""

from __future__ import annotations

import asyncio
import errno
import gc
import json
import os
import threading
import warnings
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface

import pytest

from netd import dump
from netd.kernel import LinuxKernel
from netd.links import open_links
from netd.model import Device, Interface
from netd.rtlink import Link, LinkAddress
from podlane.runtime.netlink import NetlinkError
from tests.kernel.conftest import Netns, NetnsMaker, inside

pytestmark = pytest.mark.kernel

DEVICE = Device(
    name="flannel.7",
    vni=7,
    port=8472,
    local=IPv4Address("192.168.64.11"),
    underlay="eth0",
    mtu=1450,
    mac="02:00:00:00:00:01",
)


@pytest.fixture
def host(netns: NetnsMaker) -> Iterator[Netns]:
    one = netns.host("a")
    with inside(one):
        yield one


def find(name: str) -> Link | None:
    with dump.open_socket() as nl:
        return dump.find_link(nl, name)


def addresses(name: str) -> list[LinkAddress]:
    link = find(name)
    assert link is not None
    with dump.open_socket() as nl:
        return dump.addresses(nl, link.index)


def interface(name: str) -> Interface:
    found = LinuxKernel().interface(name)
    assert found is not None
    listed = {each.name: each for each in LinuxKernel().interfaces()}
    assert replace(listed[name], default_metric=None, default_metric6=None) == found
    return listed[name]


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def refused() -> None:
    with pytest.raises(NetlinkError, match="file exists"), open_links() as on:
        on.add_vxlan(DEVICE)


def interrupted() -> None:
    with pytest.raises(ZeroDivisionError), open_links() as on:
        assert 1 / (on is None)


def too_late() -> None:
    with pytest.raises(NetlinkError, match="wait for netlink answer: deadline passed"), open_links(0) as on:
        on.set_up("eth0")


def too_late_for_an_address() -> None:
    with pytest.raises(NetlinkError, match="wait for netlink answer: deadline passed"), open_links(0) as on:
        on.add_address("eth0", IPv4Interface("10.9.2.1/32"))


def nothing_asked() -> None:
    with open_links():
        pass


def no_such_interface() -> None:
    with pytest.raises(OSError, match="no interface nowhere0"), open_links() as on:
        on.set_up("nowhere0")


def all_is_well() -> None:
    with open_links() as on:
        on.set_up("flannel.7")
        on.set_mtu("flannel.7", 1400)
        on.add_address("flannel.7", IPv4Interface("10.9.2.1/32"))
        on.delete_address("flannel.7", IPv4Interface("10.9.2.1/32"))


ENDS = (refused, interrupted, too_late, too_late_for_an_address, nothing_asked, no_such_interface, all_is_well)


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)
def test_no_socket_loop_or_thread_is_left_behind(host: Netns, end: object) -> None:
    assert callable(end)
    with open_links() as on:
        on.add_vxlan(DEVICE)
    gc.collect()
    files, threads = open_files(), threading.active_count()
    gc.disable()  # what is closed only because nobody refers to it any more is not closed
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(50):
                end()
        assert (open_files(), threading.active_count()) == (files, threads)
    finally:
        gc.enable()
    loops = [each for each in gc.get_objects() if isinstance(each, asyncio.BaseEventLoop)]
    assert [loop for loop in loops if not loop.is_closed()] == []


def test_any_thread_may_use_it_even_one_with_a_loop_of_its_own_elsewhere(host: Netns) -> None:
    done: list[str] = []

    def make(name: str, vni: int) -> None:
        with inside(host), open_links() as on:
            on.add_vxlan(replace(DEVICE, name=name, vni=vni))
            on.set_up(name)
            done.append(name)

    for turn in range(3):
        threads = [threading.Thread(target=make, args=(f"v{turn}{n}", 10 * turn + n + 1)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    with dump.open_socket() as nl:
        assert {link.name for link in dump.links(nl) if link.kind == "vxlan" and link.up} == set(done)
    assert len(done) == 12


def test_it_sees_the_namespace_of_its_thread(netns: NetnsMaker) -> None:
    a, b = netns.host("a"), netns.host("b")
    with inside(a):
        with open_links() as on:
            on.add_vxlan(DEVICE)
        assert find("flannel.7") is not None
    with inside(b):
        assert find("flannel.7") is None


def test_the_kernel_s_refusals_keep_their_number_and_words(host: Netns) -> None:
    with pytest.raises(NetlinkError) as caught, open_links() as on:
        on.add_vxlan(replace(DEVICE, mac="01:00:00:00:00:01"))
    assert caught.value.errno == errno.EADDRNOTAVAIL
    assert str(caught.value).startswith("cannot assign requested address")
    address = IPv4Interface("192.168.64.11/24")
    with pytest.raises(NetlinkError) as caught, open_links() as on:
        on.add_address("eth0", address)
    assert caught.value.errno == errno.EEXIST


def test_only_what_was_given_is_set(host: Netns) -> None:
    with open_links() as on:
        on.add_vxlan(DEVICE)
        on.set_mtu("flannel.7", 1400)
        on.set_up("flannel.7")
        on.set_mac("flannel.7", "02:00:00:00:00:02")
    link = find("flannel.7")
    assert link is not None
    assert (link.mtu, link.mac, link.up) == (1400, "02:00:00:00:00:02", True)
    assert link.device(frozenset()) == replace(DEVICE, mtu=1400, mac="02:00:00:00:00:02", up=True)
    with open_links() as on:
        on.delete("flannel.7")
    assert find("flannel.7") is None


@pytest.mark.parametrize(
    "device",
    [
        DEVICE,
        replace(DEVICE, local=IPv6Address("fd64::11"), mtu=1430, learning=True),
        replace(DEVICE, local=None, underlay="", port=4789, gbp=True, vni=(1 << 24) - 1),
    ],
    ids=["v4", "v6", "unbound"],
)
def test_a_device_reads_back_as_it_was_made(host: Netns, device: Device) -> None:
    host.run("ip address add fd64::11/64 dev eth0 nodad")
    with open_links() as on:
        on.add_vxlan(device)
    link = find("flannel.7")
    assert link is not None
    assert link.device(frozenset()) == replace(device, up=False)


def test_our_reading_agrees_with_iproute2_on_every_link(host: Netns) -> None:
    for command in (
        "ip link add br0 type bridge",
        "ip link add pod0 type veth peer name pod1",
        "ip link set pod0 master br0 up",
        "ip link add flannel.7 type vxlan id 7 dstport 8472 dev eth0 local 192.168.64.11 nolearning",
    ):
        host.run(command)
    listed = json.loads(host.run("ip -details -json link show"))
    theirs = {
        each["ifname"]: (each["ifindex"], each["mtu"], each["address"], each.get("linkinfo", {}).get("info_kind", ""))
        for each in listed
    }
    with dump.open_socket() as nl:
        ours = {link.name: (link.index, link.mtu, link.mac, link.kind) for link in dump.links(nl)}
    assert ours == theirs
    assert ours["lo"][3] == ""


def test_addresses_are_the_host_s_own_and_local_ones_are_told_apart(host: Netns) -> None:
    host.run("ip address add 10.9.0.1 peer 10.9.0.2/32 dev eth0")
    host.run("ip address add 10.9.1.1/24 scope host dev eth0")
    host.run("ip address add fd00::1/64 dev eth0 nodad")
    with open_links() as on:
        on.add_address("eth0", IPv4Interface("10.9.2.1/32"))
        on.add_address("eth0", IPv6Interface("fd01::1/128"))
    found = {(str(each.address), each.usable) for each in addresses("eth0") if not each.link_local}
    assert found == {
        ("192.168.64.11/24", True),
        ("10.9.0.1/32", True),
        ("10.9.1.1/24", False),
        ("10.9.2.1/32", True),
        ("fd00::1/64", True),
        ("fd01::1/128", True),
    }
    assert any(each.link_local and not each.usable for each in addresses("eth0"))
    with open_links() as on:
        on.delete_address("eth0", IPv4Interface("10.9.2.1/32"))
        on.delete_address("eth0", IPv6Interface("fd01::1/128"))
    assert "10.9.2.1" not in host.run("ip address show dev eth0")
    assert "fd01::1" not in host.run("ip address show dev eth0")


def test_an_ipv6_address_of_ours_is_usable_at_once_and_brings_no_route(host: Netns) -> None:
    with open_links() as on:
        on.add_vxlan(DEVICE)
        on.set_up("flannel.7")
        on.add_address("flannel.7", IPv6Interface("fd01::/128"))
    assert interface("flannel.7").addresses == (IPv6Interface("fd01::/128"),)
    assert "fd01::" not in host.run("ip -6 route show table main")
    assert "fd01::" in host.run("ip -6 route show table local")


def test_addresses_that_will_not_last_are_the_last_choice(host: Netns) -> None:
    host.run("ip address add fd01::1/64 dev eth0 nodad preferred_lft 0")
    assert interface("eth0").addresses == (IPv4Interface("192.168.64.11/24"), IPv6Interface("fd01::1/64"))
    host.run("ip address add fd02::1/64 dev eth0 nodad")
    host.run("ip address add 192.168.64.99/24 dev eth0")
    host.run("ip address add 10.9.1.1/24 dev eth0")
    assert interface("eth0").addresses == (
        IPv4Interface("192.168.64.11/24"),
        IPv4Interface("10.9.1.1/24"),
        IPv4Interface("192.168.64.99/24"),
        IPv6Interface("fd02::1/64"),
    )


def test_default_routes_are_the_interface_s_best_also_with_several_ways(netns: NetnsMaker) -> None:
    one = netns.host("a")
    one.run("ip link add eth1 type veth peer name other1")
    one.run("ip link set eth1 up")
    one.run("ip address add 10.9.1.1/24 dev eth1")
    one.run("ip address add fd64::11/64 dev eth0 nodad")
    with inside(one):
        assert (interface("eth0").default_metric, interface("eth1").default_metric) == (0, None)
        one.run("ip route add default metric 50 nexthop via 10.9.1.7 nexthop via 192.168.64.1")
        one.run("ip route add default via 10.9.1.8 metric 70 table 100")
        one.run("ip -6 route add default via fd64::1 metric 30")
        assert (interface("eth0").default_metric, interface("eth1").default_metric) == (0, 50)
        assert (interface("eth0").default_metric6, interface("eth1").default_metric6) == (30, None)


def test_a_way_over_several_hops_is_the_first_s(host: Netns) -> None:
    host.run("ip address add fd64::11/64 dev eth0 nodad")
    host.run("ip route add 203.0.113.0/24 nexthop via 192.168.64.1 nexthop via 192.168.64.2")
    host.run("ip route add prohibit 198.51.100.0/24")
    host.run("ip route add prohibit 2001:db8::/32")
    kernel = LinuxKernel()
    assert kernel.route_to(IPv4Address("203.0.113.7")) == "eth0"
    assert kernel.route_to(IPv4Address("127.0.0.1")) == "lo"
    assert kernel.route_to(IPv6Address("::1")) == "lo"
    assert kernel.route_to(IPv4Address("198.51.100.1")) == ""
    assert kernel.route_to(IPv6Address("2001:db8::1")) == ""
    assert kernel.route_to(IPv6Address("2001::1")) == ""
