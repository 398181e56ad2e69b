"""The pod network of this node, as netd wrote it into subnet.env. Pure but for reading the file.

Owns: what the network is, and the meaning of flannel's environment file. Invariant: what comes out is a
usable network or a reason why not, never a half-read file. Source: flannel's
pkg/subnet WriteSubnetFile: FLANNEL_NETWORK, FLANNEL_SUBNET (the gateway's
address with the subnet's length), FLANNEL_MTU, FLANNEL_IPMASQ.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from podlane.errors import PodlaneError


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """The pod network on this node, as netd leased it. `subnet` in CIDR form, `gateway` an address in it."""

    subnet: str
    gateway: str
    mtu: int


class NoSubnet(PodlaneError):
    """netd has not leased a subnet for this node yet."""


def read_subnet_file(path: Path) -> NetworkSpec:
    """The network the file describes. Raises NoSubnet when there is none, or none that makes sense."""
    try:
        text = path.read_text()
    except OSError as error:
        raise NoSubnet(f"read {path}: {error.strerror or error}") from error
    return parse(text, str(path))


def parse(text: str, where: str = "subnet.env") -> NetworkSpec:
    """The network an environment file's text describes. Raises NoSubnet."""
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
    values = {name.strip(): value.strip().strip('"') for name, _, value in pairs}
    try:
        interface = ipaddress.IPv4Interface(values["FLANNEL_SUBNET"])
        mtu = int(values["FLANNEL_MTU"])
    except (KeyError, ValueError) as error:
        missing = isinstance(error, KeyError)
        raise NoSubnet(f"read {where}: {'no ' if missing else ''}{error}") from error
    if "/" not in values["FLANNEL_SUBNET"] or not 576 <= mtu <= 65535:
        raise NoSubnet(f"read {where}: expected a subnet and an MTU, got {interface} and {mtu}")
    network = interface.network
    gateway = interface.ip if interface.ip != network.network_address else network.network_address + 1
    return NetworkSpec(subnet=str(network), gateway=str(gateway), mtu=mtu)


def contains(spec: NetworkSpec, ip: str) -> bool:
    """Whether an address belongs to the network; an empty one does not."""
    return bool(ip) and ipaddress.ip_address(ip) in ipaddress.ip_network(spec.subnet)
