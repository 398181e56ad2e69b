"""Which leases are in force, given what the store says now and what was known before. Pure.

Owns: when a peer is withdrawn. Invariants: within one history of the store
(see podlane.store.mirror) its word counts, and what it no longer has is
withdrawn at once, for it was deleted or has expired; a lease that is missing
from a store that is not provably the one before was perhaps never deleted, so
it is kept, but not for longer than it could have lived there, and not beside a
lease of the new store that contradicts it: one that overlaps its subnets, or
has one of its public addresses or MAC addresses. A lease that comes back just
as it was contradicts nobody: both were there together before.

flanneld withdraws every peer when etcd comes back empty. Here each host
registers again, and no packet is lost meanwhile.

Costs one look at each lease per update while something is kept, and nothing
otherwise. Two subnets either lie one within the other or do not touch, so
overlaps are found by looking up networks and not by comparing all with all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from netd.desired import Lease
from podlane.api.subnets import LEASE_TTL, Address, Network

KEPT_AGE = 1 << 63
"""Added to the age of a lease that is kept: one that the store does have counts as older, and goes first."""

_Prefix = tuple[int, int]
"""A family's bits, and a prefix length."""


class KeptPeers:
    """Feed it each list of the store, in order.

    `remembered` are the leases in force before a restart, of which `kept` says
    for how many seconds those may stay so that the store did not have even
    then; both as of `age` seconds ago. `same_store`: the first list is of the
    history they are from. `ttl`: for how many seconds a lease may be kept.
    """

    def __init__(
        self,
        remembered: Mapping[str, Lease] | None = None,
        *,
        same_store: bool = False,
        kept: Mapping[str, float] | None = None,
        age: float = 0.0,
        ttl: float = LEASE_TTL,
    ) -> None:
        self._ttl = ttl
        self._known = {} if remembered is None else remembered  # perhaps not decoded yet: not to be looked at in vain
        self._history: int | None = None
        left = kept or {}
        candidates: Iterable[str] = left if same_store else self._known
        self._left = {key: min(ttl, left.get(key, ttl)) - age for key in candidates if key in self._known}
        self._kept: dict[str, Lease] = {}
        self._until: dict[str, float] = {}
        self._index = _Index()

    def update(self, leases: Mapping[str, Lease], history: int, now: float) -> Mapping[str, Lease]:
        """The leases in force when the store holds `leases`. `now`: seconds by a clock that never goes back."""
        if self._history is None:
            self._keep({key: now + left for key, left in self._left.items() if key not in leases})
            self._left.clear()
        elif history != self._history:
            self._keep({key: now + self._ttl for key in self._known if key not in leases})
        news = self._news(leases) if self._kept else []
        self._history, self._known = history, leases
        if not self._kept:
            return leases
        gone = [key for key, until in self._until.items() if until <= now or key in leases]
        for key in {*gone, *self._index.contradicted(news)} & self._kept.keys():
            del self._kept[key], self._until[key]
        return {**leases, **self._kept} if self._kept else leases

    def kept(self, now: float) -> dict[str, float]:
        """For how many seconds more each lease that the store does not have may stay in force."""
        return {key: until - now for key, until in self._until.items()}

    def _keep(self, until: Mapping[str, float]) -> None:
        self._until.update(until)
        self._kept.update((key, _younger(self._known[key])) for key in until)
        self._index = _Index.of(self._kept.values())

    def _news(self, leases: Mapping[str, Lease]) -> list[Lease]:
        """The leases that are not as they were when last in force."""
        news: list[Lease] = []
        for key, lease in leases.items():
            before = self._known.get(key)
            if before is lease:
                continue
            before = before or self._kept.get(key)
            if before is None or before.value != lease.value:
                news.append(lease)
        return news


@dataclass(frozen=True, slots=True)
class _Index:
    """Finds leases, by their keys, that others contradict. Empty lists are never there."""

    addresses: dict[Address, list[str]] = field(default_factory=dict)
    macs: dict[str, list[str]] = field(default_factory=dict)
    subnets: dict[_Prefix, dict[int, list[str]]] = field(default_factory=dict)

    @classmethod
    def of(cls, leases: Iterable[Lease]) -> _Index:
        index = cls()
        for lease in leases:
            for address in lease.value.addresses:
                index.addresses.setdefault(address, []).append(lease.key)
            for mac in _macs(lease):
                index.macs.setdefault(mac, []).append(lease.key)
            for subnet in lease.subnets:
                prefix, bits = _split(subnet)
                index.subnets.setdefault(prefix, {}).setdefault(bits, []).append(lease.key)
        return index

    def contradicted(self, news: Iterable[Lease]) -> Iterator[str]:
        """The keys of those that cannot be true beside the news; some perhaps more than once."""
        around: dict[_Prefix, set[int]] = {}
        for lease in news:
            for address in lease.value.addresses:
                yield from self.addresses.get(address, ())
            for mac in _macs(lease):
                yield from self.macs.get(mac, ())
            for subnet in lease.subnets:
                prefix, bits = _split(subnet)
                around.setdefault(prefix, set()).add(bits)
                for outer, keys in self.subnets.items():
                    if _covers(outer, prefix):
                        yield from keys.get(bits >> (prefix[1] - outer[1]), ())
        for outer, networks in around.items():
            for inner, keys in self.subnets.items():
                if outer != inner and _covers(outer, inner):
                    for bits, inside in keys.items():
                        if bits >> (inner[1] - outer[1]) in networks:
                            yield from inside


def _split(subnet: Network) -> tuple[_Prefix, int]:
    """The prefix, and the bits that it counts."""
    width = subnet.max_prefixlen
    return (width, subnet.prefixlen), int(subnet.network_address) >> (width - subnet.prefixlen)


def _covers(outer: _Prefix, inner: _Prefix) -> bool:
    """Whether a network of the one can contain one of the other."""
    return outer[0] == inner[0] and outer[1] <= inner[1]


def _macs(lease: Lease) -> set[str]:
    macs: set[str] = set()
    families: tuple[Literal[4, 6], ...] = (4, 6)
    for family in families:
        try:
            macs.add(lease.value.vtep_mac(family))
        except ValueError:
            continue  # a lease without one, which also has no entry that another could contradict
    return macs


def _younger(lease: Lease) -> Lease:
    return lease if lease.age >= KEPT_AGE else replace(lease, age=lease.age + KEPT_AGE)
