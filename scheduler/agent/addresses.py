"""Which address the next pod of this node gets. Pure.

Owns: the order in which the leased subnet's addresses are handed out. Invariants:
the network's own address, its broadcast address and the gateway never are, nor
one that is in use; the search goes on where the last one ended, so a freed
address comes last and those who remember its old owner have time to forget.
Nothing is stored: what is in use is read from the infra containers' labels.
Source: CNI's host-local plugin (round robin from the last reserved address).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network

from scheduler.agent.network import NetworkSpec


@dataclass(frozen=True, slots=True)
class Addresses:
    """The network, what of it is taken, and the address handed out last ("" if not known)."""

    network: NetworkSpec
    used: frozenset[str] = field(default_factory=frozenset)
    last: str = ""

    def free(self) -> Iterator[str]:
        """Every address that may be handed out, the next one first."""
        network = ip_network(self.network.subnet)
        # in /31 and /32 (/127 and /128) no address is set apart (RFC 3021, 6164); IPv6 has no broadcast
        edge = 1 if network.prefixlen < network.max_prefixlen - 1 else 0
        count = network.num_addresses - edge - (edge if network.version == 4 else 0)
        first = int(network.network_address) + edge
        start = int(ip_address(self.last)) + 1 - first if self.last else 0
        for step in range(count):
            address = str(network[edge + (start + step) % count])
            if address != self.network.gateway and address not in self.used:
                yield address
