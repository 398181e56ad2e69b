"""The records of the hosts that belong to the cluster, as their readers need them.

Owns: the form of a record's value. Who writes them is podlane.host.enrol, which owns their
order; no node can, so what they say of a node's subnet and addresses holds even of a stolen one.
"""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_address

import msgspec

from podlane.api.subnets import Address, Subnets
from podlane.store.interface import KeyValue


class HostRecord(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """The value of a record. `subnets` is as in the lease's key; `key_hash` is that of the key it is known by: a node's
    agent's, a server's etcd's.

    `revoked` says when (RFC 3339) the identity was taken away; "" while it holds.
    """

    addresses: tuple[str, ...] = ()
    subnets: str = ""
    key_hash: str = ""
    revoked: str = ""

    def parsed_addresses(self) -> tuple[Address, ...]:
        return tuple(map(ip_address, self.addresses))

    def networks(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """The subnets reserved for a node's pods."""
        return tuple(Subnets.parse_key(self.subnets)) if self.subnets else ()


def read_record(kv: KeyValue) -> HostRecord:
    """Raises ValueError for what is no record."""
    try:
        record = msgspec.json.decode(kv.value, type=HostRecord)
    except msgspec.MsgspecError as error:
        raise ValueError(f"read record {kv.key}: {error}") from error
    record.parsed_addresses()
    record.networks()
    return record
