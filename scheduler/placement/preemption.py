"""Which pods of lower priority have to end so that a pod fits somewhere.

Owns: the choice of node and victims. Invariants: a victim's priority is lower
than the pod's; with any victim left the pod would not fit there; pods that end
already are no victims, their room is as good as free. The node is the one whose
victims matter least: lowest highest priority, lowest sum of priorities, fewest,
the youngest of the highest; then by name. Source: kube-scheduler's
defaultpreemption (selectVictimsOnNode, pickOneNodeForPreemption).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from scheduler.placement.nodes import NodeState, Placed
from scheduler.placement.rules import Rules, refuses
from scheduler.placement.shape import Shape
from scheduler.placement.state import State

MOST_CANDIDATES = 100
"""Nodes that are compared at most, or a tenth of all: minCandidateNodesAbsolute and -Percentage of kube-scheduler."""

_LEAST_PRIORITY = -(2**31)

Cost = tuple[int, int, int, float, str]


@dataclass(frozen=True, slots=True)
class Candidate:
    node: str
    victims: tuple[Placed, ...]

    @property
    def cost(self) -> Cost:
        highest = max((v.shape.priority for v in self.victims), default=_LEAST_PRIORITY)
        youngest = min((_started(v) for v in self.victims if v.shape.priority == highest), default=0.0)
        total = sum(v.shape.priority - _LEAST_PRIORITY + 1 for v in self.victims)
        return highest, total, len(self.victims), -youngest, self.node


class Choice:
    """Which node pods of one class make room on, one after the other."""

    def __init__(self, state: State, shape: Shape, rules: Rules) -> None:
        self._state = state
        self._shape = shape
        self._rules = rules
        self._found: dict[str, Candidate] = {}
        self._exhausted = False

    def take(self) -> Candidate | None:
        """The node whose victims matter least, or None. What was taken before is to be laid on the state."""
        if not self._found and not self._exhausted:
            self._found = self._candidates()
            self._exhausted = not self._found
        while self._found:
            best = min(self._found.values(), key=lambda candidate: candidate.cost)
            # what it took then may not be what it takes now
            now = candidate_on(self._state.nodes[best.node], self._state, self._shape, self._rules)
            if now == best:
                return best
            if now is None:
                del self._found[best.node]
                if not self._found:
                    return self.take()
            else:
                self._found[best.node] = now
        return None

    def _candidates(self) -> dict[str, Candidate]:
        most = max(MOST_CANDIDATES, len(self._state.nodes) // 10)
        found: dict[str, Candidate] = {}
        for node in self._state.nodes.values():
            candidate = candidate_on(node, self._state, self._shape, self._rules)
            if candidate is not None:
                found[node.name] = candidate
                if len(found) >= most:
                    break
        return found


def candidate_on(node: NodeState, state: State, shape: Shape, rules: Rules) -> Candidate | None:
    """The least that has to end on this node; None if even without all lower priorities the pod would not fit."""
    if node.refuses(shape.profile) is not None:
        return None
    lower = [placed for placed in node.pods.values() if placed.shape.priority < shape.priority]
    if not lower or not _enough(node, shape, lower):
        return None
    victims: list[Placed] = []
    taken_out = list(_take_out(state, lower))
    try:
        if _refused(node, shape, rules):
            return None
        for placed in sorted((p for p in lower if not (p.ending or p.held)), key=_importance):
            state.add(placed)
            taken_out.remove(placed)
            if _refused(node, shape, rules):
                state.remove(placed)
                taken_out.append(placed)
                victims.append(placed)
    finally:
        for placed in taken_out:
            state.add(placed)
        rules.recount()
    return Candidate(node.name, tuple(victims))


def _take_out(state: State, some: list[Placed]) -> Iterator[Placed]:
    for placed in some:
        state.remove(placed)
        yield placed


def _refused(node: NodeState, shape: Shape, rules: Rules) -> bool:
    rules.recount()
    return refuses(node, shape, rules) is not None


def _enough(node: NodeState, shape: Shape, lower: list[Placed]) -> bool:
    """A first look, without touching anything."""
    demand = shape.profile.demand
    cpu = sum(placed.shape.profile.demand.cpu for placed in lower)
    memory = sum(placed.shape.profile.demand.memory for placed in lower)
    return (
        len(node.pods) - len(lower) < node.alloc_pods
        and (not demand.cpu or node.cpu - cpu + demand.cpu <= node.alloc_cpu)
        and (not demand.memory or node.memory - memory + demand.memory <= node.alloc_memory)
    )


def _importance(placed: Placed) -> tuple[int, float, str]:
    """The most important first: it is the last to become a victim."""
    return -placed.shape.priority, _started(placed), placed.key


def _started(placed: Placed) -> float:
    when = placed.pod.status.start_time or placed.pod.metadata.creation_timestamp
    return when.timestamp() if when else 0.0
