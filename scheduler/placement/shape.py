"""Pods that ask for the same: one Shape, filtered and scored once for all of them.

Owns: which pods are alike, and what they ask for, read once. Invariants: pods
of one shape are interchangeable for placement, in what they want and in how
they count for others (namespace, labels, owner, spec); the `Profile` is the
part that only concerns a node by itself, so shapes of different owners share it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from podlane.api.meta import controller_of
from podlane.api.types import Container, NodeAffinity, Pod, PodAffinityTerm, Toleration, WeightedPodAffinityTerm
from scheduler.placement.demand import Demand, HostPort, demand_of, host_ports_of
from scheduler.placement.wants import Eligible, NodeTerm, Spread, Term

_encoder = msgspec.msgpack.Encoder()

Weighted = tuple[int, Term]


@dataclass(frozen=True, slots=True)
class Profile:
    """What pods ask of a node, whatever else runs there and elsewhere. `keys`: labels that it must carry."""

    demand: Demand
    ports: frozenset[HostPort]
    selector: tuple[tuple[str, str], ...]
    terms: tuple[NodeTerm, ...] | None
    preferred: tuple[tuple[int, NodeTerm], ...]
    tolerations: tuple[Toleration, ...]
    keys: tuple[str, ...]
    images: tuple[str, ...]


@dataclass(eq=False, slots=True)
class Shape:
    """`preferred` has negative weights for pods to be kept away from. `owner` is the controller's uid or ""."""

    namespace: str
    labels: dict[str, str]
    owner: str
    profile: Profile
    priority: int
    preempts: bool
    affinity: tuple[Term, ...]
    anti_affinity: tuple[Term, ...]
    preferred: tuple[Weighted, ...]
    spread: tuple[Spread, ...]
    soft_spread: tuple[Spread, ...]
    key: bytes = field(repr=False)

    @property
    def demand(self) -> Demand:
        return self.profile.demand


def key_of(pod: Pod) -> bytes:
    """Equal for pods that are alike."""
    spec = pod.spec
    owner = controller_of(pod)
    return _encoder.encode(
        (
            pod.metadata.namespace,
            pod.metadata.labels,
            owner.uid if owner else "",
            spec.node_selector,
            spec.affinity,
            spec.tolerations,
            spec.topology_spread_constraints,
            spec.priority,
            spec.preemption_policy,
            spec.host_network,
            [_asked(c) for c in spec.containers],
            [(c.restart_policy, _asked(c)) for c in spec.init_containers],
        )
    )


def _asked(container: Container) -> tuple[object, ...]:
    return container.image, container.resources, container.ports


def shape_of(pod: Pod, key: bytes) -> Shape:
    spec, namespace = pod.spec, pod.metadata.namespace
    affinity = spec.affinity
    near = affinity.pod_affinity if affinity else None
    apart = affinity.pod_anti_affinity if affinity else None
    owner = controller_of(pod)
    near_terms = _terms(near.required_during_scheduling_ignored_during_execution if near else (), namespace)
    hard = [c for c in spec.topology_spread_constraints if c.when_unsatisfiable == "DoNotSchedule"]
    soft = [c for c in spec.topology_spread_constraints if c.when_unsatisfiable == "ScheduleAnyway"]
    hard_keys = tuple(dict.fromkeys(c.topology_key for c in hard))
    soft_keys = tuple(dict.fromkeys(c.topology_key for c in soft))
    keys = dict.fromkeys((*(term.key for term in near_terms), *hard_keys))
    profile = _profile(pod, affinity.node_affinity if affinity else None, tuple(keys))

    def spread(some: list, keys: tuple[str, ...]) -> tuple[Spread, ...]:  # type: ignore[type-arg]
        return tuple(
            Spread.of(
                c,
                Eligible(
                    keys,
                    *((profile.selector, profile.terms) if c.node_affinity_policy == "Honor" else ((), None)),
                    profile.tolerations if c.node_taints_policy == "Honor" else None,
                ),
            )
            for c in some
        )

    return Shape(
        namespace=namespace,
        labels=pod.metadata.labels,
        owner=owner.uid if owner else "",
        profile=profile,
        priority=spec.priority or 0,
        preempts=spec.preemption_policy != "Never",
        affinity=near_terms,
        anti_affinity=_terms(apart.required_during_scheduling_ignored_during_execution if apart else (), namespace),
        preferred=(
            *_weighted(near.preferred_during_scheduling_ignored_during_execution if near else (), namespace, 1),
            *_weighted(apart.preferred_during_scheduling_ignored_during_execution if apart else (), namespace, -1),
        ),
        spread=spread(hard, hard_keys),
        soft_spread=spread(soft, soft_keys),
        key=key,
    )


def _profile(pod: Pod, affinity: NodeAffinity | None, keys: tuple[str, ...]) -> Profile:
    spec = pod.spec
    required = affinity.required_during_scheduling_ignored_during_execution if affinity else None
    preferred = affinity.preferred_during_scheduling_ignored_during_execution if affinity else ()
    images = (image_name(c.image) for c in (*spec.init_containers, *spec.containers))
    return Profile(
        demand=demand_of(pod),
        ports=host_ports_of(pod),
        selector=tuple(sorted(spec.node_selector.items())),
        terms=None if required is None else tuple(NodeTerm.of(term) for term in required.node_selector_terms),
        preferred=tuple((p.weight, NodeTerm.of(p.preference)) for p in preferred),
        tolerations=spec.tolerations,
        keys=keys,
        images=tuple(images),
    )


def image_name(name: str) -> str:
    """An image's name with its tag, as nodes report it."""
    return name if "@" in name or ":" in name.rsplit("/", 1)[-1] else f"{name}:latest"


def _terms(some: tuple[PodAffinityTerm, ...], namespace: str) -> tuple[Term, ...]:
    return tuple(Term.of(term, namespace) for term in some)


def _weighted(some: tuple[WeightedPodAffinityTerm, ...], namespace: str, sign: int) -> tuple[Weighted, ...]:
    return tuple((sign * w.weight, Term.of(w.pod_affinity_term, namespace)) for w in some)
