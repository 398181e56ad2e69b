"""Carries endpoint plans out.

Invariant: only slices that differ are written. There is no minimum interval:
a pod that becomes ready waits for two round trips to the store and nothing else.
"""

from __future__ import annotations

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
from scheduler.loop import Loop


class EndpointsLoop(Loop):
    """Writes the EndpointSlices of services with selectors."""

    name = "endpoints"
    watches = (Service, Pod, EndpointSlice, Node, Lease)

    def decide(self) -> None:
        # the services first: pods that are newer than their service do no harm
        services = self.snapshot.services.snapshot().values()
        plan = endpoints.plan(
            services,
            self.snapshot.pods.snapshot().values(),
            self.snapshot.slices.snapshot().values(),
            unreachable=self.snapshot.unreachable(),
            zones=self.snapshot.zones(),
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
