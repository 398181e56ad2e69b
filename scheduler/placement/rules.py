"""What the pods around a node have to say about a class of pods: affinity, anti-affinity, spread.

Owns: which Counts concern a shape, and what follows from them for one domain.
Invariant: a `Part` depends on its Counts' values alone, so a domain whose
counts did not change need not be judged again. Source: kube-scheduler's
interpodaffinity (filtering.go, scoring.go) and podtopologyspread.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from podlane.api.types import ZONE_LABEL
from scheduler.placement.counts import Carried, Count, Matching, Siblings, Spreading
from scheduler.placement.nodes import NodeState, Reason
from scheduler.placement.shape import Shape
from scheduler.placement.state import State
from scheduler.placement.wants import Spread, Term

DomainOf = Callable[[str], str | None]
"""The domain of one node for a topology key."""


class Verdict(NamedTuple):
    """How good a domain is: preferred weight (more is better), then pods in the way (fewer), then siblings.

    `siblings` are those on the node, `neighbours` those in its zone.
    """

    preferred: int
    crowd: float
    siblings: int
    neighbours: int


class Level:
    """A spread constraint's fill: how many matching pods the emptiest eligible domain has."""

    __slots__ = ("count", "counts_self", "domains", "low", "numbers", "spread")

    def __init__(self, state: State, shape: Shape, spread: Spread) -> None:
        self.spread = spread
        self.count = state.count(spread.key, Spreading(shape.namespace, spread))
        self.counts_self = spread.selects(shape.labels)
        self.domains = state.eligible_domains(spread.key, spread.eligible)
        self.recount()

    def recount(self) -> None:
        """Look at all domains. With fewer than `minDomains`, the emptiest is one that is not there yet."""
        enough = self.domains and len(self.domains) >= self.spread.min_domains
        self.numbers = Counter(self.count.at(domain) for domain in self.domains) if enough else Counter()
        self.low = min(self.numbers, default=0)

    def grew(self, domain: str | None) -> bool:
        """A pod of the class came to the domain; whether the emptiest domain has more now."""
        if not self.numbers or domain not in self.domains or not self.counts_self:
            return False
        now = self.count.at(domain)
        self.numbers[now] += 1
        self.numbers[now - 1] -= 1
        before = self.low
        while not self.numbers[self.low]:
            self.low += 1
        return self.low != before

    def too_many(self, domain: str | None) -> int:
        """By how many pods it would be above the emptiest, where that is more than allowed; else 0."""
        skew = self.count.at(domain) + self.counts_self - self.low
        return skew if skew > self.spread.max_skew else 0


@dataclass(frozen=True, slots=True)
class Part:
    """The rules of some topology keys; the rules of a class are split by key into parts."""

    near: tuple[Count, ...] = ()
    apart: tuple[tuple[Count, Term, bool], ...] = ()
    levels: tuple[Level, ...] = ()
    weights: tuple[tuple[int, Count], ...] = ()
    crowds: tuple[tuple[float, Spread, Count], ...] = ()
    siblings: tuple[Count, ...] = ()

    def counts(self) -> Iterable[Count]:
        yield from self.near
        yield from (count for count, _, _ in self.apart)
        yield from (level.count for level in self.levels)
        yield from (count for _, count in self.weights)
        yield from (count for _, _, count in self.crowds)
        yield from self.siblings

    def only(self, wanted: Callable[[str], bool]) -> Part:
        return Part(
            tuple(c for c in self.near if wanted(c.key)),
            tuple(a for a in self.apart if wanted(a[0].key)),
            tuple(level for level in self.levels if wanted(level.spread.key)),
            tuple(w for w in self.weights if wanted(w[1].key)),
            tuple(c for c in self.crowds if wanted(c[2].key)),
            tuple(c for c in self.siblings if wanted(c.key)),
        )

    def judge(self, domain: DomainOf, *, alone: bool) -> Verdict | None:
        """None where the class may not be. `alone`: it is the first of a group that wants to be near itself."""
        # loops, not generators: this is done for each domain that a placement concerns
        if not alone:
            for count in self.near:
                if not count.at(domain(count.key)):
                    return None
        for count, _, _ in self.apart:
            if count.at(domain(count.key)):
                return None
        for level in self.levels:
            if level.too_many(domain(level.spread.key)):
                return None
        preferred, crowd, siblings, neighbours = 0, 0.0, 0, 0
        for weight, count in self.weights:
            preferred += weight * count.at(domain(count.key))
        for factor, spread, count in self.crowds:
            crowd += _crowd(factor, spread, count, domain(count.key))
        for count in self.siblings:
            if count.key:
                neighbours += count.at(domain(count.key))
            else:
                siblings += count.at(domain(count.key))
        return Verdict(preferred, crowd, siblings, neighbours)


def _crowd(factor: float, spread: Spread, count: Count, domain: str | None) -> float:
    """Pods in the domain, weighted so that many small domains count as few large ones; outside all: the worst."""
    return math.inf if domain is None else factor * count.at(domain) + spread.max_skew - 1


class Rules:
    """All rules of one shape. Made for one plan: `Level`s follow what is placed by `grew` only."""

    def __init__(self, state: State, shape: Shape) -> None:
        self.shape = shape
        self._namespaces = state.namespaces
        group = Matching(shape.affinity)
        keys = dict.fromkeys(term.key for term in shape.affinity)
        self._fits_group = bool(shape.affinity) and bool(group.weight(shape, state.namespaces))
        self._group = tuple(state.count(key, group) for key in keys)
        self.all = Part(
            near=tuple(state.count(key, Matching(shape.affinity, counts_held=False)) for key in keys),
            apart=(
                *((state.count(t.key, Matching((t,))), t, True) for t in shape.anti_affinity),
                *((state.count(c.term.key, c), c.term, False) for c in self._met(state, required=True)),
            ),
            levels=tuple(Level(state, shape, spread) for spread in shape.spread),
            weights=(
                *((weight, state.count(t.key, Matching((t,)))) for weight, t in shape.preferred),
                *((1, state.count(c.term.key, c)) for c in self._met(state, required=False)),
            ),
            crowds=tuple(
                (
                    math.log(len(state.eligible_domains(spread.key, spread.eligible)) + 2),
                    spread,
                    state.count(spread.key, Spreading(shape.namespace, spread)),
                )
                for spread in shape.soft_spread
            ),
            siblings=self._siblings(state),
        )

    def _met(self, state: State, *, required: bool) -> list[Carried]:
        """Terms that pods which are there, or come with this shape, carry and that select it."""
        shape = self.shape
        own = shape.anti_affinity if required else (*(t for _, t in shape.preferred), *shape.affinity)
        met = dict.fromkeys(Carried(term, required) for term in own)
        met.update(dict.fromkeys(c for c in state.carried if c.required == required))
        return [c for c in met if c.term.selects(shape.namespace, shape.labels, self._namespaces)]

    def _siblings(self, state: State) -> tuple[Count, ...]:
        if not self.shape.owner:
            return ()
        keys = ("", ZONE_LABEL) if state.domains(ZONE_LABEL) else ("",)
        return tuple(state.count(key, Siblings(self.shape.owner)) for key in keys)

    @property
    def decisive(self) -> tuple[Count, ...]:
        """The counts on which it depends whether a node is ruled out."""
        hard = Part(near=self.all.near, apart=self.all.apart, levels=self.all.levels)
        return (*hard.counts(), *self._group)

    @property
    def alone(self) -> bool:
        """The first of its group may go anywhere: no pod anywhere matches its affinity, but it would itself."""
        return self._fits_group and not any(count.values for count in self._group)

    def grew(self, domain: DomainOf) -> set[str]:
        """One of the class was placed (and counted); the keys by which that made room in other domains."""
        return {level.spread.key for level in self.all.levels if level.grew(domain(level.spread.key))}

    def recount(self) -> None:
        """Take in that others than the class itself came or went."""
        for level in self.all.levels:
            level.recount()

    def refuses(self, node: NodeState) -> Reason | None:
        """Why the pods around rule the node out; None when they do not."""
        for level in self.all.levels:
            if too_many := level.too_many(node.domain(level.spread.key)):
                most = level.spread.max_skew
                text = f"with too many alike by {level.spread.key} (skew {too_many}, at most {most})"
                return Reason("around", text)
        if self.all.near and not self.alone:
            for count in self.all.near:
                if not count.at(node.domain(count.key)):
                    wanted = " and ".join(str(t) for t in self.shape.affinity if t.key == count.key)
                    return Reason("around", f"without pods to be near to ({wanted})")
        for count, term, own in self.all.apart:
            if count.at(node.domain(count.key)):
                whose = "with pods it must avoid" if own else "with pods that must avoid it"
                return Reason("around", f"{whose} ({term})")
        return None


def refuses(node: NodeState, shape: Shape, rules: Rules) -> Reason | None:
    """Why a pod of this shape cannot be on the node now: the first of all filters that says no."""
    return node.refuses(shape.profile) or node.lacks(shape.profile) or rules.refuses(node)
