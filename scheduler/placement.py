"""Placement: which node each unassigned pod goes to, or why none will do.

Owns: filter and score. Invariants: a pod is placed only on a node that lives,
is ready, is not cordoned, matches its nodeSelector and has room for what it
requests, counted with every pod placed before it in the same plan; a pod that
fits nowhere gets a reason that accounts for every node. Pods that ask for the
same thing on behalf of the same owner are one equivalence class: the nodes are
filtered and scored once per class and placements come from a heap, of which
only the node just chosen changes. So the cost is
O(nodes + pods · log nodes) for a class and not pods · nodes.

Score: fewest siblings first (spread), then least requested. Source:
Kubernetes' noderesources (LeastAllocated, the non-zero defaults) and
kube-scheduler's FitError; Nomad's plan in named buckets.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from podlane.api.meta import controller_of, get_condition, is_pod_active, is_pod_finished, namespaced_name
from podlane.api.quantity import bytes_, count, format_bytes, format_cpu, milli_cpu
from podlane.api.types import Node, Pod

# what a pod that requests nothing counts for in the score (never in the filter), so that
# such pods spread too: kube-scheduler's util/pod_resources.go
SCORED_CPU = 100
SCORED_MEMORY = 200 << 20


@dataclass(frozen=True, slots=True)
class Demand:
    """What one pod asks for: thousandths of a CPU, bytes, node labels."""

    cpu: int
    memory: int
    node_selector: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Placement:
    pod: Pod
    node: str


@dataclass(frozen=True, slots=True)
class Unplaced:
    pod: Pod
    why: str


@dataclass(frozen=True, slots=True)
class Plan:
    """`bind` in the order of age; `unschedulable` with the reason for every group of nodes."""

    bind: tuple[Placement, ...] = ()
    unschedulable: tuple[Unplaced, ...] = ()
    classes: int = 0

    @property
    def empty(self) -> bool:
        return not (self.bind or self.unschedulable)

    def sizes(self) -> dict[str, int]:
        return {"bind": len(self.bind), "unschedulable": len(self.unschedulable), "classes": self.classes}

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> Iterator[str]:
        for placement in self.bind:
            yield f"bind pod {namespaced_name(placement.pod)} to {placement.node}"
        for unplaced in self.unschedulable:
            yield f"unschedulable pod {namespaced_name(unplaced.pod)}: {unplaced.why}"


class _NodeState:
    """A node while a plan is made: what it has and what is taken."""

    __slots__ = (
        "alloc_cpu",
        "alloc_memory",
        "alloc_pods",
        "blocked",
        "cpu",
        "labels",
        "memory",
        "name",
        "pods",
        "scored_cpu",
        "scored_memory",
    )

    def __init__(self, node: Node, alive: bool) -> None:
        allocatable = node.status.allocatable
        self.name = node.metadata.name
        self.labels = node.metadata.labels
        self.alloc_cpu = milli_cpu(allocatable.get("cpu", "0"))
        self.alloc_memory = bytes_(allocatable.get("memory", "0"))
        self.alloc_pods = count(allocatable.get("pods", "0"))
        self.cpu = self.memory = self.pods = self.scored_cpu = self.scored_memory = 0
        self.blocked = _blocked(node, alive)

    def take(self, demand: Demand) -> None:
        self.cpu += demand.cpu
        self.memory += demand.memory
        self.pods += 1
        self.scored_cpu += demand.cpu or SCORED_CPU
        self.scored_memory += demand.memory or SCORED_MEMORY

    def room(self, demand: Demand) -> bool:
        return (
            self.pods < self.alloc_pods
            and (demand.cpu == 0 or self.cpu + demand.cpu <= self.alloc_cpu)
            and (demand.memory == 0 or self.memory + demand.memory <= self.alloc_memory)
        )

    def load(self) -> float:
        """The share of the node that is asked for, 0 to 1 and beyond."""
        return (self.scored_cpu / (self.alloc_cpu or 1) + self.scored_memory / (self.alloc_memory or 1)) / 2


def _blocked(node: Node, alive: bool) -> str:
    """Why the node takes no pod at all, or ""."""
    if not alive:
        return "gone"
    if node.spec.unschedulable:
        return "cordoned"
    ready = get_condition(node.status.conditions, "Ready")
    if ready is None or ready.status != "True":
        return "not ready" + (f" ({ready.reason})" if ready and ready.reason else "")
    return ""


def demand_of(pod: Pod) -> Demand:
    """The sum over the containers; a limit without a request is a request, as Kubernetes defaults it."""
    cpu = memory = 0
    for container in pod.spec.containers:
        asked = {**container.resources.limits, **container.resources.requests}
        cpu += milli_cpu(asked.get("cpu", "0"))
        memory += bytes_(asked.get("memory", "0"))
    return Demand(cpu, memory, tuple(sorted(pod.spec.node_selector.items())))


def is_waiting(pod: Pod) -> bool:
    """The pod wants a node."""
    return not pod.spec.node_name and is_pod_active(pod)


def plan(nodes: Iterable[Node], pods: Iterable[Pod], alive: Collection[str]) -> Plan:
    """Decide for every unassigned pod, oldest first. `alive`: names of the nodes with a heartbeat."""
    pods = list(pods)
    waiting = [pod for pod in pods if is_waiting(pod)]
    if not waiting:
        return Plan()
    states = {node.metadata.name: _NodeState(node, node.metadata.name in alive) for node in nodes}
    demands = _Demands()
    siblings: dict[str, Counter[str]] = defaultdict(Counter)
    for pod in pods:
        state = states.get(pod.spec.node_name)
        if state is None or is_pod_finished(pod):
            continue
        state.take(demands.of(pod))
        owner = controller_of(pod)
        if owner is not None and pod.metadata.deletion_timestamp is None:
            siblings[owner.uid][state.name] += 1

    classes: dict[tuple[str, Demand], list[Pod]] = defaultdict(list)
    for pod in sorted(waiting, key=_age):
        owner = controller_of(pod)
        classes[owner.uid if owner else "", demands.of(pod)].append(pod)
    bind: list[Placement] = []
    unplaced: list[Unplaced] = []
    for (owner_uid, demand), members in classes.items():
        # pods of no owner have no siblings to be spread from
        counts = siblings[owner_uid] if owner_uid else Counter[str]()
        placed = _place(members, demand, states, counts, spread=bool(owner_uid))
        bind += placed
        left = members[len(placed) :]
        if left:
            why = explain(demand, list(states.values()))
            unplaced += (Unplaced(pod, why) for pod in left)
    return Plan(tuple(bind), tuple(unplaced), len(classes))


def _age(pod: Pod) -> tuple[float, str, str]:
    created = pod.metadata.creation_timestamp
    return (created.timestamp() if created else float("inf"), pod.metadata.namespace, pod.metadata.name)


class _Demands:
    """Demands by spec: the pods of one owner share one parse when their containers are equal."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], Demand] = {}

    def of(self, pod: Pod) -> Demand:
        key = (
            *pod.spec.node_selector.items(),
            *(
                tuple(quantities.items())
                for container in pod.spec.containers
                for quantities in (container.resources.requests, container.resources.limits)
            ),
        )
        demand = self._known.get(key)
        if demand is None:
            demand = self._known[key] = demand_of(pod)
        return demand


def _place(
    members: Sequence[Pod],
    demand: Demand,
    states: Mapping[str, _NodeState],
    siblings: Counter[str],
    *,
    spread: bool,
) -> list[Placement]:
    """Place members of one class until no node has room; `siblings` and the states are brought up to date."""
    heap = [
        (siblings[state.name], state.load(), state.name)
        for state in states.values()
        if not state.blocked and _selected(demand, state) and state.room(demand)
    ]
    heapq.heapify(heap)
    placed: list[Placement] = []
    for pod in members:
        if not heap:
            break
        _, _, name = heap[0]
        state = states[name]
        state.take(demand)
        if spread:
            siblings[name] += 1
        placed.append(Placement(pod, name))
        if state.room(demand):
            heapq.heapreplace(heap, (siblings[name], state.load(), name))
        else:
            heapq.heappop(heap)
    return placed


def _selected(demand: Demand, state: _NodeState) -> bool:
    return all(state.labels.get(key) == value for key, value in demand.node_selector)


def explain(demand: Demand, states: Sequence[_NodeState]) -> str:
    """`0/3 nodes fit: 2 too little memory (need 2Gi, 1.2Gi free), 1 cordoned`: every node is in one group.

    A node is counted under the first reason that rules it out; "free" is the
    most that any node of the group has.
    """
    if not states:
        return "0/0 nodes fit: no node has registered"
    selector = ",".join(f"{key}={value}" for key, value in demand.node_selector)
    groups: dict[str, list[_NodeState]] = defaultdict(list)
    for state in states:
        if state.blocked:
            groups[state.blocked].append(state)
        elif not _selected(demand, state):
            groups[f"without label {selector}"].append(state)
        elif state.pods >= state.alloc_pods:
            groups["pods"].append(state)
        elif demand.cpu and state.cpu + demand.cpu > state.alloc_cpu:
            groups["cpu"].append(state)
        else:
            groups["memory"].append(state)
    details: dict[str, Callable[[list[_NodeState]], str]] = {
        "pods": lambda members: f"full ({max(s.alloc_pods for s in members)} pods)",
        "cpu": lambda members: (
            f"too little cpu (need {format_cpu(demand.cpu)}, "
            f"{format_cpu(max(max(s.alloc_cpu - s.cpu, 0) for s in members))} free)"
        ),
        "memory": lambda members: (
            f"too little memory (need {_short_bytes(demand.memory)}, "
            f"{_short_bytes(max(max(s.alloc_memory - s.memory, 0) for s in members))} free)"
        ),
    }
    lines = [
        (len(members), details[reason](members) if reason in details else reason) for reason, members in groups.items()
    ]
    lines.sort(key=lambda line: (-line[0], line[1]))
    return f"0/{len(states)} nodes fit: " + ", ".join(f"{number} {text}" for number, text in lines)


def _short_bytes(number: int) -> str:
    """At most one decimal and rounded down, for people: "1.2Gi"."""
    for power, suffix in ((40, "Ti"), (30, "Gi"), (20, "Mi"), (10, "Ki")):
        if number >= 1 << power:
            whole, tenths = divmod(number * 10 >> power, 10)
            return f"{whole}.{tenths}{suffix}" if tenths else f"{whole}{suffix}"
    return format_bytes(number)
