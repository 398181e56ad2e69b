"""Carries endpoint plans out.

Invariants: only slices that differ are written; nothing is looked at when only
pods changed that have no address yet. There is no minimum interval: a pod that
becomes ready waits for two round trips to the store and nothing else, but where
there are so many that a look takes long, for as long as that.
"""

from __future__ import annotations

from typing import Any

from podlane.api.meta import namespaced_name
from podlane.api.types import (
    EndpointSlice,
    Lease,
    Node,
    Pod,
    Service,
)
from podlane.errors import NotFound, PodlaneError
from scheduler import endpoints
from scheduler.loop import Context, Loop
from scheduler.view import Changes


class EndpointsLoop(Loop):
    """Writes the EndpointSlices of services with selectors."""

    name = "endpoints"
    watches = (Service, Pod, EndpointSlice, Node, Lease)
    rest = 1.0

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        # the services first: pods that are newer than their service do no harm
        self._feeds = [self.snapshot.of_kind(cls).feed() for cls in (Service, EndpointSlice)]
        self._of_nodes = [self.snapshot.of_kind(cls).feed() for cls in (Node, Lease)]
        self._changes = self.snapshot.pods.feed()
        self._pods: dict[str, Pod] = {}
        self._unreachable: frozenset[str] = frozenset()
        self._zones: dict[str, str] = {}
        self._due = True

    def decide(self) -> None:
        for feed in self._feeds:
            self._due |= _news(feed.take())
        if sum(_news(feed.take()) for feed in self._of_nodes):  # each is to be taken
            self._due = True
            self._unreachable, self._zones = self.snapshot.unreachable(), self.snapshot.zones()
        self._observe_pods()
        if self._due:
            self._write()
            self._due = bool(self._failures)

    def _observe_pods(self) -> None:
        """Take in the pods that have an address: the others are nobody's endpoints, and thousands may be waiting."""
        changes = self._changes.take()
        if changes.complete:
            self._pods.clear()
            self._due = True
        for key, pod in changes.objects.items():
            before = self._pods.pop(key, None)
            if pod is not None and pod.status.pod_ip:
                self._pods[key] = pod
            self._due = self._due or before is not None or key in self._pods

    def _write(self) -> None:
        plan = endpoints.plan(
            self.snapshot.services.snapshot().values(),
            self._pods.values(),
            self.snapshot.slices.snapshot().values(),
            unreachable=self._unreachable,
            zones=self._zones,
        )
        if plan.empty:
            return
        for item in plan.delete:
            try:
                self.registry.delete(EndpointSlice, item.metadata.namespace, item.metadata.name, uid=item.metadata.uid)
                self.snapshot.slices.deleted(item)
            except NotFound:
                self.snapshot.slices.deleted(item)
            except PodlaneError as error:
                self.failed(f"delete endpoint slice {namespaced_name(item)}", error)
        for write, items in ((self.registry.create, plan.create), (self.registry.update, plan.update)):
            for item in items:
                try:
                    self.snapshot.slices.wrote(write(item))
                except PodlaneError as error:
                    self.failed(f"write endpoint slice {namespaced_name(item)}", error)
        self.tell(plan.lines(), plan.sizes())


def _news(changes: Changes[Any]) -> bool:
    return changes.complete or bool(changes.objects)
