"""What the store says of subnets and who has them, read and put into netd's terms.

Owns: the reads. Invariant: a key or value that cannot be read never fails one:
an unreadable lease value still takes its subnet, an unreadable record of ours
counts as not there. The write that rests on a read compares revisions, so
that the two lists need not be as of one moment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from netd.allocate import Held, Recent, Table, Who, read_held
from netd.identity import NodeIdentity
from netd.records import Claim, RecentNode, claim_key, recent_key, recents_prefix
from podlane.api.subnets import Address, Subnets, subnets_prefix
from podlane.runtime.log import get_logger
from podlane.store.interface import Get, KeyValue, Store

_log = get_logger("netd.lease")


@dataclass(frozen=True, slots=True)
class Known:
    """Subnets' keys, by name, that somebody who follows the store has seen; `revision` 0: none was yet.

    A key that is gone since may still be among them: a write that takes it for there will not succeed.
    """

    held: Mapping[str, Held] = field(default_factory=dict)
    revision: int = 0


@dataclass(frozen=True, slots=True)
class SubnetTable:
    """Reads the keys below flannel's prefix and netd's own. `known` spares it reading all of flannel's."""

    store: Store
    prefix: str
    known: Callable[[], Known] | None = None

    def key(self, subnets: Subnets) -> str:
        return subnets_prefix(self.prefix) + subnets.key

    def recent_key(self, subnets: Subnets) -> str:
        return recent_key(self.prefix, subnets)

    def held(self, since: int = 0) -> tuple[Held, ...]:
        """Every subnet's key, or only those written at revision `since` or later."""
        return self._held(since)[0]

    def _held(self, since: int) -> tuple[tuple[Held, ...], int]:
        """The keys, and the revision of the list."""
        listing = self.store.list(subnets_prefix(self.prefix), since=since)
        found = (self.read(kv) for kv in listing.items)
        return tuple(each for each in found if each is not None), listing.revision

    def all(self, who: Who, identity: NodeIdentity) -> Table:
        """Everything `choose` wants to know."""
        known = self.known() if self.known is not None else Known()
        held, revision = self._held(known.revision)
        if known.revision:
            held = tuple({**known.held, **{each.name: each for each in held}}.values())
        listed = self.store.list(recents_prefix(self.prefix)).items
        recent = {each.subnets.key: each for kv in listed if (each := self._recent(kv))}
        return Table(held, recent, self.claimed(recent.values(), who, identity), revision)

    def one(self, subnets: Subnets, who: Who, identity: NodeIdentity) -> Table:
        """The same for these subnets' own keys only."""
        result = self.store.txn([], [Get(self.key(subnets)), Get(self.recent_key(subnets))])
        held = tuple(found for kv in result.reads[0] if (found := self.read(kv)))
        recent = {each.subnets.key: each for kv in result.reads[1] if (each := self._recent(kv))}
        return Table(held, recent, self.claimed(recent.values(), who, identity))

    def claimed(self, recents: Iterable[Recent], who: Who, identity: NodeIdentity) -> frozenset[Address]:
        """Addresses, other than its own, that records of this node name and somebody else uses now."""
        wanted = {a for each in recents if who.may_be(each.node) for a in each.node.addresses} - who.addresses
        found = self.claims(sorted(wanted, key=str))
        ours = Claim(identity.node_id, identity.boot_id)
        return frozenset(address for address, (claim, _) in found.items() if claim and not claim.same_run(ours))

    def claims(self, addresses: Iterable[Address]) -> dict[Address, tuple[Claim | None, KeyValue | None]]:
        """Who uses each; (None, …) for nobody, also where it cannot be read."""
        addresses = list(addresses)
        if not addresses:
            return {}
        reads = self.store.txn([], [Get(claim_key(self.prefix, address)) for address in addresses]).reads
        found = {address: (read[0] if read else None) for address, read in zip(addresses, reads, strict=True)}
        return {address: (_claim(kv), kv) for address, kv in found.items()}

    def read(self, kv: KeyValue) -> Held | None:
        """A key below `subnets/`."""
        name = kv.key.removeprefix(subnets_prefix(self.prefix))
        return read_held(name, kv.value, revision=kv.mod_revision, created=kv.create_revision, lease=kv.lease)

    def _recent(self, kv: KeyValue) -> Recent | None:
        name = kv.key.removeprefix(recents_prefix(self.prefix))
        try:
            return Recent(Subnets.parse_key(name), RecentNode.decode(kv.value), kv.mod_revision, kv.lease)
        except ValueError as error:
            _log.debug("record not readable", key=kv.key, error=str(error))
            return None


def _claim(kv: KeyValue | None) -> Claim | None:
    if kv is None:
        return None
    try:
        return Claim.decode(kv.value)
    except ValueError as error:
        _log.debug("claim not readable", key=kv.key, error=str(error))
        return None


def learn(table: Table, found: Iterable[Held]) -> Table:
    """The table with these keys as they are now known to be."""
    held = {each.name: each for each in (*table.held, *found)}
    return Table(tuple(held.values()), table.recent, table.claimed, table.revision)
