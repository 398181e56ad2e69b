"""Which address or node port to try next.

Owns: the choice, pure but for the random generator passed in. Invariant: what
is chosen is inside the range, an address neither the network's own nor the
broadcast address. That nobody else has it is the transaction's business, which
is why the pick is random: writers that start together rarely meet. As in
Kubernetes the lower end of a range is left to those who ask for one by name,
until the rest is full. Source: pkg/registry/core/service/ipallocator and
portallocator of Kubernetes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Set
from dataclasses import dataclass

from podlane.api.ranges import Network
from podlane.api.services import address_of
from podlane.errors import PodlaneError
from podlane.store import keys

RANDOM_PICKS = 8  # before the taken ones are listed

_SMALL = 16
"""A range of so few has no lower end to spare."""


class RangeFull(PodlaneError):
    """Every address or port of the range has a service."""


@dataclass(frozen=True, slots=True)
class Pool:
    """`count` entries, of which the first `reserved` are picked last. `key` is an entry's in the store."""

    what: str
    count: int
    reserved: int
    entry: Callable[[int], str]
    key: Callable[[str], str]

    def guess(self, taken: Set[str], rng: random.Random) -> str | None:
        """An entry whose key is not in `taken`; None if a few tries find none."""
        for _ in range(RANDOM_PICKS):
            entry = self.entry(self.reserved + rng.randrange(self.count - self.reserved))
            if self.key(entry) not in taken:
                return entry
        return None

    def free(self, taken: Set[str], rng: random.Random) -> str:
        """An entry whose key is not in `taken`, if there is any. Raises RangeFull."""
        for first, count in ((self.reserved, self.count - self.reserved), (0, self.reserved)):
            start = rng.randrange(count) if count else 0
            # one more look than there are entries taken surely finds a free one, if the range is longer
            for step in range(min(count, len(taken) + 1)):
                entry = self.entry(first + (start + step) % count)
                if self.key(entry) not in taken:
                    return entry
        raise RangeFull(f"allocate {self.what}: range full")


def address_pool(network: Network) -> Pool:
    first, count = _usable(network)
    reserved = 0 if network.num_addresses <= _SMALL else min(max(_SMALL, network.num_addresses // 16), 256)
    return Pool(
        f"cluster IP in {network}",
        count,
        min(reserved, count - 1),
        lambda index: str(network.network_address + first + index),
        keys.service_ip_key,
    )


def port_pool(ports: range) -> Pool:
    reserved = 0 if len(ports) <= _SMALL else min(max(_SMALL, len(ports) // 32), 128)
    return Pool(
        f"node port in {ports[0]}-{ports[-1]}",
        len(ports),
        min(reserved, len(ports) - 1),
        lambda index: str(ports[index]),
        lambda entry: keys.service_node_port_key(int(entry)),
    )


def address_error(text: str, network: Network) -> str | None:
    """Why a service may not ask for this address, or None."""
    address = address_of(text)
    if address is None:
        return f'expected an IP address, got "{text}"'
    first, count = _usable(network)
    offset = int(address) - int(network.network_address)
    if address.version != network.version or not first <= offset < first + count:
        return f"{text} is not a usable address of the service range {network}"
    return None


def port_error(port: int, ports: range) -> str | None:
    """Why a service may not ask for this node port, or None."""
    return None if port in ports else f"{port} is not in the node port range {ports[0]}-{ports[-1]}"


def _usable(network: Network) -> tuple[int, int]:
    """(offset of the first usable address, how many there are); IPv6 has no broadcast address."""
    if network.num_addresses <= 2:
        return 0, network.num_addresses
    return 1, network.num_addresses - (2 if network.version == 4 else 1)
