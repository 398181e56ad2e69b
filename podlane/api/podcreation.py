"""What is filled in when a pod is created, from a manifest or from a template.

Owns: what depends on the pod being one: in a template it would be wrong to
fill it in, for there it may still change. Pure. Invariant: doing it twice
changes nothing. Source: Kubernetes' registry strategy of pods
(pkg/registry/core/pod/strategy.go: PrepareForCreate) and SetDefaults_Pod.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, TypeVar

from msgspec.structs import replace

from podlane.api.podresources import QOSClass
from podlane.api.types import (
    Affinity,
    Container,
    LabelSelector,
    LabelSelectorRequirement,
    Pod,
    PodAffinity,
    PodAffinityTerm,
    PodAntiAffinity,
    PodSpec,
    TopologySpreadConstraint,
)

Terms = TypeVar("Terms", PodAffinity, PodAntiAffinity)


def completed(pod: Pod, qos: QOSClass) -> Pod:
    """Its class of service in the status; ports on the node's network; what matchLabelKeys stand for."""
    status = pod.status if pod.status.qos_class else replace(pod.status, qos_class=qos)
    return replace(pod, spec=completed_spec(pod.spec, pod.metadata.labels), status=status)


def completed_spec(spec: PodSpec, labels: Mapping[str, str]) -> PodSpec:
    """With the labels that the pod had when it was created."""
    if spec.host_network:
        spec = replace(
            spec,
            init_containers=tuple(map(_on_the_node, spec.init_containers)),
            containers=tuple(map(_on_the_node, spec.containers)),
        )
    if spec.affinity is not None and (spec.affinity.pod_affinity or spec.affinity.pod_anti_affinity):
        spec = replace(spec, affinity=_affinity(spec.affinity, labels))
    if spec.topology_spread_constraints:
        spread = tuple(_spread(constraint, labels) for constraint in spec.topology_spread_constraints)
        spec = replace(spec, topology_spread_constraints=spread)
    return spec


def _on_the_node(container: Container) -> Container:
    """In the network of its node a port of a container is the node's."""
    ports = tuple(replace(port, host_port=port.host_port or port.container_port) for port in container.ports)
    return replace(container, ports=ports)


def _affinity(affinity: Affinity, labels: Mapping[str, str]) -> Affinity:
    return replace(
        affinity,
        pod_affinity=affinity.pod_affinity and _terms(affinity.pod_affinity, labels),
        pod_anti_affinity=affinity.pod_anti_affinity and _terms(affinity.pod_anti_affinity, labels),
    )


def _terms(said: Terms, labels: Mapping[str, str]) -> Terms:
    return replace(
        said,
        required_during_scheduling_ignored_during_execution=tuple(
            _term(term, labels) for term in said.required_during_scheduling_ignored_during_execution
        ),
        preferred_during_scheduling_ignored_during_execution=tuple(
            replace(weighted, pod_affinity_term=_term(weighted.pod_affinity_term, labels))
            for weighted in said.preferred_during_scheduling_ignored_during_execution
        ),
    )


def _term(term: PodAffinityTerm, labels: Mapping[str, str]) -> PodAffinityTerm:
    selector = _with_keys(term.label_selector, term.match_label_keys, "In", labels)
    return replace(term, label_selector=_with_keys(selector, term.mismatch_label_keys, "NotIn", labels))


def _spread(constraint: TopologySpreadConstraint, labels: Mapping[str, str]) -> TopologySpreadConstraint:
    selector = _with_keys(constraint.label_selector, constraint.match_label_keys, "In", labels)
    return replace(constraint, label_selector=selector)


def _with_keys(
    selector: LabelSelector | None, keys: Iterable[str], operator: Literal["In", "NotIn"], labels: Mapping[str, str]
) -> LabelSelector | None:
    """The selector narrowed by the pod's own values of some labels; those it does not have count for nothing."""
    if selector is None:
        return None
    return replace(
        selector, match_expressions=(*selector.match_expressions, *_missing(selector, keys, operator, labels))
    )


def _missing(
    selector: LabelSelector, keys: Iterable[str], operator: Literal["In", "NotIn"], labels: Mapping[str, str]
) -> Iterator[LabelSelectorRequirement]:
    for key in keys:
        if key in labels:
            wanted = LabelSelectorRequirement(key=key, operator=operator, values=(labels[key],))
            if wanted not in selector.match_expressions:
                yield wanted
