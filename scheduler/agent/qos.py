"""Who is ended first when a node runs out of memory. Pure.

Owns: a pod's quality-of-service class, and the kernel's score that follows from
it. Source: Kubernetes' ComputePodQOS (pkg/apis/core/v1/helper/qos) and
GetContainerOOMScoreAdjust (pkg/kubelet/qos/policy.go).
"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from typing import Literal

from podlane.api import quantity
from podlane.api.types import Container, Pod

QOSClass = Literal["Guaranteed", "Burstable", "BestEffort"]

INFRA_SCORE = -998
_GUARANTEED, _BEST_EFFORT = -997, 1000


def qos_class(pod: Pod) -> QOSClass:
    containers = (*pod.spec.init_containers, *pod.spec.containers)
    requests = _sums(ct.resources.requests for ct in containers)
    limits = _sums(ct.resources.limits for ct in containers)
    if not requests and not limits:
        return "BestEffort"
    limited = all(_set(ct.resources.limits) == {"cpu", "memory"} for ct in containers)
    return "Guaranteed" if limited and requests == limits else "Burstable"


def _set(quantities: dict[str, str]) -> set[str]:
    return {name for name in ("cpu", "memory") if quantity.parse(quantities.get(name, "0"))}


def _sums(each: Iterable[dict[str, str]]) -> dict[str, Decimal]:
    sums: dict[str, Decimal] = {}
    for quantities in each:
        for name in _set(quantities):
            sums[name] = sums.get(name, Decimal(0)) + quantity.parse(quantities[name])
    return sums


def oom_score_adj(pod: Pod, container: Container, node_memory: int) -> int:
    """`node_memory` in bytes; 0: not known, and then a burstable container counts as one that asked for little."""
    match qos_class(pod):
        case "Guaranteed":
            return _GUARANTEED
        case "BestEffort":
            return _BEST_EFFORT
    asked = quantity.bytes_(container.resources.requests.get("memory", "0"))
    score = 1000 - 1000 * asked // node_memory if node_memory else 1000
    return min(999, max(1000 + _GUARANTEED, score))
