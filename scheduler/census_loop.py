"""Counts nodes, pods and controllers by their state, for those who watch over the cluster.

Owns: the scheduler's figures about the cluster. Invariants: only the leader
shows them, so their sum over the schedulers is right, and they go with its leadership; a count
costs what has changed since the last one, not what there is. It writes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

from podlane.api.meta import is_pod_ready
from podlane.api.types import Node, Object, Pod, ReplicationController
from podlane.runtime import metrics
from scheduler.loop import Context, Loop
from scheduler.view import Changes

COUNT_SECONDS = 5.0

_NODES = metrics.gauge("podlane_nodes", "Nodes by the status of each of their conditions.", ["condition", "status"])
_CORDONED = metrics.gauge("podlane_nodes_cordoned", "Nodes that take no new pods, because an operator said so.")
_PODS = metrics.gauge("podlane_pods", "Pods by phase.", ["phase"])
_UNBOUND = metrics.gauge("podlane_pods_unscheduled", "Pods that no node was found for yet.")
_NOT_READY = metrics.gauge("podlane_pods_not_ready", "Pods that run, are not told to end, and are not ready.")
_WANTED = metrics.gauge("podlane_replicas_wanted", "Pods that all replication controllers together ask for.")
_READY = metrics.gauge("podlane_replicas_ready", "Of those that they have, how many are ready.")
_SHORT = metrics.gauge("podlane_controllers_short", "Replication controllers with fewer ready pods than they ask for.")

_O = TypeVar("_O", bound=Object)
_PHASES = ("Pending", "Running", "Succeeded", "Failed", "Unknown")


class Tally(Generic[_O]):
    """How much of what there is, kept by changes; `what` says what an object counts for, and how much."""

    def __init__(self, what: Callable[[_O], Iterable[tuple[Hashable, int]]]) -> None:
        self._what = what
        self._counted: dict[str, tuple[tuple[Hashable, int], ...]] = {}
        self.counts: Counter[Hashable] = Counter()

    def see(self, changes: Changes[_O]) -> None:
        if changes.complete:
            self._counted.clear()
            self.counts.clear()
        for key, obj in changes.objects.items():
            for kind, amount in self._counted.pop(key, ()):
                self.counts[kind] -= amount
            if obj is not None:
                self._counted[key] = counted = tuple(self._what(obj))
                for kind, amount in counted:
                    self.counts[kind] += amount


def of_node(node: Node) -> Iterable[tuple[Hashable, int]]:
    for condition in node.status.conditions:
        yield (condition.type, condition.status), 1
    if node.spec.unschedulable:
        yield "cordoned", 1


def of_pod(pod: Pod) -> Iterable[tuple[Hashable, int]]:
    phase = pod.status.phase
    yield ("phase", phase), 1
    if phase == "Pending" and not pod.spec.node_name:
        yield "unscheduled", 1
    if phase == "Running" and pod.metadata.deletion_timestamp is None and not is_pod_ready(pod):
        yield "not ready", 1


def of_controller(controller: ReplicationController) -> Iterable[tuple[Hashable, int]]:
    wanted, ready = controller.spec.replicas, controller.status.ready_replicas
    yield "wanted", wanted
    yield "ready", ready
    if ready < wanted:
        yield "short", 1


class CensusLoop(Loop):
    """Sets the gauges every few seconds."""

    name = "census"
    watches = ()
    min_interval = 1.0

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._nodes, self._pods, self._controllers = Tally(of_node), Tally(of_pod), Tally(of_controller)
        self._nodes_changed, self._pods_changed = self.snapshot.nodes.feed(), self.snapshot.pods.feed()
        self._controllers_changed = self.snapshot.controllers.feed()

    def decide(self) -> None:
        self._nodes.see(self._nodes_changed.take())
        self._pods.see(self._pods_changed.take())
        self._controllers.see(self._controllers_changed.take())
        for key, count in self._nodes.counts.items():
            if isinstance(key, tuple):
                _NODES.labels(*key).set(count)
        _CORDONED.set(self._nodes.counts["cordoned"])
        pods, controllers = self._pods.counts, self._controllers.counts
        for phase in _PHASES:
            _PODS.labels(phase).set(pods["phase", phase])
        _UNBOUND.set(pods["unscheduled"])
        _NOT_READY.set(pods["not ready"])
        _WANTED.set(controllers["wanted"])
        _READY.set(controllers["ready"])
        _SHORT.set(controllers["short"])
        self.wake_at(self.context.clock.now() + COUNT_SECONDS)


def forget() -> None:
    """Show no figures: another scheduler leads, or none."""
    for labelled in (_NODES, _PODS):
        labelled.clear()
    for gauge in (_CORDONED, _UNBOUND, _NOT_READY, _WANTED, _READY, _SHORT):
        gauge.set(0)
