"""What a leader remembers of a node from one plan to the next, and what it makes of a new look at it.

Owns: since when a node is as it is, and what was done and said for it since. Pure.
Invariant: times count from what this leader has seen itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import inf

from podlane.api import taints
from podlane.api.meta import get_condition
from podlane.api.types import Condition, Node, Pod, Taint
from scheduler import nodetaints


@dataclass(frozen=True, slots=True)
class Seen:
    """What this leader remembers of a node; times are Unix seconds.

    `since`: when its heartbeat last came or went. `trouble` is the lifecycle
    taint it deserves, which counts from `evict_from`: later than when it began
    after a mass outage. `given_up`: when its pods last had to go for that.
    `tainted`: since when each of an operator's NoExecute taints counts. `marked`:
    the pods (UIDs) marked not ready since its heartbeat went. `told_ready`:
    whether people last heard that it is ready; until they hear, what was stored.
    """

    alive: bool
    since: float
    ever_alive: bool
    trouble: str = ""
    evict_from: float = 0.0
    given_up: float = -inf
    tainted: Mapping[Taint, float] = field(default_factory=dict)
    marked: frozenset[str] = frozenset()
    told_ready: bool = True

    @property
    def is_given_up(self) -> bool:
        return bool(self.trouble) and self.given_up >= self.evict_from


def look(before: Seen | None, node: Node | None, alive: bool, now: float) -> Seen:
    trouble = _trouble(node, alive)
    tainted: dict[Taint, float] = {}
    for taint in nodetaints.of_operator(node) if node is not None else ():
        tainted[taint] = before.tainted.get(taint, now) if before is not None else now
    if before is None:
        return Seen(
            alive=alive,
            since=now,
            ever_alive=alive,
            trouble=trouble,
            evict_from=now,
            tainted=tainted,
            told_ready=ready_status(node) in {"True", None},
        )
    return replace(
        before,
        alive=alive,
        since=before.since if before.alive == alive else now,
        ever_alive=before.ever_alive or alive,
        trouble=trouble,
        evict_from=before.evict_from if before.trouble == trouble else now,
        tainted=tainted,
        marked=frozenset() if alive else before.marked,
    )


def _trouble(node: Node | None, alive: bool) -> str:
    """Why pods may have to leave; what a node that just came back is, it is about to say itself."""
    if not alive:
        return taints.UNREACHABLE
    status = ready_status(node)
    return "" if node is None or status == "Unknown" else nodetaints.trouble(status, alive=True)


def ready_condition(node: Node | None) -> Condition | None:
    return get_condition(node.status.conditions, "Ready") if node is not None else None


def ready_status(node: Node | None) -> str | None:
    condition = ready_condition(node)
    return condition.status if condition is not None else None


def without_mark(seen: Seen, pod: Pod) -> Seen:
    """What is remembered when the pod could not be marked after all."""
    return replace(seen, marked=seen.marked - {pod.metadata.uid})
