"""Resource quotas: what is used, counted anew.

Owns: which quotas must be counted, as pods and quotas change. The count itself
is podlane.api.quota's, which the admission shares; that raises `used` in the
transaction that makes a pod, so all that is left here is to lower it when pods
end, to begin it for a new quota, and to repair it. Source: Kubernetes'
pkg/controller/resourcequota (which replenishes on the end of a pod, too).
"""

from __future__ import annotations

from collections.abc import Mapping

from podlane.api.meta import is_pod_finished
from podlane.api.types import Pod, ResourceQuota
from scheduler.view import Changes


class Ledger:
    """`due`: the namespaces whose quotas must be counted; the caller empties it."""

    def __init__(self) -> None:
        self.due: set[str] = set()
        self.quotas: dict[str, ResourceQuota] = {}  # by "namespace/name"
        self._counts: dict[str, bool] = {}  # whether a pod is not finished, by its key

    def see_quotas(self, changes: Changes[ResourceQuota]) -> None:
        if changes.complete:
            self.quotas.clear()
        for key, quota in changes.objects.items():
            old = self.quotas.pop(key, None)
            if quota is not None:
                self.quotas[key] = quota
                if old is None or _asks(old) != _asks(quota):
                    self.due.add(quota.metadata.namespace)

    def see_pods(self, changes: Changes[Pod]) -> None:
        """A pod that is new has been counted by who made it; one that is finished or gone has not."""
        gone = self._counts.keys() - changes.objects.keys() if changes.complete else set()
        for key in [*gone, *changes.objects]:
            pod = changes.objects.get(key)
            was = self._counts.pop(key, None)
            if pod is not None:
                self._counts[key] = not is_pod_finished(pod)
            if was is not None and was != self._counts.get(key):
                self.due.add(key.partition("/")[0])

    def of(self, namespace: str) -> list[str]:
        """The keys of its quotas."""
        return [key for key, quota in sorted(self.quotas.items()) if quota.metadata.namespace == namespace]


def _asks(quota: ResourceQuota) -> tuple[Mapping[str, str], object, Mapping[str, str]]:
    return quota.spec.hard, quota.spec.scopes, quota.status.hard
