"""What to evict next while nodes are drained. Pure.

Owns: which pods may be moved at all, and the pace. Invariants: of one
controller's pods no more are unavailable on account of a drain than was
allowed, for the next goes only when enough are ready again; a pod that is not
ready costs nobody anything and goes at once; nothing is remembered between two
looks, so a drain that was interrupted goes on where it was. Source: kubectl
drain's filters (kubectl/pkg/drain), and a PodDisruptionBudget's maxUnavailable,
which here is every controller's.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from podlane.api.meta import controller_of, get_condition, is_pod_active, is_pod_finished, is_pod_ready, namespaced_name
from podlane.api.types import OwnerReference, Pod


@dataclass(frozen=True, slots=True)
class Share:
    """A number of pods, or a percentage of a controller's."""

    number: int = 0
    percent: int = 0

    def of(self, replicas: int) -> int:
        """Rounded up, as a PodDisruptionBudget's maxUnavailable is; at least one."""
        return self.number or max(1, math.ceil(replicas * self.percent / 100))


def parse_share(text: str) -> Share:
    """`1`, `25%`. Raises ValueError."""
    number = text.removesuffix("%")
    if not (number.isascii() and number.isdigit()) or int(number) == 0:
        raise ValueError(f'expected a number from 1 on or a percentage from 1%, got "{text}"')
    return Share(percent=int(number)) if text.endswith("%") else Share(number=int(number))


@dataclass(frozen=True, slots=True)
class Refusal:
    """Pods that stay unless an option is given."""

    pods: tuple[str, ...]
    why: str
    option: str

    def __str__(self) -> str:
        return f"drain: {self.why}: {', '.join(self.pods)}; {self.option}"


@dataclass(frozen=True, slots=True)
class Waived:
    """The options of that name."""

    force: bool = False
    delete_emptydir_data: bool = False
    ignore_daemonsets: bool = False


def refusals(pods: Iterable[Pod], waived: Waived) -> tuple[Refusal, ...]:
    """What speaks against deleting the pods, and was not waived."""
    alive = [pod for pod in pods if not is_pod_finished(pod)]
    bare = [pod for pod in alive if controller_of(pod) is None]
    local = [pod for pod in alive if any(v.empty_dir is not None for v in pod.spec.volumes) and not is_daemon(pod)]
    daemons = [pod for pod in alive if is_daemon(pod)]
    found = (
        (waived.force, bare, "pods without a controller would be lost", "--force deletes them"),
        (waived.delete_emptydir_data, local, "emptyDir volumes would be lost", "--delete-emptydir-data lets them go"),
        (waived.ignore_daemonsets, daemons, "a DaemonSet would put them back", "--ignore-daemonsets leaves them"),
    )
    return tuple(
        Refusal(tuple(map(namespaced_name, of)), why, option)
        for is_waived, of, why, option in found
        if of and not is_waived
    )


def is_daemon(pod: Pod) -> bool:
    """A DaemonSet's, which heeds no cordon."""
    owner = controller_of(pod)
    return owner is not None and owner.kind == "DaemonSet"


@dataclass(frozen=True, slots=True)
class Step:
    """`evict` now; `ending` was told to already; `waiting` names each pod that may not go yet with the reason."""

    evict: tuple[Pod, ...] = ()
    ending: tuple[Pod, ...] = ()
    waiting: Mapping[str, str] = field(default_factory=dict)

    @property
    def over(self) -> bool:
        return not (self.evict or self.ending or self.waiting)


def next_step(
    pods: Collection[Pod], going: Collection[str], replicas: Mapping[str, int], max_unavailable: Share
) -> Step:
    """Look once. `pods`: all there are; `going`: UIDs of those to move; `replicas` wanted by the controller's UID."""
    evict: list[Pod] = []
    ending: list[Pod] = []
    waiting: dict[str, str] = {}
    members: dict[str, list[Pod]] = defaultdict(list)
    for pod in pods:
        if (owner := controller_of(pod)) is not None and is_pod_active(pod):
            members[owner.uid].append(pod)
    leaving: Counter[str] = Counter()
    # those that are not ready first: they leave the room to the others
    candidates = sorted(pods, key=lambda pod: (is_pod_ready(pod), namespaced_name(pod)))
    for pod in (pod for pod in candidates if pod.metadata.uid in going):
        owner = controller_of(pod)
        if pod.metadata.deletion_timestamp is not None:
            ending.append(pod)
            continue
        if owner is None or is_pod_finished(pod) or not is_pod_ready(pod):
            evict.append(pod)
            continue
        siblings = members[owner.uid]
        wanted = replicas.get(owner.uid, 0)
        ready = sum(map(is_pod_ready, siblings)) - leaving[owner.uid]
        if wanted - ready < max_unavailable.of(wanted):
            evict.append(pod)
            leaving[owner.uid] += 1
        else:
            waiting[namespaced_name(pod)] = _why(owner, pod.metadata.namespace, siblings, wanted, ready)
    return Step(tuple(evict), tuple(ending), waiting)


def _why(owner: OwnerReference, namespace: str, siblings: Sequence[Pod], wanted: int, ready: int) -> str:
    """What is waited for; with the scheduler's reason if a replacement finds no node."""
    text = f"{owner.kind.lower()} {namespace}/{owner.name} has {ready} of {wanted} ready"
    for pod in siblings:
        scheduled = get_condition(pod.status.conditions, "PodScheduled")
        if not pod.spec.node_name and scheduled is not None and scheduled.message:
            return f"{text}: {pod.metadata.name} is pending: {scheduled.message}"
    return text
