"""Reserving subnets, for a node or for nobody, and releasing them: what an operator does by hand.

Owns: these writes to `subnets/`, which are flannel's reservations: keys without
an etcd lease. Invariants: nothing that another node has is taken from it by a
reservation; a node's lease is only removed by force, because its pods may run
although its netd does not; every write compares what was read.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Literal

from netd.allocate import Held, older_overlap
from netd.table import SubnetTable
from podlane.api.network import NetworkConfig
from podlane.api.subnets import Address, LeaseValue, Subnets
from podlane.errors import Conflict, NotFound, PodlaneError, UsageError
from podlane.store.interface import Compare, Delete, Get, Op, Put, Store

_RACES = 10


class SubnetTaken(PodlaneError):
    """The subnet is another node's, leased or reserved."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """What there is now. `done`: made anew, made of the node's lease, or there already."""

    subnets: Subnets
    value: LeaseValue
    done: Literal["created", "converted", "unchanged"]


@dataclass(frozen=True, slots=True)
class Release:
    """What there was: a reservation, a node's lease, or only the record of who had it last."""

    subnets: Subnets
    was: Literal["reservation", "lease", "quarantine"]


def reserve(
    store: Store, prefix: str, config: NetworkConfig, subnets: Subnets, addresses: Collection[Address] = ()
) -> Reservation:
    """Reserve these subnets for the node with these public addresses; without any, for nobody: to keep them out of use.

    A node that leases them now keeps them for good. What is kept out of use may
    have any length. Raises UsageError, SubnetTaken, Conflict, StoreUnavailable.
    """
    value = _value(addresses)
    _check_allowed(config, subnets, for_node=bool(addresses))
    table = SubnetTable(store, prefix)
    for _ in range(_RACES):
        held = table.held()
        present = next((each for each in held if each.name == subnets.key), None)
        if present is None:
            if _create(table, subnets, value, held):
                return Reservation(subnets, value, "created")
            continue
        _check_same_node(table, present, value)
        assert present.value is not None
        if not present.lease:
            return Reservation(subnets, present.value, "unchanged")
        unchanged = Compare.modified_at(table.key(subnets), present.revision)
        if store.txn([unchanged], [Put(table.key(subnets), present.value.encode())]).succeeded:
            return Reservation(subnets, present.value, "converted")
    raise Conflict(f"reserve {subnets}: it changes all the time, {_RACES} attempts failed")


def release(store: Store, prefix: str, subnets: Subnets, *, force: bool = False) -> Release:
    """Remove a reservation, or with `force` a lease, and the record of who had the subnets last.

    A node that runs on them takes them again, as a lease. Raises SubnetTaken
    (leased, and not forced), NotFound, Conflict, StoreUnavailable.
    """
    table = SubnetTable(store, prefix)
    key, recent = table.key(subnets), table.recent_key(subnets)
    for _ in range(_RACES):
        keys, recents = store.txn([], [Get(key), Get(recent)]).reads
        if not keys and not recents:
            raise NotFound(f"release {subnets}: it is neither reserved nor leased")
        if keys and keys[0].lease and not force:
            held = table.read(keys[0])
            raise SubnetTaken(
                f"release {subnets}: it is leased by {_who(table, held)}; use --force to remove the lease"
            )
        compare = [Compare.modified_at(key, keys[0].mod_revision if keys else 0)]
        gone: list[Op] = [Delete(each[0].key) for each in (keys, recents) if each]
        if store.txn(compare, gone).succeeded:
            if not keys:
                return Release(subnets, "quarantine")
            return Release(subnets, "lease" if keys[0].lease else "reservation")
    raise Conflict(f"release {subnets}: it changes all the time, {_RACES} attempts failed")


def _value(addresses: Collection[Address]) -> LeaseValue:
    """A reservation says no backend: that is the node's to add, and flannel's peers ignore it until then."""
    v4 = [address for address in addresses if isinstance(address, IPv4Address)]
    v6 = [address for address in addresses if isinstance(address, IPv6Address)]
    if len(v4) > 1 or len(v6) > 1:
        raise UsageError(f"reserve: expected one address of each family, got {', '.join(map(str, addresses))}")
    return LeaseValue(next(iter(v4), None), next(iter(v6), None), backend_type="")


def _check_allowed(config: NetworkConfig, subnets: Subnets, *, for_node: bool) -> None:
    for subnet in subnets:
        if not any(subnet.version == net.version and subnet.subnet_of(net) for net in config.networks):  # type: ignore[arg-type]
            networks = " and ".join(map(str, config.networks))
            raise UsageError(f"reserve {subnets}: {subnet} is not in the network {networks}")
    if for_node and not config.allows(subnets):
        ranges = []
        if config.enable_ipv4:
            ranges.append(f"a /{config.subnet_len} from {config.subnet_min} to {config.subnet_max}")
        if config.enable_ipv6:
            ranges.append(f"a /{config.ipv6_subnet_len} from {config.ipv6_subnet_min} to {config.ipv6_subnet_max}")
        raise UsageError(f"reserve {subnets}: under the network config a node has {' and '.join(ranges)}")


def _create(table: SubnetTable, subnets: Subnets, value: LeaseValue, held: Collection[Held]) -> bool:
    """Whether it was made; False when the key has just come into being. Raises SubnetTaken."""
    for each in held:
        if each.subnets.overlaps(subnets):
            raise _taken(table, subnets, each)
    key = table.key(subnets)
    result = table.store.txn([Compare.absent(key)], [Put(key, value.encode())])
    if not result.succeeded:
        return False
    own = Held(subnets.key, subnets, value, result.revision, result.revision)
    if older := older_overlap(own, table.held()):
        table.store.txn([Compare.modified_at(key, result.revision)], [Delete(key)])
        raise _taken(table, subnets, older)
    return True


def _check_same_node(table: SubnetTable, present: Held, wanted: LeaseValue) -> None:
    if present.value is None:
        raise _taken(table, present.subnets, present)
    there, asked = set(present.value.addresses), set(wanted.addresses)
    if not (there & asked or there == asked):
        raise _taken(table, present.subnets, present)


def _taken(table: SubnetTable, subnets: Subnets, held: Held) -> SubnetTaken:
    kind = "leased by" if held.lease else "reserved for"
    other = "" if held.subnets == subnets else f" as {held.subnets}"
    hint = ""
    if held.subnets == subnets and held.lease and held.value is not None and held.value.addresses:
        hint = f"; to make its lease a reservation, name it with --public-ip {held.value.addresses[0]}"
    return SubnetTaken(f"reserve {subnets}: it is {kind} {_who(table, held)}{other}{hint}")


def _who(table: SubnetTable, held: Held | None) -> str:
    """The node, and whether its netd runs."""
    if held is None or held.value is None:
        return "somebody (the value cannot be read)"
    if not held.value.addresses:
        return "nobody"
    text = " and ".join(map(str, held.value.addresses))
    if not held.lease:
        return text
    claims = [claim for claim, _ in table.claims(held.value.addresses).values() if claim is not None]
    if claims:
        return f"{text} (host {claims[0].host}, whose netd runs)"
    return f"{text} (whose netd does not run now, but its pods may)"
