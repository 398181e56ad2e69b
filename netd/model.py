"""What netd knows of a kernel: the values that are observed, wanted and planned.

Owns: frozen descriptions of the VXLAN device and the three kinds of entry a
peer needs, and the marks by which netd tells its own entries from others'.
Addresses are ipaddress objects, MAC addresses lower-case text, so that equal
things compare equal wherever they came from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

PROTOCOL = 117
"""The number in a route's and a neighbour's protocol field that marks it as netd's.

None of iproute2's rt_protos, and outside the kernel's own (0-4).
"""

PROTO_KERNEL = 2
"""A route the kernel made itself for an address (RTPROT_KERNEL)."""


@dataclass(frozen=True, slots=True)
class Interface:
    """A link as far as choosing the underlay needs it. `default_metric` is None without a default route."""

    name: str
    index: int
    mtu: int
    up: bool
    loopback: bool
    kind: str
    addresses: tuple[IPv4Interface, ...]
    default_metric: int | None = None


@dataclass(frozen=True, slots=True)
class LinkState:
    """A link of any kind; `kind` is empty for a physical one, `mtu` in bytes."""

    kind: str
    mtu: int
    up: bool


@dataclass(frozen=True, slots=True)
class Device:
    """A VXLAN device. `local` and `underlay` are the outer source address and interface.

    `underlay` is an interface's name, empty when the device is bound to none.
    """

    name: str
    vni: int
    port: int
    local: IPv4Address | None
    underlay: str
    mtu: int
    mac: str
    learning: bool = False
    gbp: bool = False
    up: bool = True
    addresses: frozenset[IPv4Interface] = frozenset()

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
    """A permanent neighbour on the VXLAN device: the peer's VTEP address resolved once and for all."""

    mac: str
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True)
class FdbEntry:
    """Where packets for a VTEP's MAC address go. `ours`: it carries the mark NTF_EXT_LEARNED.

    The kernel keeps the mark of whoever made the entry first, so an entry taken
    over from flanneld stays without; `plan` then knows it by its neighbour.
    """

    remote: IPv4Address
    ours: bool = True


@dataclass(frozen=True, slots=True)
class Route:
    """A route of the main table with metric 0."""

    gateway: IPv4Address | None
    device: str
    onlink: bool
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True)
class Actual:
    """What the kernel has.

    device       None when there is no link of that name
    foreign_kind the link's kind when the name is taken by something that is not VXLAN
    neighbours   the device's permanent neighbours; fdb its permanent unicast entries
    routes       those of netd's protocol, and all whose destination is in the pod network
    forwarding   net.ipv4.ip_forward
    """

    device: Device | None = None
    foreign_kind: str = ""
    neighbours: Mapping[IPv4Address, Neighbour] = field(default_factory=dict)
    fdb: Mapping[str, FdbEntry] = field(default_factory=dict)
    routes: Mapping[IPv4Network, Route] = field(default_factory=dict)
    forwarding: bool = False


@dataclass(frozen=True, slots=True)
class Desired:
    """What the kernel should have. `problems` says which leases were left out, and why."""

    network: IPv4Network
    device: Device
    neighbours: Mapping[IPv4Address, Neighbour] = field(default_factory=dict)
    fdb: Mapping[str, FdbEntry] = field(default_factory=dict)
    routes: Mapping[IPv4Network, Route] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
