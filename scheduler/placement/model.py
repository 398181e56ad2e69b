"""What a placement decides: a plan in named buckets, printed as an operator reads it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from podlane.api.meta import namespaced_name
from podlane.api.types import Pod


@dataclass(frozen=True, slots=True)
class Placement:
    pod: Pod
    node: str


@dataclass(frozen=True, slots=True)
class Unplaced:
    """`why` accounts for every node. `nominated`: the node on which room is being made for the pod, if any.

    `outdated`: a number in `why` may have changed since; `Planner.explain` counts again.
    """

    pod: Pod
    why: str
    nominated: str = ""
    outdated: bool = False


@dataclass(frozen=True, slots=True)
class Preemption:
    """The victims end so that the pod fits on the node; none of them could stay."""

    pod: Pod
    node: str
    victims: tuple[Pod, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """`bind` by priority, then age. `tried` is the number of classes that were looked at, not only remembered."""

    bind: tuple[Placement, ...] = ()
    preempt: tuple[Preemption, ...] = ()
    unschedulable: tuple[Unplaced, ...] = ()
    tried: int = 0

    @property
    def empty(self) -> bool:
        return not (self.bind or self.preempt or self.unschedulable)

    def sizes(self) -> dict[str, int]:
        return {
            "bind": len(self.bind),
            "preempt": len(self.preempt),
            "unschedulable": len(self.unschedulable),
            "tried": self.tried,
        }

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> Iterator[str]:
        for placement in self.bind:
            yield f"bind pod {namespaced_name(placement.pod)} to {placement.node}"
        for preemption in self.preempt:
            whom = namespaced_name(preemption.pod)
            for victim in preemption.victims:
                yield f"preempt pod {namespaced_name(victim)} on {preemption.node} for {whom}"
        for unplaced in self.unschedulable:
            yield f"unschedulable pod {namespaced_name(unplaced.pod)}: {unplaced.why}"
