"""Whether a pod may be on this node at all: asked once, before anything of it is begun. Pure.

Owns: the question for the pods nobody has asked it for, those whose author set
nodeName. Invariants: what the scheduler places is counted as it counts (pods
that end still hold their room) and never refused, so neither a race with it nor
a Node that changed since costs a pod; a pod whose status tells of a node was
admitted and stays so. The taints that follow from a node's own condition are
everybody's to bear, as if Kubernetes' DefaultTolerationSeconds were there.
Source: the kubelet's predicates (pkg/kubelet/lifecycle/predicate.go), whose
order and words these are. A system-critical pod is not refused for want of
room: the kubelet would make some.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from podlane.api.meta import get_condition, is_pod_active
from podlane.api.quantity import bytes_, count, milli_cpu
from podlane.api.taints import SET_BY_US, tolerating
from podlane.api.types import Node, Pod
from scheduler.agent.eviction import SYSTEM_CRITICAL
from scheduler.placement.demand import Demand, demand_of, host_ports_of
from scheduler.placement.wants import NodeTerm

REJECTED = "Pod was rejected: "
"""What the status' message begins with; the event goes without."""

Refusal = tuple[str, str]
"""Reason and message."""


def is_new(pod: Pod) -> bool:
    """Its author bound it, and no agent has told anything of it yet."""
    status = pod.status
    begun = status.start_time is not None or status.container_statuses or status.init_container_statuses
    return is_pod_active(pod) and not begun and get_condition(status.conditions, "PodScheduled") is None


def refusal(pod: Pod, node: Node, others: Collection[Pod]) -> Refusal | None:
    """Why the pod may not be on the node beside `others`, which are all that hold room there; None if it may."""
    if (pod.spec.priority or 0) < SYSTEM_CRITICAL:
        for name, requested, used, capacity in _amounts(pod, node, others):
            if requested and used + requested > capacity:
                text = f"Node didn't have enough resource: {name}"
                return f"OutOf{name}", f"{text}, requested: {requested}, used: {used}, capacity: {capacity}"
    if not _is_wanted(pod, node):
        return _failed("NodeAffinity", "node(s) didn't match Pod's node affinity/selector")
    wanted = host_ports_of(pod)
    if wanted and any(mine.clashes(port) for other in others for port in host_ports_of(other) for mine in wanted):
        return _failed("NodePorts", "node(s) didn't have free ports for the requested pod ports")
    minded = (t for t in node.spec.taints if t.effect == "NoExecute" and t.key not in SET_BY_US)
    if any(tolerating(pod.spec.tolerations, taint) is None for taint in minded):
        return _failed("TaintToleration", "node(s) had taints that the pod didn't tolerate")
    return None


def _amounts(pod: Pod, node: Node, others: Collection[Pod]) -> Iterator[tuple[str, int, int, int]]:
    """Name, requested, used and capacity of each resource: thousandths of a CPU, bytes."""
    has, asked, used = node.status.allocatable, demand_of(pod), sum(map(demand_of, others), Demand())
    yield "pods", 1, len(others), count(has.get("pods", "0"))
    yield "cpu", asked.cpu, used.cpu, milli_cpu(has.get("cpu", "0"))
    yield "memory", asked.memory, used.memory, bytes_(has.get("memory", "0"))


def _is_wanted(pod: Pod, node: Node) -> bool:
    labels, affinity = node.metadata.labels, pod.spec.affinity
    if any(labels.get(key) != value for key, value in pod.spec.node_selector.items()):
        return False
    own = affinity.node_affinity if affinity else None
    required = own.required_during_scheduling_ignored_during_execution if own else None
    terms = required.node_selector_terms if required else ()
    return required is None or any(NodeTerm.of(term).matches(node.metadata.name, labels) for term in terms)


def _failed(predicate: str, why: str) -> Refusal:
    return predicate, f"Predicate {predicate} failed: {why}"
