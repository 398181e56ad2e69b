"""What a pod says about where it wants to be: affinity, tolerations, spread."""

from __future__ import annotations

from typing import Literal

from podlane.api.types.base import LabelSelector, Struct

TaintEffect = Literal["NoSchedule", "PreferNoSchedule", "NoExecute"]
PreemptionPolicy = Literal["PreemptLowerPriority", "Never"]


class Toleration(Struct, frozen=True, kw_only=True):
    """An empty `key` with `Exists` tolerates everything, an empty `effect` every effect.

    `toleration_seconds` None is for ever, 0 or less not at all.
    """

    key: str = ""
    operator: Literal["Equal", "Exists"] = "Equal"
    value: str = ""
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = ""
    toleration_seconds: int | None = None


class NodeSelectorRequirement(Struct, frozen=True, kw_only=True):
    """`Gt` and `Lt` compare integers and have one value."""

    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]
    values: tuple[str, ...] = ()


class NodeSelectorTerm(Struct, frozen=True, kw_only=True):
    """All of it must hold; an empty one holds for no node. `match_fields` knows `metadata.name` only."""

    match_expressions: tuple[NodeSelectorRequirement, ...] = ()
    match_fields: tuple[NodeSelectorRequirement, ...] = ()


class NodeSelector(Struct, frozen=True, kw_only=True):
    """One of the terms must hold."""

    node_selector_terms: tuple[NodeSelectorTerm, ...] = ()


class PreferredSchedulingTerm(Struct, frozen=True, kw_only=True):
    """`weight` is 1 to 100; an empty `preference` matches no node."""

    weight: int
    preference: NodeSelectorTerm = NodeSelectorTerm()


class NodeAffinity(Struct, frozen=True, kw_only=True):
    required_during_scheduling_ignored_during_execution: NodeSelector | None = None
    preferred_during_scheduling_ignored_during_execution: tuple[PreferredSchedulingTerm, ...] = ()


class PodAffinityTerm(Struct, frozen=True, kw_only=True):
    """Pods that `label_selector` selects, in `namespaces` and those that `namespace_selector` selects.

    Neither named: the pod's own namespace. `match_label_keys` and
    `mismatch_label_keys` have been made part of `label_selector` when the pod
    was created.
    """

    topology_key: str
    label_selector: LabelSelector | None = None
    namespaces: tuple[str, ...] = ()
    namespace_selector: LabelSelector | None = None
    match_label_keys: tuple[str, ...] = ()
    mismatch_label_keys: tuple[str, ...] = ()


class WeightedPodAffinityTerm(Struct, frozen=True, kw_only=True):
    """`weight` is 1 to 100."""

    weight: int
    pod_affinity_term: PodAffinityTerm


class PodAffinity(Struct, frozen=True, kw_only=True):
    required_during_scheduling_ignored_during_execution: tuple[PodAffinityTerm, ...] = ()
    preferred_during_scheduling_ignored_during_execution: tuple[WeightedPodAffinityTerm, ...] = ()


class PodAntiAffinity(Struct, frozen=True, kw_only=True):
    required_during_scheduling_ignored_during_execution: tuple[PodAffinityTerm, ...] = ()
    preferred_during_scheduling_ignored_during_execution: tuple[WeightedPodAffinityTerm, ...] = ()


class Affinity(Struct, frozen=True, kw_only=True):
    node_affinity: NodeAffinity | None = None
    pod_affinity: PodAffinity | None = None
    pod_anti_affinity: PodAntiAffinity | None = None


class TopologySpreadConstraint(Struct, frozen=True, kw_only=True):
    """`min_domains` None is 1; `match_label_keys` has been made part of `label_selector` when the pod was created."""

    max_skew: int
    topology_key: str
    when_unsatisfiable: Literal["DoNotSchedule", "ScheduleAnyway"]
    label_selector: LabelSelector | None = None
    min_domains: int | None = None
    match_label_keys: tuple[str, ...] = ()
    node_affinity_policy: Literal["Honor", "Ignore"] = "Honor"
    node_taints_policy: Literal["Honor", "Ignore"] = "Ignore"
