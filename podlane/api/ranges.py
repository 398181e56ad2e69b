"""The ranges that services get their addresses and node ports from.

Owns: how the two texts of the cluster config are read. Invariants: at most one
range a family, the first is that of the services which do not choose; a range
has no host bits set. Source: kube-apiserver's --service-cluster-ip-range and
--service-node-port-range.
"""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_network

from podlane.api.types import ClusterConfig
from podlane.errors import FieldError, Invalid

Network = IPv4Network | IPv6Network


def service_networks(config: ClusterConfig) -> tuple[Network, ...]:
    """The service ranges: one, or one a family, in the order given. Raises Invalid."""
    return parse_networks(config.service_cidr)


def node_ports(config: ClusterConfig) -> range:
    """The ports that services may have on every node. Raises Invalid."""
    return parse_ports(config.service_node_port_range)


def parse_networks(text: str) -> tuple[Network, ...]:
    """`10.96.0.0/16`, `10.96.0.0/16,fd00:10:96::/112`. Raises Invalid."""
    try:
        networks = tuple(ip_network(part.strip()) for part in text.split(","))
    except ValueError as error:
        raise _invalid("serviceCIDR", str(error)) from error
    if len({network.version for network in networks}) < len(networks):
        listed = ", ".join(map(str, networks))
        raise _invalid("serviceCIDR", f"expected one range, or one of each family, got {listed}")
    return networks


def parse_ports(text: str) -> range:
    """`30000-32767`, both included, or one port. Raises Invalid."""
    first, dash, last = (part.strip() for part in text.partition("-"))
    numbers = (first, last) if dash else (first, first)
    if not all(number.isascii() and number.isdigit() for number in numbers):
        raise _invalid("serviceNodePortRange", f'expected ports such as 30000-32767, got "{text}"')
    low, high = map(int, numbers)
    if not 1 <= low <= high <= 65535:
        raise _invalid("serviceNodePortRange", f"expected ports from 1 to 65535, the lower first, got {text}")
    return range(low, high + 1)


def _invalid(field: str, message: str) -> Invalid:
    return Invalid("cluster config", [FieldError(field, message)])
