"""Numbers of pods by topology domain, kept up to date as pods come and go.

Owns: what is counted. Invariant: a Count's values are what a walk over all pods
would find (State keeps them so); domains without such pods are absent. Why:
affinity, anti-affinity and spread of a class then cost a look-up for each
domain, and not a walk over all pods for each node.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Protocol

from scheduler.placement.nodes import NodeState, Placed
from scheduler.placement.shape import Shape
from scheduler.placement.wants import Eligible, Namespaces, Spread, Term

Token = tuple[Hashable, ...]
"""What a shape and a Selection must have in common for the one to be counted by the other."""

ANY: Token = ("any",)


class Selection(Protocol):
    """Which pods are counted, each for how much. Hashable: equal selections share a Count."""

    @property
    def counts_ending(self) -> bool:
        """Whether pods that are being deleted count."""
        ...

    @property
    def counts_held(self) -> bool:
        """Whether pods count that are not there yet, but for which room is kept."""
        ...

    @property
    def token(self) -> Token: ...

    @property
    def eligible(self) -> Eligible | None:
        """The nodes whose pods count; None: all."""
        ...

    def weight(self, shape: Shape, namespaces: Namespaces, /) -> int: ...


@dataclass(frozen=True, slots=True)
class Matching:
    """Pods that every one of the terms selects (podMatchesAllAffinityTerms).

    Who wants to be near them cannot count on those that are not there yet.
    """

    terms: tuple[Term, ...]
    counts_held: bool = True
    counts_ending = True
    eligible = None

    @property
    def token(self) -> Token:
        return _label_token(self.terms[0])

    def weight(self, shape: Shape, namespaces: Namespaces) -> int:
        return int(all(term.selects(shape.namespace, shape.labels, namespaces) for term in self.terms))


@dataclass(frozen=True, slots=True)
class Spreading:
    """Pods that a spread constraint of this namespace counts."""

    namespace: str
    spread: Spread
    counts_ending = False
    counts_held = True

    @property
    def token(self) -> Token:
        return _label_token(Term("", self.spread.selector, frozenset()))

    def weight(self, shape: Shape, _: Namespaces) -> int:
        return int(shape.namespace == self.namespace and self.spread.selects(shape.labels))

    @property
    def eligible(self) -> Eligible:
        return self.spread.eligible


@dataclass(frozen=True, slots=True)
class Siblings:
    """Pods of one controller."""

    owner: str
    counts_ending = False
    counts_held = True
    eligible = None

    @property
    def token(self) -> Token:
        return ("owner", self.owner)

    def weight(self, shape: Shape, _: Namespaces) -> int:
        return int(shape.owner == self.owner)


@dataclass(frozen=True, slots=True)
class Carried:
    """Pods that carry a term which concerns those it selects: the symmetric rules.

    Required anti-affinity counts its pods, what is preferred the sum of the weights.
    """

    term: Term
    required: bool
    counts_ending = True
    counts_held = True
    eligible = None

    @property
    def token(self) -> Token:
        return ("carries", self.required, self.term)

    def weight(self, shape: Shape, _: Namespaces) -> int:
        if self.required:
            return shape.anti_affinity.count(self.term)
        return sum(weight for weight, term in leanings(shape) if term == self.term)


def leanings(shape: Shape) -> tuple[tuple[int, Term], ...]:
    """Terms by which pods of this shape draw others near or push them away, with weights.

    Required affinity counts 1, kube-scheduler's hardPodAffinityWeight.
    """
    return (*shape.preferred, *((1, term) for term in shape.affinity))


def carried_by(shape: Shape) -> frozenset[Carried]:
    return frozenset(
        (
            *(Carried(term, required=True) for term in shape.anti_affinity),
            *(Carried(term, required=False) for _, term in leanings(shape)),
        )
    )


def tokens_of(shape: Shape) -> list[Token]:
    return [
        ANY,
        *(("label", key, value) for key, value in shape.labels.items()),
        *((("owner", shape.owner),) if shape.owner else ()),
        *(carried.token for carried in carried_by(shape)),
    ]


def _label_token(term: Term) -> Token:
    if term.selector is not None:
        for requirement in term.selector.requirements:
            if requirement.operator == "=":
                return ("label", requirement.key, requirement.values[0])
    return ANY


def counts(selection: Selection, placed: Placed) -> bool:
    """Whether a pod of a shape that is selected counts, as things are with it."""
    return (selection.counts_ending or not placed.ending) and (selection.counts_held or not placed.held)


@dataclass(eq=False, slots=True)
class Count:
    """`values` by domain of the topology key `key`; as long as `mark` is the same, so are they."""

    key: str
    selection: Selection
    values: dict[str, int] = field(default_factory=dict)
    mark: int = 0

    def add(self, node: NodeState, weight: int) -> None:
        domain, eligible = node.domain(self.key), self.selection.eligible
        if domain is None or not (eligible is None or eligible.admits(node.name, node.labels, node.taints)):
            return
        value = self.values.get(domain, 0) + weight
        if value:
            self.values[domain] = value
        else:
            del self.values[domain]
        self.mark += weight * hash(domain)  # what comes and goes again leaves none

    def at(self, domain: str | None) -> int:
        return 0 if domain is None else self.values.get(domain, 0)
