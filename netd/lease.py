"""Holding a subnet lease in the store: get one, keep it, get it back.

Owns: what netd's daemon writes below `subnets/` and `recent/`. Invariants: a
key is only created where there was none and only changed at the revision that
was read, so two hosts never hold one subnet and the loser of a race tries the
next; nothing is written unless something changed, and renewing changes no key,
so it wakes no peer; nothing is taken before this host holds the claim to its
public addresses; once it runs on a subnet it never moves to another (its pods'
addresses hang on it): if another host holds it, that is an error until it lets
go; a key without an etcd lease is a reservation and stays one.

Beside each lease lies a record of whose it is, on an etcd lease that outlives
it: the node finds its subnet again by it, and others leave the subnet alone
for a while after the node is gone. That longer lease is also the witness that
a store is the one this host was in before.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from netd.allocate import Create, Held, OutOfSubnets, Recent, Table, Take, Who, choose, older_overlap, own_keys, owns
from netd.claims import CLAIM_TTL, AddressClaims, DuplicateAddress
from netd.identity import NodeIdentity
from netd.records import RecentNode
from netd.renewal import MakeRenewal, Renewal, RenewedLease
from netd.table import Known, SubnetTable, learn
from podlane.api.network import NetworkConfig
from podlane.api.subnets import LEASE_TTL, LeaseValue, Subnets
from podlane.errors import PermissionDenied, PodlaneError, UsageError
from podlane.runtime.clock import Clock, SystemClock
from podlane.runtime.log import get_logger
from podlane.store.interface import Compare, Delete, Get, LeaseNotFound, Put, Store

__all__ = ["DuplicateAddress", "LeaseHolder", "Renewal", "SubnetHeldByOther", "Tenancy"]

QUARANTINE = 3600
"""Seconds after a lease's end in which others leave its subnet alone while there are free ones."""

VERIFY = 60.0  # seconds between looks at this host's own keys, when nothing tells of a change

_RACES = 1000  # looks at the store; each that is lost is another host's success, so nobody who means well gets there
_DRAWS = 4  # choices from one listing of the store
_LEASES_LOST = 3

_log = get_logger("netd.lease")


class SubnetHeldByOther(PodlaneError):
    """The subnet this host runs on is leased to another host."""


@dataclass(frozen=True, slots=True)
class Tenancy:
    """The subnets this host has, as they stand in the store. `lease_id` is 0 for a reservation."""

    subnets: Subnets
    value: LeaseValue
    lease_id: int
    reserved: bool = False


@dataclass
class LeaseHolder:
    """Not thread-safe: `ensure` and `stop` belong to one thread; the properties and `holds` may be read by any.

    `previous` are the subnets this host had before, if known; `quarantine` is
    in seconds; `candidates` tells people what else than a public address that
    is taken they could choose; `known` is what a mirror of the leases has.
    """

    store: Store
    prefix: str
    identity: NodeIdentity
    renewal: MakeRenewal
    rng: random.Random
    previous: Subnets | None = None
    quarantine: int = QUARANTINE
    candidates: str = ""
    clock: Clock = field(default_factory=SystemClock)
    known: Callable[[], Known] | None = None
    tenancy: Tenancy | None = None

    def __post_init__(self) -> None:
        self._table = SubnetTable(self.store, self.prefix, self.known)
        self._lease = RenewedLease(self.renewal, LEASE_TTL)
        self._witness = RenewedLease(self.renewal, LEASE_TTL + self.quarantine)
        self._claims = AddressClaims(self._table, RenewedLease(self.renewal, CLAIM_TTL), self.clock.now)
        self._verified = -float("inf")
        self._clashed = False

    @property
    def witness(self) -> int:
        """An etcd lease of this store that outlives this host's own lease; 0 without one."""
        return self._witness.id

    @property
    def ttl_left(self) -> float:
        """Seconds until the subnet's lease would end if it were renewed no more; 0 for a reservation."""
        return self._lease.ttl_left

    @property
    def verify_due(self) -> bool:
        """Whether it is time to look at the claim and the record, of which no watch tells: call `ensure`."""
        return self.clock.monotonic() - self._verified >= VERIFY

    def holds(self, seen: LeaseValue | None, lease_id: int) -> bool:
        """Whether a key with this value and etcd lease is our tenancy as it should be, and all of it is renewed."""
        tenancy = self.tenancy
        if tenancy is None or not self._witness.id or not self._claims.lease.id:
            return False
        if tenancy.reserved:
            return seen == tenancy.value and lease_id == 0
        return seen == tenancy.value and lease_id != 0 and lease_id == self._lease.id

    def ensure(self, config: NetworkConfig, value: LeaseValue) -> Tenancy:
        """Hold subnets with this value, whose public addresses are this host's; returns what is held.

        Reads the store and writes only what is not so already. A host that has
        a tenancy keeps its subnets whatever `config` says. Raises
        DuplicateAddress, SubnetHeldByOther, OutOfSubnets, PermissionDenied,
        StoreUnavailable: each may be tried again.
        """
        if not value.addresses:
            raise UsageError("lease subnet: this host has no public address to tell")
        who = Who(self.identity.node_id, frozenset(value.addresses))
        self._claims.candidates = self.candidates
        for _ in range(_LEASES_LOST):
            try:
                self._claims.hold(self.identity, value.addresses)
                if self.tenancy is not None:
                    tenancy = self._regain(self.tenancy.subnets, who, value)
                else:
                    tenancy = self._obtain(config, who, value)
            except LeaseNotFound as error:
                # not known which: those that live are found by their keys again
                _log.info("an etcd lease is gone, making another", error=str(error))
                self._stop_renewing()
                continue
            self._claims.keep_only(value.addresses)
            self.tenancy, self.previous = tenancy, tenancy.subnets
            self._verified = self.clock.monotonic()
            return tenancy
        raise PodlaneError(f"lease subnet: {_LEASES_LOST} new etcd leases vanished at once")

    def stop(self) -> None:
        """Let the public addresses go and stop renewing. The lease stays, as flannel's does: the data plane uses it."""
        self._claims.lease.stop(revoke=True)
        self._stop_renewing()

    def _stop_renewing(self) -> None:
        for each in (self._lease, self._witness, self._claims.lease):
            each.stop()

    # ---- a host that has no subnets yet ---------------------------------------------------------

    def _obtain(self, config: NetworkConfig, who: Who, value: LeaseValue) -> Tenancy:
        if tenancy := self._take_previous(config, who, value):
            return tenancy
        for _ in range(_RACES):
            table = self._table.all(who, self.identity)
            self._give_up_useless(config, who, table)
            for draw in range(_DRAWS):
                outcome: Tenancy | Table | None
                try:
                    choice = choose(config, who, table, self.previous, self.rng)
                except OutOfSubnets:
                    if draw == 0:
                        raise
                    break  # some of the keys that were in the way may have gone again
                if isinstance(choice, Take):
                    outcome = self._take(choice.held, table.recent.get(choice.held.name), who, value)
                else:
                    outcome = self._create(choice, table, who, value)
                if isinstance(outcome, Tenancy):
                    return outcome
                if outcome is None:
                    break
                table = outcome
        raise PodlaneError(f"lease subnet: lost {_RACES} races in a row")

    def _take_previous(self, config: NetworkConfig, who: Who, value: LeaseValue) -> Tenancy | None:
        """What the host had, if it is still its own: found by its key, without listing everybody's."""
        if self.previous is None or not config.allows(self.previous):
            return None
        table = self._table.one(self.previous, who, self.identity)
        for held in table.held:
            recent = table.recent.get(held.name)
            if owns(who, held, recent, table.claimed):
                return self._take(held, recent, who, value)
        return None

    def _give_up_useless(self, config: NetworkConfig, who: Who, table: Table) -> None:
        for old in own_keys(config, who, table)[1]:
            if not old.lease:
                continue
            _log.info("giving up a subnet this host cannot use", subnet=str(old.subnets))
            try:
                self._delete(old.subnets, old.revision)
            except PermissionDenied as error:
                _log.warning("lease not given up, it ends by itself", subnet=str(old.subnets), error=str(error))

    # ---- a host that runs on its subnets --------------------------------------------------------

    def _regain(self, subnets: Subnets, who: Who, value: LeaseValue) -> Tenancy:
        for _ in range(_RACES):
            table = self._table.one(subnets, who, self.identity)
            outcome: Tenancy | Table | None
            if table.held:
                (held,) = table.held
                recent = table.recent.get(held.name)
                if not owns(who, held, recent, table.claimed):
                    raise _held_by_other(subnets, held)
                outcome = self._take(held, recent, who, value)
            else:
                if self._clashed:  # do not wake every peer by a key that will not stand
                    self._check_free(subnets)
                outcome = self._create(Create(subnets, "previous"), table, who, value)
                if isinstance(outcome, Table):
                    self._check_free(subnets)
            if isinstance(outcome, Tenancy):
                self._clashed = False
                return outcome
        raise PodlaneError(f"lease subnet {subnets}: lost {_RACES} races in a row")

    def _check_free(self, subnets: Subnets) -> None:
        for held in self._table.held():
            if held.subnets.overlaps(subnets) and held.name != subnets.key:
                self._clashed = True
                raise _held_by_other(subnets, held)

    # ---- writing --------------------------------------------------------------------------------

    def _take(self, held: Held, recent: Recent | None, who: Who, value: LeaseValue) -> Tenancy | None:
        """Make the key say what it should, if it does not; None when it changed meanwhile."""
        reserved = held.lease == 0
        if reserved:
            self._lease.stop()
        lease = 0 if reserved else self._lease.ensure(adopt=held.lease)
        tenancy = Tenancy(held.subnets, value, lease, reserved)
        puts: list[Put] = []
        if held.value != value or held.lease != lease:
            puts.append(Put(self._table.key(held.subnets), value.encode(), lease))
        record = RecentNode(who.node, who.addresses)
        mine = recent is not None and recent.node.node == who.node
        witness = self._witness.ensure(adopt=recent.lease if recent is not None and mine else 0)
        if recent is None or recent.node != record or recent.lease != witness:
            puts.append(Put(self._table.recent_key(held.subnets), record.encode(), witness))
        if puts:
            unchanged = Compare.modified_at(self._table.key(held.subnets), held.revision)
            if not self.store.txn([unchanged], puts).succeeded:
                return None
            _log.info("lease taken", subnet=str(held.subnets), reserved=reserved, written=len(puts))
        return tenancy

    def _create(self, choice: Create, table: Table, who: Who, value: LeaseValue) -> Tenancy | Table | None:
        """A tenancy; or what is known after losing; None when a fresh look is needed."""
        subnets, key = choice.subnets, self._table.key(choice.subnets)
        recent = table.recent.get(subnets.key)
        mine = recent is not None and recent.node.node == who.node
        lease = self._lease.ensure()
        witness = self._witness.ensure(adopt=recent.lease if recent is not None and mine else 0)
        record = RecentNode(who.node, who.addresses)
        result = self.store.txn(
            [Compare.absent(key)],
            [Put(key, value.encode(), lease), Put(self._table.recent_key(subnets), record.encode(), witness)],
            [Get(key)],
        )
        if not result.succeeded:
            _log.info("lost a race for a subnet", subnet=str(subnets))
            return learn(table, [each for kv in result.reads[0] if (each := self._table.read(kv))])
        news = self._table.held(since=table.revision)
        own = Held(subnets.key, subnets, value, result.revision, result.revision, lease)
        if older := older_overlap(own, news):
            _log.info("gave way to an older lease", subnet=str(subnets), older=older.name)
            self._delete(subnets, result.revision)
            return learn(table, (each for each in news if each.name != own.name))
        _log.info("lease created", subnet=str(subnets), origin=choice.origin)
        return Tenancy(subnets, value, lease)

    def _delete(self, subnets: Subnets, revision: int) -> None:
        key = self._table.key(subnets)
        self.store.txn([Compare.modified_at(key, revision)], [Delete(key), Delete(self._table.recent_key(subnets))])


def _held_by_other(subnets: Subnets, held: Held) -> SubnetHeldByOther:
    if held.value is None:
        who = "a value that cannot be read"
    else:
        who = " and ".join(map(str, held.value.addresses)) or "a reservation for nobody"
    return SubnetHeldByOther(f"lease subnet {subnets}: {held.name} is held by {who}")
