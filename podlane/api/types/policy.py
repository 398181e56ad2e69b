"""Who may have how much, and who goes first: resource quotas and priority classes."""

from __future__ import annotations

from typing import ClassVar, Literal

from podlane.api.types.base import Object, Struct
from podlane.api.types.scheduling import PreemptionPolicy

QuotaScope = Literal["Terminating", "NotTerminating", "BestEffort", "NotBestEffort"]


class ResourceQuotaSpec(Struct, frozen=True, kw_only=True):
    """Quantities by resource name: pods, count/pods, requests.cpu, cpu, limits.memory, …

    `scopes` must all hold for a pod to count; Terminating are pods with activeDeadlineSeconds.
    """

    hard: dict[str, str] = {}
    scopes: tuple[QuotaScope, ...] = ()


class ResourceQuotaStatus(Struct, frozen=True, kw_only=True):
    """`used` has an entry for each of `hard`; it is raised in the transaction that creates a pod."""

    hard: dict[str, str] = {}
    used: dict[str, str] = {}


class ResourceQuota(Object, frozen=True, kw_only=True):
    KIND: ClassVar[str] = "ResourceQuota"
    spec: ResourceQuotaSpec = ResourceQuotaSpec()
    status: ResourceQuotaStatus = ResourceQuotaStatus()


class PriorityClass(Object, frozen=True, kw_only=True):
    """scheduling.k8s.io/v1. `system-node-critical` and `system-cluster-critical` are always there."""

    KIND: ClassVar[str] = "PriorityClass"
    API_VERSION: ClassVar[str] = "scheduling.k8s.io/v1"
    NAMESPACED: ClassVar[bool] = False
    value: int = 0
    global_default: bool = False
    description: str = ""
    preemption_policy: PreemptionPolicy = "PreemptLowerPriority"
