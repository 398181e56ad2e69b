"""Writes what quotas have counted.

Invariant: a quota is read before the pods that it counts, both from the store,
and written if it is still as it was read: a pod that was made in between has
raised it in the same transaction, so that its count is not lost.
"""

from __future__ import annotations

from msgspec.structs import replace

from podlane.api.meta import utcnow_from
from podlane.api.quota import counted
from podlane.api.types import Pod, ResourceQuota
from podlane.errors import PodlaneError
from scheduler.loop import Context, Loop
from scheduler.quota import Ledger

REPAIR_SECONDS = 300.0
"""Every quota is counted so often, whatever has changed: somebody may have written what is not so."""


class QuotaLoop(Loop):
    """Lowers what is used when pods end, and repairs it."""

    name = "quota"
    watches = (ResourceQuota, Pod)
    min_interval = 0.5

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._ledger = Ledger()
        self._view = self.snapshot.of_kind(ResourceQuota)
        self._quotas, self._pods = self._view.feed(), self.snapshot.pods.feed()
        self._repaired: float | None = None

    def decide(self) -> None:
        ledger, now = self._ledger, self.context.clock.now()
        ledger.see_quotas(self._quotas.take())
        ledger.see_pods(self._pods.take())
        if self._repaired is None or now >= self._repaired + REPAIR_SECONDS:
            self._repaired = now
            ledger.due |= {quota.metadata.namespace for quota in ledger.quotas.values()}
        for namespace in sorted(ledger.due):
            try:
                self._count(namespace)
                ledger.due.discard(namespace)
            except PodlaneError as error:
                self.failed(f"count quotas of namespace {namespace}", error)
        if ledger.quotas:
            self.wake_at(self._repaired + REPAIR_SECONDS)

    def _count(self, namespace: str) -> None:
        names = [key.partition("/")[2] for key in self._ledger.of(namespace)]
        if not names:
            return
        quotas = [quota for quota in self.registry.list(ResourceQuota, namespace).items if quota.metadata.name in names]
        pods = self.registry.list(Pod, namespace).items
        for quota in quotas:
            status = counted(quota, pods, utcnow_from(self.context.clock.now()))
            if status != quota.status:
                self._view.wrote(self.registry.update(replace(quota, status=status)))
                self.tell([f"count quota {namespace}/{quota.metadata.name}"], {"written": 1})
