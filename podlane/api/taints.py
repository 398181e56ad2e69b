"""Taints and tolerations: what a node says against pods, and which pods do not mind.

Owns: the names of the taints Podlane sets itself, and matching. Pure.
Invariant: a pod minds a taint unless one of its tolerations matches it; of
several that match one taint the first in the pod's list counts, as in
Kubernetes (component-helpers/scheduling/corev1, pkg/controller/tainteviction).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from podlane.api.types import Taint, Toleration

UNREACHABLE = "node.kubernetes.io/unreachable"
NOT_READY = "node.kubernetes.io/not-ready"
UNSCHEDULABLE = "node.kubernetes.io/unschedulable"
NETWORK_UNAVAILABLE = "node.kubernetes.io/network-unavailable"
MEMORY_PRESSURE = "node.kubernetes.io/memory-pressure"
DISK_PRESSURE = "node.kubernetes.io/disk-pressure"
PID_PRESSURE = "node.kubernetes.io/pid-pressure"

SET_BY_US = frozenset(
    {
        UNREACHABLE,
        NOT_READY,
        UNSCHEDULABLE,
        NETWORK_UNAVAILABLE,
        MEMORY_PRESSURE,
        DISK_PRESSURE,
        PID_PRESSURE,
    }
)
"""Keys that follow a node's heartbeat, conditions and spec.unschedulable; all others are the operator's."""


def tolerates(toleration: Toleration, taint: Taint) -> bool:
    if toleration.effect and toleration.effect != taint.effect:
        return False
    if toleration.key and toleration.key != taint.key:
        return False
    return toleration.operator == "Exists" or (bool(toleration.key) and toleration.value == taint.value)


def tolerating(tolerations: Iterable[Toleration], taint: Taint) -> Toleration | None:
    """The first toleration that matches the taint, or None: the pod minds it."""
    return next((toleration for toleration in tolerations if tolerates(toleration, taint)), None)


def spelled(taint: Taint) -> str:
    """`key=value:Effect`, as commands write it."""
    return f"{taint.key}={taint.value}:{taint.effect}" if taint.value else f"{taint.key}:{taint.effect}"


def same(one: Taint, other: Taint) -> bool:
    """Whether one takes the place of the other: a node has at most one of a key and effect."""
    return (one.key, one.effect) == (other.key, other.effect)


def with_taints(taints: Sequence[Taint], wanted: Sequence[Taint], keys: frozenset[str]) -> tuple[Taint, ...]:
    """`taints` with those of `keys` being exactly `wanted`; the others, and when a taint was added, stay."""
    kept = [taint for taint in taints if taint.key not in keys]
    before = {(taint.key, taint.effect): taint for taint in taints}
    kept += [before.get((taint.key, taint.effect), taint) for taint in wanted]
    # order is no information: what did not change need not be written
    return tuple(taints) if len(kept) == len(taints) and all(t in taints for t in kept) else tuple(kept)
