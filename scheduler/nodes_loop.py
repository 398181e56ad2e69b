"""Carries out what was decided of nodes: marks them, gives up their pods, says when it does not.

Invariant: what this leader remembers of nodes begins with its leadership, so
grace periods count from what it has seen itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from podlane.api.meta import namespaced_name, set_condition, utcnow_from
from podlane.api.types import ClusterConfig, Condition, Lease, Node, Pod
from podlane.errors import NotFound, PodlaneError
from scheduler import nodes
from scheduler.loop import Context, Loop, delete_pods

CONFIG_SECONDS = 30.0


class NodesLoop(Loop):
    """Marks nodes that are gone and gives up their pods."""

    name = "nodes"
    watches = (Node, Lease, Pod)
    min_interval = 0.1

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._seen: dict[str, nodes.Seen] = {}
        self._held: tuple[str, ...] = ()
        self._config = ClusterConfig()
        self._config_read: float | None = None

    def decide(self) -> None:
        members = self.snapshot.nodes.snapshot()
        plan = nodes.plan(
            members.values(),
            self.snapshot.alive(),
            self.snapshot.pods.snapshot().values(),
            self._seen,
            now=self.context.clock.now(),
            grace=self._cluster_config().node_grace_seconds,
        )
        self._seen = dict(plan.seen)
        if not plan.empty:
            self.tell(plan.lines(), plan.sizes())
        self._tell_of_hold(plan, members)
        for name in plan.mark_unknown:
            text = "its heartbeat ended: the node, its agent or the network to it is down"
            self._mark(members[name], "Unknown", nodes.UNKNOWN_REASON, text)
        for name in plan.mark_ready:
            self._mark(members[name], "True", "HeartbeatReturned", "its heartbeat is back")
        self._evict(plan.evict)
        self.wake_at(plan.next_at)

    def _cluster_config(self) -> ClusterConfig:
        """The cluster's timing, read again now and then; the default before `podlane init`."""
        now = self.context.clock.monotonic()
        if self._config_read is None or now >= self._config_read + CONFIG_SECONDS:
            try:
                self._config = self.registry.cluster_config()
            except NotFound:
                self._config = ClusterConfig()
            self._config_read = now
        return self._config

    def _tell_of_hold(self, plan: nodes.Plan, members: dict[str, Node]) -> None:
        if plan.held and plan.held != self._held:
            text = f"{len(plan.held)} of {plan.total} nodes are gone: no pod is given up until most are back"
            self.log.error("eviction held", nodes=" ".join(plan.held), reason=text)
            for name in plan.held:
                self.context.events.event(members[name], "Warning", "EvictionHeld", text)
        elif self._held and not plan.held:
            self.log.info("eviction no longer held")
        self._held = plan.held

    def _mark(self, node: Node, status: str, reason: str, message: str) -> None:
        condition = Condition(
            type="Ready",
            status="Unknown" if status == "Unknown" else "True",
            reason=reason,
            message=message,
            last_transition_time=utcnow_from(self.context.clock.now()),
        )
        conditions = set_condition(node.status.conditions, condition)
        changed = replace(node, status=replace(node.status, conditions=conditions))
        try:
            self.snapshot.nodes.wrote(self.registry.update(changed))
        except PodlaneError as error:
            self.failed(f"update status of node {node.metadata.name}", error)
            return
        if status == "Unknown":
            self.context.events.event(node, "Warning", "NodeNotReady", message)
        else:
            self.context.events.event(node, "Normal", "NodeReady", message)

    def _evict(self, evictions: Sequence[nodes.Eviction]) -> None:
        real: set[str] = set()
        for name in sorted({eviction.node for eviction in evictions if eviction.missing}):
            try:
                if self._node_exists(name):
                    real.add(name)
            except PodlaneError as unknown:
                real.add(name)
                self.failed(f"look for node {name}", unknown)
        lost = [eviction for eviction in evictions if eviction.node not in real]
        errors = delete_pods(self.registry, self.snapshot, [eviction.pod for eviction in lost], grace_seconds=0)
        for eviction, error in zip(lost, errors, strict=True):
            if error is not None:
                self.failed(f"evict pod {namespaced_name(eviction.pod)}", error)
            else:
                self.context.events.event(eviction.pod, "Warning", "NodeLost", f"Deleted: {eviction.why}")

    def _node_exists(self, name: str) -> bool:
        try:
            self.registry.get(Node, "", name)
        except NotFound:
            return False
        return True
