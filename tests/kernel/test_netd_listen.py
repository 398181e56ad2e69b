"""What wakes netd: its own device and the underlay, and not the links of pods."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from netd.kernel import LinuxKernel
from tests.kernel.conftest import Netns, NetnsMaker, eventually, inside

pytestmark = pytest.mark.kernel


@pytest.fixture
def heard(netns: NetnsMaker) -> Iterator[tuple[Netns, Callable[[], int]]]:
    """A host that is listened to, and how often it was heard."""
    host = netns.host("a")
    calls: list[None] = []
    stop = threading.Event()

    def listen() -> None:
        with inside(host):
            LinuxKernel().listen("flannel.1", "eth0", lambda: calls.append(None), stop)

    thread = threading.Thread(target=listen)
    thread.start()
    eventually(lambda: calls)
    yield host, lambda: len(calls)
    stop.set()
    thread.join(10)


def test_links_of_pods_wake_nobody_and_ours_do(heard: tuple[Netns, Callable[[], int]]) -> None:
    host, count = heard
    vxlan = "ip link add flannel.1 type vxlan id 1 dstport 8472 dev eth0 nolearning"
    for command in (
        vxlan,
        "ip link set flannel.1 up",
        "ip address add 10.9.1.0/32 dev flannel.1",
        "ip route add 10.9.2.0/24 dev flannel.1",
        "bridge fdb append 02:00:00:00:00:09 dev flannel.1 dst 192.0.2.9",
        "ip link set eth0 mtu 1400",
        "ip link delete flannel.1",
        vxlan,  # with another index
        "ip link set flannel.1 up",
    ):
        before = count()
        host.run(command.split())
        eventually(lambda before=before: count() > before)
    eventually(lambda: not _changes(count))
    before = count()
    host.run(["ip", "link", "add", "br0", "type", "bridge"])
    host.run(["ip", "link", "add", "pod0", "type", "veth", "peer", "name", "pod1"])
    host.run(["ip", "link", "set", "pod0", "master", "br0", "up"])
    host.run(["ip", "address", "add", "10.9.3.1/24", "dev", "pod1"])
    host.run(["ip", "link", "delete", "pod0"])
    assert not _changes(count)
    assert count() == before


def _changes(count: Callable[[], int]) -> bool:
    """Whether anything is heard for 0.3 s."""
    before = count()
    threading.Event().wait(0.3)
    return count() != before
