"""Bulk netlink against the kernel: each failure has its message's index, and big batches come back whole."""

from __future__ import annotations

import errno
import socket
import struct
from typing import Any

import pytest

from podlane.runtime import netlink as nl
from podlane.runtime.netlink import Message, NetlinkError, NetlinkSocket
from tests.kernel.conftest import inside

pytestmark = pytest.mark.kernel

RTM_NEWROUTE, RTM_GETROUTE, RTM_NEWLINK, RTM_GETLINK = 24, 26, 16, 18
RTMSG = struct.Struct("=BBBBBBBBI")
NEW = nl.NLM_F_CREATE | nl.NLM_F_EXCL


def route(number: int, device: int) -> Message:
    """10.x.y.0/24 out of a device."""
    head = RTMSG.pack(socket.AF_INET, 24, 0, 0, 254, 253, 253, 1, 0)
    destination = socket.inet_aton(f"10.{number >> 8}.{number & 255}.0")
    return Message(RTM_NEWROUTE, NEW, head + nl.attr(1, destination) + nl.u32(4, device))


@pytest.fixture
def rtnl(netns: Any) -> Any:
    ns = netns.add("nl")
    with inside(ns), NetlinkSocket(nl.NETLINK_ROUTE, timeout=5) as made:
        yield made


def test_thousands_of_messages_and_each_failure_named(rtnl):
    wrong = {7: 99, 600: 99, 1999: 99}  # no such device
    messages = [route(number, wrong.get(number, 1)) for number in range(2000)]
    failures = rtnl.batch(messages)
    assert {failure.index: failure.errno for failure in failures} == dict.fromkeys(wrong, errno.ENODEV)
    assert [failure.index for failure in rtnl.batch(messages)] == list(range(2000))
    request = Message(RTM_GETROUTE, 0, RTMSG.pack(socket.AF_INET, *[0] * 8))
    listed = [nl.attribute_map(body[12:]) for _, body in rtnl.dump(request)]
    assert sum(1 for each in listed if nl.get_u32(each[15]) == 254) == 1997


def test_the_kernels_own_words_are_kept(rtnl):
    head = RTMSG.pack(socket.AF_INET, 24, 0, 0, 254, 253, 253, 1, 0)
    odd = Message(RTM_NEWROUTE, NEW, head + nl.attr(1, socket.inet_aton("10.1.1.1")) + nl.u32(4, 1))
    (failure,) = rtnl.batch([odd])
    assert failure.errno == errno.EINVAL
    assert "Invalid prefix" in str(failure)


def test_one_request(rtnl):
    rtnl.request(route(1, 1))
    with pytest.raises(NetlinkError, match="file exists") as caught:
        rtnl.request(route(1, 1))
    assert caught.value.errno == errno.EEXIST


def test_an_empty_batch_sends_nothing(rtnl):
    assert rtnl.batch([]) == []


def test_ask_and_dump_refused(rtnl):
    ifinfo = struct.pack("=BxHiII", 0, 0, 1, 0, 0)
    body = rtnl.ask(Message(RTM_GETLINK, 0, ifinfo))
    assert nl.get_text(nl.attribute_map(body[16:])[3]) == "lo"
    with pytest.raises(NetlinkError) as caught:
        rtnl.ask(Message(RTM_GETLINK, 0, struct.pack("=BxHiII", 0, 0, 4242, 0, 0)))
    assert caught.value.errno == errno.ENODEV
    with pytest.raises(NetlinkError) as caught:
        list(rtnl.dump(Message(RTM_GETROUTE, 0, RTMSG.pack(socket.AF_INET, 24, *[0] * 7))))
    assert caught.value.errno == errno.EINVAL


def test_the_deadline_passes_when_nobody_answers(rtnl):
    rtnl.timeout = 0.05
    silent = Message(nl.NLMSG_NOOP, 0, b"")  # which the kernel neither carries out nor answers with data
    with pytest.raises(NetlinkError, match="deadline") as caught:
        rtnl.ask(silent)
    assert caught.value.errno == 0
    rtnl.timeout = 5
    rtnl.request(route(2, 1))


def test_notices(netns: Any):
    ns = netns.add("nl")
    with inside(ns), NetlinkSocket(nl.NETLINK_ROUTE, groups=[1]) as made:
        assert made.receive(0.01) == []
        ns.run("ip link add b0 type bridge")
        kinds = {kind for kind, _ in made.receive(2)}
    assert kinds == {RTM_NEWLINK}
