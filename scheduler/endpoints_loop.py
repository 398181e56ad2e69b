"""Carries endpoint plans out.

Invariant: only slices that differ are written. There is no minimum interval:
a pod that becomes ready waits for two round trips to the store and nothing else.
"""

from __future__ import annotations

from podlane.api.meta import namespaced_name
from podlane.api.types import (
    SERVICE_NAME_LABEL,
    EndpointSlice,
    Lease,
    Node,
    Pod,
    Service,
)
from podlane.errors import NotFound, PodlaneError
from scheduler import endpoints
from scheduler.loop import Context, Loop
from scheduler.serving import Serving


class EndpointsLoop(Loop):
    """Writes the EndpointSlices of services with selectors."""

    name = "endpoints"
    watches = (Service, Pod, EndpointSlice, Node, Lease)

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        snapshot = self.snapshot
        self._index = Serving()
        self._services, self._pods, self._slices = (
            snapshot.services.feed(),
            snapshot.pods.feed(),
            snapshot.slices.feed(),
        )
        self._nodes = (snapshot.nodes.feed(), snapshot.leases.feed())
        self._unreachable: frozenset[str] = frozenset()
        self._zones: dict[str, str] = {}
        self._failed: set[str] = set()  # services, in this sync

    def decide(self) -> None:
        self._observe()
        index = self._index
        plan = endpoints.plan(
            index.services(), index.pods(), index.slices(), unreachable=self._unreachable, zones=self._zones
        )
        self._failed = set()
        if not plan.empty:
            self._carry_out(plan)
            self.tell(plan.lines(), plan.sizes())
        # an error that was not foreseen leaves them all to be decided on once more
        index.dirty.clear()
        index.dirty |= self._failed

    def _observe(self) -> None:
        # the services first: pods that are newer than their service do no harm
        self._index.see_services(self._services.take())
        self._index.see_pods(self._pods.take())
        self._index.see_slices(self._slices.take())
        moved = [feed.take() for feed in self._nodes]
        if any(taken.objects or taken.complete for taken in moved):
            nodes = (self.snapshot.unreachable(), self.snapshot.zones())
            if nodes != (self._unreachable, self._zones):
                self._unreachable, self._zones = nodes
                self._index.all_dirty()

    def _carry_out(self, plan: endpoints.Plan) -> None:
        for item in plan.delete:
            try:
                self.registry.delete(EndpointSlice, item.metadata.namespace, item.metadata.name, uid=item.metadata.uid)
                self.snapshot.slices.deleted(item)
            except NotFound:
                self.snapshot.slices.deleted(item)
            except PodlaneError as error:
                self._note(item, f"delete endpoint slice {namespaced_name(item)}", error)
        for write, items in ((self.registry.create, plan.create), (self.registry.update, plan.update)):
            for item in items:
                try:
                    self.snapshot.slices.wrote(write(item))
                except PodlaneError as error:
                    self._note(item, f"write endpoint slice {namespaced_name(item)}", error)

    def _note(self, item: EndpointSlice, step: str, error: PodlaneError) -> None:
        self._failed.add(f"{item.metadata.namespace}/{item.metadata.labels[SERVICE_NAME_LABEL]}")
        self.failed(step, error)
