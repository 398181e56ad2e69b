"""Peers that are not there: their leases, and the kernel entries netd must make of them.

Pure but for `write` and `delete`. Invariant: peers with different numbers share
no subnet, address or MAC address, and none can be the measured host's own. The
measured host leases from 10.200.0.0/16, peers have 10.1.0.0/24 and on; those
reached through VXLAN are at 172.16.0.0/12, direct ones at the underlay's
192.168.64.0/24, which therefore has room for a hundred of them only.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

import msgspec

from bench.netd_entries import Entries, fdb_entry, neighbour_entry, route_entry
from podlane.api.subnets import DEFAULT_PREFIX, LEASE_TTL, LeaseValue, Subnets, config_key, netd_prefix, subnets_prefix
from podlane.lab.topology import UNDERLAY_PREFIX
from podlane.store.interface import Delete, Op, Put, Store
from podlane.store.writes import MAX_OPS

NETWORK = IPv4Network("10.0.0.0/8")
OWN_RANGE = ("10.200.0.0", "10.200.255.0")

_FIRST_SUBNET = int(IPv4Address("10.1.0.0"))
_FIRST_REMOTE = int(IPv4Address("172.16.0.1"))
_FIRST_DIRECT = 150  # below .101 and on are the hosts that are there
_MAX_PEERS = 199 * 256  # up to the measured host's own range


@dataclass(frozen=True, slots=True)
class Peer:
    """Host number `number`; `direct` when it is on the measured host's own segment."""

    number: int
    direct: bool = False

    @property
    def subnet(self) -> IPv4Network:
        return IPv4Network((_FIRST_SUBNET + self.number * 256, 24))

    @property
    def vtep(self) -> IPv4Address:
        return self.subnet.network_address

    @property
    def public_ip(self) -> IPv4Address:
        if self.direct:
            return IPv4Address(f"{UNDERLAY_PREFIX}.{_FIRST_DIRECT + self.number}")
        return IPv4Address(_FIRST_REMOTE + self.number)

    @property
    def mac(self) -> str:
        return f"02:00:00:{(self.number + 1).to_bytes(3, 'big').hex(':')}"

    @property
    def key(self) -> str:
        return subnets_prefix(DEFAULT_PREFIX) + Subnets(v4=self.subnet).key

    @property
    def value(self) -> LeaseValue:
        return LeaseValue.vxlan(self.public_ip, 1, self.mac)

    @property
    def entries(self) -> Entries:
        """What the kernel holds for it; a direct one needs a route only."""
        route = route_entry(self.subnet)
        if self.direct:
            return {route: self.public_ip.packed}
        return {
            route: self.vtep.packed,
            neighbour_entry(self.vtep): bytes.fromhex(self.mac.replace(":", "")),
            fdb_entry(self.mac): self.public_ip.packed,
        }


def peers(first: int, count: int, *, direct: bool = False) -> tuple[Peer, ...]:
    """Peers number `first` and on."""
    last = first + count - 1
    if not 0 <= first <= last < _MAX_PEERS or (direct and last > 254 - _FIRST_DIRECT):
        raise ValueError(f"make peers {first} to {last}: there is no room for them")
    return tuple(Peer(number, direct) for number in range(first, first + count))


def entries_of(some: Iterable[Peer]) -> Entries:
    return {entry: value for peer in some for entry, value in peer.entries.items()}


def write_config(store: Store, backend: Mapping[str, object] | None = None) -> None:
    """The network config: room for 65,000 hosts."""
    low, high = OWN_RANGE
    config = {
        "Network": str(NETWORK),
        "SubnetLen": 24,
        "SubnetMin": low,
        "SubnetMax": high,
        "Backend": {"Type": "vxlan", **(backend or {})},
    }
    store.txn([], [Put(config_key(DEFAULT_PREFIX), msgspec.json.encode(config))])


def grant(store: Store) -> int:
    """An etcd lease for peers' keys. One for all: netd only looks at whether there is one."""
    return store.grant(LEASE_TTL)


def puts(some: Iterable[Peer], lease: int) -> list[Op]:
    return [Put(peer.key, peer.value.encode(), lease) for peer in some]


def deletes(some: Iterable[Peer]) -> list[Op]:
    return [Delete(peer.key) for peer in some]


def commit(store: Store, ops: Sequence[Op]) -> float:
    """In transactions of a hundred; returns when the first was sent, on the monotonic clock."""
    begin = time.monotonic()
    for start in range(0, len(ops), MAX_OPS):
        store.txn([], ops[start : start + MAX_OPS])
    return begin


def forget_own(store: Store, some: Iterable[Peer]) -> None:
    """Delete all but the config and these peers: the measured host is new to the network."""
    kept = {peer.key for peer in some} | {config_key(DEFAULT_PREFIX)}
    prefixes = (f"{DEFAULT_PREFIX}/", netd_prefix(DEFAULT_PREFIX))
    items = [item for prefix in prefixes for item in store.list(prefix).items]
    commit(store, [Delete(item.key) for item in items if item.key not in kept])
