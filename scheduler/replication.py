"""Replication: how many pods an owner should have, and which ones to make, keep and remove.

Owns: the decision, for each owner by itself. It knows nothing of the kind it
serves: an `Owner` is whatever wants replicas of a template (kinds.py makes one
of a ReplicationController), and a `Share` is all that is decided on (ownership.py
keeps the shares). Invariants: another controller's pod is never touched; after
a plan is carried out as many active pods remain as are wanted, active meaning
neither finished nor being deleted, or BURST nearer to it. Claims come first: an
owner that must adopt or release pods does only that in one plan and counts in
the next, so that a claim that fails cannot have been counted on. Source:
Kubernetes' pkg/controller/replicaset/replica_set.go.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from podlane.api.meta import namespaced_name
from podlane.api.selectors import matches
from podlane.api.types import ObjectMeta, OwnerReference, Pod, PodTemplateSpec
from scheduler.removal import Removal, ready, ready_since, removal_order

# no vowels and no look-alikes, so that no name spells a word: apimachinery's util/rand
NAME_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
NAME_SUFFIX = 5
NAME_BASE = 63 - NAME_SUFFIX

BURST = 500
"""Pods made or removed for one owner in one plan, so that a large owner keeps no other waiting."""


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

    @property
    def uid(self) -> str:
        return self.reference.uid

    def __str__(self) -> str:
        return f"{self.namespace}/{self.reference.name}"


@dataclass(frozen=True, slots=True)
class Share:
    """All that concerns one owner: the active `pods` it controls, and the `orphans` that are its to adopt."""

    owner: Owner
    pods: Sequence[Pod] = ()
    orphans: Sequence[Pod] = ()


@dataclass(frozen=True, slots=True)
class Claim:
    """A pod that `owner` adopts or releases, as it was read and as it should become."""

    owner: Owner
    pod: Pod
    changed: Pod


@dataclass(frozen=True, slots=True)
class Counts:
    """What an owner's status says of its active pods."""

    replicas: int = 0
    fully_labeled: int = 0
    ready: int = 0
    available: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do, in named buckets.

    By the owner's UID: `counts`; `next_at` (Unix seconds), when time alone will
    change its plan; `unfinished`, whose plan BURST has cut short.
    """

    adopt: tuple[Claim, ...] = ()
    release: tuple[Claim, ...] = ()
    create: tuple[Pod, ...] = ()
    delete: tuple[Removal, ...] = ()
    counts: Mapping[str, Counts] = field(default_factory=dict)
    next_at: Mapping[str, float] = field(default_factory=dict)
    unfinished: frozenset[str] = frozenset()

    @property
    def empty(self) -> bool:
        return not (self.adopt or self.release or self.create or self.delete)

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def sizes(self) -> dict[str, int]:
        """How many are in each bucket that is not empty."""
        return {
            name: len(getattr(self, name)) for name in ("adopt", "release", "create", "delete") if getattr(self, name)
        }

    def lines(self) -> Iterator[str]:
        for name in ("adopt", "release"):
            for claim in getattr(self, name):
                yield f"{name} pod {namespaced_name(claim.pod)}"
        for pod in self.create:
            yield f"create pod {namespaced_name(pod)}"
        for removal in self.delete:
            yield f"delete pod {namespaced_name(removal.pod)} ({removal.why})"


def plan(
    shares: Iterable[Share],
    *,
    now: float,
    rng: random.Random,
    taken: Collection[str] = frozenset(),
    unreachable: Collection[str] = frozenset(),
) -> Plan:
    """Decide for these owners. `taken`: "namespace/name" of every pod there is.

    `unreachable`: nodes that are gone; what their pods last said of being ready
    no longer holds.
    """
    adopt: list[Claim] = []
    release: list[Claim] = []
    create: list[Pod] = []
    delete: list[Removal] = []
    counts: dict[str, Counts] = {}
    next_at: dict[str, float] = {}
    unfinished: set[str] = set()
    named: set[str] = set()
    for share in shares:
        owner, mine = share.owner, share.pods
        counts[owner.uid], wake = _count(owner, mine, now, unreachable)
        if wake is not None:
            next_at[owner.uid] = wake
        if owner.deleting:
            continue
        strangers = _strangers(owner, mine, counts[owner.uid].fully_labeled)
        if strangers or share.orphans:
            release += (Claim(owner, pod, _released(owner, pod)) for pod in strangers)
            adopt += (Claim(owner, pod, _adopted(owner, pod)) for pod in share.orphans)
            continue
        missing = owner.replicas - len(mine)
        if abs(missing) > BURST:
            unfinished.add(owner.uid)
        create += (_new_pod(owner, rng, taken, named) for _ in range(min(missing, BURST)))
        if missing < 0:
            delete += removal_order(mine, unreachable)[: min(-missing, BURST)]
    return Plan(tuple(adopt), tuple(release), tuple(create), tuple(delete), counts, next_at, frozenset(unfinished))


def _strangers(owner: Owner, pods: Sequence[Pod], labeled: int) -> list[Pod]:
    """Those that it does not select. `labeled`: how many have the template's labels, which it does select."""
    if labeled == len(pods) and matches(owner.selector, owner.template.metadata.labels):
        return []
    return sorted((pod for pod in pods if not matches(owner.selector, pod.metadata.labels)), key=namespaced_name)


def _adopted(owner: Owner, pod: Pod) -> Pod:
    references = (*pod.metadata.owner_references, owner.reference)
    return replace(pod, metadata=replace(pod.metadata, owner_references=references))


def _released(owner: Owner, pod: Pod) -> Pod:
    references = tuple(r for r in pod.metadata.owner_references if r.uid != owner.uid)
    return replace(pod, metadata=replace(pod.metadata, owner_references=references))


def _new_pod(owner: Owner, rng: random.Random, taken: Collection[str], named: set[str]) -> Pod:
    prefix = f"{owner.reference.name}-"
    while True:
        name = prefix[:NAME_BASE] + "".join(rng.choices(NAME_ALPHABET, k=NAME_SUFFIX))
        key = f"{owner.namespace}/{name}"
        if key not in taken and key not in named:
            break
    named.add(key)
    meta = ObjectMeta(
        name=name,
        generate_name=prefix,
        namespace=owner.namespace,
        labels=owner.template.metadata.labels,
        annotations=owner.template.metadata.annotations,
        finalizers=owner.template.metadata.finalizers,
        owner_references=(owner.reference,),
    )
    return Pod(kind=Pod.KIND, api_version=Pod.API_VERSION, metadata=meta, spec=owner.template.spec)


def _count(
    owner: Owner, active: Sequence[Pod], now: float, unreachable: Collection[str]
) -> tuple[Counts, float | None]:
    template = owner.template.metadata.labels.items()
    good = [pod for pod in active if ready(pod, unreachable)]
    available = len(good)
    wake: float | None = None
    if owner.min_ready_seconds:
        for pod in good:
            since = ready_since(pod)
            due = (since.timestamp() if since else now) + owner.min_ready_seconds
            if due > now:
                available -= 1
                wake = due if wake is None else min(wake, due)
    labeled = sum(template <= pod.metadata.labels.items() for pod in active)
    return Counts(len(active), labeled, len(good), available), wake
