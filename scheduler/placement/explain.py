"""Why a class of pods fits nowhere, in words, with every node in exactly one group.

    0/3 nodes fit: 2 too little memory (need 2Gi, 1.2Gi free), 1 cordoned

A node is counted under the first reason that rules it out; "free" is the most
that any node of the group has.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from podlane.api.quantity import format_bytes, format_cpu
from scheduler.placement.demand import Demand
from scheduler.placement.nodes import FULL, NO_CPU, NO_MEMORY, NodeState, Reason
from scheduler.placement.rules import Rules, refuses
from scheduler.placement.shape import Shape
from scheduler.placement.state import State


def explain(state: State, shape: Shape, rules: Rules) -> str:
    """Account for every node."""
    if not state.nodes:
        return "0/0 nodes fit: no node has registered"
    groups: dict[Reason, list[NodeState]] = defaultdict(list)
    fit = 0
    for node in state.nodes.values():
        reason = refuses(node, shape, rules)
        if reason is None:
            fit += 1
        else:
            groups[reason].append(node)
    lines = [(len(nodes), _text(reason, shape.profile.demand, nodes)) for reason, nodes in groups.items()]
    lines.sort(key=lambda line: (-line[0], line[1]))
    return f"{fit}/{len(state.nodes)} nodes fit: " + ", ".join(f"{number} {text}" for number, text in lines)


def _text(reason: Reason, demand: Demand, nodes: Sequence[NodeState]) -> str:
    if reason == FULL:
        return f"full ({max(n.alloc_pods for n in nodes)} pods)"
    if reason == NO_CPU:
        free = max(max(n.alloc_cpu - n.cpu, 0) for n in nodes)
        return f"too little cpu (need {format_cpu(demand.cpu)}, {format_cpu(free)} free)"
    if reason == NO_MEMORY:
        free = max(max(n.alloc_memory - n.memory, 0) for n in nodes)
        return f"too little memory (need {_short_bytes(demand.memory)}, {_short_bytes(free)} free)"
    return reason.text


def _short_bytes(number: int) -> str:
    """At most one decimal and rounded down, for people: "1.2Gi"."""
    for power, suffix in ((40, "Ti"), (30, "Gi"), (20, "Mi"), (10, "Ki")):
        if number >= 1 << power:
            whole, tenths = divmod(number * 10 >> power, 10)
            return f"{whole}.{tenths}{suffix}" if tenths else f"{whole}{suffix}"
    return format_bytes(number)
