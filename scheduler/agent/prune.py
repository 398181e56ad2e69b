"""Which images and ended containers a node can do without. Pure.

Owns: the rules by which disk is given back. Invariants: an image that any
container is made from, that a pod bound here names, or that holds the pods'
networks is never removed, and none that came less than `min_age` ago, for what
wants it may just be on its way; images go only when the disk is used above
`high`, the longest unused first, and only until it is at `low`; of a container's
ended attempts the latest and the one before stay, for `logs --previous`. Source:
the kubelet's image and container garbage collection (pkg/kubelet/images,
pkg/kubelet/kuberuntime/kuberuntime_gc.go): 85 % and 80 %, 2 min, MaxPerPodContainer 1.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from scheduler.agent import containers as c
from scheduler.agent.history import attempts
from scheduler.agent.planstart import KEPT_DEAD
from scheduler.agent.runtime import INFRA_IMAGE, Image, Record


@dataclass(frozen=True, slots=True)
class Limits:
    """Percent of the disk in use; seconds."""

    high: int = 85
    low: int = 80
    min_age: float = 120.0


@dataclass(frozen=True, slots=True)
class Disk:
    """The file system that holds the images, in bytes."""

    capacity: int
    available: int

    @property
    def used(self) -> int:
        """Percent, as the kubelet counts."""
        return 100 - self.available * 100 // self.capacity if self.capacity else 0


@dataclass(frozen=True, slots=True)
class Age:
    """Of an image: when it was first seen here, and when last in use (0: not since the agent started)."""

    first_seen: float
    last_used: float = 0.0


@dataclass(frozen=True, slots=True)
class Seen:
    """`wanted` are ids of images that bound pods name; `busy` the pods being worked on, by UID."""

    now: float
    records: Collection[Record] = ()
    busy: Collection[str] = ()
    images: Collection[Image] = ()
    ages: Mapping[str, Age] = field(default_factory=dict)
    wanted: Collection[str] = ()
    disk: Disk | None = None


@dataclass(frozen=True, slots=True)
class Prune:
    """What to remove. `asked` is how many bytes of images are to go, `found` how many may."""

    containers: tuple[Record, ...] = ()
    images: tuple[Image, ...] = ()
    asked: int = 0
    found: int = 0

    def __str__(self) -> str:
        lines = [f"docker rm {record.name}" for record in self.containers]
        lines += [f"docker rmi {' '.join(image.names) or image.id}" for image in self.images]
        return "\n".join(lines)


def is_full(disk: Disk, limits: Limits) -> bool:
    return disk.used >= limits.high


def note(ages: Mapping[str, Age], images: Iterable[Image], now: float) -> dict[str, Age]:
    """The ages after a look. What is there at the very first look counts as old."""
    known: dict[str, Age] = {}
    for image in images:
        age = ages.get(image.id) or Age(now if ages else 0.0)
        known[image.id] = Age(age.first_seen, now) if image.in_use else age
    return known


def plan(seen: Seen, limits: Limits) -> Prune:
    containers = tuple(_surplus(seen.records, seen.busy))
    if seen.disk is None or not is_full(seen.disk, limits):
        return Prune(containers)
    asked = seen.disk.capacity * (100 - limits.low) // 100 - seen.disk.available
    chosen: list[Image] = []
    found = 0
    for image in sorted(seen.images, key=lambda image: _order(seen.ages.get(image.id, Age(seen.now)), image)):
        if found >= asked:
            break
        if _may_go(image, seen, limits):
            chosen.append(image)
            found += image.size
    return Prune(containers, tuple(chosen), asked, found)


def _order(age: Age, image: Image) -> tuple[float, float, str]:
    return age.last_used, age.first_seen, image.id


def _may_go(image: Image, seen: Seen, limits: Limits) -> bool:
    if image.in_use or image.id in seen.wanted or INFRA_IMAGE in image.names:
        return False
    return seen.now - seen.ages.get(image.id, Age(seen.now)).first_seen >= limits.min_age


def _surplus(records: Collection[Record], busy: Collection[str]) -> list[Record]:
    """Ended containers beyond the latest attempt and the one before it."""
    by_container: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        if c.pod_uid(record) not in busy:
            by_container.setdefault((c.pod_uid(record), c.container_name(record)), []).append(record)
    return [
        old
        for (_, name), mine in sorted(by_container.items())
        for old in attempts(mine, name)[1 + KEPT_DEAD :]
        if not old.running
    ]
