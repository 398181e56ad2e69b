"""pyroute2 under netd's hands: what it must leave behind is nothing, however an operation ends."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import threading
import warnings
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface

import pytest

from netd.links import Link, open_links
from netd.model import Device
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
    with open_links() as on:
        return on.find(name)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def refused() -> None:
    with pytest.raises(NetlinkError, match="file exists"), open_links() as on:
        on.add_vxlan(DEVICE)


def interrupted() -> None:
    with pytest.raises(ZeroDivisionError), open_links() as on:
        assert 1 / (len(on.all()) - len(on.all()))


def too_late() -> None:
    with pytest.raises(NetlinkError, match="wait for netlink answer: deadline passed"), open_links(0) as on:
        on.all()


def too_late_for_a_request() -> None:
    with pytest.raises(NetlinkError, match="wait for netlink answer: deadline passed"), open_links(0) as on:
        on.find("eth0")


def nothing_asked() -> None:
    with open_links():
        pass


def no_such_interface() -> None:
    with pytest.raises(OSError, match="no interface nowhere0"), open_links() as on:
        on.set_up("nowhere0")


def all_is_well() -> None:
    with open_links() as on:
        assert {link.name for link in on.all()} >= {"lo", "eth0", "flannel.7"}
        assert on.addresses()
        assert on.find("nowhere0") is None


ENDS = (refused, interrupted, too_late, too_late_for_a_request, nothing_asked, no_such_interface, all_is_well)


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
    seen: list[int] = []

    def look() -> None:
        with inside(host), open_links() as on:
            seen.append(len(on.all()))

    for _ in range(3):
        threads = [threading.Thread(target=look) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert seen == [seen[0]] * 12
    assert seen[0] >= 2


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
    assert link.vxlan(frozenset()) == replace(DEVICE, mtu=1400, mac="02:00:00:00:00:02", up=True)
    with open_links() as on:
        on.delete("flannel.7")
    assert find("flannel.7") is None


def test_addresses_are_the_host_s_own_and_local_ones_are_told_apart(host: Netns) -> None:
    host.run("ip address add 10.9.0.1 peer 10.9.0.2/32 dev eth0")
    host.run("ip address add 10.9.1.1/24 scope host dev eth0")
    host.run("ip address add fd00::1/64 dev eth0")
    with open_links() as on:
        on.add_address("eth0", IPv4Interface("10.9.2.1/32"))
        index = next(link.index for link in on.all() if link.name == "eth0")
        found = {(str(each.address), each.usable) for each in on.addresses() if each.index == index}
        assert found == {
            ("192.168.64.11/24", True),
            ("10.9.0.1/32", True),
            ("10.9.1.1/24", False),
            ("10.9.2.1/32", True),
        }
        on.delete_address("eth0", IPv4Interface("10.9.2.1/32"))
        assert IPv4Interface("10.9.2.1/32") not in {each.address for each in on.addresses()}
    assert "10.9.2.1" not in host.run("ip address show dev eth0")
