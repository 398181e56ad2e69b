"""What a node's state says against pods: its taints, and how long a pod may stay in spite of them.

Owns: which taints the control plane sets on a node, and when a NoExecute taint
ends a pod. Pure. Invariant: only the taints of `taints.SET_BY_US` are ever
set or removed here; an operator's are read and left alone. Source: Kubernetes'
node lifecycle controller (pkg/controller/nodelifecycle) and taint eviction
controller (pkg/controller/tainteviction).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from math import inf

from podlane.api import taints
from podlane.api.meta import get_condition
from podlane.api.types import Node, Taint, TaintEffect, Toleration

_BY_CONDITION = {
    "MemoryPressure": taints.MEMORY_PRESSURE,
    "DiskPressure": taints.DISK_PRESSURE,
    "PIDPressure": taints.PID_PRESSURE,
    "NetworkUnavailable": taints.NETWORK_UNAVAILABLE,
}
"""Conditions that keep new pods away while they are True."""


def trouble(ready: str | None, *, alive: bool) -> str:
    """The lifecycle taint's key that a node deserves whose Ready condition has this status; "" if it is well.

    With a heartbeat but an Unknown condition it has just come back, and is
    what its agent is about to say: unreachable until then.
    """
    if not alive or ready == "Unknown":
        return taints.UNREACHABLE
    return "" if ready == "True" else taints.NOT_READY


def wanted(node: Node, key: str, *, evicting: bool, now: datetime) -> tuple[Taint, ...]:
    """The node's taints as they should be. `key`: its trouble; `evicting`: its pods may be told to go for that."""
    mine: list[Taint] = []

    def taint(key: str, effect: TaintEffect) -> None:
        mine.append(Taint(key=key, effect=effect, time_added=now))

    if key:
        taint(key, "NoSchedule")
        if evicting:
            taint(key, "NoExecute")
    if node.spec.unschedulable:
        taint(taints.UNSCHEDULABLE, "NoSchedule")
    for kind, pressure in _BY_CONDITION.items():
        condition = get_condition(node.status.conditions, kind)
        if condition is not None and condition.status == "True":
            taint(pressure, "NoSchedule")
    return taints.with_taints(node.spec.taints, mine, taints.SET_BY_US)


def of_operator(node: Node) -> tuple[Taint, ...]:
    """The NoExecute taints that somebody else set."""
    return tuple(t for t in node.spec.taints if t.effect == "NoExecute" and t.key not in taints.SET_BY_US)


def leaves_at(tolerations: Sequence[Toleration], taint: Taint, since: float, default: float = 0.0) -> float:
    """When a pod must go for a NoExecute taint that counts from `since` (Unix seconds); inf is never.

    `default`: the seconds it may stay if none of its tolerations matches.
    """
    toleration = taints.tolerating(tolerations, taint)
    if toleration is None:
        return since + default
    return inf if toleration.toleration_seconds is None else since + max(0, toleration.toleration_seconds)


def difference(old: Sequence[Taint], new: Sequence[Taint]) -> str:
    """`+key:Effect -key:Effect`: what changes."""
    added = [f"+{taints.spelled(t)}" for t in new if not any(taints.same(t, o) for o in old)]
    removed = [f"-{taints.spelled(t)}" for t in old if not any(taints.same(t, n) for n in new)]
    return " ".join(added + removed)
