"""One node: what it has, what is taken, and whether a pod may be there at all.

Owns: the filters and scores that concern a node by itself. Invariants: `version`
grows when something of the node changes that a filter or score reads, `stamp`
also when its pods do; taking and giving back leave no trace. Source:
kube-scheduler's nodeunschedulable, tainttoleration, nodeaffinity, nodeports,
noderesources and imagelocality plugins.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count

from podlane.api.meta import get_condition
from podlane.api.quantity import bytes_, milli_cpu
from podlane.api.quantity import count as count_of
from podlane.api.types import Node, Pod, Taint
from scheduler.placement.demand import HostPort
from scheduler.placement.shape import Profile, Shape, image_name
from scheduler.placement.wants import tolerates

_NOT_READY = Taint(key="node.kubernetes.io/not-ready", effect="NoSchedule")
_CORDONED = Taint(key="node.kubernetes.io/unschedulable", effect="NoSchedule")

# sizes between which an image that is there counts, for each container: imagelocality/image_locality.go
_SMALL_IMAGE = 23 << 20
_LARGE_IMAGE = 1000 << 20

_clock = count(1)


@dataclass(frozen=True, slots=True)
class Placed:
    """A pod on a node. `ending`: it is being deleted; `held`: it is not there yet, room is kept for it."""

    key: str
    pod: Pod
    shape: Shape
    node: str
    ending: bool
    held: bool = False


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a pod may not be on a node. Nodes with equal reasons are one group; `kind` says what could change it."""

    kind: str
    text: str = ""


FULL, NO_CPU, NO_MEMORY = Reason("pods"), Reason("cpu"), Reason("memory")


class NodeState:
    """A node with its pods; State alone changes it."""

    __slots__ = (
        "alloc_cpu",
        "alloc_memory",
        "alloc_pods",
        "blocked",
        "cordoned",
        "cpu",
        "images",
        "labels",
        "memory",
        "name",
        "pods",
        "ports",
        "scored_cpu",
        "scored_memory",
        "stamp",
        "taints",
        "version",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.labels: dict[str, str] = {}
        self.taints: tuple[Taint, ...] = ()
        self.images: dict[str, int] = {}
        self.cordoned = False
        self.blocked: Reason | None = None
        self.alloc_cpu = self.alloc_memory = self.alloc_pods = 0
        self.cpu = self.memory = self.scored_cpu = self.scored_memory = 0
        self.pods: dict[str, Placed] = {}
        self.ports: Counter[HostPort] = Counter()
        self.version = self.stamp = next(_clock)

    def facts(self) -> tuple[object, ...]:
        """Everything that filters and scores read of the node itself."""
        return (
            self.labels,
            self.taints,
            self.images,
            self.cordoned,
            self.blocked,
            self.alloc_cpu,
            self.alloc_memory,
            self.alloc_pods,
        )

    def read(self, node: Node, alive: bool) -> bool:
        """Take in the object; whether anything changed that matters."""
        before = self.facts()
        offered = node.status.allocatable
        self.labels, self.taints, self.cordoned = node.metadata.labels, node.spec.taints, node.spec.unschedulable
        self.images = {image_name(name): image.size_bytes for image in node.status.images for name in image.names}
        self.blocked = _blocked(node, alive)
        self.alloc_cpu = _amount(milli_cpu, offered.get("cpu"))
        self.alloc_memory = _amount(bytes_, offered.get("memory"))
        self.alloc_pods = _amount(count_of, offered.get("pods"))
        if before == self.facts():
            return False
        self.version = self.stamp = next(_clock)
        return True

    def domain(self, key: str) -> str | None:
        """Its value of a topology key; "" is the node itself."""
        return self.labels.get(key) if key else self.name

    def take(self, placed: Placed) -> None:
        demand = placed.shape.profile.demand
        self.pods[placed.key] = placed
        self.cpu += demand.cpu
        self.memory += demand.memory
        self.scored_cpu += demand.scored_cpu
        self.scored_memory += demand.scored_memory
        for port in placed.shape.profile.ports:
            self.ports[port] += 1
        self.stamp = next(_clock)

    def give_back(self, placed: Placed) -> None:
        demand = placed.shape.profile.demand
        del self.pods[placed.key]
        self.cpu -= demand.cpu
        self.memory -= demand.memory
        self.scored_cpu -= demand.scored_cpu
        self.scored_memory -= demand.scored_memory
        for port in placed.shape.profile.ports:
            self.ports[port] -= 1
            if not self.ports[port]:
                del self.ports[port]
        self.stamp = next(_clock)

    # --- filters --------------------------------------------------------------------

    def refuses(self, profile: Profile) -> Reason | None:
        """Why such pods may never be here as the node now is, however empty it were."""
        if self.blocked is not None and not (
            self.blocked.kind == "not ready" and tolerates(profile.tolerations, _NOT_READY)
        ):
            return self.blocked
        if self.cordoned and not tolerates(profile.tolerations, _CORDONED):
            return Reason("cordoned", "cordoned")
        for taint in self.taints:
            if taint.effect != "PreferNoSchedule" and not tolerates(profile.tolerations, taint):
                return Reason("taint", f"tainted {_taint_text(taint)}")
        return self._mismatches(profile)

    def _mismatches(self, profile: Profile) -> Reason | None:
        if any(self.labels.get(key) != value for key, value in profile.selector):
            wanted = ",".join(f"{key}={value}" for key, value in profile.selector)
            return Reason("label", f"without label {wanted}")
        if profile.terms is not None and not any(term.matches(self.name, self.labels) for term in profile.terms):
            wanted = " or ".join(str(term) or "(empty)" for term in profile.terms)
            return Reason("label", f"outside node affinity {wanted}")
        for key in profile.keys:
            if key not in self.labels:
                return Reason("label", f"without label {key}")
        return None

    def has_room(self, profile: Profile) -> bool:
        demand = profile.demand
        return (
            len(self.pods) < self.alloc_pods
            and (demand.cpu == 0 or self.cpu + demand.cpu <= self.alloc_cpu)
            and (demand.memory == 0 or self.memory + demand.memory <= self.alloc_memory)
            and not (profile.ports and self._taken(profile) is not None)
        )

    def lacks(self, profile: Profile) -> Reason | None:
        """What there is too little of for such a pod to be here now: has_room, with the reason."""
        demand = profile.demand
        port = self._taken(profile)
        if port is not None:
            return Reason("port", f"with host port {port} taken")
        if len(self.pods) >= self.alloc_pods:
            return FULL
        if demand.cpu and self.cpu + demand.cpu > self.alloc_cpu:
            return NO_CPU
        if demand.memory and self.memory + demand.memory > self.alloc_memory:
            return NO_MEMORY
        return None

    def _taken(self, profile: Profile) -> HostPort | None:
        for wanted in sorted(profile.ports, key=str):
            if any(wanted.clashes(used) for used in self.ports):
                return wanted
        return None

    # --- scores: lower is better ------------------------------------------------------

    def standing(self, profile: Profile, images: Mapping[str, float]) -> tuple[int, int, float]:
        """(taints that would rather not have it, minus the preference, minus the images that are there).

        `images`: the share of all nodes that have an image.
        """
        avoided = sum(
            1
            for taint in self.taints
            if taint.effect == "PreferNoSchedule" and not tolerates(profile.tolerations, taint)
        )
        preference = sum(weight for weight, term in profile.preferred if term.matches(self.name, self.labels))
        return avoided, -preference, -self._images(profile, images)

    def _images(self, profile: Profile, images: Mapping[str, float]) -> float:
        if not self.images or not profile.images:
            return 0.0
        there = sum(self.images[name] * images.get(name, 0.0) for name in profile.images if name in self.images)
        number = len(profile.images)
        return min(max((there - _SMALL_IMAGE) / (_LARGE_IMAGE * number - _SMALL_IMAGE), 0.0), 1.0)

    def load(self, profile: Profile) -> float:
        """How full it would be with one more, by what it has less of: 0 to 1 and beyond.

        That is kube-scheduler's LeastAllocated and BalancedAllocation in one:
        (c + m) / 2 + |c - m| / 2 = max(c, m).
        """
        demand = profile.demand
        return max(
            (self.scored_cpu + demand.scored_cpu) / (self.alloc_cpu or 1),
            (self.scored_memory + demand.scored_memory) / (self.alloc_memory or 1),
        )


def _amount(read: Callable[[str], int], text: str | None) -> int:
    """What nobody can read is nothing: the node says it of itself, and must not keep pods from the others."""
    try:
        return read(text or "0")
    except ValueError:
        return 0


def _blocked(node: Node, alive: bool) -> Reason | None:
    if not alive:
        return Reason("gone", "gone")
    ready = get_condition(node.status.conditions, "Ready")
    if ready is None or ready.status != "True":
        return Reason("not ready", "not ready" + (f" ({ready.reason})" if ready and ready.reason else ""))
    return None


def _taint_text(taint: Taint) -> str:
    return f"{taint.key}={taint.value}:{taint.effect}" if taint.value else f"{taint.key}:{taint.effect}"
