"""The pod network of this node, as netd wrote it into subnet.env. Pure but for reading the file.

Owns: what the network is, and the meaning of flannel's environment file. Invariant: what comes out is a
usable network or a reason why not, never a half-read file. Source: flannel's
pkg/subnet WriteSubnetFile: FLANNEL_NETWORK, FLANNEL_SUBNET (the gateway's
address with the subnet's length), the same with IPV6_, FLANNEL_MTU, FLANNEL_IPMASQ.

A pod's second address follows from its first: it has the same number in its
subnet. So it is allotted nowhere, and IPv6 may come to a network, change or go
without a pod being made anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network, ip_address, ip_interface, ip_network
from pathlib import Path

from podlane.errors import PodlaneError

Interface = IPv4Interface | IPv6Interface

REMEMBERED = 4096
"""Answers kept: each sync asks the same of each pod, and reading addresses was a sixth of it."""
IPV6_MIN_MTU = 1280
"""Below it the kernel takes IPv6 off a link (RFC 8200)."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A node's subnet of one family, in CIDR form, and the gateway's address in it."""

    subnet: str
    gateway: str


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """The pod network on this node, as netd leased it. `subnet` in CIDR form, `gateway` an address in it.

    `second` is IPv6, where the network has both families.
    """

    subnet: str
    gateway: str
    mtu: int
    second: Segment | None = None

    @property
    def segments(self) -> tuple[Segment, ...]:
        first = Segment(self.subnet, self.gateway)
        return (first,) if self.second is None else (first, self.second)

    def gateways(self) -> tuple[Interface, ...]:
        """The bridge's addresses."""
        return tuple(ip_interface((s.gateway, ip_network(s.subnet).prefixlen)) for s in self.segments)

    def interfaces(self, ip: str) -> tuple[Interface, ...]:
        """All addresses of the pod whose first one is `ip`.

        The second is left out where the subnet has none of that number, or it is the gateway's.
        """
        return _interfaces(self, ip)

    def ips(self, ip: str) -> tuple[str, ...]:
        """`interfaces` without their prefix lengths."""
        return tuple(str(interface.ip) for interface in self.interfaces(ip))


@lru_cache(REMEMBERED)
def _interfaces(spec: NetworkSpec, ip: str) -> tuple[Interface, ...]:
    network = ip_network(spec.subnet)
    first = ip_interface((ip, network.prefixlen))
    number = int(first.ip) - int(network.network_address)
    if spec.second is None or first.ip not in network:
        return (first,)
    other = ip_network(spec.second.subnet)
    if number >= other.num_addresses or other[number] in {other[0], ip_address(spec.second.gateway)}:
        return (first,)
    return first, ip_interface((other[number], other.prefixlen))


class NoSubnet(PodlaneError):
    """netd has not leased a subnet for this node yet."""


def read_subnet_file(path: Path) -> NetworkSpec:
    """The network the file describes. Raises NoSubnet when there is none, or none that makes sense."""
    try:
        text = path.read_text()
    except OSError as error:
        raise NoSubnet(f"read {path}: {error.strerror or error}") from error
    return parse(text, str(path))


@lru_cache(REMEMBERED)
def parse(text: str, where: str = "subnet.env") -> NetworkSpec:
    """The network an environment file's text describes. Raises NoSubnet."""
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
    values = {name.strip(): value.strip().strip('"') for name, _, value in pairs}
    try:
        segments = [_segment(values, name, kind) for name, kind in _SUBNETS.items() if name in values]
        if not segments:
            raise KeyError("FLANNEL_SUBNET")
        mtu = int(values["FLANNEL_MTU"])
    except (KeyError, ValueError) as error:
        missing = isinstance(error, KeyError)
        raise NoSubnet(f"read {where}: {'no ' if missing else ''}{error}") from error
    least = IPV6_MIN_MTU if "FLANNEL_IPV6_SUBNET" in values else 576
    if not least <= mtu <= 65535:
        raise NoSubnet(f"read {where}: expected an MTU from {least} to 65535, got {mtu}")
    first, *others = segments
    return NetworkSpec(first.subnet, first.gateway, mtu, *others)


_SUBNETS: dict[str, type[Interface]] = {"FLANNEL_SUBNET": IPv4Interface, "FLANNEL_IPV6_SUBNET": IPv6Interface}


def _segment(values: Mapping[str, str], name: str, kind: type[Interface]) -> Segment:
    """Raises ValueError."""
    text = values[name]
    if "/" not in text:
        raise ValueError(f"expected {name} with a prefix length, got {text}")
    interface = kind(text)
    network = interface.network
    gateway = interface.ip if interface.ip != network.network_address else network[1 % network.num_addresses]
    return Segment(str(network), str(gateway))


def contains(spec: NetworkSpec, ip: str) -> bool:
    """Whether a pod's first address belongs to the network; an empty one does not."""
    return bool(ip) and ip_address(ip) in _network(spec.subnet)


@lru_cache(REMEMBERED)
def _network(subnet: str) -> IPv4Network | IPv6Network:
    return ip_network(subnet)
