"""Carries placements out: binds pods, and says why where it cannot.

Invariant: a bind compares the pod's revision, so that a pod is never bound
twice; a pod that fits nowhere is tried again when pods, nodes or heartbeats
change, and not in a loop, and its message is not rewritten for every number
that changes in it.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from podlane.api.meta import get_condition, namespaced_name, set_condition, utcnow_from
from podlane.api.types import Condition, Lease, Node, Pod
from podlane.errors import NotFound, PodlaneError, StoreUnavailable
from podlane.store.bulk import Binding
from scheduler import placement
from scheduler.loop import Context, Loop

RETELL_SECONDS = 5.0
"""Seconds before a pod's unschedulable message is rewritten when only its numbers changed."""


class PlacementLoop(Loop):
    """Binds pods to nodes, and says why where it cannot."""

    name = "placement"
    watches = (Pod, Node, Lease)
    min_interval = 0.01

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._told: dict[str, float] = {}
        self._binding: dict[str, Pod] = {}

    def decide(self) -> None:
        self._settle()
        plan = placement.plan(
            self.snapshot.nodes.snapshot().values(),
            self.snapshot.pods.snapshot().values(),
            self.snapshot.alive(),
        )
        if plan.bind:
            self.tell((line for line in plan.lines() if line.startswith("bind")), plan.sizes())
            self._bind(plan.bind)
        waiting = {unplaced.pod.metadata.uid for unplaced in plan.unschedulable}
        self._told = {uid: moment for uid, moment in self._told.items() if uid in waiting}
        for unplaced in plan.unschedulable:
            self._explain(unplaced)

    def _settle(self) -> None:
        """Look how the bindings ended whose answer was lost. Should one still be on its way, it and a new
        attempt compare the same revision, so that only one of them can be carried out.
        """
        for key, pod in list(self._binding.items()):
            try:
                self.snapshot.pods.wrote(self.registry.get(Pod, pod.metadata.namespace, pod.metadata.name))
            except NotFound:
                self.snapshot.pods.deleted(pod)
            del self._binding[key]

    def _bind(self, placements: Sequence[placement.Placement]) -> None:
        bindings = [
            Binding(p.pod.metadata.namespace, p.pod.metadata.name, p.node, p.pod.metadata.resource_version, p.pod)
            for p in placements
        ]
        for placed, error in zip(placements, self.registry.bind(bindings), strict=True):
            pod = placed.pod
            if isinstance(error, StoreUnavailable):
                self._binding[namespaced_name(pod)] = pod
            if error is not None:
                self.failed(f"bind pod {namespaced_name(pod)} to {placed.node}", error)
            else:
                self.snapshot.pods.assumed(replace(pod, spec=replace(pod.spec, node_name=placed.node)))
                text = f"Successfully assigned {namespaced_name(pod)} to {placed.node}"
                self.context.events.event(pod, "Normal", "Scheduled", text)

    def _explain(self, unplaced: placement.Unplaced) -> None:
        """Write the PodScheduled condition, at once when it is new and seldom when only a number in it changed."""
        pod, now = unplaced.pod, self.context.clock.now()
        old = get_condition(pod.status.conditions, "PodScheduled")
        if old is not None and old.status == "False" and old.message == unplaced.why:
            return
        told = self._told.get(pod.metadata.uid)
        if told is not None and now < told + RETELL_SECONDS:
            self.wake_at(told + RETELL_SECONDS)
            return
        condition = Condition(
            type="PodScheduled",
            status="False",
            reason="Unschedulable",
            message=unplaced.why,
            last_transition_time=utcnow_from(now),
        )
        conditions = set_condition(pod.status.conditions, condition)
        try:
            changed = replace(pod, status=replace(pod.status, conditions=conditions))
            self.snapshot.pods.wrote(self.registry.update(changed))
        except PodlaneError as error:
            self.failed(f"update status of pod {namespaced_name(pod)}", error)
            return
        self._told[pod.metadata.uid] = now
        self.log.info("unschedulable", pod=namespaced_name(pod), why=unplaced.why)
        self.context.events.event(pod, "Warning", "FailedScheduling", unplaced.why)
