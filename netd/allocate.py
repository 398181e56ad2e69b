"""Which subnets a node should lease. Pure: the random generator is passed in.

Owns: the order of preference and what counts as free. First what is the
node's already, then the subnets it had before, then those it had last by the
store's record, then any others, all of these if they are free and were nobody
else's lately; then any free ones. Invariant: chosen subnets overlap no key in the store, however unreadable
that key's value is. Free subnets are drawn at random, all with the same
chance, so that many hosts that start at once seldom want the same; the ranges
are handled by their ends, never listed, as one for IPv6 may hold 2^64 subnets.
Source: flannel pkg/subnet/etcd/local_manager.go; quarantine and node ids are ours.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Literal

from netd.records import RecentNode
from podlane.api.network import NetworkConfig
from podlane.api.subnets import Address, LeaseValue, Network, Subnets
from podlane.errors import PodlaneError

Origin = Literal["previous", "recent", "free", "quarantined"]


class OutOfSubnets(PodlaneError):
    """Every subnet of the network is leased."""


@dataclass(frozen=True, slots=True)
class Held:
    """A key below `subnets/`. `value` is None when it cannot be read; `lease` 0 makes it a reservation."""

    name: str
    subnets: Subnets
    value: LeaseValue | None
    revision: int
    created: int = 0
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Recent:
    """A key below `recent/`: whose these subnets were last."""

    subnets: Subnets
    node: RecentNode
    revision: int
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Who:
    """The node that asks. It holds the claims of these addresses, so nobody else has them."""

    node: str
    addresses: frozenset[Address]

    def may_be(self, other: RecentNode) -> bool:
        """Whether the record may be this node's: under its id, or an address of its, for a node that lost its id."""
        return other.node == self.node or bool(other.addresses & self.addresses)


@dataclass(frozen=True, slots=True)
class Table:
    """What the store says of subnets, as of `revision` or later; 0 when not all keys were looked at.

    `recent` is by the last part of the key; `claimed` are addresses that
    another node, or another boot of this one, uses now.
    """

    held: tuple[Held, ...] = ()
    recent: Mapping[str, Recent] = field(default_factory=dict)
    claimed: frozenset[Address] = frozenset()
    revision: int = 0


@dataclass(frozen=True, slots=True)
class Take:
    """Make the held key ours (again)."""

    held: Held


@dataclass(frozen=True, slots=True)
class Create:
    """Create the key of free subnets."""

    subnets: Subnets
    origin: Origin = "free"


Choice = Take | Create


def read_held(name: str, data: bytes, *, revision: int, created: int, lease: int) -> Held | None:
    """None when the name is not a subnet's, so that it cannot be in the way of one."""
    try:
        subnets = Subnets.parse_key(name)
    except ValueError:
        return None
    try:
        value: LeaseValue | None = LeaseValue.decode(data)
    except ValueError:
        value = None
    return Held(name, subnets, value, revision, created, lease)


def had_last(who: Who, recent: Recent | None, claimed: frozenset[Address]) -> bool:
    """Whether the node had these subnets last.

    Not if one of the addresses it had then is in somebody's use: then the
    record is that of the machine whose disk this one was copied from.
    """
    return recent is not None and who.may_be(recent.node) and not (recent.node.addresses - who.addresses) & claimed


def owns(who: Who, held: Held, recent: Recent | None, claimed: frozenset[Address]) -> bool:
    """Whether the key is the node's: it names one of its addresses, or one it had when it last had the subnets.

    The second is how a node whose address has changed finds its lease; that
    the address is the recorded one shows that nobody took the key since. A
    reservation for nobody (without addresses) is nobody's.
    """
    if held.value is not None:
        addresses = frozenset(held.value.addresses)
        named = bool(addresses & who.addresses)
        if not named and (not addresses or recent is None or not addresses <= recent.node.addresses):
            return False
    else:
        named = False
    # under another spelling of its name it is in the way, but no key that netd or flannel would write
    return (named or had_last(who, recent, claimed)) and held.name == held.subnets.key


def choose(config: NetworkConfig, who: Who, table: Table, previous: Subnets | None, rng: random.Random) -> Choice:
    """What the node should try next. Raises OutOfSubnets."""
    usable, _ = own_keys(config, who, table)
    if usable:
        return Take(min(usable, key=lambda held: _rank(held, who, table.recent.get(held.name), previous)))
    taken = [held.subnets for held in table.held]
    mine: list[Recent] = []
    others: list[Subnets] = []
    for each in table.recent.values():
        if had_last(who, each, table.claimed):
            mine.append(each)
        else:
            others.append(each.subnets)
    wanted: list[tuple[Subnets, Origin]] = [(previous, "previous")] if previous is not None else []
    mine.sort(key=lambda each: (each.node.node != who.node, -each.revision))
    wanted += [(each.subnets, "recent") for each in mine]
    for subnets, origin in wanted:
        if config.allows(subnets) and not any(subnets.overlaps(each) for each in (*taken, *others)):
            return Create(subnets, origin)
    return _draw(config, taken, others, rng)


def own_keys(config: NetworkConfig, who: Who, table: Table) -> tuple[list[Held], list[Held]]:
    """The node's own keys: those it can use, and those it cannot: the config forbids them or an older key overlaps."""
    own = [h for h in table.held if owns(who, h, table.recent.get(h.name), table.claimed)]
    names = {held.name for held in own}
    others = [held for held in table.held if held.name not in names] if own else []
    usable: list[Held] = []
    useless: list[Held] = []
    for held in own:
        fits = config.allows(held.subnets) and older_overlap(held, others) is None
        (usable if fits else useless).append(held)
    return usable, useless


def older_overlap(own: Held, others: Iterable[Held]) -> Held | None:
    """Another key that overlaps and was there before.

    A key's creation is atomic, but two different keys can overlap: two nodes
    that create them at once see each other only afterwards. Then the older
    stands, and both sides agree on which that is.
    """
    for each in others:
        if each.name != own.name and each.created <= own.created and each.subnets.overlaps(own.subnets):
            return each
    return None


def _rank(held: Held, who: Who, recent: Recent | None, previous: Subnets | None) -> tuple[bool, bool, bool, int]:
    """Which of several own keys: what the node had, then a reservation, then by its id, then the oldest."""
    by_id = recent is not None and recent.node.node == who.node
    return held.subnets != previous, held.lease != 0, not by_id, held.created


# ---- free ones ---------------------------------------------------------------------------------------


def _draw(
    config: NetworkConfig, taken: Sequence[Subnets], quarantined: Sequence[Subnets], rng: random.Random
) -> Create:
    origin: Origin = "free"
    found: list[Network] = []
    for space in _spaces(config):
        subnet = space.draw([*taken, *quarantined], rng)
        if subnet is None:
            subnet, origin = space.draw(taken, rng), "quarantined"
        if subnet is None:
            raise OutOfSubnets(
                f"lease subnet: all {space.count} /{space.length} subnets from {space.low} to {space.high} are taken"
            )
        found.append(subnet)
    return Create(
        Subnets(
            next((each for each in found if isinstance(each, IPv4Network)), None),
            next((each for each in found if isinstance(each, IPv6Network)), None),
        ),
        origin,
    )


def _spaces(config: NetworkConfig) -> list[_Space]:
    spaces: list[_Space] = []
    if config.subnet_min is not None and config.subnet_max is not None:
        spaces.append(_Space(config.subnet_len, config.subnet_min, config.subnet_max))
    if config.ipv6_subnet_min is not None and config.ipv6_subnet_max is not None:
        spaces.append(_Space(config.ipv6_subnet_len, config.ipv6_subnet_min, config.ipv6_subnet_max))
    return spaces


@dataclass(frozen=True, slots=True)
class _Space:
    """One family's range: subnets of one length, from `low` to `high`, numbered from 0."""

    length: int
    low: IPv4Address | IPv6Address
    high: IPv4Address | IPv6Address

    @property
    def size(self) -> int:
        return 1 << (self.low.max_prefixlen - self.length)

    @property
    def count(self) -> int:
        return (int(self.high) - int(self.low)) // self.size + 1

    def draw(self, taken: Iterable[Subnets], rng: random.Random) -> Network | None:
        """One that overlaps none of these, each with the same chance; None if there is none."""
        runs = list(self._free(self._blocked(taken)))
        total = sum(end - start for start, end in runs)
        if total == 0:
            return None
        number = rng.randrange(total)
        for start, end in runs:
            if number < end - start:
                first = int(self.low) + (start + number) * self.size
                if isinstance(self.low, IPv4Address):
                    return IPv4Network((first, self.length))
                return IPv6Network((first, self.length))
            number -= end - start
        raise AssertionError("unreachable")

    def _blocked(self, taken: Iterable[Subnets]) -> list[tuple[int, int]]:
        """First and last address of each, in order."""
        version = self.low.version
        networks = (subnets.v4 if version == 4 else subnets.v6 for subnets in taken)
        return sorted((int(n.network_address), int(n.broadcast_address)) for n in networks if n is not None)

    def _free(self, blocked: list[tuple[int, int]]) -> Iterable[tuple[int, int]]:
        """Runs of numbers [start, end) whose subnets hold none of the blocked addresses."""
        first, size, start = int(self.low), self.size, 0
        for low, high in blocked:
            end = min((low - first) // size, self.count)  # the first one that holds `low`
            if end > start:
                yield start, end
            start = max(start, (high - first) // size + 1)
        if start < self.count:
            yield start, self.count
