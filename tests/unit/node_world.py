"""A cluster's nodes as the leader sees them: says what is decided at a moment, and does it."""

from __future__ import annotations

from msgspec.structs import replace
from scheduler_objects import T0, node, pod

from podlane.api import taints
from podlane.api.meta import set_condition
from podlane.api.types import Condition, Node, Pod, Taint, Toleration
from scheduler import nodes
from scheduler.nodes import UNKNOWN_REASON, Patience
from scheduler.nodeseen import Seen

PATIENCE = Patience(grace=5.0, not_ready=300.0, share=1.0)


def tolerant(item: Pod, *tolerations: Toleration) -> Pod:
    return replace(item, spec=replace(item.spec, tolerations=tolerations))


class NodeWorld:
    """Feeds one plan's memory to the next, as the leader does, and carries plans out on its own objects."""

    def __init__(self, *names: str, patience: Patience = PATIENCE) -> None:
        self.patience = patience
        self.nodes: dict[str, Node] = {name: node(name) for name in names}
        self.alive = set(names)
        self.pods: list[Pod] = [pod(f"on-{name}", node=name) for name in names]
        self.news: list[str] = []
        self.seen: dict[str, Seen] = {}
        self.last = nodes.Plan()

    def plan(self, seconds: float) -> nodes.Plan:
        """Decide at T0 + `seconds`, and change nothing."""
        by_node: dict[str, list[Pod]] = {}
        for item in self.pods:
            by_node.setdefault(item.spec.node_name, []).append(item)
        self.last = nodes.plan(
            self.nodes.values(), self.alive, by_node, self.seen, now=T0 + seconds, patience=self.patience
        )
        self.seen = dict(self.last.seen)
        return self.last

    def at(self, seconds: float) -> str:
        """Decide and carry out; returns what was decided, but for taints and news: `taints` and `news` show them."""
        plan = self.plan(seconds)
        self._carry_out(plan)
        return "\n".join(line for line in plan.lines() if not line.startswith(("taint ", "tell ")))

    def _carry_out(self, plan: nodes.Plan) -> None:
        for name in plan.mark_unknown:
            self.says(name, "Unknown", UNKNOWN_REASON)
        for name in plan.mark_ready:
            self.says(name, "True", "HeartbeatReturned")
        for name, change in plan.retaint.items():
            self._spec(name, taints=change.taints)
        for item in plan.unready:
            self.pod_says(item.metadata.name, "False")
        self.news += [line.removeprefix("tell of node ") for line in plan.lines() if line.startswith("tell ")]
        evicted = {id(eviction.pod) for eviction in plan.evict}
        self.pods = [item for item in self.pods if id(item) not in evicted]

    def pod_says(self, name: str, ready: str) -> None:
        """The Ready condition of a pod, by whoever writes it."""
        for i, item in enumerate(self.pods):
            if item.metadata.name == name:
                said = set_condition(item.status.conditions, Condition(type="Ready", status=ready))
                self.pods[i] = replace(item, status=replace(item.status, conditions=said))

    def says(self, name: str, status: str, reason: str = "") -> None:
        """The Ready condition, by whoever writes it."""
        self.condition(name, "Ready", status, reason)

    def condition(self, name: str, kind: str, status: str, reason: str = "") -> None:
        old = self.nodes[name]
        conditions = set_condition(old.status.conditions, Condition(type=kind, status=status, reason=reason))
        self.nodes[name] = replace(old, status=replace(old.status, conditions=conditions))

    def _spec(self, name: str, **changes: object) -> None:
        old = self.nodes[name]
        self.nodes[name] = replace(old, spec=replace(old.spec, **changes))

    def cordon(self, name: str, cordoned: bool = True) -> None:
        self._spec(name, unschedulable=cordoned)

    def taint(self, name: str, *more: Taint) -> None:
        """An operator does."""
        self._spec(name, taints=(*self.nodes[name].spec.taints, *more))

    def untaint(self, name: str, key: str) -> None:
        self._spec(name, taints=tuple(t for t in self.nodes[name].spec.taints if t.key != key))

    def taints(self, name: str) -> list[str]:
        return sorted(taints.spelled(t).removeprefix("node.kubernetes.io/") for t in self.nodes[name].spec.taints)
