"""Placement of the shape that kube-scheduler has: for each pod by itself, filter nodes, score those that fit, take one.

Owns: the peer of the placement benchmarks. Invariant: it decides by the very
filters and scores that the scheduler uses, so that only the shape differs: no
classes, no heaps, nothing remembered of a node. As kube-scheduler does it
(schedule_one.go), it stops filtering once it has found a share of the nodes
(numFeasibleNodesToFind) and begins with the next pod where it stopped. The
numbers of pods by domain are the scheduler's, which it walks over pods for: in
the peer's favour.
"""

from __future__ import annotations

from collections.abc import Sequence

from podlane.api.meta import namespaced_name
from podlane.api.types import Node, Pod
from scheduler.placement.model import Placement
from scheduler.placement.nodes import NodeState
from scheduler.placement.rules import Rules, refuses
from scheduler.placement.shape import Shape
from scheduler.placement.state import State
from scheduler.view import Changes

LEAST_FEASIBLE = 100  # minFeasibleNodesToFind
LEAST_PERCENT = 5


def feasible_wanted(nodes: int) -> int:
    """As numFeasibleNodesToFind has it with the adaptive percentageOfNodesToScore, its default."""
    percent = max(50 - nodes // 125, LEAST_PERCENT)
    return nodes if nodes < LEAST_FEASIBLE else max(nodes * percent // 100, LEAST_FEASIBLE)


class OneByOne:
    """Places pods one after the other on the nodes it was given."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.state = State()
        names = [node.metadata.name for node in nodes]
        self.state.update(nodes=Changes({node.metadata.name: node for node in nodes}, complete=True), alive=names)
        self._order = list(self.state.nodes.values())
        self._start = 0

    def place(self, pods: Sequence[Pod]) -> list[Placement]:
        """Raises LookupError when one fits nowhere."""
        self.state.update(pods=Changes({namespaced_name(pod): pod for pod in pods}))
        return [self._place(pod) for pod in pods]

    def _place(self, pod: Pod) -> Placement:
        members = self.state.members_of(pod)
        rules = Rules(self.state, members.shape)
        scored = [(self._score(node, members.shape, rules), node.name) for node in self._feasible(members.shape, rules)]
        if not scored:
            raise LookupError(f"place {namespaced_name(pod)}: no node fits")
        name = min(scored)[1]
        self.state.assume(namespaced_name(pod), pod, members, name)
        return Placement(pod, name)

    def _feasible(self, shape: Shape, rules: Rules) -> list[NodeState]:
        wanted, found = feasible_wanted(len(self._order)), []
        for offset in range(len(self._order)):
            node = self._order[(self._start + offset) % len(self._order)]
            if refuses(node, shape, rules) is None:
                found.append(node)
                if len(found) >= wanted:
                    break
        self._start = (self._start + offset + 1) % len(self._order)
        return found

    def _score(self, node: NodeState, shape: Shape, rules: Rules) -> tuple[float, ...]:
        avoided, preferred, images = node.standing(shape.profile, {})
        verdict = rules.all.judge(node.domain, alone=True)
        assert verdict is not None  # it was filtered
        return (
            avoided,
            preferred - verdict.preferred,
            verdict.crowd,
            verdict.siblings,
            verdict.neighbours,
            node.load(shape.profile) + images,
        )
