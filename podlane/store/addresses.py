"""Which service address to try next.

Owns: the choice, pure but for the random generator passed in. Invariant: an
address chosen is inside the range, and neither its network nor its broadcast
address. That nobody else has it is the transaction's business, which is why
the pick is random: writers that start together rarely meet.
"""

from __future__ import annotations

import random
from collections.abc import Set
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from podlane.errors import FieldError, Invalid, PodlaneError

Network = IPv4Network | IPv6Network


class RangeFull(PodlaneError):
    """Every address of the service range has a service."""


def service_network(cidr: str) -> Network:
    """The service range. Raises Invalid."""
    try:
        return ip_network(cidr)
    except ValueError as error:
        raise Invalid("cluster config", [FieldError("serviceCIDR", str(error))]) from error


def random_address(network: Network, rng: random.Random) -> str:
    first, count = _usable(network)
    return str(network.network_address + first + rng.randrange(count))


def free_address(network: Network, taken: Set[str], rng: random.Random) -> str | None:
    """A random address not in `taken`; None when the range is full."""
    first, count = _usable(network)
    start = rng.randrange(count)
    # one more look than there are addresses taken surely finds a free one, if the range is longer
    for step in range(min(count, len(taken) + 1)):
        address = str(network.network_address + first + (start + step) % count)
        if address not in taken:
            return address
    return None


def problem_of(address: str, network: Network) -> str:
    """Why a service may not ask for this address, or ""."""
    try:
        wanted = ip_address(address)
    except ValueError:
        return f'expected an IP address or "None", got "{address}"'
    first, count = _usable(network)
    offset = int(wanted) - int(network.network_address)
    if wanted.version != network.version or not first <= offset < first + count:
        return f"{address} is not a usable address of the service range {network}"
    return ""


def _usable(network: Network) -> tuple[int, int]:
    """(offset of the first usable address, how many there are)."""
    return (1, network.num_addresses - 2) if network.num_addresses > 2 else (0, network.num_addresses)
