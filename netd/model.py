"""What netd knows of a kernel: the values that are observed, wanted and planned.

Owns: frozen descriptions of VXLAN devices and of the three kinds of entry a
peer needs, for both address families, and the marks by which netd tells its
own entries from others'. Addresses are ipaddress objects, MAC addresses lower-
case text, so that equal things compare equal wherever they came from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Interface, IPv6Interface

from podlane.api.subnets import Address, Network

PROTOCOL = 117
"""The number in a route's and a neighbour's protocol field that marks it as netd's.

None of iproute2's rt_protos, and outside the kernel's own (0-4).
"""

ROUTE_PROTOCOLS = range(PROTOCOL, PROTOCOL + 16)
"""The numbers that mark a route as netd's.

Several, because Linux (seen on 6.18) keeps what routes have in common in a hash
that takes in the protocol and not the gateway: with one number 5,000 routes
are one chain, and adding the sixth thousand takes three times as long.
"""

PROTO_KERNEL = 2
"""A route the kernel made itself for an address (RTPROT_KERNEL)."""

BLACKHOLE_METRIC = 1 << 20
"""Metric of a blackhole route: every real route for the same subnet comes before it."""

InterfaceAddress = IPv4Interface | IPv6Interface


@dataclass(frozen=True, slots=True)
class Interface:
    """A link as far as choosing the underlay needs it.

    `addresses` are those other hosts can use: no link-local ones. The default
    metrics are those of its default routes, None without one.
    """

    name: str
    index: int
    mtu: int
    up: bool
    loopback: bool
    kind: str
    addresses: tuple[InterfaceAddress, ...]
    default_metric: int | None = None
    default_metric6: int | None = None


@dataclass(frozen=True, slots=True)
class LinkState:
    """A link of any kind; `kind` is empty for a physical one, `mtu` in bytes."""

    kind: str
    mtu: int
    up: bool
    mac: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Device:
    """A VXLAN device. `local` and `underlay` are the outer source address and interface.

    `underlay` is an interface's name, empty when the device is bound to none.
    """

    name: str
    vni: int
    port: int
    local: Address | None
    underlay: str
    mtu: int
    mac: str
    learning: bool = False
    gbp: bool = False
    up: bool = True
    addresses: frozenset[InterfaceAddress] = frozenset()

    def same_tunnel(self, other: Device) -> bool:
        """Whether one can become the other without making the device anew."""
        return (
            self.vni == other.vni
            and self.port == other.port
            and self.local == other.local
            and self.underlay == other.underlay
            and self.learning == other.learning
            and self.gbp == other.gbp
        )


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A permanent neighbour on a VXLAN device: the peer's VTEP address resolved once and for all."""

    mac: str
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True)
class FdbEntry:
    """Where packets for a VTEP's MAC address go. `ours`: it carries the mark NTF_EXT_LEARNED.

    The kernel keeps the mark of whoever made the entry first, so an entry taken
    over from flanneld stays without; `plan` then knows it by its neighbour.
    """

    remote: Address
    ours: bool = True


@dataclass(frozen=True, slots=True)
class Route:
    """A unicast route of the main table. IPv4's metric is 0; IPv6's is 1024, which the kernel makes of 0."""

    gateway: Address | None
    device: str
    onlink: bool
    protocol: int = PROTOCOL


def route_protocol(destination: Network) -> int:
    """The one of ROUTE_PROTOCOLS for this destination: neighbouring subnets have different ones."""
    number = int(destination.network_address) >> (destination.max_prefixlen - destination.prefixlen)
    return PROTOCOL + number % len(ROUTE_PROTOCOLS)


NeighbourKey = tuple[str, Address]
"""Device and the VTEP's address."""

FdbKey = tuple[str, str]
"""Device and the VTEP's MAC address."""


@dataclass(frozen=True, slots=True)
class Actual:
    """What the kernel has.

    devices    the VXLAN devices there are, of those asked for, by name
    foreign    names asked for that are taken by something that is not VXLAN, with its kind
    neighbours the devices' permanent neighbours; fdb their permanent unicast entries
    routes     unicast routes: those of netd's protocol, and all whose destination is in the pod networks
    blackholes destinations of netd's blackhole routes
    sysctls    the values of those asked for, by path below /proc/sys; without those that do not exist
    """

    devices: Mapping[str, Device] = field(default_factory=dict)
    foreign: Mapping[str, str] = field(default_factory=dict)
    neighbours: Mapping[NeighbourKey, Neighbour] = field(default_factory=dict)
    fdb: Mapping[FdbKey, FdbEntry] = field(default_factory=dict)
    routes: Mapping[Network, Route] = field(default_factory=dict)
    blackholes: frozenset[Network] = frozenset()
    sysctls: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Desired:
    """What the kernel should have.

    `obsolete` names devices that netd made under an earlier config and that
    must go. `sysctls` are set only where they exist. `problems` says which
    leases were left out, and why, by lease key.
    """

    networks: tuple[Network, ...]
    devices: Mapping[str, Device] = field(default_factory=dict)
    neighbours: Mapping[NeighbourKey, Neighbour] = field(default_factory=dict)
    fdb: Mapping[FdbKey, FdbEntry] = field(default_factory=dict)
    routes: Mapping[Network, Route] = field(default_factory=dict)
    blackholes: frozenset[Network] = frozenset()
    sysctls: Mapping[str, str] = field(default_factory=dict)
    obsolete: frozenset[str] = frozenset()
    problems: Mapping[str, str] = field(default_factory=dict)

    @property
    def watched(self) -> frozenset[str]:
        """The devices an observation must cover."""
        return frozenset(self.devices) | self.obsolete
