"""Kernels held to one contract, the fake one and the real one (in a namespace of its own), and what they should hold.

Host N has subnet N, MAC address N and the underlay address N, in both families; this host is 1, at address 11.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network

from netd import plan as p
from netd.desired import Family
from netd.fake import FakeKernel
from netd.kernel import Kernel, LinuxKernel
from netd.model import Actual, Desired, Device, FdbEntry, Interface, Neighbour, Route
from podlane.api.subnets import Address, Network
from tests.kernel.conftest import Netns, NetnsMaker, inside

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


def benches(kind: str, shape: Shape, netns: NetnsMaker) -> Iterator[Bench]:
    if kind == "fake":
        yield fake_bench(shape)
        return
    host = dual_stack_host(netns)
    with inside(host):
        yield linux_bench(shape, host)
