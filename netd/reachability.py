"""Which peers answer over the overlay, and whom to ask next. Pure.

Owns: the order in which peers' VTEP addresses are probed, and which peers have
fallen silent. Invariants: a round asks at most so many addresses as it is told,
whatever the number of peers, and each peer gets its turn; of memory, only
peers that lost a probe take any. Those are asked again first, but never fill
more than half a round, so that they hold up nobody's turn.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from netd.desired import Family, Lease
from podlane.api.subnets import Address

SILENT = 3
"""Probes lost in a row that make a peer a silent one."""

NAMED = 10
"""Silent peers that are named; the others are only counted."""


class Target(NamedTuple):
    """A VTEP's address, and the key of the lease it belongs to."""

    address: Address
    key: str


@dataclass(frozen=True, slots=True)
class Silent:
    """Peers of which an address answered none of its last three probes; `peers` are some of their lease keys."""

    count: int = 0
    peers: tuple[str, ...] = ()


@dataclass
class Reachability:
    """What is known of all peers."""

    _leases: Sequence[Lease] = ()
    _families: Collection[Family] = ()
    _next: int = 0
    _lost: dict[Target, int] = field(default_factory=dict)
    _asked: set[Target] = field(default_factory=set)

    def replace(self, leases: Sequence[Lease], families: Collection[Family]) -> None:
        """Take other peers, and ask for their addresses of these families."""
        self._leases, self._families = leases, families
        self._next %= max(1, len(leases))
        if self._lost or self._asked:
            present = {target for lease in leases for target in self._targets(lease)}
            self._lost = {target: losses for target, losses in self._lost.items() if target in present}
            self._asked &= present

    def round(self, limit: int) -> list[Target]:
        """Whom to ask now; `answered` or `lost` must follow for each before the next round."""
        asked = dict.fromkeys(list(self._lost)[: limit // 2])
        for target in asked:  # to the end of the queue
            self._lost[target] = self._lost.pop(target)
        for _ in range(len(self._leases)):
            targets = self._targets(self._leases[self._next])
            new = [target for target in targets if target not in asked]
            if len(asked) + len(new) > limit:
                break
            asked.update(dict.fromkeys(new))
            self._next = (self._next + 1) % len(self._leases)
        self._asked = set(asked)
        return list(asked)

    def answered(self, target: Target) -> None:
        self._asked.discard(target)
        self._lost.pop(target, None)

    def lost(self, target: Target) -> None:
        if target in self._asked:  # and has not left meanwhile
            self._asked.discard(target)
            self._lost[target] = self._lost.get(target, 0) + 1

    def silent(self) -> Silent:
        keys = dict.fromkeys(target.key for target, losses in self._lost.items() if losses >= SILENT)
        return Silent(len(keys), tuple(sorted(keys)[:NAMED]))

    def _targets(self, lease: Lease) -> list[Target]:
        return [Target(each.network_address, lease.key) for each in lease.subnets if each.version in self._families]
