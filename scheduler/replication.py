"""Replication: how many pods an owner should have, and which ones to make, keep and remove.

Owns: the decision, for every owner at once. It knows nothing of the kind it
serves: an `Owner` is whatever wants replicas of a template (kinds.py makes one
of a ReplicationController). Invariants: a pod counts for at most one owner;
another controller's pod is never touched; after a plan is carried out exactly
`replicas` active pods remain, active meaning neither finished nor being
deleted. Claims come first: an owner that must adopt or release pods does only
that in one plan and counts in the next, so that a claim that fails cannot have
been counted on. Source: Kubernetes' pkg/controller/replicaset and
controller_utils.go (ActivePodsWithRanks).
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from msgspec.structs import replace

from podlane.api.meta import controller_of, get_condition, is_pod_active, is_pod_ready, namespaced_name
from podlane.api.selectors import matches, selects
from podlane.api.types import ObjectMeta, OwnerReference, Pod, PodTemplateSpec

# no vowels and no look-alikes, so that no name spells a word: apimachinery's util/rand
NAME_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
NAME_SUFFIX = 5
NAME_BASE = 63 - NAME_SUFFIX

DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"

_PHASE_RANK = {"Pending": 0, "Unknown": 1, "Running": 2}


@dataclass(frozen=True, slots=True)
class Owner:
    """What wants replicas. `min_ready_seconds`: how long a pod must be ready to count as available.

    One that is `deleting` (its deletionTimestamp is set) only counts: it neither
    adopts, makes nor removes pods, so that they can be orphaned in peace.
    """

    reference: OwnerReference
    namespace: str
    selector: Mapping[str, str]
    replicas: int
    template: PodTemplateSpec
    min_ready_seconds: int = 0
    deleting: bool = False

    def __str__(self) -> str:
        return f"{self.namespace}/{self.reference.name}"


@dataclass(frozen=True, slots=True)
class Counts:
    """What an owner's status says of its active pods."""

    replicas: int = 0
    fully_labeled: int = 0
    ready: int = 0
    available: int = 0


@dataclass(frozen=True, slots=True)
class Removal:
    pod: Pod
    why: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do, in named buckets.

    `adopt` and `release` hold the pods as they should become. `collect` are
    pods whose owner is not in the snapshot: the applier asks the store for the
    owner once more before it deletes them. `counts` is by the owner's UID.
    `next_at` (Unix seconds) is when time alone will change the plan.
    """

    adopt: tuple[Pod, ...] = ()
    release: tuple[Pod, ...] = ()
    create: tuple[Pod, ...] = ()
    delete: tuple[Removal, ...] = ()
    collect: tuple[Pod, ...] = ()
    counts: Mapping[str, Counts] = field(default_factory=dict)
    next_at: float | None = None

    @property
    def empty(self) -> bool:
        return not (self.adopt or self.release or self.create or self.delete or self.collect)

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def sizes(self) -> dict[str, int]:
        """How many are in each bucket that is not empty."""
        return {
            name: len(getattr(self, name))
            for name in ("adopt", "release", "create", "delete", "collect")
            if getattr(self, name)
        }

    def lines(self) -> Iterator[str]:
        for name in ("adopt", "release", "create", "collect"):
            for pod in getattr(self, name):
                yield f"{name} pod {namespaced_name(pod)}"
        for removal in self.delete:
            yield f"delete pod {namespaced_name(removal.pod)} ({removal.why})"


def plan(
    owners: Sequence[Owner],
    pods: Iterable[Pod],
    *,
    now: float,
    rng: random.Random,
    kinds: Collection[str] = frozenset({"ReplicationController"}),
    unreachable: Collection[str] = frozenset(),
) -> Plan:
    """Decide for all owners. `kinds`: whose pods are collected when their owner is gone.

    `unreachable`: nodes that are gone; what their pods last said of being ready
    no longer holds.
    """
    owned: dict[str, list[Pod]] = defaultdict(list)
    orphans: dict[str, list[Pod]] = defaultdict(list)
    taken: set[str] = set()
    collect: list[Pod] = []
    known = {owner.reference.uid for owner in owners}
    for pod in pods:
        taken.add(namespaced_name(pod))
        controller = controller_of(pod)
        if controller is None:
            if is_pod_active(pod):
                orphans[pod.metadata.namespace].append(pod)
        elif controller.uid in known:
            owned[controller.uid].append(pod)
        elif controller.kind in kinds and pod.metadata.deletion_timestamp is None:
            collect.append(pod)

    adopt: list[Pod] = []
    release: list[Pod] = []
    create: list[Pod] = []
    delete: list[Removal] = []
    counts: dict[str, Counts] = {}
    next_at: float | None = None
    for owner in owners:
        mine = [pod for pod in owned[owner.reference.uid] if is_pod_active(pod)]
        if owner.deleting:
            counts[owner.reference.uid], _ = _count(owner, mine, now, unreachable)
            continue
        strangers = [pod for pod in mine if not matches(owner.selector, pod.metadata.labels)]
        claims = _claims(owner, orphans[owner.namespace])
        counts[owner.reference.uid], wake = _count(owner, mine, now, unreachable)
        next_at = _earliest(next_at, wake)
        if strangers or claims:
            release += (_released(owner, pod) for pod in strangers)
            adopt += (_adopted(owner, pod) for pod in claims)
            # one orphan must not be promised to two owners
            claimed = {id(pod) for pod in claims}
            orphans[owner.namespace] = [p for p in orphans[owner.namespace] if id(p) not in claimed]
            continue
        missing = owner.replicas - len(mine)
        create += (_new_pod(owner, rng, taken) for _ in range(missing))
        if missing < 0:
            delete += removal_order(mine, unreachable)[:-missing]
    return Plan(tuple(adopt), tuple(release), tuple(create), tuple(delete), tuple(collect), counts, next_at)


def _claims(owner: Owner, orphans: Iterable[Pod]) -> list[Pod]:
    return [pod for pod in orphans if selects(owner.selector, pod.metadata.labels)]


def _adopted(owner: Owner, pod: Pod) -> Pod:
    references = (*pod.metadata.owner_references, owner.reference)
    return replace(pod, metadata=replace(pod.metadata, owner_references=references))


def _released(owner: Owner, pod: Pod) -> Pod:
    references = tuple(r for r in pod.metadata.owner_references if r.uid != owner.reference.uid)
    return replace(pod, metadata=replace(pod.metadata, owner_references=references))


def _new_pod(owner: Owner, rng: random.Random, taken: set[str]) -> Pod:
    prefix = f"{owner.reference.name}-"
    while True:
        name = prefix[:NAME_BASE] + "".join(rng.choices(NAME_ALPHABET, k=NAME_SUFFIX))
        if f"{owner.namespace}/{name}" not in taken:
            break
    taken.add(f"{owner.namespace}/{name}")
    meta = ObjectMeta(
        name=name,
        generate_name=prefix,
        namespace=owner.namespace,
        labels=owner.template.metadata.labels,
        annotations=owner.template.metadata.annotations,
        owner_references=(owner.reference,),
    )
    return Pod(kind=Pod.KIND, api_version=Pod.API_VERSION, metadata=meta, spec=owner.template.spec)


def _count(
    owner: Owner, active: Sequence[Pod], now: float, unreachable: Collection[str]
) -> tuple[Counts, float | None]:
    template = owner.template.metadata.labels
    ready = [pod for pod in active if _ready(pod, unreachable)]
    available = len(ready)
    wake: float | None = None
    if owner.min_ready_seconds:
        for pod in ready:
            since = _ready_since(pod)
            due = (since.timestamp() if since else now) + owner.min_ready_seconds
            if due > now:
                available -= 1
                wake = _earliest(wake, due)
    labeled = sum(matches(template, pod.metadata.labels) for pod in active)
    return Counts(len(active), labeled, len(ready), available), wake


def removal_order(pods: Sequence[Pod], unreachable: Collection[str] = frozenset()) -> list[Removal]:
    """The pods, first to go first, as Kubernetes ranks them; each with what decided its place.

    Siblings on the node are counted as they leave (the first of a node's three
    ranks 3, the next 2, …), where Kubernetes counts once; so what stays is
    spread.
    """
    by_node: dict[str, list[Pod]] = defaultdict(list)
    for pod in pods:
        by_node[pod.spec.node_name].append(pod)
    ranked: list[tuple[tuple[object, ...], int, tuple[object, ...], Pod]] = []
    for siblings in by_node.values():
        siblings.sort(key=lambda pod: (_before_siblings(pod, unreachable), _after_siblings(pod, unreachable)))
        for gone, pod in enumerate(siblings):
            rank = -(len(siblings) - gone)
            first, last = _before_siblings(pod, unreachable), _after_siblings(pod, unreachable)
            ranked.append((first, rank, last, pod))
    ranked.sort(key=lambda entry: entry[:3])
    return [Removal(pod, _why(pod, -rank, unreachable)) for _, rank, _, pod in ranked]


def _before_siblings(pod: Pod, unreachable: Collection[str]) -> tuple[object, ...]:
    return (
        pod.spec.node_name != "",
        _PHASE_RANK.get(pod.status.phase, 2),
        _ready(pod, unreachable),
        _deletion_cost(pod),
    )


def _after_siblings(pod: Pod, unreachable: Collection[str]) -> tuple[object, ...]:
    since = _ready_since(pod) if _ready(pod, unreachable) else None
    restarts = max((status.restart_count for status in pod.status.container_statuses), default=0)
    return (
        # ready for less time goes first; so does what became ready at a time unknown
        -(since.timestamp() if since else float("inf")),
        -restarts,
        -(pod.metadata.creation_timestamp.timestamp() if pod.metadata.creation_timestamp else float("inf")),
        pod.metadata.name,
    )


def _why(pod: Pod, siblings: int, unreachable: Collection[str]) -> str:
    if not pod.spec.node_name:
        return "unassigned"
    if pod.status.phase != "Running":
        return f"{pod.status.phase.lower()} on {pod.spec.node_name}"
    if not _ready(pod, unreachable):
        return f"not ready on {pod.spec.node_name}"
    if cost := _deletion_cost(pod):
        return f"deletion cost {cost}"
    return f"{siblings} on {pod.spec.node_name}"


def _deletion_cost(pod: Pod) -> int:
    try:
        return int(pod.metadata.annotations.get(DELETION_COST, "0"))
    except ValueError:
        return 0


def _ready(pod: Pod, unreachable: Collection[str]) -> bool:
    return pod.spec.node_name not in unreachable and is_pod_ready(pod)


def _ready_since(pod: Pod) -> datetime | None:
    condition = get_condition(pod.status.conditions, "Ready")
    return condition.last_transition_time if condition else None


def _earliest(a: float | None, b: float | None) -> float | None:
    if a is None or b is None:
        return a if b is None else b
    return min(a, b)
