"""Which peers pod packets reach without encapsulation: what `DirectRouting: "auto"` believes. Pure.

Owns: when each peer on the own segment is probed, and what its answers make of
its path. Invariants: a path is direct only after `ANSWERS` answers in a row,
and no longer after `LOSSES` losses in a row; a path that comes and goes is
tried ever less often; however many there are, probes stay below `Timing.rate`
and `Timing.tries` a second. The time is passed in, in seconds on a monotonic
clock.

A probe proves one direction, ours: a route decides over nothing but what this
host sends. The other direction is the peer's own to prove.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from netd.desired import Family, Lease, Underlay
from podlane.api.subnets import Address, Subnets

ANSWERS = 3
LOSSES = 3
_AT_ONCE = 512  # probes of direct paths that `due` gives at most: many together leave in several bursts
_CATCH_UP = 0.2  # seconds of missed tries that are made up for


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds, but for `rate` and `tries`.

    interval  between two probes of a direct path
    confirm   between two probes of a path that has begun to answer
    timeout   until a probe counts as lost; a direct path is then probed again at once
    pause     before a path that does not answer is tried again, doubling up to `longest_pause`
    hold      before a path that was direct is tried again; doubles up to `longest_hold` with
              each time that it failed before it had been direct for `stable`
    rate      probes a second for all direct paths together: with more than `rate * interval`
              of them, the interval grows
    tries     probes a second for all paths that do not answer (yet): each may fill a place in
              the neighbour tables of two hosts, which hold 1,024 by default
    gains, losses  at least, between two announcements of paths that became direct, and of ones that were lost
    """

    interval: float = 1.0
    confirm: float = 1.0
    timeout: float = 0.5
    pause: float = 10.0
    longest_pause: float = 60.0
    hold: float = 10.0
    longest_hold: float = 3600.0
    stable: float = 60.0
    rate: float = 300.0
    tries: float = 50.0
    gains: float = 1.0
    losses: float = 0.2


@dataclass(slots=True, eq=False)
class Path:
    """The way to one peer: to its VTEP's address, in frames for the interface that has `gateway`."""

    gateway: Address
    vtep: Address
    pause: float
    hold: float
    direct: bool = False
    answers: int = 0
    losses: int = 0
    since: float = 0.0
    asked: float = 0.0
    due: float = math.inf
    gone: bool = False


def candidates(own: Subnets, leases: Iterable[Lease], underlay: Underlay) -> dict[Address, Address]:
    """The peers' public addresses in the underlay's own subnet, and the VTEP address behind each.

    An address that two leases claim is none: an answer could come from either.
    """
    pairs = list(_pairs(own, leases, underlay))
    claims = Counter(gateway for gateway, _ in pairs)
    return {gateway: vtep for gateway, vtep in pairs if claims[gateway] == 1}


def _pairs(own: Subnets, leases: Iterable[Lease], underlay: Underlay) -> Iterator[tuple[Address, Address]]:
    families: list[Family] = [4 if subnet.version == 4 else 6 for subnet in own]
    for lease in leases:
        if lease.subnets == own:
            continue
        for family in families:
            local = underlay.local(family)
            subnet = lease.subnets.v4 if family == 4 else lease.subnets.v6
            gateway = lease.value.public_ip if family == 4 else lease.value.public_ipv6
            if local is None or subnet is None or gateway is None or gateway == local.ip:
                continue
            if gateway in local.network:
                yield gateway, subnet.network_address


class DirectPaths:
    """The paths to all candidates. `direct` are the public addresses proved good, as last announced."""

    def __init__(self, timing: Timing | None = None) -> None:
        self.direct: frozenset[Address] = frozenset()
        self._timing = timing or Timing()
        self._paths: dict[Address, Path] = {}
        self._proved: set[Address] = set()
        self._schedule = _Schedule()  # of those that answer
        self._tries = _Schedule()  # and of all others
        self._next_try = -math.inf
        self._announced = -math.inf
        self._alarmed = -math.inf

    def __len__(self) -> int:
        return len(self._paths)

    def replace(self, wanted: Mapping[Address, Address], now: float) -> None:
        """Take other candidates (see `candidates`). What is known of those that stay the same stays."""
        for gateway, path in list(self._paths.items()):
            if wanted.get(gateway) != path.vtep:
                path.gone = True
                self._proved.discard(gateway)
                del self._paths[gateway]
        new = [pair for pair in wanted.items() if pair[0] not in self._paths]
        for gateway, vtep in new:
            path = self._paths[gateway] = Path(gateway, vtep, self._timing.pause, self._timing.hold)
            self._plan(path, now)

    def next_due(self) -> float:
        """When `due` will have something; infinite when nothing is planned."""
        return min(self._schedule.first(), max(self._tries.first(), self._next_try))

    def due(self, now: float) -> list[Path]:
        """The paths to probe now, which count as asked: `answered` or `lost` must follow for each."""
        paths: list[Path] = []
        while len(paths) < _AT_ONCE and self._schedule.first() <= now:
            paths.append(self._schedule.take())
        while self._next_try <= now and self._tries.first() <= now:
            paths.append(self._tries.take())
            self._next_try = max(self._next_try, now - _CATCH_UP) + 1 / self._timing.tries
        for path in paths:
            path.due, path.asked = math.inf, now
        return paths

    def answered(self, path: Path, now: float) -> None:
        if path.gone:
            return
        path.losses = 0
        path.answers += 1
        if not path.direct and path.answers < ANSWERS:
            self._plan(path, max(now, path.asked + self._timing.confirm))
            return
        if not path.direct:
            path.direct, path.since, path.pause = True, now, self._timing.pause
            self._proved.add(path.gateway)
        elif now - path.since >= self._timing.stable:
            path.hold = self._timing.hold
        interval = max(self._timing.interval, len(self._proved) / self._timing.rate)
        self._plan(path, max(now, path.asked + interval))

    def lost(self, path: Path, now: float) -> None:
        """No answer came in time, or the probe could not even be sent."""
        if path.gone:
            return
        path.answers = 0
        path.losses += 1
        if not path.direct:
            self._plan(path, now + path.pause)
            path.pause = min(2 * path.pause, self._timing.longest_pause)
        elif path.losses < LOSSES:
            self._plan(path, now)
            if path.losses == LOSSES - 1:
                self._alarm(now)
        else:
            path.direct = False
            self._proved.discard(path.gateway)
            self._plan(path, now + path.hold)
            path.hold = min(2 * path.hold, self._timing.longest_hold)

    def announce(self, now: float) -> bool:
        """Bring `direct` up to date, unless that is better done later (see `Timing`); say whether it changed."""
        if self._proved == self.direct:
            return False
        wait = self._timing.gains if self.direct <= self._proved else self._timing.losses
        if now < self._announced + wait:
            return False
        self.direct = frozenset(self._proved)
        self._announced = now
        return True

    def _alarm(self, now: float) -> None:
        """Probe all direct paths at once: what broke one may have broken all, and their turn may be far off."""
        if now < self._alarmed + self._timing.interval:
            return
        self._alarmed = now
        for gateway in self._proved:
            path = self._paths[gateway]
            if now < path.due < math.inf:
                self._plan(path, now)

    def _plan(self, path: Path, at: float) -> None:
        (self._schedule if path.direct or path.answers else self._tries).put(path, at)


class _Schedule:
    """Paths in the order in which they are due. One that is put again, or has gone, is not there any more."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Path]] = []
        self._serial = itertools.count()

    def put(self, path: Path, at: float) -> None:
        path.due = at
        heapq.heappush(self._heap, (at, next(self._serial), path))

    def first(self) -> float:
        """When the first is due; infinite when there is none."""
        while self._heap and (self._heap[0][2].gone or self._heap[0][2].due != self._heap[0][0]):
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else math.inf

    def take(self) -> Path:
        return heapq.heappop(self._heap)[2]
