"""Holding a subnet lease in the store: get one, keep it, get it back.

Owns: every write netd makes to the store. Invariants: a subnet's key is only
created where there was none and only changed at the revision that was read, so
two hosts never hold one subnet and the loser of a race tries the next; once
this host runs on a subnet it never moves to another (its containers' addresses
hang on it): if another host holds it, that is an error until it lets go; a key
without an etcd lease is a reservation and stays one. The lease is renewed by
keep-alives, so renewing changes no key and wakes no peer.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from typing import Protocol

from netd.allocate import Create, Held, Take, choose, read_held, superseded
from podlane.api.network import LeaseValue, NetworkConfig, subnet_key, subnets_prefix
from podlane.errors import PodlaneError
from podlane.runtime.log import get_logger
from podlane.store.interface import Compare, Delete, LeaseNotFound, Put, Store

_RACES = 100

_log = get_logger("netd.lease")


class Renewal(Protocol):
    """An etcd lease that somebody renews; podlane.store.lease.KeepAlive is one."""

    @property
    def lease_id(self) -> int: ...

    @property
    def lost(self) -> bool: ...

    def start(self) -> object: ...

    def stop(self, *, revoke: bool = False) -> object: ...


class SubnetHeldByOther(PodlaneError):
    """The subnet this host runs on is leased to another host."""


@dataclass(frozen=True, slots=True)
class Tenancy:
    """The subnet this host has, as it stands in the store."""

    subnet: IPv4Network
    value: LeaseValue
    lease_id: int
    reserved: bool = False


@dataclass
class LeaseHolder:
    """Not thread-safe: `ensure` and `release` belong to one thread.

    `previous` is the subnet this host had before, if any; `renewal` makes the
    keep-alive of an etcd lease: of the one with the id given, or of a new one for 0.
    """

    store: Store
    prefix: str
    public_ip: IPv4Address
    renewal: Callable[[int], Renewal]
    rng: random.Random
    previous: IPv4Network | None = None
    tenancy: Tenancy | None = None
    _renewal: Renewal | None = field(default=None, repr=False)

    def ensure(self, config: NetworkConfig, value: LeaseValue) -> Tenancy:
        """Hold a subnet with this value, and return it. A no-op when that is so already.

        Reads the store each time: call it when something changed. Raises
        OutOfSubnets, SubnetHeldByOther, StoreUnavailable.
        """
        try:
            for _ in range(_RACES):
                if tenancy := self._attempt(config, value):
                    self.tenancy, self.previous = tenancy, tenancy.subnet
                    return tenancy
        except LeaseNotFound:
            self._drop_renewal()
            raise
        raise PodlaneError(f"lease subnet: lost {_RACES} races in a row")

    def holds(self, seen: LeaseValue | None, lease_id: int) -> bool:
        """Whether a key with this value and etcd lease is our tenancy as it should be."""
        if self.tenancy is None or self._renewal is None or self._renewal.lost:
            return False
        expected = 0 if self.tenancy.reserved else self._renewal.lease_id
        return seen == self.tenancy.value and lease_id == expected

    def stop(self) -> None:
        """Stop renewing and leave the lease in place, as flannel does: the data plane goes on using it."""
        if self._renewal is not None:
            self._renewal.stop(revoke=False)

    def _attempt(self, config: NetworkConfig, value: LeaseValue) -> Tenancy | None:
        """One try; None when another host was faster."""
        held = self._list()
        if self.tenancy is not None:
            self._check_not_taken(held, self.tenancy.subnet)
        choice = choose(config, self.public_ip, held, self.previous, self.rng)
        if isinstance(choice, Take):
            return self._take(choice.held, value, self._live_lease(choice.held.lease))
        for old in superseded(config, self.public_ip, held):
            _log.info("giving up a subnet the network config no longer allows", subnet=str(old.subnet))
            key = self._key(old.name)
            self.store.txn([Compare.modified_at(key, old.revision)], [Delete(key)])
        return self._create(choice, value, self._live_lease())

    def _take(self, held: Held, value: LeaseValue, lease_id: int) -> Tenancy | None:
        reserved = held.lease == 0
        wanted = 0 if reserved else lease_id
        tenancy = Tenancy(held.subnet, value, wanted, reserved)
        if held.value == value and held.lease == wanted:
            return tenancy
        key = self._key(held.name)
        result = self.store.txn([Compare.modified_at(key, held.revision)], [Put(key, value.encode(), lease=wanted)])
        if not result.succeeded:
            return None
        _log.info("lease reused", subnet=str(held.subnet), reserved=reserved)
        return tenancy

    def _create(self, choice: Create, value: LeaseValue, lease_id: int) -> Tenancy | None:
        key = self._key(subnet_key(choice.subnet))
        result = self.store.txn([Compare.absent(key)], [Put(key, value.encode(), lease=lease_id)])
        if not result.succeeded:
            _log.info("lost a race for a subnet", subnet=str(choice.subnet))
            return None
        _log.info("lease created", subnet=str(choice.subnet))
        return Tenancy(choice.subnet, value, lease_id)

    def _check_not_taken(self, held: list[Held], subnet: IPv4Network) -> None:
        for each in held:
            if each.subnet.overlaps(subnet) and (each.value is None or each.value.public_ip != self.public_ip):
                who = each.value.public_ip if each.value else "a value that cannot be read"
                raise SubnetHeldByOther(f"lease subnet {subnet}: {each.name} is held by {who}")

    def _list(self) -> list[Held]:
        prefix = subnets_prefix(self.prefix)
        found: list[Held] = []
        for kv in self.store.list(prefix).items:
            held = read_held(
                kv.key.removeprefix(prefix),
                kv.value,
                revision=kv.mod_revision,
                created=kv.create_revision,
                lease=kv.lease,
            )
            if held is not None:
                found.append(held)
        return found

    def _key(self, name: str) -> str:
        return subnets_prefix(self.prefix) + name

    def _live_lease(self, adopt: int = 0) -> int:
        """An etcd lease that is being renewed; if we have none, `adopt` (a restart's own), else a new one."""
        if self._renewal is not None and self._renewal.lost:
            self._drop_renewal()
        if self._renewal is None and adopt:
            try:
                self._start_renewal(adopt)
            except LeaseNotFound:
                _log.debug("the lease to adopt has just expired")
        if self._renewal is None:
            self._start_renewal(0)
        assert self._renewal is not None
        return self._renewal.lease_id

    def _start_renewal(self, lease_id: int) -> None:
        renewal = self.renewal(lease_id)
        renewal.start()
        self._renewal = renewal

    def _drop_renewal(self) -> None:
        if self._renewal is not None:
            self._renewal.stop(revoke=False)
            self._renewal = None
