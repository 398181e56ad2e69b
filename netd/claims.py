"""The claim to a public address: one node at a time may say that packets to it reach its pods.

Owns: the keys `nodes/<address>` of this node. Invariant: a claim is only made
where there is none, or over one of the same node and boot, which is netd's own
from before a restart; a living one of anybody else is refused loudly. It hangs
on an etcd lease of a minute, so it is gone soon after its node is. Why: two
hosts with one address (Vagrant gives each of its machines 10.0.2.15) would take
each other's subnet lease for their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from netd.identity import NodeIdentity
from netd.records import Claim, claim_key
from netd.renewal import RenewedLease
from netd.table import SubnetTable
from podlane.api.subnets import Address
from podlane.errors import PodlaneError
from podlane.runtime.log import get_logger
from podlane.store.interface import Compare, Delete, KeyValue, Put

CLAIM_TTL = 60
"""Seconds a claim outlives a node that vanished."""

_RACES = 10

_log = get_logger("netd.claims")


class DuplicateAddress(PodlaneError):
    """Another node uses this host's public address, or did until a minute ago."""


@dataclass
class AddressClaims:
    """Not thread-safe. `now` is the time of day in seconds; `candidates` is what else could be chosen, for people."""

    table: SubnetTable
    lease: RenewedLease
    now: Callable[[], float]
    candidates: str = ""
    _kept: set[Address] = field(default_factory=set)

    def hold(self, identity: NodeIdentity, addresses: Iterable[Address]) -> None:
        """Claim these. A no-op when that is so already. Raises DuplicateAddress, LeaseNotFound, StoreUnavailable."""
        wanted = sorted(set(addresses), key=str)
        since = datetime.fromtimestamp(self.now(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        ours = Claim(identity.node_id, identity.boot_id, identity.host_name, since)
        for _ in range(_RACES):
            found = self.table.claims(wanted)
            for address, (claim, _) in found.items():
                if claim is not None and not claim.same_run(ours):
                    raise DuplicateAddress(self._refusal(address, claim, ours))
            lease = self.lease.ensure(adopt=next((kv.lease for claim, kv in found.values() if claim and kv), 0))
            if self._write(ours, lease, found):
                self._kept.update(wanted)
                return
        raise PodlaneError(f"claim {', '.join(map(str, wanted))}: lost {_RACES} races in a row")

    def keep_only(self, addresses: Iterable[Address]) -> None:
        """Give up what this netd claimed before and needs no more."""
        stale = self._kept - set(addresses)
        for address, (_, kv) in self.table.claims(sorted(stale, key=str)).items():
            if kv is not None and kv.lease == self.lease.id:
                self.table.store.txn([Compare.modified_at(kv.key, kv.mod_revision)], [Delete(kv.key)])
                _log.info("claim given up", address=str(address))
        self._kept -= stale

    def _write(self, ours: Claim, lease: int, found: dict[Address, tuple[Claim | None, KeyValue | None]]) -> bool:
        """Whether all claims are ours now."""
        compare: list[Compare] = []
        puts: list[Put] = []
        for address, (claim, kv) in found.items():
            if claim is not None and kv is not None and kv.lease == lease and claim.host == ours.host:
                continue
            key = claim_key(self.table.prefix, address)
            compare.append(Compare.modified_at(key, kv.mod_revision if kv is not None else 0))
            puts.append(Put(key, ours.encode(), lease))
        if not puts:
            return True
        if not self.table.store.txn(compare, puts).succeeded:
            return False
        _log.info("public address claimed", addresses=",".join(map(str, found)), node=ours.node)
        return True

    def _refusal(self, address: Address, claim: Claim, ours: Claim) -> str:
        who = f"host {claim.host or 'unknown'} uses it since {claim.since or 'an unknown time'}"
        if claim.node == ours.node:
            who += (
                f", under this host's own node id: a copy of this disk, or this host before it was rebooted, "
                f"whose claim ends within {CLAIM_TTL} s"
            )
        candidates = f" ({self.candidates})" if self.candidates else ""
        return (
            f"claim public address {address}: {who}; "
            f"choose another interface with --iface or another address with --public-ip{candidates}"
        )
