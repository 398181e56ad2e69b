"""What a pod wants of nodes and of the pods around it, in the form in which it is looked up.

Owns: reading affinity, tolerations and topology spread. Everything here is
immutable and hashable, so that equal wishes of different pods are one key.
Source: component-helpers/scheduling (corev1, nodeaffinity), the interpodaffinity
and podtopologyspread plugins of kube-scheduler.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from podlane.api.selectors import Operator, Requirement, Selector
from podlane.api.types import (
    LabelSelector,
    NodeSelectorRequirement,
    NodeSelectorTerm,
    PodAffinityTerm,
    Taint,
    Toleration,
    TopologySpreadConstraint,
)

NAMESPACE_NAME_LABEL = "kubernetes.io/metadata.name"  # on every namespace without being stored

Namespaces = Mapping[str, Mapping[str, str]]
"""The labels of each namespace."""

_OPERATORS: dict[str, Operator] = {
    "In": "in",
    "NotIn": "notin",
    "Exists": "exists",
    "DoesNotExist": "!",
    "Gt": ">",
    "Lt": "<",
}


def label_selector(selector: LabelSelector) -> Selector:
    equal = (Requirement(key, "=", (value,)) for key, value in sorted(selector.match_labels.items()))
    rest = (Requirement(e.key, _OPERATORS[e.operator], e.values) for e in selector.match_expressions)
    return Selector((*equal, *rest))


@dataclass(frozen=True, slots=True)
class NodeTerm:
    """Requirements of a node's labels and of its name, which must all hold; an empty one holds for no node."""

    labels: Selector
    fields: Selector

    @classmethod
    def of(cls, term: NodeSelectorTerm) -> NodeTerm:
        return cls(_requirements(term.match_expressions), _requirements(term.match_fields))

    def matches(self, name: str, labels: Mapping[str, str]) -> bool:
        if not (self.labels.requirements or self.fields.requirements):
            return False
        return self.labels.matches(labels) and self.fields.matches({"metadata.name": name})

    def __str__(self) -> str:
        return ",".join(str(part) for part in (self.labels, self.fields) if part.requirements)


def _requirements(some: Iterable[NodeSelectorRequirement]) -> Selector:
    return Selector(tuple(Requirement(r.key, _OPERATORS[r.operator], r.values) for r in some))


def tolerates(tolerations: Iterable[Toleration], taint: Taint) -> bool:
    return any(
        t.effect in {"", taint.effect}
        and (t.key == taint.key or (not t.key and t.operator == "Exists"))
        and (t.operator == "Exists" or t.value == taint.value)
        for t in tolerations
    )


@dataclass(frozen=True, slots=True)
class Term:
    """Pods of some namespaces that a selector selects (None: none), around a node in the sense of `key`."""

    key: str
    selector: Selector | None
    namespaces: frozenset[str]
    namespace_selector: Selector | None = None

    @classmethod
    def of(cls, term: PodAffinityTerm, namespace: str) -> Term:
        own = not term.namespaces and term.namespace_selector is None
        return cls(
            term.topology_key,
            None if term.label_selector is None else label_selector(term.label_selector),
            frozenset((namespace,) if own else term.namespaces),
            None if term.namespace_selector is None else label_selector(term.namespace_selector),
        )

    def selects(self, namespace: str, labels: Mapping[str, str], namespaces: Namespaces) -> bool:
        return (
            self.selector is not None
            and (namespace in self.namespaces or self._selects_namespace(namespace, namespaces))
            and self.selector.matches(labels)
        )

    def _selects_namespace(self, namespace: str, namespaces: Namespaces) -> bool:
        if self.namespace_selector is None:
            return False
        labels = {NAMESPACE_NAME_LABEL: namespace, **namespaces.get(namespace, {})}
        return self.namespace_selector.matches(labels)

    def __str__(self) -> str:
        what = "nothing" if self.selector is None else str(self.selector) or "any pod"
        return f"{what} by {self.key}"


@dataclass(frozen=True, slots=True)
class Eligible:
    """The nodes whose pods and domains count for a spread constraint; `tolerated` None: whatever their taints."""

    keys: tuple[str, ...]
    selector: tuple[tuple[str, str], ...] = ()
    terms: tuple[NodeTerm, ...] | None = None
    tolerated: tuple[Toleration, ...] | None = None

    def admits(self, name: str, labels: Mapping[str, str], taints: Iterable[Taint]) -> bool:
        return (
            all(key in labels for key in self.keys)
            and all(labels.get(key) == value for key, value in self.selector)
            and (self.terms is None or any(term.matches(name, labels) for term in self.terms))
            and (
                self.tolerated is None
                or all(taint.effect == "PreferNoSchedule" or tolerates(self.tolerated, taint) for taint in taints)
            )
        )


@dataclass(frozen=True, slots=True)
class Spread:
    """At most `max_skew` more matching pods in one domain than in the emptiest eligible one."""

    key: str
    max_skew: int
    selector: Selector | None
    min_domains: int
    eligible: Eligible

    @classmethod
    def of(cls, constraint: TopologySpreadConstraint, eligible: Eligible) -> Spread:
        return cls(
            constraint.topology_key,
            constraint.max_skew,
            None if constraint.label_selector is None else label_selector(constraint.label_selector),
            constraint.min_domains or 1,
            eligible,
        )

    def selects(self, labels: Mapping[str, str]) -> bool:
        return self.selector is not None and self.selector.matches(labels)
