"""Nodes: which are gone, since when, and when their pods are given up.

Owns: liveness. A node is alive while its heartbeat key exists, a key that ends
with the node's etcd lease; so no clock is ever compared with another
machine's. Invariants: a node that is gone serves no endpoints and gets no pods
from the moment its key is gone; its pods are given up only `grace` seconds
later, counted by this leader from what it has seen itself; and none at all
while most of the cluster seems gone, for that is the network's fault, or ours.
Source: Kubernetes' nodelifecycle controller and pod garbage collector, with
the lease in the place of timestamps.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from podlane.api.meta import get_condition, namespaced_name
from podlane.api.types import Node, Pod

UNKNOWN_REASON = "NodeStatusUnknown"
MANY = 3
"""From this many nodes on, losing more than half of them at once stops eviction."""

SETTLE = 2.0
"""Seconds before the Ready condition is written for a node that may be about to write it itself:
one that just registered (its object comes just before or after its heartbeat) or came back."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What this leader remembers of a node; times are Unix seconds.

    `since`: when it last came or went; `evict_from`: from when the grace period
    counts, which is later than `since` after a mass outage.
    """

    alive: bool
    since: float
    evict_from: float
    ever_alive: bool


@dataclass(frozen=True, slots=True)
class Eviction:
    """A pod to be given up. `missing`: its node has no object at all, which the applier verifies."""

    pod: Pod
    node: str
    missing: bool

    @property
    def why(self) -> str:
        return f"node {self.node} {'does not exist' if self.missing else 'is gone'}"


@dataclass(frozen=True, slots=True)
class Plan:
    """`mark_unknown` and `mark_ready` are nodes whose Ready condition is to be written.

    `held`: the gone nodes, of `total`, whose pods are kept because too many are
    gone. `seen` is what to pass in next time. `next_at` (Unix seconds) is when
    time alone will change the plan.
    """

    seen: Mapping[str, Seen] = field(default_factory=dict)
    mark_unknown: tuple[str, ...] = ()
    mark_ready: tuple[str, ...] = ()
    evict: tuple[Eviction, ...] = ()
    held: tuple[str, ...] = ()
    total: int = 0
    next_at: float | None = None

    @property
    def empty(self) -> bool:
        return not (self.mark_unknown or self.mark_ready or self.evict)

    def sizes(self) -> dict[str, int]:
        """How many are in each bucket that is not empty."""
        return {
            name: len(getattr(self, name))
            for name in ("mark_unknown", "mark_ready", "evict", "held")
            if getattr(self, name)
        }

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> Iterator[str]:
        yield from (f"mark node {name} unknown" for name in self.mark_unknown)
        yield from (f"mark node {name} ready" for name in self.mark_ready)
        yield from (f"evict pod {namespaced_name(e.pod)}: {e.why}" for e in self.evict)
        if self.held:
            yield f"hold {len(self.held)}/{self.total} nodes gone: {' '.join(self.held)}"


def unreachable(nodes: Iterable[Node], alive: Collection[str]) -> frozenset[str]:
    """The nodes without a heartbeat: no new pods, no endpoints.

    Empty when not one node has a heartbeat: then nobody is left to be told, and
    the last known endpoints may still work, so they stand.
    """
    names = {node.metadata.name for node in nodes}
    gone = frozenset(names.difference(alive))
    return frozenset() if len(gone) == len(names) else gone


def plan(
    nodes: Collection[Node],
    alive: Collection[str],
    pods: Iterable[Pod],
    seen: Mapping[str, Seen],
    *,
    now: float,
    grace: float,
) -> Plan:
    """Decide. `alive`: names with a heartbeat key; `seen`: the last plan's (empty for a new leader)."""
    by_node: dict[str, list[Pod]] = defaultdict(list)
    for pod in pods:
        if pod.spec.node_name:
            by_node[pod.spec.node_name].append(pod)
    known = {node.metadata.name: node for node in nodes}
    memory = {name: _look(seen.get(name), name in alive, now) for name in sorted({*known, *by_node})}

    gone = [name for name in known if not memory[name].alive]
    hold = bool(gone) and (len(gone) == len(known) or (len(known) >= MANY and 2 * len(gone) > len(known)))
    if hold:
        # the grace period starts again when the outage ends: nodes do not all come back in one instant
        for name in gone:
            memory[name] = _restart_grace(memory[name], now)

    wakes: list[float] = []
    unknown, ready = _marks(known, memory, now, wakes)
    evict: list[Eviction] = []
    for name in sorted(by_node):
        state = memory[name]
        if state.alive or (hold and name in known):
            continue
        if now >= state.evict_from + grace:
            evict += (Eviction(pod, name, name not in known) for pod in by_node[name])
        else:
            wakes.append(state.evict_from + grace)
    return Plan(
        seen=memory,
        mark_unknown=tuple(unknown),
        mark_ready=tuple(ready),
        evict=tuple(evict),
        held=tuple(sorted(gone)) if hold else (),
        total=len(known),
        next_at=min(wakes, default=None),
    )


def _look(before: Seen | None, alive: bool, now: float) -> Seen:
    if before is None:
        return Seen(alive=alive, since=now, evict_from=now, ever_alive=alive)
    if before.alive == alive:
        return before
    return Seen(alive=alive, since=now, evict_from=now, ever_alive=before.ever_alive or alive)


def _restart_grace(seen: Seen, now: float) -> Seen:
    return Seen(alive=seen.alive, since=seen.since, evict_from=now, ever_alive=seen.ever_alive)


def _marks(
    known: Mapping[str, Node], memory: Mapping[str, Seen], now: float, wakes: list[float]
) -> tuple[list[str], list[str]]:
    """A node that went is marked at once; one never seen alive, and one that came back, after SETTLE."""
    unknown: list[str] = []
    ready: list[str] = []
    for name, node in sorted(known.items()):
        state = memory[name]
        condition = get_condition(node.status.conditions, "Ready")
        if state.alive:
            wrong = condition is not None and condition.reason == UNKNOWN_REASON
            due, bucket = state.since + SETTLE, ready
        else:
            wrong = condition is None or condition.status != "Unknown"
            due, bucket = state.since + (0 if state.ever_alive else SETTLE), unknown
        if wrong and now >= due:
            bucket.append(name)
        elif wrong:
            wakes.append(due)
    return unknown, ready
