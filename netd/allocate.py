"""Which subnet a host should lease. Pure: the random generator is passed in.

Owns: the order of preference (the lease that already names this host, then the
subnet it had before, then any free one) and what counts as free. Invariant: a
chosen subnet overlaps no key in the store, however unreadable that key's value
is. Free subnets are drawn at random, so that many hosts that start at once
seldom want the same. Source: flannel pkg/subnet/etcd/local_manager.go.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from podlane.api.network import LeaseValue, NetworkConfig, parse_subnet_key
from podlane.errors import PodlaneError

_DRAWS = 64


class OutOfSubnets(PodlaneError):
    """Every subnet of the network is leased."""


@dataclass(frozen=True, slots=True)
class Held:
    """A key below `subnets/`. `value` is None when it cannot be read; `lease` 0 makes it a reservation."""

    name: str
    subnet: IPv4Network
    value: LeaseValue | None
    revision: int
    created: int = 0
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Take:
    """Make the held key ours (again): it names our public address."""

    held: Held


@dataclass(frozen=True, slots=True)
class Create:
    """Create the key of a free subnet."""

    subnet: IPv4Network


Choice = Take | Create


def read_held(name: str, data: bytes, *, revision: int, created: int, lease: int) -> Held | None:
    """None when the name is not a subnet's, so that it cannot be in the way of one."""
    try:
        subnet, _ = parse_subnet_key(name)
    except ValueError:
        return None
    try:
        value: LeaseValue | None = LeaseValue.decode(data)
    except ValueError:
        value = None
    return Held(name, subnet, value, revision, created, lease)


def choose(
    config: NetworkConfig,
    public_ip: IPv4Address,
    held: Sequence[Held],
    previous: IPv4Network | None,
    rng: random.Random,
) -> Choice:
    """What a host with this public address should try next. Raises OutOfSubnets."""
    own = [h for h in held if h.value and h.value.public_ip == public_ip and config.allows(h.subnet)]
    if own:
        return Take(min(own, key=lambda h: (h.subnet != previous, h.created)))
    taken = _Taken(h.subnet for h in held)
    if previous is not None and config.allows(previous) and previous not in taken:
        return Create(previous)
    return Create(_draw(config, taken, rng))


def superseded(config: NetworkConfig, public_ip: IPv4Address, held: Iterable[Held]) -> list[Held]:
    """Our own leases (not reservations) that the config no longer allows: in nobody's use."""
    return [h for h in held if h.value and h.value.public_ip == public_ip and h.lease and not config.allows(h.subnet)]


class _Taken:
    """Address ranges; asks quickly whether a subnet overlaps any."""

    def __init__(self, subnets: Iterable[IPv4Network]) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        for start, end in sorted((int(s.network_address), int(s.broadcast_address)) for s in subnets):
            if self._ends and start <= self._ends[-1]:
                self._ends[-1] = max(end, self._ends[-1])
            else:
                self._starts.append(start)
                self._ends.append(end)

    def __contains__(self, subnet: IPv4Network) -> bool:
        return self.overlaps(int(subnet.network_address), int(subnet.broadcast_address))

    def overlaps(self, start: int, end: int) -> bool:
        at = bisect_right(self._starts, end) - 1
        return at >= 0 and self._ends[at] >= start


def _draw(config: NetworkConfig, taken: _Taken, rng: random.Random) -> IPv4Network:
    assert config.subnet_min is not None
    assert config.subnet_max is not None
    size = 1 << (32 - config.subnet_len)
    first = int(config.subnet_min)
    count = (int(config.subnet_max) - first) // size + 1

    def free(number: int) -> bool:
        start = first + number * size
        return not taken.overlaps(start, start + size - 1)

    drawn = (rng.randrange(count) for _ in range(_DRAWS))
    found = next((number for number in drawn if free(number)), None)
    if found is None:
        # nearly full: look at every one, from a random place on
        offset = rng.randrange(count)
        found = next((n % count for n in range(offset, offset + count) if free(n % count)), None)
    if found is None:
        raise OutOfSubnets(
            f"lease subnet: all {count} /{config.subnet_len} subnets from {config.subnet_min} "
            f"to {config.subnet_max} are taken"
        )
    return IPv4Network((first + found * size, config.subnet_len))
