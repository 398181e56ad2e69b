"""Placement: which node each unassigned pod goes to, or why none will do.

Pure: objects in, a plan out. The parts, each using those before it:

| module | what it owns |
|---|---|
| model | the plan |
| demand, wants, shape | what a pod asks for; pods that ask for the same are one Shape |
| nodes | filters and scores of a node by itself |
| counts, state | the cluster, kept up to date by changes: nodes, pods, pods by domain |
| rules | affinity, anti-affinity and spread, by domain |
| board, classes | choosing for one class at a cost per pod that does not grow with the nodes |
| explain | why a class fits nowhere |
| preemption | what has to end so that a pod fits |
| planner | the order of classes, and what those that fit nowhere wait for |
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from podlane.api.meta import is_pod_active, namespaced_name
from podlane.api.types import Node, Pod
from scheduler.placement.demand import Demand, demand_of
from scheduler.placement.model import Placement, Plan, Preemption, Unplaced
from scheduler.placement.planner import Planner
from scheduler.placement.wants import Namespaces
from scheduler.view import Changes

__all__ = [
    "Demand",
    "Placement",
    "Plan",
    "Planner",
    "Preemption",
    "Unplaced",
    "demand_of",
    "is_waiting",
    "plan",
]


def is_waiting(pod: Pod) -> bool:
    """The pod wants a node."""
    return not pod.spec.node_name and is_pod_active(pod)


def plan(
    nodes: Iterable[Node], pods: Iterable[Pod], alive: Collection[str], namespaces: Namespaces | None = None
) -> Plan:
    """Decide once, from everything. `alive`: names of the nodes with a heartbeat."""
    planner = Planner()
    planner.update(
        pods=Changes({namespaced_name(pod): pod for pod in pods}, complete=True),
        nodes=Changes({node.metadata.name: node for node in nodes}, complete=True),
        alive=alive,
        namespaces=namespaces,
    )
    return planner.plan()
