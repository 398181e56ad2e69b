"""A host whose kernel is listened to, by netd's adapter in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from pathlib import Path

from netd import plan as p
from netd.kernel import LinuxKernel
from netd.model import Actual, Desired, FdbEntry, Neighbour, Route
from podlane.api.subnets import Network
from tests.kernel.conftest import Netns, eventually, inside
from tests.kernel.netd_kernels import SHAPES, SYSCTLS, Shape, subnet

DUAL = SHAPES[2]
DEVICES = ("flannel.7", "flannel-v6.7")
FD = "fd00:10:5"


@dataclass
class Ear:
    """A host that is listened to, and how often something was heard."""

    host: Netns
    kernel: LinuxKernel
    count: int = 0
    watched: tuple[str, ...] = (*DEVICES, "eth0")
    networks: tuple[Network, ...] = DUAL.networks
    free: threading.Event = field(default_factory=threading.Event)

    def on_change(self) -> None:
        self.count += 1
        self.free.wait()

    def observe(self, *, verify: bool = True) -> Actual:
        return self.kernel.observe(DEVICES, self.networks, SYSCTLS, verify=verify)

    def fresh(self) -> Actual:
        """What a kernel adapter that remembers nothing sees."""
        return LinuxKernel().observe(DEVICES, self.networks, SYSCTLS)

    def reach(self, desired: Desired) -> None:
        self.kernel.apply(p.plan(desired, self.observe()))

    def settle(self) -> int:
        """Look until nothing is heard any more and memory can be trusted; the count by then."""

        def quiet() -> bool:
            self.observe()
            before = self.count
            threading.Event().wait(0.2)
            return self.count == before and self.kernel.remembers

        eventually(quiet)
        return self.count

    def catch_up(self) -> None:
        """Wait until all notifications that are on their way have been taken notice of."""

        def drained() -> bool:
            lines = Path("/proc/thread-self/net/netlink").read_text().splitlines()[1:]
            waiting = [line.split() for line in lines]
            return not any(groups != "00000000" and int(memory) for _, _, _, groups, memory, *_ in waiting)

        eventually(drained)
        threading.Event().wait(0.1)


def listening(host: Netns, **kernel: int) -> Iterator[Ear]:
    ear = Ear(host, LinuxKernel(**kernel))
    ear.free.set()
    stop = threading.Event()

    def listen() -> None:
        with inside(host):
            ear.kernel.listen(lambda: ear.watched, ear.on_change, stop)

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        eventually(lambda: ear.count)
        with inside(host):
            yield ear
    finally:
        stop.set()
        ear.free.set()
        host.run("ip address add 127.0.0.9/8 dev lo")  # something to hear, and then to see that it should stop
        thread.join(10)
    assert not thread.is_alive()


def peers(*numbers: int, shape: Shape = DUAL) -> Desired:
    own = frozenset(subnet(family, 1) for family in shape.over)
    return replace(shape.peers(*numbers), blackholes=own)


def thousand(shape: Shape, base: Desired) -> Desired:
    """Another thousand peers of both families."""
    want = Desired(base.networks, base.devices, sysctls=base.sysctls, blackholes=base.blackholes)
    neighbours, fdb, routes = dict(base.neighbours), dict(base.fdb), dict(base.routes)
    for family in shape.over:
        name = shape.device(family).name
        for n in range(1000):
            address = f"02:00:00:01:{n >> 8:02x}:{n & 255:02x}"
            v4 = IPv4Network((0x0A050A00 + 32 * n, 27))
            net = v4 if family == 4 else type(shape.networks[-1])((int(IPv6Address(f"{FD}:8000::")) + (n << 64), 64))
            remote = IPv4Address(0xC0A84100 + n) if shape.over[family] == 4 else IPv6Address(f"fd64::{n + 4096:x}")
            neighbours[name, net.network_address] = Neighbour(address)
            fdb[name, address] = FdbEntry(remote)
            routes[net] = Route(net.network_address, name, onlink=True)
    return replace(want, neighbours=neighbours, fdb=fdb, routes=routes)
