"""Carries out what was decided of nodes: marks and taints them, marks and gives up their pods, says what happens.

Invariant: what this leader remembers of nodes begins with its leadership, so
grace periods count from what it has seen itself.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from math import inf

from msgspec.structs import replace

from podlane.api.meta import get_condition, namespaced_name, set_condition, utcnow_from
from podlane.api.types import ClusterConfig, Condition, ConditionStatus, Lease, Node, Pod
from podlane.errors import NotFound, PodlaneError
from podlane.store.bulk import Change
from scheduler import nodes
from scheduler.loop import Context, Loop, delete_pods
from scheduler.nodeseen import Seen, ready_condition, without_mark

CONFIG_SECONDS = 30.0
GONE = "its heartbeat ended: the node, its agent or the network to it is down"
SILENT = "its heartbeat is kept, but its agent writes it no more: the agent hangs, or somebody else keeps it"
BACK = "its heartbeat is back"
NOT_READY = "Node is not ready"

_BY_AGENT = ("Ready", "MemoryPressure", "DiskPressure", "PIDPressure")
"""Conditions that nobody knows of while the agent is silent."""


class NodesLoop(Loop):
    """Marks and taints nodes, and gives up pods that may not stay where they are."""

    name = "nodes"
    watches = (Node, Lease, Pod)
    min_interval = 0.1
    rest = 4.0

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._seen: dict[str, Seen] = {}
        self._held: tuple[str, ...] = ()
        self._config = ClusterConfig()
        self._config_read: float | None = None
        self._nodes_changed, self._leases_changed = self.snapshot.nodes.feed(), self.snapshot.leases.feed()
        self._pods_changed = self.snapshot.pods.feed()
        self._undone = True
        self._due = inf
        self._pods: dict[str, Pod] = {}
        self._by_node: dict[str, dict[str, Pod]] = defaultdict(dict)

    def decide(self) -> None:
        concerned = self._observe()
        if not (concerned or self._undone or self.context.clock.now() >= self._due):
            # pods come and go all the time, and hardly ever where that matters here
            self.wake_at(self._due if self._due < inf else None)
            return
        self._undone = True
        members = self.snapshot.nodes.snapshot()
        config = self._cluster_config()
        plan = nodes.plan(
            members.values(),
            self.snapshot.alive(),
            {name: pods.values() for name, pods in self._by_node.items()},
            self._seen,
            now=self.context.clock.now(),
            patience=nodes.Patience(
                grace=config.node_grace_seconds,
                not_ready=config.node_not_ready_seconds,
                share=config.node_eviction_share,
                recovery=config.node_lease_seconds,
            ),
        )
        self._seen = dict(plan.seen)
        if not plan.empty:
            self.tell(plan.lines(), plan.sizes())
        self._tell_of_nodes(plan, members)
        self._tell_of_hold(plan, members)
        self._write_nodes(plan, members)
        self._evict(plan.evict)
        self._mark_pods(plan.unready)
        self._undone = bool(self._failures)
        self._due = inf if plan.next_at is None else plan.next_at
        self.wake_at(plan.next_at)

    def _observe(self) -> bool:
        """Take in what changed; pods are told apart by their node. Returns whether any of it can change the plan."""
        seen = [self._nodes_changed.take(), self._leases_changed.take()]
        changes = self._pods_changed.take()
        if changes.complete:
            self._pods.clear()
            self._by_node.clear()
        for key, pod in changes.objects.items():
            before = self._pods.pop(key, None)
            if before is not None and (there := before.spec.node_name):
                del self._by_node[there][key]
                if not self._by_node[there]:
                    del self._by_node[there]
            if pod is not None:
                self._pods[key] = pod
                if pod.spec.node_name:
                    self._by_node[pod.spec.node_name][key] = pod
        nodes_changed = any(change.complete or change.objects for change in seen)
        places = {pod.spec.node_name for pod in changes.objects.values() if pod is not None and pod.spec.node_name}
        return nodes_changed or any(map(self._is_troubled, places))

    def _is_troubled(self, node: str) -> bool:
        """Whether pods on it may have to go; of a node never heard of that is to be found out."""
        seen = self._seen.get(node)
        return seen is None or bool(seen.trouble or seen.tainted)

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

    def _tell_of_nodes(self, plan: nodes.Plan, members: dict[str, Node]) -> None:
        """In the words of whoever wrote the condition: the agent, or this leader a moment ago."""
        for name in plan.tell:
            condition = ready_condition(members[name])
            why = condition.message if condition is not None else ""
            if plan.seen[name].told_ready:
                self.context.events.event(members[name], "Normal", "NodeReady", why)
            else:
                self.context.events.event(members[name], "Warning", "NodeNotReady", why)

    def _tell_of_hold(self, plan: nodes.Plan, members: dict[str, Node]) -> None:
        # nodes without pods hold nothing: the first of a cluster is there a moment before its heartbeat
        held = plan.held if any(name in self._by_node for name in plan.held) else ()
        if held and held != self._held:
            text = f"{len(plan.held)} of {plan.total} nodes are gone: no pod is given up until most are back"
            self.log.error("eviction held", nodes=" ".join(plan.held), reason=text)
            for name in plan.held:
                self.context.events.event(members[name], "Warning", "EvictionHeld", text)
        elif self._held and not held:
            self.log.info("eviction no longer held")
        self._held = held

    def _write_nodes(self, plan: nodes.Plan, members: dict[str, Node]) -> None:
        """The conditions and taints of a node are one write."""
        changes: list[Change[Node]] = []
        silent = self.snapshot.silent()
        for name in sorted({*plan.mark_unknown, *plan.mark_ready, *plan.retaint}):
            old = new = members[name]
            if name in plan.mark_unknown:
                why = SILENT if name in silent else GONE
                new = self._with_conditions(old, _BY_AGENT, "Unknown", nodes.UNKNOWN_REASON, why)
            elif name in plan.mark_ready:
                new = self._with_conditions(old, ("Ready",), "True", "HeartbeatReturned", BACK)
            if name in plan.retaint:
                new = replace(new, spec=replace(new.spec, taints=plan.retaint[name].taints))
            changes.append(Change(old, new))
        for change, outcome in zip(changes, self.registry.update_many(changes), strict=True):
            name = change.old.metadata.name
            if isinstance(outcome, Exception):
                self.failed(f"update node {name}", outcome)
                continue
            self.snapshot.nodes.wrote(outcome)

    def _with_conditions(
        self, node: Node, types: Sequence[str], status: ConditionStatus, reason: str, message: str
    ) -> Node:
        """The node with these of its conditions, Ready in any case, saying so."""
        conditions = node.status.conditions
        there = {"Ready", *(condition.type for condition in conditions)}
        for kind in (kind for kind in types if kind in there):
            said = Condition(
                type=kind,
                status=status,
                reason=reason,
                message=message,
                last_transition_time=utcnow_from(self.context.clock.now()),
            )
            conditions = set_condition(conditions, said)
        return replace(node, status=replace(node.status, conditions=conditions))

    def _mark_pods(self, pods: Sequence[Pod]) -> None:
        """Only the status and the time of the condition change, and nothing of the containers: as in Kubernetes."""
        changes = [Change(pod, self._not_ready(pod)) for pod in pods]
        for change, outcome in zip(changes, self.registry.update_many(changes), strict=True):
            pod = change.old
            if isinstance(outcome, Exception):
                there = pod.spec.node_name
                self._seen[there] = without_mark(self._seen[there], pod)
                self.failed(f"mark pod {namespaced_name(pod)} not ready", outcome)
                continue
            self.snapshot.pods.wrote(outcome)
            self.context.events.event(pod, "Warning", "NodeNotReady", NOT_READY)

    def _not_ready(self, pod: Pod) -> Pod:
        said = get_condition(pod.status.conditions, "Ready")
        assert said is not None  # it is True
        said = replace(said, status="False", last_transition_time=utcnow_from(self.context.clock.now()))
        return replace(pod, status=replace(pod.status, conditions=set_condition(pod.status.conditions, said)))

    def _evict(self, evictions: Sequence[nodes.Eviction]) -> None:
        real: set[str] = set()
        for name in sorted({eviction.node for eviction in evictions if eviction.missing}):
            try:
                if self._node_exists(name):
                    real.add(name)
            except PodlaneError as unknown:
                real.add(name)
                self.failed(f"look for node {name}", unknown)
        certain = [eviction for eviction in evictions if eviction.node not in real]
        # a pod that nobody is there to end is removed; another is told to end, with its grace
        self._delete([e for e in certain if e.lost], "NodeLost", "Deleted", grace_seconds=0)
        self._delete([e for e in certain if not e.lost], "TaintManagerEviction", "Told to end", grace_seconds=None)

    def _delete(
        self, evictions: Sequence[nodes.Eviction], reason: str, done: str, *, grace_seconds: int | None
    ) -> None:
        errors = delete_pods(self.registry, self.snapshot, [e.pod for e in evictions], grace_seconds=grace_seconds)
        for eviction, error in zip(evictions, errors, strict=True):
            if error is not None:
                self.failed(f"evict pod {namespaced_name(eviction.pod)}", error)
            else:
                self.context.events.event(eviction.pod, "Warning", reason, f"{done}: {eviction.why}")

    def _node_exists(self, name: str) -> bool:
        try:
            self.registry.get(Node, "", name)
        except NotFound:
            return False
        return True
