"""Carries placements out: binds pods, makes room for some, and says why where it cannot.

Owns: the order of the writes. Invariants: a bind compares the pod's revision,
so that a pod is never bound twice; a pod is nominated before its victims end,
so that a leader which dies in between has ended nobody for nothing, and their
room is kept for it; a pod that fits nowhere is tried again when something
changes that could let it fit (Planner knows), and its message is not rewritten
for every number that changes in it.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from podlane.api.meta import get_condition, namespaced_name, set_condition, utcnow_from
from podlane.api.types import Condition, Lease, Namespace, Node, Pod
from podlane.errors import NotFound, StoreUnavailable
from podlane.store.bulk import Binding, Change
from scheduler.loop import Context, Loop, delete_pods
from scheduler.placement.model import Placement, Preemption, Unplaced
from scheduler.placement.planner import Planner

RETELL_SECONDS = 5.0
"""Seconds before a pod's unschedulable message is rewritten when only its numbers changed."""

RECOUNT_SECONDS = 0.2
"""Seconds one sync may count numbers anew, for messages only; the next goes on with it."""


class PlacementLoop(Loop):
    """Binds pods to nodes, and says why where it cannot."""

    name = "placement"
    watches = (Pod, Node, Lease, Namespace)
    min_interval = 0.01

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._planner = Planner()
        self._pods = self.snapshot.pods.feed()
        self._nodes = self.snapshot.nodes.feed()
        self._leases = self.snapshot.leases.feed()
        self._namespaces = self.snapshot.of_kind(Namespace).feed()
        self._alive: set[str] = set()
        self._labels: dict[str, dict[str, str]] = {}
        self._told: dict[str, float] = {}
        self._recount_until = 0.0
        self._binding: dict[str, Pod] = {}

    def decide(self) -> None:
        self._settle()
        self._take_in()
        plan = self._planner.plan()
        if plan.bind or plan.preempt:
            self.tell((line for line in plan.lines() if not line.startswith("unschedulable")), plan.sizes())
        self._bind(plan.bind)
        told = self._explain(plan.unschedulable)
        for preemption in plan.preempt:
            if (pod := told.get(preemption.pod.metadata.uid)) is not None:
                self._make_room(pod, preemption)

    def _take_in(self) -> None:
        """Each by itself: should one mirror not be ready, what the others said is not lost."""
        self._planner.update(pods=self._pods.take())
        self._planner.update(nodes=self._nodes.take())
        if (leases := self._leases.take()).objects or leases.complete:
            self._alive = set() if leases.complete else self._alive
            for key, lease in leases.objects.items():
                (self._alive.discard if lease is None else self._alive.add)(key.rpartition("/")[2])
            self._planner.update(alive=self._alive)
        if (namespaces := self._namespaces.take()).objects or namespaces.complete:
            self._labels = {} if namespaces.complete else dict(self._labels)
            for name, namespace in namespaces.objects.items():
                if namespace is None:
                    self._labels.pop(name, None)
                else:
                    self._labels[name] = namespace.metadata.labels
            self._planner.update(namespaces=self._labels)

    # --- binding ----------------------------------------------------------------------

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

    def _bind(self, placements: Sequence[Placement]) -> None:
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

    # --- pods that fit nowhere ----------------------------------------------------------

    def _explain(self, unschedulable: Sequence[Unplaced]) -> dict[str, Pod]:
        """Write conditions and nominations, at once where they are new and seldom where only a number changed.

        Returns the pods, by uid, whose status says all of it.
        """
        told, now = self._told, self.context.clock.now()
        self._recount_until = self.context.clock.monotonic() + RECOUNT_SECONDS
        self._told = {u.pod.metadata.uid: told[u.pod.metadata.uid] for u in unschedulable if u.pod.metadata.uid in told}
        done: dict[str, Pod] = {}
        changes: list[Change[Pod]] = []
        for unplaced in unschedulable:
            changed = self._told_anew(unplaced, now)
            if changed is None:
                done[unplaced.pod.metadata.uid] = unplaced.pod
            else:
                changes.append(Change(unplaced.pod, changed))
        for change, outcome in zip(changes, self.registry.update_many(changes), strict=True):
            pod = change.new
            if isinstance(outcome, Exception):
                self.failed(f"update status of pod {namespaced_name(pod)}", outcome)
                continue
            self.snapshot.pods.wrote(outcome)
            done[pod.metadata.uid] = outcome
            if _why(pod) != _why(change.old):
                self._told[pod.metadata.uid] = now
                self.log.info("unschedulable", pod=namespaced_name(pod), why=_why(pod))
                self.context.events.event(pod, "Warning", "FailedScheduling", _why(pod))
        return done

    def _told_anew(self, unplaced: Unplaced, now: float) -> Pod | None:
        """The pod as it is to be; None to leave it as it is."""
        pod, why = unplaced.pod, unplaced.why
        nominated = pod.status.nominated_node_name != unplaced.nominated
        told = self._told.get(pod.metadata.uid)
        if unplaced.outdated or (why != _why(pod) and told is not None):
            due = now if told is None else told + RETELL_SECONDS
            if now < due or self.context.clock.monotonic() > self._recount_until:
                self.wake_at(max(due, now + RECOUNT_SECONDS))
                why = _why(pod) or why
            else:
                self._told[pod.metadata.uid] = now
                why = self._planner.explain(pod)
        if why == _why(pod) and not nominated:
            return None
        condition = Condition(
            type="PodScheduled",
            status="False",
            reason="Unschedulable",
            message=why,
            last_transition_time=utcnow_from(now),
        )
        conditions = set_condition(pod.status.conditions, condition)
        return replace(pod, status=replace(pod.status, conditions=conditions, nominated_node_name=unplaced.nominated))

    # --- preemption -----------------------------------------------------------------------

    def _make_room(self, pod: Pod, preemption: Preemption) -> None:
        """Tell the victims why, and end them with their own grace."""
        why = f"Preempted by pod {namespaced_name(pod)} on node {preemption.node}"
        condition = Condition(
            type="DisruptionTarget",
            status="True",
            reason="PreemptionByScheduler",
            message=why,
            last_transition_time=utcnow_from(self.context.clock.now()),
        )
        changes = [
            Change(v, replace(v, status=replace(v.status, conditions=set_condition(v.status.conditions, condition))))
            for v in preemption.victims
        ]
        victims: list[Pod] = []
        for change, outcome in zip(changes, self.registry.update_many(changes), strict=True):
            if isinstance(outcome, Exception):
                self.failed(f"update status of pod {namespaced_name(change.old)}", outcome)
            else:
                self.snapshot.pods.wrote(outcome)
                victims.append(outcome)
        for victim, error in zip(victims, delete_pods(self.registry, self.snapshot, victims), strict=True):
            if error is not None:
                self.failed(f"delete pod {namespaced_name(victim)}", error)
            else:
                self.context.events.event(victim, "Normal", "Preempted", why)


def _why(pod: Pod) -> str:
    """What its status says about why it fits nowhere."""
    condition = get_condition(pod.status.conditions, "PodScheduled")
    return condition.message if condition is not None and condition.status == "False" else ""
