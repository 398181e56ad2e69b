"""Resource quotas: what a pod counts for, and whether it still fits.

Owns: the arithmetic that admission (podlane.store.quota) and the controller
that counts anew share. Pure. Invariant: `status.used` has an entry for each of
`spec.hard`, in canonical form, so that equal usage is equal text. Source:
Kubernetes' pkg/quota/v1/evaluator/core/pods.go and
plugin/pkg/admission/resourcequota/controller.go, whose messages these are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from decimal import Decimal

import msgspec

from podlane.api import quantity
from podlane.api.meta import is_pod_finished
from podlane.api.podresources import Amounts, limits_of, qos_class, requests_of
from podlane.api.types import Pod, PodSpec, ResourceQuota, ResourceQuotaStatus

OBJECTS = "count/pods"
"""Counts all pods there are, `pods` only those that are not finished."""


def matches(quota: ResourceQuota, pod: Pod) -> bool:
    """Whether the pod is within all scopes of the quota."""
    best_effort = "BestEffort" in quota.spec.scopes or "NotBestEffort" in quota.spec.scopes
    is_best_effort = best_effort and qos_class(pod.spec) == "BestEffort"
    ends = pod.spec.active_deadline_seconds is not None
    holds = {
        "Terminating": ends,
        "NotTerminating": not ends,
        "BestEffort": is_best_effort,
        "NotBestEffort": not is_best_effort,
    }
    return all(holds[scope] for scope in quota.spec.scopes)


def usage_of(pod: Pod) -> Amounts:
    """What a pod counts for while it is not finished, by the names that quotas use."""
    requests, limits = requests_of(pod.spec), limits_of(pod.spec)
    amounts: Amounts = {"pods": Decimal(1), OBJECTS: Decimal(1)}
    for name in ("cpu", "memory"):
        if name in requests:
            amounts[name] = amounts[f"requests.{name}"] = requests[name]
        if name in limits:
            amounts[f"limits.{name}"] = limits[name]
    return amounts


def is_over(pod: Pod, now: datetime) -> bool:
    """It counts no longer, but as an object: finished, or past its end (its node is away)."""
    ends = pod.metadata.deletion_timestamp
    grace = pod.metadata.deletion_grace_period_seconds
    return is_pod_finished(pod) or (ends is not None and grace is not None and now > ends + timedelta(seconds=grace))


def counted(quota: ResourceQuota, pods: Iterable[Pod], now: datetime) -> ResourceQuotaStatus:
    """The status that a quota should have with these pods in its namespace."""
    used: Amounts = dict.fromkeys(quota.spec.hard, Decimal(0))
    for pod in pods:
        if matches(quota, pod):
            amounts = {OBJECTS: Decimal(1)} if is_over(pod, now) else usage_of(pod)
            for name in used:
                used[name] += amounts.get(name, Decimal(0))
    return ResourceQuotaStatus(
        hard=dict(quota.spec.hard), used={name: _text(name, value) for name, value in used.items()}
    )


def is_counted(quota: ResourceQuota) -> bool:
    """Whether its usage is known for all that it limits."""
    return quota.spec.hard.keys() <= quota.status.used.keys()


def charged(quota: ResourceQuota, pod: Pod) -> ResourceQuota | str:
    """The quota (which `is_counted`) with a new pod in it, or why the pod may not be made."""
    if not matches(quota, pod):
        return quota
    name, hard = quota.metadata.name, quota.spec.hard
    if missing := _unsaid(pod.spec, hard):
        return f"failed quota: {name}: must specify {missing}"
    usage = usage_of(pod)
    asked = {resource: usage[resource] for resource in hard if usage.get(resource)}
    used = {resource: quantity.parse(quota.status.used[resource]) for resource in asked}
    over = sorted(r for r, amount in asked.items() if used[r] + amount > quantity.parse(hard[r]))
    if over:
        return (
            f"exceeded quota: {name}, requested: {_listed(over, asked)}, used: {_listed(over, used)}, "
            f"limited: {','.join(f'{resource}={hard[resource]}' for resource in over)}"
        )
    raised = {resource: _text(resource, used[resource] + amount) for resource, amount in asked.items()}
    status = msgspec.structs.replace(quota.status, hard=dict(hard), used={**quota.status.used, **raised})
    return msgspec.structs.replace(quota, status=status)


def _unsaid(spec: PodSpec, hard: Mapping[str, str]) -> str:
    """Where a resource is limited, each container has to say how much of it it needs."""
    parts: list[str] = []
    for resource in sorted(hard):
        prefix, _, name = resource.rpartition(".")
        if name not in {"cpu", "memory"}:
            continue
        silent = [
            container.name
            for container in (*spec.containers, *spec.init_containers)
            if name not in container.resources.limits
            and (prefix == "limits" or name not in container.resources.requests)
        ]
        if silent:
            parts.append(f"{resource} for: {','.join(sorted(silent))}")
    return "; ".join(parts)


def _listed(resources: Iterable[str], amounts: Amounts) -> str:
    return ",".join(f"{resource}={_text(resource, amounts[resource])}" for resource in resources)


def _text(resource: str, value: Decimal) -> str:
    if resource.endswith("cpu"):
        return quantity.format_cpu(quantity.milli_cpu(f"{value:f}"))
    return quantity.format_bytes(quantity.bytes_(f"{value:f}"))
