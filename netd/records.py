"""What netd keeps in the store beside flannel's leases, whose values have no room for it.

Owns: the keys below `/podlane/netd<prefix>/` and their JSON. Two kinds:
`nodes/<public address>` says which node uses a public address now, and lives as
long as its netd runs; `recent/<lease key>` says which node had a subnet last,
and outlives the lease. Invariant: nothing that cannot be read here stops
anybody: it counts as not there. Pure.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from podlane.api.subnets import Address, Subnets, netd_prefix


def claims_prefix(prefix: str) -> str:
    return f"{netd_prefix(prefix)}nodes/"


def claim_key(prefix: str, address: Address) -> str:
    return f"{claims_prefix(prefix)}{address}"


def recents_prefix(prefix: str) -> str:
    return f"{netd_prefix(prefix)}recent/"


def recent_key(prefix: str, subnets: Subnets) -> str:
    return f"{recents_prefix(prefix)}{subnets.key}"


@dataclass(frozen=True, slots=True)
class Claim:
    """Who uses a public address: a node, and which of its boots. `since` is for people (RFC 3339)."""

    node: str
    boot: str
    host: str = ""
    since: str = ""

    def same_run(self, other: Claim) -> bool:
        """Whether it is the same machine since the same boot, so that only its netd can have been restarted."""
        return (self.node, self.boot) == (other.node, other.boot)

    def encode(self) -> bytes:
        return _encode({"node": self.node, "boot": self.boot, "host": self.host, "since": self.since})

    @classmethod
    def decode(cls, data: bytes) -> Claim:
        """Raises ValueError for anything else."""
        found = _object(data)
        return cls(*(_text(found, name) for name in ("node", "boot", "host", "since")))


@dataclass(frozen=True, slots=True)
class RecentNode:
    """Who had a subnet last, and what its public addresses were then."""

    node: str
    addresses: frozenset[Address] = frozenset()

    def encode(self) -> bytes:
        return _encode({"node": self.node, "addresses": sorted(map(str, self.addresses))})

    @classmethod
    def decode(cls, data: bytes) -> RecentNode:
        """Raises ValueError for anything else."""
        found = _object(data)
        addresses = found.get("addresses")
        if not isinstance(addresses, list):
            raise ValueError("addresses: expected a list")
        return cls(_text(found, "node"), frozenset(ip_address(str(address)) for address in addresses))


def _encode(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _object(data: bytes) -> dict[str, Any]:
    found = json.loads(data)
    if not isinstance(found, dict):
        raise ValueError("expected a JSON object")
    return found


def _text(found: dict[str, Any], name: str) -> str:
    value = found.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{name}: expected a string")
    return value
